import pytest
import torch
import yaml
from conftest import encoder_config
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from transformers import AutoModel

from e2net.engine.checkpoint import (
    KEY,
    encoder_fingerprint,
    find_checkpoint,
    inherit,
    load_model,
    load_state,
    read_checkpoint,
    restore,
    saved_state,
)
from e2net.engine.config import build_model, conf_folder

LINEAR = {"_target_": "e2net.decoders.LinearDecoder"}
FROZEN = {"_target_": "e2net.encoders.Frozen"}
FULL = {"_target_": "e2net.encoders.Full"}
ADAPTER = {"_target_": "e2net.encoders.Adapters", "blocks": [1, 3], "gradient_checkpointing": True}
LORA = {"_target_": "e2net.encoders.LoRA", "rank": 2}
PARTIAL = {"_target_": "e2net.encoders.Partial", "last": 1}
TUNINGS = {"frozen": FROZEN, "adapter": ADAPTER, "lora": LORA, "partial": PARTIAL, "full": FULL}


def _local(folder, **kwargs):
    return {"_target_": "e2net.encoders.ViTEncoder.from_pretrained", "path": str(folder), **kwargs}


def _config(encoder, tuning=FROZEN, decoder=LINEAR):
    return {
        "encoder": encoder,
        "neck": {"_target_": "e2net.decoders.necks.Identity"},
        "tuning": tuning,
        "decoder": decoder,
        "size": 64,
    }


def _save(config, folder):
    model = build_model(config)
    for parameter in model.parameters():  # as training would
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    file = folder / "checkpoints" / "best.ckpt"
    file.parent.mkdir(parents=True, exist_ok=True)
    entry = {"config": config, "encoder_fingerprint": encoder_fingerprint(model)}
    torch.save({"state_dict": saved_state(model), KEY: entry}, file)
    return model


@pytest.mark.parametrize("mode", TUNINGS)
def test_a_pretrained_encoder_is_stored_as_far_as_it_trains(encoder_folder, mode):
    model = build_model(_config(_local(encoder_folder("dinov3")), TUNINGS[mode]))
    stored = {k for k in saved_state(model) if k.startswith("encoder.")}
    assert stored == {n for n, p in model.named_parameters() if n.startswith("encoder.") and p.requires_grad}
    assert {k for k in model.state_dict() if k.startswith("decoder.")} == saved_state(model).keys() - stored
    parts = {"frozen": set(), "adapter": {"adapter"}, "lora": {"lora_A", "lora_B"}, "partial": {"layer", "norm"}}
    if mode in parts:
        assert all(parts[mode] & set(k.split(".")) for k in stored)
    assert encoder_fingerprint(model) is not None  # in full tuning, of the mask token


@pytest.mark.parametrize("mode", TUNINGS)
def test_weights_that_lie_nowhere_else_are_stored_frozen_or_not(encoder_folder, mode):
    model = build_model(_config(_local(encoder_folder("dinov3"), weights="random"), TUNINGS[mode]))
    assert saved_state(model).keys() == model.state_dict().keys()
    assert encoder_fingerprint(model) is None


@pytest.mark.parametrize("weights", ["pretrained", "random"])
@pytest.mark.parametrize("mode", TUNINGS)
def test_model_is_rebuilt_from_the_checkpoint_alone(encoder_folder, tmp_path, architecture, mode, weights):
    config = _config(_local(encoder_folder(architecture), weights=weights), TUNINGS[mode])
    model = _save(config, tmp_path / "run").eval()
    loaded, found = load_model(tmp_path / "run")
    assert found == config and not loaded.training
    p = model.encoder.patch_size
    image = torch.rand(1, 3, 4 * p, 5 * p)
    assert torch.equal(model(image).logits, loaded(image).logits)
    frozen = build_model(config | {"tuning": FROZEN}).encoder.eval()
    if mode != "frozen" and weights == "pretrained":
        assert not torch.equal(frozen(image)[3], loaded.encoder(image)[3])


@pytest.mark.parametrize("mode", ["adapter", "lora", "partial"])
def test_other_frozen_weights_are_refused(encoder_folder, tmp_path, mode):
    folder = encoder_folder("dinov2")
    config = _config(_local(folder), TUNINGS[mode])
    _save(config, tmp_path / "run")
    other = AutoModel.from_pretrained(folder)
    other.get_input_embeddings().projection.weight.data[0, 0, 0, 0] += 1e-3
    other.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"are not those of this checkpoint's training .* encoder_path="):
        load_model(tmp_path / "run")


def test_checkpoint_of_another_tuning_is_refused(encoder_folder, tmp_path):
    encoder = _local(encoder_folder("dinov2"))
    _save(_config(encoder, ADAPTER), tmp_path / "run")
    for tuning in (FROZEN, LORA, ADAPTER | {"blocks": [3]}):
        with pytest.raises(ValueError, match="trained with another encoder, decoder or tuning"):
            restore(build_model(_config(encoder, tuning)), read_checkpoint(tmp_path / "run"))


def test_moved_encoder_is_given_by_path_and_another_one_is_refused(encoder_folder, tmp_path):
    folder = encoder_folder("dinov2")
    _save(_config(_local(folder)), tmp_path / "run")
    folder.rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_model(tmp_path / "run")
    load_model(tmp_path / "run", encoder_path=str(tmp_path / "moved"))
    other = build_model(_config(_local(tmp_path / "moved", weights="random"))).encoder.backbone
    other.save_pretrained(tmp_path / "moved")
    with pytest.raises(ValueError, match="are not those of this checkpoint"):
        load_model(tmp_path / "run", encoder_path=str(tmp_path / "moved"))


def test_state_of_another_architecture_is_refused_whole(encoder_folder):
    encoder = _local(encoder_folder("dinov3"))
    linear = build_model(_config(encoder))
    before = {k: v.clone() for k, v in linear.state_dict().items()}
    caem = {"_target_": "e2net.decoders.CAEMDecoder", "width": 16}
    with pytest.raises(ValueError, match=r"does not fit the model: \d+ tensors differ .* another encoder, decoder"):
        load_state(linear, saved_state(build_model(_config(encoder, decoder=caem))))
    small = {k: v[:1] if v.ndim else v for k, v in saved_state(linear).items()}
    with pytest.raises(ValueError, match=r"has shape \(1,\), expected \(32,\)"):
        load_state(linear, small)
    assert all(torch.equal(before[k], v) for k, v in linear.state_dict().items())


def test_files_that_are_no_checkpoints(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*nowhere: expected a checkpoint .* found nothing"):
        find_checkpoint(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="found an empty or other folder"):
        find_checkpoint(tmp_path)
    (tmp_path / "text.ckpt").write_text("hello")
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        read_checkpoint(tmp_path / "text.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="was not written by e2net"):
        read_checkpoint(tmp_path / "other.ckpt")
    torch.save({"model": build_model}, tmp_path / "code.ckpt")  # a pickled function must not be run
    with pytest.raises(ValueError, match="not a readable checkpoint") as refused:
        read_checkpoint(tmp_path / "code.ckpt")
    assert "weights_only" not in str(refused.value)  # torch's own message advises to run that code


def test_config_in_a_checkpoint_survives_yaml(encoder_folder, tmp_path):
    config = _config({"_target_": "e2net.encoders.ViTEncoder.from_config", "config": encoder_config("dinov3")}, FULL)
    _save(config, tmp_path)
    assert yaml.safe_load(yaml.safe_dump(read_checkpoint(tmp_path)[KEY]["config"])) == config


def test_evaluation_inherits_what_it_is_not_given(encoder_folder, tmp_path):
    _save(_config(_local(encoder_folder("dinov2"))) | {"data": {"root": "trained"}}, tmp_path)
    config = inherit(OmegaConf.create({"ckpt": str(tmp_path), "size": None, "data": {"root": "???"}}))
    assert config.size == 64 and config.data.root == "trained"
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        config = inherit(compose("eval", [f"ckpt={tmp_path}", "data.test=[other]"]))
    assert config.data == {"root": "trained", "test": ["other"]}
    config = inherit(OmegaConf.create({"ckpt": str(tmp_path), "size": 32, "data": {"root": "given"}}))
    assert config.size == 32 and config.data.root == "given"
