"""timm's models give Hugging Face's features for the same weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from e2net.encoders import ConvNeXtEncoder, ViTEncoder
from e2net.encoders.hub import build_backbone

# Small versions of timm's own models; the registered functions pass these on to the class.
VIT = {"embed_dim": 32, "depth": 4, "num_heads": 4}
D3 = {"model_type": "dinov3_vit", "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
D3 |= {"num_register_tokens": 4}
D2 = {"model_type": "dinov2", "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "patch_size": 14}
D2 |= {"image_size": 56}
CASES = {
    "dinov3": ("vit_small_patch16_dinov3", VIT, D3 | {"intermediate_size": 128}),
    "dinov3_bias": ("vit_small_patch16_dinov3_qkvb", VIT, D3 | {"intermediate_size": 128}),
    "dinov3_plus": (
        "vit_small_plus_patch16_dinov3",
        VIT,
        D3 | {"intermediate_size": 128, "use_gated_mlp": True, "hidden_act": "silu"},
    ),
    "dinov2": ("vit_small_patch14_dinov2", VIT | {"img_size": 56}, D2),
    "dinov2_registers": (
        "vit_small_patch14_reg4_dinov2",
        VIT | {"img_size": 56},
        D2 | {"model_type": "dinov2_with_registers", "num_register_tokens": 4},
    ),
    # 48: at 32 timm rounds the width of the gated layer otherwise, as it does at no published one.
    "dinov2_giant": (
        "vit_giant_patch14_dinov2",
        VIT | {"img_size": 56, "embed_dim": 48},
        D2 | {"use_swiglu_ffn": True, "hidden_size": 48},
    ),
}
CONVNEXT = {"model_type": "dinov3_convnext", "hidden_sizes": [8, 16, 24, 32], "depths": [1, 2, 3, 1]}


def _hugging_face(config, biases=True):
    torch.manual_seed(0)
    model = build_backbone(config)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=0.5 if parameter.ndim == 1 else 0, std=0.2)
        if not biases and name.endswith(("q_proj.bias", "v_proj.bias")):
            torch.nn.init.zeros_(parameter)
    return model.eval()


def _carry_over(model, name, model_args):
    """The state dict of the timm model ``name`` with the weights of ``model``."""
    weights = dict(model.named_parameters())
    new = {}

    def take(target, *sources):
        found = [weights.pop(s) for s in sources]
        new[target] = (torch.cat(found) if len(found) > 1 else found[0]).detach().clone()

    v3 = model.config.model_type == "dinov3_vit"
    embeddings = "embeddings."
    projection = "patch_embeddings" + ("" if v3 else ".projection")
    for kind in ("weight", "bias"):
        take(f"patch_embed.proj.{kind}", f"{embeddings}{projection}.{kind}")
        take(f"norm.{kind}", f"{'norm' if v3 else 'layernorm'}.{kind}")
    take("cls_token", embeddings + "cls_token")
    if not v3:
        take("pos_embed", embeddings + "position_embeddings")
    if embeddings + "register_tokens" in weights:
        take("reg_token", embeddings + "register_tokens")
    if not v3 and "reg_token" in new:  # timm adds the class token's position to the token itself
        new["cls_token"] += new["pos_embed"][:, :1]
        new["pos_embed"] = new["pos_embed"][:, 1:]
    attention = {x: f"attention.{x}_proj" for x in "qkvo"}
    if "encoder.layer.0.attention.output.dense.weight" in weights:  # DINOv2 in transformers before 5.15
        attention = {x[0]: f"attention.attention.{x}" for x in ("query", "key", "value")}
        attention["o"] = "attention.output.dense"
    for i in range(4):
        old, block = f"{'model' if v3 else 'encoder'}.layer.{i}.", f"blocks.{i}."
        for kind in ("weight", "bias"):
            for norm in ("norm1", "norm2"):
                take(f"{block}{norm}.{kind}", f"{old}{norm}.{kind}")
            take(f"{block}attn.proj.{kind}", f"{old}{attention['o']}.{kind}")
        take(f"{block}attn.qkv.weight", *(f"{old}{attention[x]}.weight" for x in "qkv"))
        if v3:
            for x in "qv":
                take(f"{block}attn.{x}_bias", f"{old}{attention[x]}.bias")
        else:
            take(f"{block}attn.qkv.bias", *(f"{old}{attention[x]}.bias" for x in "qkv"))
        for j in (1, 2):
            take(f"{block}{'gamma_' if v3 else 'ls'}{j}{'' if v3 else '.gamma'}", f"{old}layer_scale{j}.lambda1")
        _carry_over_mlp(take, weights, old + "mlp.", block + "mlp.", v3)
    weights.pop(embeddings + "mask_token", None)
    assert not weights, f"not carried over: {sorted(weights)}"
    if "blocks.0.attn.q_bias" not in timm.create_model(name, **model_args).state_dict():
        new = {k: v for k, v in new.items() if not k.endswith(("q_bias", "v_bias"))}
    return new


def _carry_over_mlp(take, weights, old, block, v3):
    gated = old + "gate_proj.weight" in weights
    packed = old + "weights_in.weight" in weights  # before transformers 5.15
    for kind in ("weight", "bias"):
        if gated and v3:
            take(f"{block}fc1_g.{kind}", f"{old}gate_proj.{kind}")
            take(f"{block}fc1_x.{kind}", f"{old}up_proj.{kind}")
        elif gated:
            take(f"{block}fc1.{kind}", f"{old}gate_proj.{kind}", f"{old}up_proj.{kind}")
        elif packed:
            take(f"{block}fc1.{kind}", f"{old}weights_in.{kind}")
            take(f"{block}fc2.{kind}", f"{old}weights_out.{kind}")
            continue
        else:
            take(f"{block}fc1.{kind}", old + (f"up_proj.{kind}" if v3 else f"fc1.{kind}"))
        take(f"{block}fc2.{kind}", old + (f"down_proj.{kind}" if gated or v3 else f"fc2.{kind}"))


def _folder(tmp_path: Path, name: str, model_args: dict, weights: dict) -> Path:
    """As ``timm.models.save_for_hf`` writes it."""
    folder = tmp_path / name
    folder.mkdir()
    model: Any = timm.create_model(name, **model_args)
    config = model.pretrained_cfg | {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    settings = {"architecture": name, "num_classes": 0, "pretrained_cfg": config, "model_args": model_args}
    (folder / "config.json").write_text(json.dumps(settings))
    save_file(weights, folder / "model.safetensors")
    return folder


def _compare(ours, reference, patch, sizes):
    for height, width in sizes:
        image = torch.rand(1, 3, height * patch, width * patch)
        with torch.no_grad():
            for found, expected in zip(ours(image), reference(image), strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", sorted(CASES))
def test_same_features_as_hugging_face(case, tmp_path):
    name, model_args, config = CASES[case]
    # Other than its "qkvb" variants, timm's DINOv3 has no biases of queries and values; it says that they are zero.
    model = _hugging_face(config, biases=case not in ("dinov3", "dinov3_plus"))
    folder = _folder(tmp_path, name, model_args, _carry_over(model, name, model_args))
    ours = ViTEncoder.from_timm(str(folder), class_token=True)
    reference = ViTEncoder(model, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), class_token=True)
    assert ours.pretrained
    for attribute in ("channels", "strides", "num_special_tokens", "size_multiple", "blocks"):
        assert getattr(ours, attribute) == getattr(reference, attribute), attribute
    # The size of the learned positions, smaller, larger, and not square.
    _compare(ours, reference, reference.patch_size, [(4, 4), (3, 3), (5, 7), (2, 8)])


def test_same_features_as_hugging_face_convnext(tmp_path):
    model = _hugging_face(CONVNEXT)
    weights = {}
    for key, value in model.state_dict().items():
        new = key.replace("model.stages.0.downsample_layers.", "stem.").replace(
            "model.", "", 1 * key.startswith("model")
        )
        for old, name in (
            ("downsample_layers", "downsample"),
            ("layers", "blocks"),
            ("depthwise_conv", "conv_dw"),
            ("pointwise_conv", "mlp.fc"),
        ):
            new = new.replace(old, name)
        new = new.replace("layer_norm", "norm") if "blocks" in new else new.replace("layer_norm", "head.norm")
        weights[new] = value
    args = {"dims": (8, 16, 24, 32), "depths": (1, 2, 3, 1)}
    folder = _folder(tmp_path, "convnext_tiny", args, weights)
    ours = ConvNeXtEncoder.from_timm(str(folder))
    reference = ConvNeXtEncoder(model, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert (ours.channels, len(ours.layers())) == (reference.channels, len(reference.layers()))
    _compare(ours, reference, 32, [(2, 3)])


@pytest.mark.parametrize(
    "name, stride, special",
    [
        ("deit_tiny_distilled_patch16_224", 16, 2),
        ("vit_small_patch16_rope_ape_224", 16, 1),
        ("vit_pe_core_tiny_patch16_384", 16, 1),
        ("vit_tiny_r_s16_p8_224", 32, 1),
    ],
)
def test_other_classes_of_timm_keep_their_own_tokens(name, stride, special):
    """A distillation token, learned positions beside rotary ones, a convolutional stem."""
    torch.manual_seed(0)
    encoder = ViTEncoder.from_timm(name, weights="random", norm=False)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    size = timm.get_pretrained_cfg(name).input_size[-1]  # where no position is interpolated
    reference: Any = timm.create_model(name)
    reference.load_state_dict(encoder.backbone.state_dict(), strict=False)  # all but the classifier
    image = torch.rand(2, 3, size, size)
    with torch.no_grad():
        found = encoder(image)
        expected = reference.eval().forward_intermediates(
            (image - encoder.mean) / encoder.std, indices=list(encoder.blocks), intermediates_only=True
        )
    assert (encoder.size_multiple, encoder.num_special_tokens) == (stride, special)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_name_with_a_file_of_weights(tmp_path):
    name = "vit_tiny_patch16_224"
    torch.manual_seed(0)
    model: Any = timm.create_model(name)
    file = tmp_path / "weights.safetensors"
    save_file(model.state_dict(), file)
    encoder: Any = ViTEncoder.from_timm(f"timm/{name}", file=str(file))
    assert torch.equal(encoder.backbone.blocks[3].mlp.fc1.weight, model.blocks[3].mlp.fc1.weight)
    assert encoder.channels == (192,) * 4
    lacking = {k: v for k, v in model.state_dict().items() if not k.startswith("blocks.3.")}
    save_file(lacking, file)
    with pytest.raises(ValueError, match=r"timm cannot build or fill this model: .*blocks\.3"):
        ViTEncoder.from_timm(name, file=str(file))
    with pytest.raises(FileNotFoundError, match=r"encoder.file .*nowhere.* does not exist"):
        ViTEncoder.from_timm(name, file=str(tmp_path / "nowhere"))


def test_random_weights_of_a_name_need_no_files():
    encoder = ViTEncoder.from_timm("vit_tiny_patch16_224", weights="random")
    assert not encoder.pretrained


def test_what_cannot_be_loaded_says_why(tmp_path, encoder_folder):
    with pytest.raises(
        FileNotFoundError, match=r"vit_smal does not exist .*checkpoint/vit_smal.* has no model of that"
    ):
        ViTEncoder.from_timm("vit_smal", weights="random")
    with pytest.raises(ValueError, match=r"of another kind than this encoder .* a ConvNeXt \(encoder=timm_convnext\)"):
        ViTEncoder.from_timm("convnext_tiny", weights="random")
    with pytest.raises(ValueError, match="VisionTransformer is no ConvNeXt"):
        ConvNeXtEncoder.from_timm("vit_tiny_patch16_224", weights="random")
    with pytest.raises(FileNotFoundError, match=r"could not be had from the Hub .* or give a file"):
        ViTEncoder.from_timm("vit_small_patch16_dinov3.lvd1689m", checkpoint_dir=str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=r"/nowhere does not exist .* expected a folder with timm's config.json"
    ):
        ViTEncoder.from_timm(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="for one of transformers use encoder=local"):
        ViTEncoder.from_timm(str(encoder_folder("dinov2")))
    folder = tmp_path / "timm"
    folder.mkdir()
    (folder / "config.json").write_text('{"architecture": "vit_tiny_patch16_224"}')
    with pytest.raises(FileNotFoundError, match=r"config.json is timm's: load it with encoder=timm"):
        ViTEncoder.from_pretrained(str(folder))
