"""Encoders other than DINO's ViT in Hugging Face, and what the files of an encoder have to agree with."""

from typing import Any

import pytest
import torch
import yaml
from conftest import ROOT, SMALL, encoder_config
from transformers import AutoConfig, AutoModelForImageTextToText, SiglipConfig, SiglipModel

from e2net.encoders import ConvNeXtEncoder, Frozen, Full, ViTEncoder
from e2net.encoders.hub import build_backbone, weights_on_disk

VIT = {**SMALL, "intermediate_size": 64, "patch_size": 16}
OTHERS = {
    "vit": {**VIT, "model_type": "vit"},
    "deit": {**VIT, "model_type": "deit"},
    "siglip": {**VIT, "model_type": "siglip_vision_model"},
    "internvl": {**VIT, "model_type": "internvl_vision", "attention_bias": True, "use_mean_pooling": False},
    "siglip2": {k: v for k, v in VIT.items() if k != "image_size"}
    | {"model_type": "siglip2_vision_model", "num_patches": 16},
    "dinov2_giant": encoder_config("dinov2") | {"use_swiglu_ffn": True},
    "dinov3_plus": encoder_config("dinov3") | {"use_gated_mlp": True, "hidden_act": "silu"},
}
AIMV2 = {**VIT, "model_type": "aimv2_vision_model"}
SPECIAL = {"vit": 1, "deit": 2, "siglip": 0, "siglip2": 0, "internvl": 1, "dinov2_giant": 1, "dinov3_plus": 5}
CONVNEXT = {"model_type": "dinov3_convnext", "hidden_sizes": [8, 16, 24, 32], "depths": [1, 2, 3, 1]}


def _model(config):
    """A whole Hugging Face model whose weights all matter."""
    torch.manual_seed(0)
    model = build_backbone(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=0.5 if parameter.ndim == 1 else 0, std=0.2)
    return model.eval()


def _hidden_states(model, pixels, patch):
    height, width = (side // patch for side in pixels.shape[-2:])
    if model.config.model_type == "siglip2_vision_model":
        # As the image processor lays a picture out: row by row of patches, each with its channels last.
        rows = [
            pixels[:, :, y * patch : (y + 1) * patch, x * patch : (x + 1) * patch].permute(0, 2, 3, 1).flatten(1)
            for y in range(height)
            for x in range(width)
        ]
        inputs: dict[str, Any] = {
            "pixel_values": torch.stack(rows, 1),
            "pixel_attention_mask": torch.ones(len(pixels), height * width, dtype=torch.long),
            "spatial_shapes": torch.tensor([[height, width]] * len(pixels)),
        }
    else:
        inputs = {"pixel_values": pixels}
        if model.config.model_type in ("vit", "deit", "siglip_vision_model"):
            inputs["interpolate_pos_encoding"] = True
    with torch.no_grad():
        return model(**inputs, output_hidden_states=True).hidden_states


def _norm(model):
    return next(n for name in ("norm", "layernorm", "post_layernorm") if (n := getattr(model, name, None)))


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("name", sorted(OTHERS))
def test_any_vision_transformer_gives_its_hidden_states(name, norm):
    model = _model(OTHERS[name])
    encoder = ViTEncoder(_model(OTHERS[name]), (0.0,) * 3, (1.0,) * 3, norm=norm)
    p = encoder.patch_size
    assert encoder.num_special_tokens == SPECIAL[name]
    assert encoder.backbone.config._attn_implementation == "e2net"
    image = torch.rand(2, 3, 3 * p, 6 * p)  # neither square nor the size of the learned positions
    hidden = _hidden_states(model, image, p)
    with torch.no_grad():
        maps = encoder(image)
    for found, state in zip(maps, hidden[1:], strict=True):
        expected = (_norm(model)(state) if norm else state)[:, SPECIAL[name] :].detach()
        torch.testing.assert_close(found.flatten(2).transpose(1, 2), expected, rtol=0, atol=1e-5)


# BEiT's norm is in its pooling head, Data2Vec's blocks return tuples.
@pytest.mark.parametrize("model_type", ["beit", "data2vec-vision"])
def test_a_model_without_a_final_norm_is_taken_without_it(model_type):
    config = {**VIT, "model_type": model_type}
    with pytest.raises(ValueError, match=r"has no final norm; set encoder.norm=false"):
        ViTEncoder.from_config(config)
    encoder = ViTEncoder(_model(config), (0.0,) * 3, (1.0,) * 3, norm=False)
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        hidden = _model(config)(image, output_hidden_states=True).hidden_states
        maps = encoder(image)
    for found, expected in zip(maps, hidden[1:], strict=True):
        torch.testing.assert_close(found.flatten(2).transpose(1, 2), expected[:, 1:], rtol=0, atol=1e-5)
    Full().apply(encoder)
    sum(m.square().sum() for m in encoder(image)).backward()
    assert not {n for n, p in encoder.named_parameters() if p.requires_grad and p.grad is None}


def test_a_model_whose_norm_is_named_otherwise():
    encoder = ViTEncoder(_model(AIMV2))
    assert encoder.num_special_tokens == 0  # a class token in the head that is dropped is none of the blocks'
    Full().apply(encoder)
    sum(m.square().sum() for m in encoder(torch.rand(2, 3, 64, 64))).backward()
    assert not {n for n, p in encoder.named_parameters() if p.requires_grad and p.grad is None}


@pytest.mark.parametrize("native", [False, True])
def test_positions_of_aimv2_follow_the_size_of_the_image(native):
    """Its own code adds those of its own grid to any image; bit for bit the same there."""
    model, encoder = (_model(AIMV2 | {"is_native": native}) for _ in range(2))
    encoder = ViTEncoder(encoder, (0.0,) * 3, (1.0,) * 3, norm=False)
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        for found, state in zip(encoder(image), _hidden_states(model, image, 16)[1:], strict=True):
            assert torch.equal(found.flatten(2).transpose(1, 2), state)
        assert encoder(torch.rand(2, 3, 48, 96))[0].shape == (2, 32, 3, 6)
        positions = model.embeddings.position_embedding.weight if not native else None
        for height, width in ((64, 32), (96, 96)) if not native else ():
            pixels = torch.rand(1, 3, height, width)
            grid = positions.T.reshape(1, 32, 4, 4)
            grid = torch.nn.functional.interpolate(grid, (height // 16, width // 16), mode="bicubic")
            patches = model.embeddings.rms_norm(model.embeddings.patch_embed(pixels).flatten(2).transpose(1, 2))
            state = model.encoder.layers[0](patches + grid.flatten(2).transpose(1, 2))
            found = encoder(pixels)[0].flatten(2).transpose(1, 2)
            torch.testing.assert_close(found, state, rtol=0, atol=1e-5)


def test_a_model_that_takes_its_own_size_only_says_which():
    encoder = ViTEncoder(_model({**VIT, "model_type": "vit"}))
    encoder.backbone.forward = lambda pixels: pixels.flatten(2)[..., :12] + torch.zeros(16)
    with pytest.raises(ValueError, match=r"ViTModel cannot take images of 48x64 .* are for 64x64: set size=64"):
        encoder(torch.rand(1, 3, 48, 64))


def test_a_model_that_wants_more_than_pixels_is_refused():
    config = {"model_type": "qwen2_5_vl_vision", "hidden_size": 32, "depth": 4, "num_heads": 4, "patch_size": 16}
    # Releases of transformers before 5.15 do not offer it as a model of its own.
    reasons = r"asks for grid_thw beside an image; expected .* takes images alone|transformers cannot build qwen2_5_vl"
    with pytest.raises(ValueError, match=reasons):
        ViTEncoder.from_config(config, norm=False)


def test_a_model_that_drops_patches_is_refused():
    encoder = ViTEncoder.from_config({**VIT, "model_type": "vit_mae"})
    with pytest.raises(ValueError, match="ViTMAEModel returned 4 patch tokens for 4x4 patches; expected one for each"):
        encoder(torch.rand(2, 3, 64, 64))


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_every_trainable_parameter_of_any_vision_transformer_gets_a_gradient(name):
    encoder = ViTEncoder(_model(OTHERS[name]))
    Full().apply(encoder)
    sum(m.square().sum() for m in encoder(torch.rand(1, 3, 4 * encoder.patch_size, 4 * encoder.patch_size))).backward()
    lacking = {n for n, p in encoder.named_parameters() if p.requires_grad and p.grad is None}
    assert not lacking


def test_image_half_of_a_model_of_images_and_texts_is_loaded(tmp_path):
    vision = {k: v for k, v in OTHERS["siglip"].items() if k != "model_type"}
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
    whole = SiglipModel(SiglipConfig(vision_config=vision, text_config=text | {"vocab_size": 8})).eval()
    whole.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}')
    encoder = ViTEncoder.from_pretrained(str(tmp_path), norm=False)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = whole.vision_model((image - 0.5) / 0.5, output_hidden_states=True).hidden_states[4]
        found = encoder(image)[3].flatten(2).transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["internvl", "llava"])
def test_vision_tower_is_taken_out_of_the_files_of_the_whole(tmp_path, name):
    """Written by transformers, as its authors' files are: a tower beside a text model, each with a name in front."""
    tower = "internvl_vision" if name == "internvl" else "clip_vision_model"
    text: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    text |= {"num_key_value_heads": 4, "model_type": "qwen2", "intermediate_size": 32, "vocab_size": 16}
    config = AutoConfig.for_model(name, vision_config={**VIT, "model_type": tower}, text_config=text)
    torch.manual_seed(0)
    whole = AutoModelForImageTextToText.from_config(config).half().eval()
    whole.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}')
    expected = {"model_type": tower, "patch_size": 16, "hidden_size": 32}
    encoder = ViTEncoder.from_pretrained(str(tmp_path), norm=False, config=expected)
    weights = dict(whole.model.vision_tower.float().named_parameters())
    found = dict(encoder.backbone.named_parameters())
    assert len(found) > 60 and all(torch.equal(p, weights[n]) for n, p in found.items())
    with pytest.raises(ValueError, match=r"num_hidden_layers is 4, not 24; patch_size is .*16.*, not 14"):
        ViTEncoder.from_pretrained(str(tmp_path), config=expected | {"patch_size": 14, "num_hidden_layers": 24})


def test_code_that_comes_with_a_model_is_not_run(tmp_path):
    (tmp_path / "configuration_other.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass OtherConfig: pass")
    auto = '{"model_type": "intern_vit_6b", "auto_map": {"AutoConfig": "configuration_other.OtherConfig"}}'
    (tmp_path / "config.json").write_text(auto)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"code comes with its files, and that is never run .* encoder=internvit_300m"):
        ViTEncoder.from_pretrained(str(tmp_path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("name", ["dinov2_registers", "vit"])
def test_class_token_doubles_the_channels(name, norm):
    config = OTHERS.get(name) or encoder_config(name)
    with_token = ViTEncoder(_model(config), norm=norm, class_token=True)
    without = ViTEncoder(_model(config), norm=norm)
    assert with_token.channels == (64,) * 4
    p = without.patch_size
    image = torch.rand(2, 3, 2 * p, 3 * p)
    kept = []
    without.layers()[-1].register_forward_hook(lambda _m, _i, out: kept.append(out[:, 0]))
    with torch.no_grad():
        doubled, single = with_token(image), without(image)
        token = _norm(without.backbone)(kept[0]) if norm else kept[0]
    for a, b in zip(doubled, single, strict=True):
        torch.testing.assert_close(a[:, :32], b)
    torch.testing.assert_close(doubled[3][:, 32:], token[:, :, None, None].expand(-1, -1, 2, 3))


def test_class_token_of_a_model_without_one_is_refused():
    with pytest.raises(ValueError, match=r"SiglipVisionModel has no class token; set encoder.class_token=false"):
        ViTEncoder.from_config(OTHERS["siglip"], class_token=True)


@pytest.mark.parametrize("norm", [False, True])
def test_convnext_maps_equal_the_hidden_states_of_its_stages(norm):
    model = _model(CONVNEXT)
    encoder = ConvNeXtEncoder(_model(CONVNEXT), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), norm)
    assert (encoder.channels, encoder.strides, encoder.size_multiple) == ((8, 16, 24, 32), (4, 8, 16, 32), 32)
    image = torch.rand(2, 3, 64, 96)
    pixels = (image - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    with torch.no_grad():
        output, maps = model(pixels, output_hidden_states=True), encoder(image)
    for stage in range(4):
        expected = output.hidden_states[stage + 1]
        if norm and stage == 3:  # the model's own last output, less the pooled one in front
            expected = output.last_hidden_state[:, 1:].transpose(1, 2).unflatten(2, (2, 3))
        torch.testing.assert_close(maps[stage], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("norm", [False, True])
def test_convnext_trains_and_freezes(norm):
    encoder = ConvNeXtEncoder.from_config(CONVNEXT, norm)
    assert len(encoder.layers()) == 7
    assert all(type(block).__name__ == "DINOv3ConvNextLayer" for block in encoder.layers())
    Full().apply(encoder)
    sum(m.square().sum() for m in encoder(torch.rand(1, 3, 64, 64))).backward()
    assert not {n for n, p in encoder.named_parameters() if p.requires_grad and p.grad is None}
    Frozen().apply(encoder)
    assert not any(m.requires_grad for m in encoder(torch.rand(1, 3, 64, 64)))
    with pytest.raises(ValueError, match=r"65x64 .* multiple of 32, .* are 64x64 and 96x64"):
        encoder(torch.rand(1, 3, 65, 64))


def test_convnext_is_loaded_from_a_folder(tmp_path):
    _model(CONVNEXT).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.1, 0.2, 0.3]}')
    encoder = ConvNeXtEncoder.from_pretrained(str(tmp_path), config=CONVNEXT)
    assert encoder.pretrained
    assert encoder.std.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert all(torch.equal(a, b) for a, b in zip(encoder.parameters(), _model(CONVNEXT).parameters(), strict=True))


def test_each_class_refuses_the_other_kind_of_model():
    with pytest.raises(ValueError, match=r"DINOv3ConvNextModel is no vision transformer; .*encoder=convnext_t"):
        ViTEncoder.from_config(CONVNEXT)
    with pytest.raises(ValueError, match=r"ViTModel is no ConvNeXt; .*encoder=local"):
        ConvNeXtEncoder.from_config(OTHERS["vit"])


def test_files_of_another_model_are_refused(encoder_folder):
    folder = str(encoder_folder("dinov2"))
    ViTEncoder.from_pretrained(folder, config=encoder_config("dinov2"))
    with pytest.raises(ValueError, match=r"hidden_size is 32, not 48; num_hidden_layers is 4, not 6\); put the right"):
        ViTEncoder.from_pretrained(folder, config={"hidden_size": 48, "num_hidden_layers": 6})
    with pytest.raises(ValueError, match=r"num_register_tokens is None, not 4"):
        ViTEncoder.from_pretrained(folder, config={"num_register_tokens": 4})


def test_random_weights_need_no_files(tmp_path, encoder_folder):
    config = encoder_config("dinov3")
    settings: dict[str, Any] = {"weights": "random", "checkpoint_dir": str(tmp_path / "none"), "config": config}
    encoder = ViTEncoder.from_pretrained("facebook/dinov3", **settings)
    assert not encoder.pretrained and encoder.channels == (32,) * 4
    # Files that are there decide about mean and standard deviation.
    folder = encoder_folder("dinov3")
    encoder = ViTEncoder.from_pretrained("facebook/dinov3", **settings | {"checkpoint_dir": str(folder.parent)})
    assert encoder.mean.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])


def test_preprocessor_without_mean_and_std_is_refused(encoder_folder):
    folder = encoder_folder("dinov2")
    (folder / "preprocessor_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"preprocessor_config.json has no image_mean and image_std"):
        ViTEncoder.from_pretrained(str(folder))


def test_weights_on_disk(encoder_folder):
    folder = encoder_folder("dinov2")
    assert weights_on_disk("facebook/dinov2", str(folder.parent))
    assert not weights_on_disk("facebook/dinov2-base", str(folder.parent))


# Width of the last map, parameters of the whole checkpoint, special tokens. DINO's counts are the checked ones of the
# project's reference notes, section 3. ViT's, SigLIP's and InternViT's are those of a second implementation, timm's
# vit_base_patch16_224 (plus 590,592 of the pooler that it lacks), vit_{base,so400m}_patch16_siglip_512 and
# vit_intern300m_patch14_448.
CHECKPOINTS = {
    "dinov3_s": (384, 21_596_544, 5),
    "dinov3_splus": (384, 28_692_864, 5),
    "dinov3_b": (768, 85_660_416, 5),
    "dinov3_l": (1024, 303_129_600, 5),
    "dinov3_l_sat": (1024, 303_129_600, 5),
    "dinov3_hplus": (1280, 840_592_640, 5),
    "dinov3_7b": (4096, 6_716_035_072, 5),
    "dinov3_7b_sat": (4096, 6_716_035_072, 5),
    "dinov2_s": (384, 22_056_576, 1),
    "dinov2_s_reg": (384, 22_058_112, 5),
    "dinov2_b": (768, 86_580_480, 1),
    "dinov2_b_reg": (768, 86_583_552, 5),
    "dinov2_l": (1024, 304_368_640, 1),
    "dinov2_l_reg": (1024, 304_372_736, 5),
    "dinov2_g": (1536, 1_136_480_768, 1),
    "dinov2_g_reg": (1536, 1_136_486_912, 5),
    "convnext_t": (768, 27_820_128, None),
    "convnext_s": (768, 49_454_688, None),
    "convnext_b": (1024, 87_566_464, None),
    "convnext_l": (1536, 196_230_336, None),
    "vit_b": (768, 86_389_248, 1),
    "siglip2_b": (768, 93_520_128, 0),
    "siglip2_so400m": (1152, 428_772_800, 0),
    "internvit_300m": (1024, 304_012_288, 1),
}


@pytest.mark.parametrize("name", sorted(f.stem for f in (ROOT / "conf" / "encoder").glob("*.yaml")))
def test_yaml_builds_the_published_architecture(name):
    settings = yaml.safe_load((ROOT / "conf" / "encoder" / f"{name}.yaml").read_text())
    if name in ("local", "timm", "timm_convnext", "tiny"):
        assert name == "tiny" or "config" not in settings
        return
    width, parameters, special_tokens = CHECKPOINTS[name]
    with torch.device("meta"):
        backbone = build_backbone(settings["config"])
        count = sum(p.numel() for p in backbone.parameters())
        encoder = (ConvNeXtEncoder if "convnext" in name else ViTEncoder)(backbone, norm=settings["norm"])
    assert (encoder.channels[-1], count, getattr(encoder, "num_special_tokens", None)) == (
        width,
        parameters,
        special_tokens,
    )
    described = settings["config"]["model_type"].split("_")[0]
    assert described.removesuffix("v3") in settings["path"].lower()
