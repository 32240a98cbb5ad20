"""Every recipe composes, says where it comes from, and trains: with a tiny encoder of its family, on few pictures."""

import math

import pytest
from conftest import ROOT
from small_recipes import RECIPES, recipe_config, small_recipe

from e2net.evaluation.data import DataModule
from e2net.training import prepare_training


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_takes_two_steps(recipe, tmp_path):
    """Two epochs of one step each."""
    config = small_recipe(recipe, tmp_path)
    config["trainer"] |= {"limit_train_batches": 1}
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
    config = recipe_config("e2net_dinov3_v5", "encoder=dinov2_b", "size=518", "optim.lr=1")
    assert config["encoder"]["path"] == "facebook/dinov2-base"
    assert config["size"] == config["data"]["size"] == 518 and config["optim"]["lr"] == 1
    assert config["decoder"]["width"] == 256 and config["trainer"]["max_epochs"] == 100


def test_published_recipe_is_as_published():
    config = recipe_config("e2net_dinov3_v5")
    assert config["encoder"]["path"].startswith("facebook/dinov3-vitb16") and config["size"] % 16 == 0
    assert config["tuning"]["_target_"].endswith("Frozen") and config["decoder"]["pyramid"] == "simple"
    assert (config["optim"]["lr"], config["optim"]["weight_decay"], config["data"]["batch_size"]) == (1e-4, 5e-4, 8)
    assert config["optim"]["schedule"]["_target_"].endswith("Plateau")
    assert config["loss"]["final"]["dice"] == 2.5 and config["loss"]["final"]["edge"] == 0.7
