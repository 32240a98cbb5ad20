import pytest
import torch
import yaml
from conftest import encoder_config
from omegaconf import OmegaConf

from e2net.engine.checkpoint import (
    KEY,
    find_checkpoint,
    inherit,
    load_model,
    load_state,
    read_checkpoint,
    saved_state,
)
from e2net.engine.config import build_model

LINEAR = {"_target_": "e2net.decoders.LinearDecoder"}
FROZEN = {"_target_": "e2net.encoders.Frozen"}
FULL = {"_target_": "e2net.encoders.Full"}


def _local(folder, **kwargs):
    return {"_target_": "e2net.encoders.ViTEncoder.from_pretrained", "path": str(folder), **kwargs}


def _config(encoder, tuning=FROZEN, decoder=LINEAR):
    return {"encoder": encoder, "tuning": tuning, "decoder": decoder, "size": 64}


def _save(config, folder):
    model = build_model(config)
    frozen = model.encoder.frozen and model.encoder.pretrained
    file = folder / "checkpoints" / "best.ckpt"
    file.parent.mkdir(parents=True, exist_ok=True)
    fingerprint = model.encoder.fingerprint() if frozen else None
    torch.save({"state_dict": saved_state(model), KEY: {"config": config, "encoder_fingerprint": fingerprint}}, file)
    return model


def test_frozen_pretrained_weights_are_not_stored_and_all_else_is(encoder_folder):
    folder = encoder_folder("dinov3")
    frozen = saved_state(build_model(_config(_local(folder))))
    assert frozen and all(k.startswith("decoder.") for k in frozen)
    # Weights that lie nowhere else must be stored, frozen or not.
    for config in (_config(_local(folder, weights="random")), _config(_local(folder), FULL)):
        assert any(k.startswith("encoder.backbone.") for k in saved_state(build_model(config)))


@pytest.mark.parametrize("weights", ["pretrained", "random"])
@pytest.mark.parametrize("tuning", [FROZEN, FULL])
def test_model_is_rebuilt_from_the_checkpoint_alone(encoder_folder, tmp_path, tuning, weights):
    config = _config(_local(encoder_folder("dinov2"), weights=weights), tuning)
    model = _save(config, tmp_path / "run").eval()
    loaded, found = load_model(tmp_path / "run")
    assert found == config and not loaded.training
    image = torch.rand(1, 3, 56, 70)
    assert torch.equal(model(image).logits, loaded(image).logits)


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
    with pytest.raises(FileNotFoundError, match=r"expected a checkpoint file or a run folder .* found nothing"):
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
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        read_checkpoint(tmp_path / "code.ckpt")


def test_config_in_a_checkpoint_survives_yaml(encoder_folder, tmp_path):
    config = _config({"_target_": "e2net.encoders.ViTEncoder.from_config", "config": encoder_config("dinov3")}, FULL)
    _save(config, tmp_path)
    assert yaml.safe_load(yaml.safe_dump(read_checkpoint(tmp_path)[KEY]["config"])) == config


def test_evaluation_inherits_what_it_is_not_given(encoder_folder, tmp_path):
    _save(_config(_local(encoder_folder("dinov2"))) | {"data": {"root": "trained"}}, tmp_path)
    config = inherit(OmegaConf.create({"ckpt": str(tmp_path), "size": None, "data": {"root": "???"}}))
    assert config.size == 64 and config.data.root == "trained"
    config = inherit(OmegaConf.create({"ckpt": str(tmp_path), "size": 32, "data": {"root": "given"}}))
    assert config.size == 32 and config.data.root == "given"
