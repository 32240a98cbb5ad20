"""The smallest training that has all parts of one: seconds matter where it is run dozens of times."""

import copy
import csv
import functools

from conftest import ROOT
from hydra import compose, initialize_config_dir

from e2net.runs import resolve
from e2net.training import prepare_training

TINY = [
    "size=32", "decoder.width=16", "data.n_train=12", "data.n_test=3", "data.sides=[32,40]", "data.batch_size=4",
    "data.num_workers=0", "data.val_fraction=0.3", "trainer.accelerator=cpu", "trainer.max_epochs=2",
    "trainer.log_every_n_steps=1", "num_samples=1", "encoder.config.hidden_size=24",
    "encoder.config.intermediate_size=32", "schedule=poly",
]  # fmt: skip


@functools.cache
def _composed(overrides):
    tiny = [one for one in TINY if "decoder=linear" not in overrides or one != "decoder.width=16"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return resolve(compose("train", [*tiny, "run_dir=unknown", *overrides]))


def tiny_config(folder, *overrides):
    """Composed once: that takes longer than to train."""
    resume = [one.removeprefix("resume=") for one in overrides if one.startswith("resume=")]
    config = copy.deepcopy(_composed(tuple(one for one in overrides if not one.startswith("resume="))))
    return {**config, "run_dir": str(folder), "resume": resume[0] if resume else None}


def tiny_job(folder, *overrides):
    return prepare_training(tiny_config(folder, *overrides))


def rows_of(folder):
    """Of metrics.csv, without what is empty."""
    with (folder / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]
