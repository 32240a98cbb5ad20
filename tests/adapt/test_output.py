"""What is written is what plain ``transformers`` loads, with the same features, and what e2net loads again."""

import errno
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL, encoder_config
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel

from e2net.adapt.output import FILES, check_output, save_encoder
from e2net.encoders import Adapters, ConvNeXtEncoder, Full, LoRA, Partial, ViTEncoder
from e2net.encoders.hub import build_backbone

VIT = {**SMALL, "intermediate_size": 64, "patch_size": 16}
VITS = {
    **{name: encoder_config(name) for name in ("dinov2", "dinov2_registers", "dinov3")},
    "vit": {**VIT, "model_type": "vit"},
    "siglip": {**VIT, "model_type": "siglip_vision_model"},
}
CONVNEXT = {"model_type": "dinov3_convnext", "hidden_sizes": [8, 16, 24, 32], "depths": [1, 2, 3, 1]}
MEAN, STD = (0.4, 0.5, 0.61), (0.1, 0.2, 0.3)


def _encoder(config, kind=ViTEncoder, **settings):
    torch.manual_seed(0)
    backbone = build_backbone(config).eval()
    for parameter in backbone.parameters():
        nn.init.normal_(parameter, mean=0.5 if parameter.ndim == 1 else 0, std=0.2)
    return kind(backbone, MEAN, STD, **settings)


def _loaded(folder, encoder):
    """Tokens of the folder's model in plain transformers, of an image, and those that the encoder gives."""
    model, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    model.eval()
    assert not info["unexpected_keys"] and not info["mismatched_keys"]
    assert all(set(key.split(".")) & {"pooler", "head"} for key in info["missing_keys"])
    p = encoder.size_multiple
    image = torch.rand(2, 3, 2 * p, 3 * p)
    settings = {"interpolate_pos_encoding": True} if model.config.model_type in ("vit", "siglip_vision_model") else {}
    pixels = (image - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    encoder.train(False)
    with torch.no_grad():
        ours = encoder.tokens(image, blocks=encoder.blocks[-1:])[0]
        found = model(pixels, **settings).last_hidden_state
    first = [] if ours.class_token is None else [ours.class_token[:, None]]
    return found, torch.cat((*first, ours.special, ours.patches), 1)


@pytest.mark.parametrize("name", sorted(VITS))
def test_transformers_and_e2net_load_equal_features(tmp_path, name):
    encoder = _encoder(VITS[name])
    encoder.pretrained = True
    if name != "siglip":
        encoder.train_mask_token()
    save_encoder(encoder, tmp_path / "mine", {"base": "somebody/encoder"})
    found, ours = _loaded(tmp_path / "mine", encoder)
    torch.testing.assert_close(found, ours, rtol=0, atol=1e-5)
    again = ViTEncoder.from_pretrained(str(tmp_path / "mine"))
    assert torch.equal(again.mean, encoder.mean) and torch.equal(again.std, encoder.std)
    image = torch.rand(1, 3, 64 if encoder.patch_size == 16 else 56, 64 if encoder.patch_size == 16 else 56)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(again(image), encoder(image), strict=True))


def test_a_convnext_is_loaded_too(tmp_path):
    encoder = _encoder(CONVNEXT, ConvNeXtEncoder)
    save_encoder(encoder, tmp_path / "mine", {})
    found, ours = _loaded(tmp_path / "mine", encoder)
    torch.testing.assert_close(found, ours, rtol=0, atol=1e-4)
    again = ConvNeXtEncoder.from_pretrained(str(tmp_path / "mine"))
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(again(image), encoder(image), strict=True))
    assert "encoder=convnext_t" in (tmp_path / "mine" / "README.md").read_text()


@pytest.mark.parametrize("name", ["dinov2", "dinov3", "vit"])
@pytest.mark.parametrize("tuning", ["lora", "full", "partial"])
def test_what_trained_is_in_it(tmp_path, name, tuning):
    """LoRA merged, recomputed blocks plain, and the encoder goes on as it was."""
    policy = {
        "lora": LoRA(rank=4, gradient_checkpointing=True),
        "full": Full(gradient_checkpointing=True),
        "partial": Partial(last=2),
    }[tuning]
    encoder = _encoder(VITS[name])
    policy.apply(encoder)
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    check_output(encoder, tmp_path / "mine")
    state = {key: value.clone() for key, value in encoder.state_dict().items()}
    save_encoder(encoder, tmp_path / "mine", {})
    assert [*state] == [*encoder.state_dict()]
    assert all(torch.equal(value, state[key]) for key, value in encoder.state_dict().items())
    assert encoder.trained and encoder.training
    found, ours = _loaded(tmp_path / "mine", encoder)
    torch.testing.assert_close(found, ours, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["dinov2", "dinov3", "dinov2_registers"])
def test_dropped_blocks_are_dropped_from_the_config(tmp_path, name):
    encoder = _encoder(VITS[name] | {"num_hidden_layers": 7}, blocks=[0, 2, 3, 4])
    save_encoder(encoder, tmp_path / "mine", {})
    assert AutoConfig.from_pretrained(tmp_path / "mine").num_hidden_layers == 5
    found, ours = _loaded(tmp_path / "mine", encoder)
    torch.testing.assert_close(found, ours, rtol=0, atol=1e-5)
    assert "| blocks | 5 |" in (tmp_path / "mine" / "README.md").read_text()


def test_the_folder_and_its_card(tmp_path):
    encoder = _encoder(VITS["dinov2"])
    card = {
        "base": "facebook/dinov2-small",
        "pictures": 1200,
        "loss": {"dino": 3.14159265, "gram": 0.5},
        "by": "a|b\nc",
    }
    save_encoder(encoder, tmp_path / "deep" / "mine", card, size=100)
    folder = tmp_path / "deep" / "mine"
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, ".e2net.json"])
    assert [path.name for path in folder.parent.iterdir()] == ["mine"]
    text = (folder / "README.md").read_text()
    assert text.startswith('---\nbase_model: "facebook/dinov2-small"\nlibrary_name: transformers\n')
    for line in ("| pictures | 1200 |", "| loss | dino 3.142, gram 0.5 |", "| by | a\\|b c |"):
        assert line in text
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["Dinov2Model"] and "e2net" not in json.dumps(config)
    processor = AutoImageProcessor.from_pretrained(folder)
    picture = np.random.default_rng(0).integers(0, 255, (98, 98, 3), np.uint8)  # 100 is no multiple of 14
    pixels = processor(picture, return_tensors="pt")["pixel_values"]
    expected = (torch.from_numpy(picture).permute(2, 0, 1)[None] / 255 - encoder.mean) / encoder.std
    torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-4)
    save_encoder(encoder, folder, {"base": str(tmp_path)})
    text = (folder / "README.md").read_text()
    assert "base_model" not in text and str(tmp_path.parent) not in text and f"| base | {tmp_path.name} |" in text
    assert len({(folder / name).stat().st_mode for name in FILES}) == 1  # who may read the card may read the weights


def test_foreign_files_stay(tmp_path):
    encoder = _encoder(VITS["dinov3"])
    (tmp_path / "config.json").write_text("mine")
    for write in (check_output, lambda one, folder: save_encoder(one, folder, {})):
        with pytest.raises(ValueError, match=r"output=.*: config.json is there and was not written by e2net; move it"):
            write(encoder, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    (tmp_path / "config.json").rename(tmp_path / "notes.txt")
    for _ in range(2):  # e2net's own are replaced, notes are not touched
        save_encoder(encoder, tmp_path, {})
        assert (tmp_path / "notes.txt").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {*FILES, ".e2net.json", "notes.txt"}


@pytest.mark.parametrize("at", ["model.safetensors", "README.md"])
def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch, at):
    encoder = _encoder(VITS["dinov3"])
    folder = tmp_path / "mine"
    full = OSError(errno.ENOSPC, "No space left on device")

    def refuse(*_args, **_settings):
        raise full

    def refuse_card(path, content):
        if path.name == at:
            raise full
        path.write_text(content)

    with monkeypatch.context() as patch:
        if at == "README.md":
            patch.setattr("e2net.adapt.output.write_atomically", refuse_card)
        else:
            patch.setattr(type(encoder.backbone), "save_pretrained", refuse)
        with pytest.raises(OSError, match="No space left"):
            save_encoder(encoder, folder, {})
        assert not list(tmp_path.iterdir())
    save_encoder(encoder, folder, {"run": 1})
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(type(encoder.backbone), "save_pretrained", refuse)
        with pytest.raises(OSError, match="No space left"):
            save_encoder(encoder, folder, {"run": 2})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in Path(tmp_path).iterdir()] == ["mine"]


def test_what_cannot_be_written_is_said_before(tmp_path):
    encoder = _encoder(VITS["dinov3"])
    Adapters().apply(encoder)
    with pytest.raises(ValueError, match=r"adapters are layers of e2net's own.* tuning=lora, which is merged"):
        check_output(encoder, tmp_path)
    timm = ViTEncoder.from_timm("vit_tiny_patch16_224", weights="random")
    with pytest.raises(ValueError, match=r"VisionTransformer is timm's, and transformers loads no such folder"):
        check_output(timm, tmp_path)
    other = _encoder(VITS["dinov3"])
    other.backbone.extra = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"weights of transformers' DINOv3ViTModel, but .* has extra.bias beside"):
        check_output(other, tmp_path)
    assert not list(tmp_path.iterdir())
