"""Parts of benchmarks/ on which their tables rest."""

import argparse
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from tiny import TINY

sys.path.append(str(ROOT / "benchmarks"))
import resolution
import time_to_score
from scoring import score

from e2net.files import write_atomically
from e2net.runs import build, compose_training, load_model
from e2net.training import prepare_training, train

OPTIONS = argparse.Namespace(
    root=Path("data"), encoder=Path("encoder"), val_fraction=0.1, precision="auto", set=[], size=32, epochs=1
)


def _composed(overrides):
    return compose_training(["run_dir=unused", *(one for one in overrides if not one.startswith("hydra."))])


@pytest.mark.parametrize("name", time_to_score.RECIPES)
def test_recipes_are_made_of_settings_that_there_are(name):
    overrides = time_to_score.RECIPES[name].split()
    for experiment in (one.partition("=")[2] for one in overrides if one.startswith("experiment=")):
        if not (ROOT / "conf" / "experiment" / f"{experiment}.yaml").is_file():
            pytest.skip(f"conf/experiment/{experiment}.yaml is not written yet")
    config = _composed(time_to_score.command(overrides, Path("run"), OPTIONS)[1:])
    assert config["data"]["test"] == ["test"] and config["cache"]["folder"] == "run/cache"
    if name == "published":
        assert config["decoder"]["align"] == "unified" and config["loss"]["final"]["dice"] == 2.5


def test_every_checkpoint_is_kept_though_the_next_one_takes_its_place(tmp_path):
    last, kept, number = tmp_path / "last.ckpt", tmp_path / "kept", None
    kept.mkdir()
    assert time_to_score.keep(last, kept, number) is None
    for epoch in range(3):
        write_atomically(last, f"epoch {epoch}")
        for _ in range(2):  # looked at more often than it is written
            number = time_to_score.keep(last, kept, number)
    assert [file.read_text() for file in sorted(kept.iterdir())] == ["epoch 0", "epoch 1", "epoch 2"]


def test_a_level_is_passed_by_the_first_that_scores_it():
    run = {"epochs": [[10.0, 0.5], [20.0, 0.7], [30.0, 0.6], [40.0, 0.8], [50.0, None]]}
    assert [time_to_score.passed(run, level) for level in (0.5, 0.6, 0.8, 0.9)] == [10.0, 20.0, 40.0, None]
    assert time_to_score.middle([1.0, None, 3.0]) == "2 (1–3), 1 never" and time_to_score.middle([None]) == "–"


def test_recipes_of_ones_own():
    found = time_to_score.recipes(["published", "mine: experiment=recommended size=192"])
    assert found["mine"] == ["experiment=recommended", "size=192"] and "loss=v5" in found["published"]
    with pytest.raises(ValueError, match="--recipes publisht: expected one of fast, recommended"):
        time_to_score.recipes(["publisht"])


@pytest.mark.parametrize("kind", resolution.KINDS)
def test_kinds_of_position_are_what_they_are_called(kind):
    """Where patches change places, features do so too and are otherwise the same only if there are no positions."""
    torch.manual_seed(0)
    encoder = build(_composed(resolution.overrides(kind, 0, Path("run"), OPTIONS))["encoder"]).eval()
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.normal_(std=0.3)
        plain, moved = (encoder(one)[-1].mean((2, 3)) for one in (image, image.roll(8, -1)))
    assert torch.allclose(plain, moved, atol=1e-4) == (kind == "none")


def test_a_checkpoint_is_scored_as_its_run_tests_it(tmp_path):
    looks = ["zoom_test=1.5", "sharpen=2", "test_scales=[1,0.5]", "flip_test=true"]
    found = train(prepare_training(compose_training([*TINY, *looks, f"run_dir={tmp_path / 'run'}"])))
    (tested,) = found.values()
    assert score(*load_model(tmp_path / "run" / "checkpoints" / "best.ckpt")) == pytest.approx(tested)
