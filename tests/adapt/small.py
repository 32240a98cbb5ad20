"""The smallest self-supervised training that has all parts of one."""

import copy
import functools

from conftest import ROOT
from hydra import compose, initialize_config_dir

from e2net.adapt.run import prepare_adapting
from e2net.runs import resolve

SMALL = [
    "size=32", "crops.local_size=16", "crops.locals=2", "data.batch_size=4", "heads.prototypes=16", "heads.hidden=16",
    "heads.bottleneck=8", "targets.queue=8", "adapt.head_steps=1", "watch.every=3", "watch.pictures=2",
    "watch.information=0", "watch.rank=1", "trainer.max_steps=6", "trainer.accelerator=cpu",
    "+trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1", "~callbacks.progress", "gram.weight=1.0",
]  # fmt: skip
PROCEDURAL = [
    "data=procedural", "data.n_train=13", "data.val_fraction=0", "data.n_test=6", "data.sides=[32,40]",
    "data.num_workers=0", "probe.pictures=4",
    "encoder=tiny",
    "encoder.config.hidden_size=24",
    "encoder.config.intermediate_size=32",
]  # fmt: skip


@functools.cache
def _composed(overrides):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = resolve(compose("adapt", ["run_dir=unknown", *overrides]))
    del config["decoder"]
    return config


def small_config(folder, *overrides, data=PROCEDURAL):
    """Composed once: that takes longer than some steps."""
    config = copy.deepcopy(_composed((*data, *SMALL, *overrides)))
    return {**config, "run_dir": str(folder), "output": str(folder / "encoder")}


def small_job(folder, *overrides, resume=None, **kwargs):
    return prepare_adapting({**small_config(folder, *overrides, **kwargs), "resume": resume and str(resume)})
