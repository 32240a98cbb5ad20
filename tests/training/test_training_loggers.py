"""The groups callbacks and logger: each option through a whole small training, without a network."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from conftest import ROOT
from tiny import rows_of, tiny_job

from e2net.tasks import Camouflage, Depth
from e2net.training import train
from e2net.training.callbacks import EarlyStopping

LOGGERS = sorted(file.stem for file in (ROOT / "conf" / "logger").glob("*.yaml"))


@pytest.mark.parametrize("name", LOGGERS)
def test_every_logger_in_a_run(name, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    monkeypatch.chdir(tmp_path)  # whatever is left outside of the run folder would lie here
    options = ["logger.offline=true"] if name == "wandb" else []
    train(tiny_job(tmp_path / "run", f"logger={name}", *options, "trainer.max_epochs=1"))
    assert any("val/S" in row for row in rows_of(tmp_path / "run"))
    left = {"csv": None, "tensorboard": "tensorboard/events.*", "wandb": "wandb/offline-run-*", "mlflow": "mlruns/*"}
    found = {kind for kind, files in left.items() if files and list((tmp_path / "run").glob(files))}
    assert found == ({name} - {"csv"})
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


def test_an_extra_that_is_not_installed_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"the package wandb, found none; pip install 'e2net\[wandb\]'"):
        tiny_job(tmp_path, "logger=wandb")


def test_early_stopping_ends_a_run(tmp_path):
    options = [
        "callbacks=early_stopping",
        "callbacks.early_stopping.patience=1",
        "optim.lr=1e-9",
        "callbacks.early_stopping.min_delta=0.1",
        "trainer.max_epochs=8",
    ]
    job = tiny_job(tmp_path, *options)
    train(job)
    assert job.trainer.current_epoch < 8


@pytest.mark.parametrize("task", [Camouflage(), Depth()], ids=lambda task: task.name)
def test_early_stopping_goes_on_while_the_score_improves(task):
    trainer: Any = SimpleNamespace(val_check_interval=1.0, check_val_every_n_epoch=1)
    callback = EarlyStopping(patience=2, min_delta=0.1)
    callback.setup(trainer, SimpleNamespace(task=task), "fit")
    way = 1 if task.directions[task.monitor] == "max" else -1
    better = [way * score for score in (0.0, 0.2, 0.4, 0.6, 0.8, 0.85, 0.85)]
    stops = [callback._evaluate_stopping_criteria(torch.tensor(score))[0] for score in better]
    assert stops == [False] * 6 + [True]
    resumed = EarlyStopping(patience=4, min_delta=0.1)
    resumed.setup(trainer, SimpleNamespace(task=task), "fit")
    resumed.load_state_dict(callback.state_dict())
    stops = [resumed._evaluate_stopping_criteria(torch.tensor(way * 0.85))[0] for _ in range(2)]
    assert stops == [False, True]  # after two without improvement before


def test_early_stopping_without_a_validation_is_refused(tmp_path):
    with pytest.raises(ValueError, match="callbacks=early_stopping: expected a validation"):
        tiny_job(tmp_path, "callbacks=early_stopping", "data.val_fraction=0")


def test_callbacks_are_callbacks(tmp_path):
    with pytest.raises(
        ValueError, match=r"callbacks.mine._target_=e2net.losses.Criterion: expected a kind of Callback"
    ):
        tiny_job(tmp_path, "+callbacks.mine={_target_:e2net.losses.Criterion,final:{bce:1}}")
    with pytest.raises(ValueError, match="patience and min_delta of at least 0"):
        tiny_job(tmp_path, "callbacks=early_stopping", "callbacks.early_stopping.patience=-1")


def test_the_default_group_is_what_it_says(tmp_path):
    train(tiny_job(tmp_path / "run", "trainer.max_epochs=1"))
    assert any(key.startswith("lr-") for row in rows_of(tmp_path / "run") for key in row)
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert set(config["callbacks"]) == {"progress", "learning_rate"}
