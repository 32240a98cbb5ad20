"""``python -m e2net.encoders``."""

import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from conftest import ROOT, encoder_config, mostly_slow

from e2net.arguments import read_settings
from e2net.encoders import ViTEncoder, listing
from e2net.encoders.listing import Cost, _build, _cost, _key, list_encoders, measure, show
from e2net.encoders.options import ListingSettings


def _settings(name):
    return yaml.safe_load((ROOT / "conf" / "encoder" / f"{name}.yaml").read_text())


# GFLOP per image at 384 pixels, as published.
@pytest.mark.parametrize(("name", "expected"), [("dinov3_s", 31), ("dinov3_b", 112), ("dinov3_l", 385)])
def test_flop_are_the_published_ones(name, expected):
    assert round(_cost(_key(_settings(name)), 384).flop / 1e9) == expected


VITS = sorted(f.stem for f in (ROOT / "conf" / "encoder").glob("*.yaml") if "num_hidden_layers" in f.read_text())


@pytest.mark.parametrize("name", mostly_slow([name for name in VITS if name != "tiny"], quick=range(0, 99, 3)))
def test_flop_are_those_of_the_formula(name):
    """Four projections, the MLP's two or (gated) three matrices, and attention's two products, in each block."""
    config = _settings(name)["config"]
    cost = _cost(_key(_settings(name)), 384)
    width, depth, patch = config["hidden_size"], config["num_hidden_layers"], config["patch_size"]
    hidden, gated = config.get("intermediate_size", 4 * width), config.get("use_gated_mlp", False)
    if config.get("use_swiglu_ffn"):  # DINOv2's: two thirds, up to a multiple of 8
        hidden, gated = 4096, True
    patches = (cost.size // patch) ** 2
    tokens = patches + cost.special_tokens
    block = 4 * width**2 + (2 + gated) * width * hidden + 2 * tokens * width
    assert cost.flop == 2 * (depth * tokens * block + patches * 3 * patch**2 * width)


def test_memory_is_the_same_under_every_release():
    """Bytes as found with torch 2.6 to 2.15; DINOv2's code in transformers itself has changed with 5.15."""
    found = {name: _cost(_key(_settings(name)), 384) for name in ("dinov3_s", "siglip2_b", "convnext_t")}
    assert {name: (cost.frozen, cost.adapter, cost.full) for name, cost in found.items()} == {
        "dinov3_s": (14562816, 142508312, 210294784),
        "siglip2_b": (26542080, 280055808, 350816256),
        "convnext_t": (33619968, 234016128, 321652224),
    }


@pytest.mark.parametrize("class_name", ["ViTEncoder", "ConvNeXtEncoder"])
def test_a_short_model_tells_what_the_whole_costs(class_name):
    config = encoder_config("dinov3") | {"num_hidden_layers": 9}
    if class_name == "ConvNeXtEncoder":
        config = {"model_type": "dinov3_convnext", "hidden_sizes": [8, 16, 24, 32], "depths": [2, 1, 6, 1]}
    whole = _build(class_name, config)
    parameters = sum(p.numel() for p in whole.parameters())
    key = _key({"_target_": f"e2net.encoders.{class_name}.from_config", "config": config})
    assert _cost(key, 64) == measure(whole, parameters, 64)


def test_activations_are_what_a_pass_leaves_alive():
    cost = measure(_build("ViTEncoder", encoder_config("dinov2")), 0, 56)
    saved = {}

    def keep(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    # The same on real tensors, by what autograd itself asks to keep.
    real = ViTEncoder.from_config(encoder_config("dinov2"))
    weights = {t.untyped_storage().data_ptr() for t in (*real.parameters(), *real.buffers())}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        maps = real(torch.rand(1, 3, 56, 56))
    kept = sum(size for pointer, size in saved.items() if pointer not in weights)
    assert kept <= cost.full <= 1.3 * kept
    assert sum(m.nbytes for m in maps) < cost.frozen < cost.adapter


def test_memory_of_each_tuning():
    sizes = {"frozen": 1 << 28, "adapter": 2 << 28, "full": 3 << 28}
    cost = Cost(1 << 28, (256,) * 4, 12, 16, 5, 384, 1, **sizes, adapters=1 << 26)
    assert cost.memory(2) == {"frozen": 1.5, "adapter": 1 + 1 + 1, "full": 4 + 1.5}


def test_adapters_are_counted_after_every_block():
    key = _key({"_target_": "e2net.encoders.ViTEncoder.from_config", "config": encoder_config("dinov3")})
    # Norm (2·32), two matrices of 32 by 8, and a scalar.
    assert _cost(key, 64).adapters == 4 * (2 * 32 + 2 * 32 * 8 + 1)


def test_rows_within_a_hundred_columns(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "dinov3-vits16-pretrain-lvd1689m"
    folder.mkdir()
    (folder / "model.safetensors").touch()
    conf = tmp_path / "conf"
    conf.mkdir()
    # Those with the longest name, width and figures, one that is here, one that needs no file, one that takes any.
    for name in ("siglip2_so400m", "convnext_l", "dinov3_7b", "dinov3_s", "dinov2_s", "tiny", "local"):
        shutil.copy(ROOT / "conf" / "encoder" / f"{name}.yaml", conf)
    monkeypatch.setenv("COLUMNS", "60")
    assert show(["size=100", "gpu_gb=2", f"checkpoint_dir={tmp_path}", "batch=16"], conf) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines) <= 100
    assert not any("…" in line for line in lines)
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.strip()}
    assert rows["dinov3_s"][:6] == ["21.6M", "384", "12", "16", "5", "96"]
    assert rows["dinov3_s"][-1] == "yes" and rows["dinov3_7b"][-1] == "no"
    assert rows["dinov2_s"][5] == "98"  # the nearest multiple of its patch size
    assert rows["convnext_l"][1:4] == ["192-1536", "36", "4-32"]
    assert rows["dinov3_s"][-4].endswith("*") and not rows["dinov3_7b"][-4].endswith("*")
    assert "tiny" in rows and "local" not in rows


def test_every_encoder_with_a_config_is_listed(capsys, monkeypatch):
    monkeypatch.setattr(listing, "_cost", lambda _key, size: Cost(1, (8,) * 4, 4, 16, 1, size, 1, 1, 1, 1, 1))
    assert show([]) == 0
    names = {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    assert {f.stem for f in (ROOT / "conf" / "encoder").glob("*.yaml") if "config" in _settings(f.stem)} <= names


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("size=big", r"size=big: expected int, found 'big'"),
        ("batch=0", r"batch=0: expected a number above 0"),
        ("gpu_gb=nan", r"gpu_gb=nan: expected float or null, found nan"),
        ("sise=384", r"unknown setting 'sise'; did you mean size\?"),
    ],
)
def test_wrong_arguments_are_one_line(argument, message, capsys):
    with pytest.raises(ValueError, match=message):
        read_settings(ListingSettings, [argument])
    assert show([argument]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1 and not captured.out


def test_configs_that_are_not_there_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere, found no such folder; .* or a checkout"):
        list_encoders(ListingSettings(), tmp_path / "nowhere")


def test_help():
    command = [sys.executable, "-m", "e2net.encoders", "--help"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    assert "gpu_gb" in shown and "GFLOP" in shown
