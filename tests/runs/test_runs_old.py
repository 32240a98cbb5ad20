"""Checkpoints that earlier versions have written, see tests/runs/old/README.md."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from hydra import compose, initialize_config_dir

from e2net.evaluation import evaluate, prepare_evaluation
from e2net.predict.segmenter import load
from e2net.runs import inherit, resolve
from e2net.runs.checkpoint import FORMAT, KEY, load_model, read_checkpoint

OLD = Path(__file__).parent / "old"
FILES = sorted(OLD.glob("*.ckpt"))
sys.path.append(str(OLD))
from make import picture


def test_there_is_one_of_every_format():
    formats = {torch.load(file, weights_only=True)[KEY].get("format", 0) for file in FILES}
    assert formats == set(range(FORMAT + 1)), "add one by tests/runs/old/make.py"
    assert all(file.stat().st_size < 120_000 for file in FILES)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_predicts_what_it_did(file):
    stored = np.load(file.with_suffix(".npy"))
    assert np.ptp(stored) > 0.5  # or any model would do
    model, config = load_model(file)
    image = torch.from_numpy(picture().transpose(2, 0, 1))[None].float() / 255
    with torch.no_grad():
        found = model(image).prediction[0, 0].numpy()
    np.testing.assert_allclose(found, stored, rtol=1e-4, atol=1e-4)  # other versions of torch round otherwise
    if config["task"]["_target_"] == "e2net.tasks.Camouflage":
        seen = load(file, device="cpu").predict(picture()).prob
        np.testing.assert_allclose(seen, 1 / (1 + np.exp(-stored)), rtol=0, atol=2e-4)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_is_evaluated_by_the_settings_of_its_training(file, tmp_path):
    shutil.copyfile(file, tmp_path / "old.ckpt")
    given = [f"ckpt={tmp_path / 'old.ckpt'}", f"output={tmp_path / 'out'}", "accelerator=cpu"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = resolve(inherit(compose("eval", given), given))
    assert config["data"]["n_test"] == 1
    scores = evaluate(prepare_evaluation(config))["procedural"]
    assert np.isfinite(list(scores.values())).all()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_nothing_of_it_is_another_value_than_it_was(file):
    raw, read = torch.load(file, weights_only=True), read_checkpoint(file)
    assert raw["state_dict"].keys() == read["state_dict"].keys()
    assert all(torch.equal(value, read["state_dict"][key]) for key, value in raw["state_dict"].items())
    assert raw["global_step"] == read["global_step"] > 0
