"""Every recipe composes, says where it comes from, and trains: with a tiny encoder of its family, on few pictures."""

import math

import pytest
from conftest import ROOT, encoder_config
from hydra import compose, initialize_config_dir

from e2net.evaluation.data import DataModule
from e2net.runs import resolve
from e2net.training import prepare_training

RECIPES = sorted(file.stem for file in (ROOT / "conf" / "experiment").glob("*.yaml"))
# By a part of the name of a downloaded encoder: the tiny one that stands in for it. The order matters: both kinds of
# DINOv2 are named so.
FAMILIES = {"dinov3": "dinov3", "with-registers": "dinov2_registers", "dinov2": "dinov2"}


def _compose(recipe):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return resolve(compose("train", [f"experiment={recipe}", "run_dir=unused"]))


def _tiny(encoder):
    """A random encoder with the family, the depth and the options of a recipe's, but 32 channels."""
    if "path" not in encoder:
        return encoder
    family = next(tiny for name, tiny in FAMILIES.items() if name in encoder["path"])
    depth = 24 if "large" in encoder["path"] or "vitl" in encoder["path"] else 12
    config = encoder_config(family) | {"num_hidden_layers": depth}
    options = {key: value for key, value in encoder.items() if key in ("blocks", "norm")}
    return {"_target_": "e2net.encoders.ViTEncoder.from_config", "config": config, **options}


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_takes_two_steps(recipe, tmp_path):
    """Two epochs of one step each, with all of the recipe's own options but those that make it long."""
    config = _compose(recipe)
    config["encoder"] = _tiny(config["encoder"])
    patch = config["encoder"]["config"]["patch_size"]
    kept = {key: config["data"][key] for key in ("augment", "seed")}
    small = {"n_train": 12, "n_test": 1, "sides": [32, 48], "size": 4 * patch, "batch_size": 2, "num_workers": 0}
    config["data"] = {"_target_": "e2net.datasets.ProceduralData", "val_fraction": 0.3, **small, **kept}
    config["trainer"] |= {"max_epochs": 2, "limit_train_batches": 1, "accumulate_grad_batches": 1, "accelerator": "cpu"}
    config["trainer"] |= {"precision": "32-true"}
    config |= {"run_dir": str(tmp_path), "num_samples": 0, "size": 4 * patch}
    config["cache"]["folder"] = str(tmp_path / "cache")
    if "width" in config["decoder"]:
        config["decoder"]["width"] = 16
    job = prepare_training(config)
    job.trainer.fit(job.module, datamodule=DataModule(job.data))
    assert job.trainer.global_step == 2
    assert math.isfinite(job.trainer.callback_metrics["train/loss"])
    assert (tmp_path / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_says_where_it_comes_from_and_how_to_run_it(recipe):
    text = (ROOT / "conf" / "experiment" / f"{recipe}.yaml").read_text()
    head = [line for line in text.splitlines() if line.startswith("#")]
    assert head[0] == "# @package _global_"
    assert any(line.startswith("# Source: ") for line in head)
    assert any(f"python train.py experiment={recipe}" in line for line in head)


def test_recipe_gives_way_to_the_command_line():
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = resolve(
            compose("train", ["experiment=e2net_dinov3_v5", "encoder=dinov2_b", "size=518", "optim.lr=1", "run_dir=x"])
        )
    assert config["encoder"]["path"] == "facebook/dinov2-base"
    assert config["size"] == config["data"]["size"] == 518 and config["optim"]["lr"] == 1
    assert config["decoder"]["width"] == 256 and config["trainer"]["max_epochs"] == 100


def test_published_recipe_is_as_published():
    config = _compose("e2net_dinov3_v5")
    assert config["encoder"]["path"].startswith("facebook/dinov3-vitb16") and config["size"] % 16 == 0
    assert config["tuning"]["_target_"].endswith("Frozen") and config["decoder"]["pyramid"] == "simple"
    assert (config["optim"]["lr"], config["optim"]["weight_decay"], config["data"]["batch_size"]) == (1e-4, 5e-4, 8)
    assert config["optim"]["schedule"]["_target_"].endswith("Plateau")
    assert config["loss"]["final"]["dice"] == 2.5 and config["loss"]["final"]["edge"] == 0.7
