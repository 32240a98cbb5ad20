"""What may differ between a run and the one that it goes on from; all else must be the same."""

import hashlib
from collections.abc import Mapping
from typing import Any

from e2net.datasets import DenseData
from e2net.runs.config import flatten

# Keys of conf/train.yaml, and beginnings of keys, that a resumed run may have otherwise. Whatever else differs would be
# dropped without a word (the optimiser's settings come back with its state), or make one run out of two.
MAY_DIFFER = (
    # Places: where things lie, not what they are. The encoder's weights are compared, and the images' names.
    "run_dir",
    "resume",
    "output",
    "encoder.path",
    "data.root",
    "cache.folder",
    "cache.max_gb",
    # How long.
    "trainer.max_epochs",
    "trainer.max_time",
    # On what it runs and how fast, which changes results by rounding at most; but for another number of processes, of
    # which ResumeState warns. Precision too: auto follows the device.
    "trainer.precision",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "strategy",
    "trainer.strategy",  # of before that was a group
    "trainer.deterministic",
    "data.num_workers",
    "compile",
    "tuning.gradient_checkpointing",
    # What is tested, shown and logged: nothing of it reaches the weights, nor the choice among them.
    "data.test",
    "data.test_folder",
    "data.n_test",
    "num_samples",
    "checkpoint_every_n_steps",
    "logger",
    "callbacks",
    "trainer.log_every_n_steps",
    "trainer.enable_progress_bar",
)


def check_same_run(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuses settings that the run to be resumed was not trained with.

    Args:
        before: the resolved config in its checkpoint.
        now: the resolved config of the run that goes on.

    Raises:
        ValueError: settings differ that may not; each is named with both values.
    """
    old, new = flatten(dict(before)), flatten(dict(now))
    keys = [key for key in [*new, *(key for key in old if key not in new)] if not _may_differ(key)]
    told = [f"{key}={old[key]}, found {new.get(key, 'none')}" for key in keys if key in old and _differ(key, old, new)]
    if told:
        raise ValueError(
            f"resume={now['resume']}: expected the settings of that run, {'; '.join(told)}; give them again, or train "
            "anew"
        )
    added = [f"{key}={new[key]}" for key in keys if key not in old]
    if added:
        raise ValueError(
            f"resume={now['resume']}: expected a run with the settings {', '.join(added)}, found one without them, by "
            "another version of e2net or without those options; leave them out, go on with that version, or train anew"
        )


def _differ(key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return key not in new or old[key] != new[key]


def _may_differ(key: str) -> bool:
    return any(key == allowed or key.startswith(f"{allowed}.") for allowed in MAY_DIFFER)


def images_hash(data: DenseData) -> str:
    """SHA-256 of the names of the training and validation images, in their order."""
    parts = ("\n".join(data.train_names()), "\n".join(data.val_names()))
    return hashlib.sha256("\n\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()


def check_same_images(before: str | None, data: DenseData, resume: str) -> None:
    """Refuses other images than those of the run to be resumed.

    Args:
        before: their ``images_hash``, which older checkpoints lack.
        data: of the run that goes on.
        resume: as the user gave it.

    Raises:
        ValueError: the names differ.
    """
    if before and before != images_hash(data):
        raise ValueError(
            f"resume={resume}: expected the images of that run, found others in number or name; give the same data, "
            "wherever they lie now, or train anew"
        )
