"""The groups callbacks and logger: each option through a whole small training, without a network."""

import pytest
import yaml
from conftest import ROOT
from tiny import rows_of, tiny_job

from e2net.training import train

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
