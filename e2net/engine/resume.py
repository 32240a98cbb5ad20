"""What may differ between a run and the one that it goes on from; all else must be the same."""

from collections.abc import Mapping
from typing import Any

from e2net.engine.config import flatten

# Keys of conf/train.yaml, and beginnings of keys, that a resumed run may have otherwise. Whatever else differs would be
# dropped without a word (the optimiser's settings come back with its state), or make one run out of two.
MAY_DIFFER = (
    # Places: where things lie, not what they are. The encoder's weights are compared, and images by name.
    "run_dir",
    "resume",
    "encoder.path",
    "encoder.checkpoint_dir",
    "data.root",
    "cache.folder",
    "cache.max_gb",
    # How long.
    "trainer.max_epochs",
    "trainer.max_time",
    # Where it runs and how fast, which changes results by rounding at most. Precision: auto follows the device.
    "trainer.precision",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.strategy",
    "trainer.deterministic",
    "data.num_workers",
    "compile",
    "tuning.gradient_checkpointing",
    # What is tested, shown and logged: nothing of it reaches the weights, nor the choice among them.
    "data.test",
    "data.test_folder",
    "data.n_test",
    "num_samples",
    "trainer.limit_test_batches",
    "trainer.log_every_n_steps",
    "trainer.enable_progress_bar",
)


def check_same_run(before: Mapping[str, Any], now: Mapping[str, Any], complete: bool = True) -> None:
    """Refuses settings that the run to be resumed was not trained with.

    Args:
        before: the resolved config in its checkpoint.
        now: the resolved config of the run that goes on.
        complete: whether ``before`` has all keys; those of older versions lack what was added since.

    Raises:
        ValueError: settings differ that may not; each is named with both values.
    """
    old, new = flatten(dict(before)), flatten(dict(now))
    keys = [*new, *(key for key in old if key not in new)]
    if not complete:
        keys = [key for key in keys if key in old]
    differing = [key for key in keys if not _may_differ(key) and old.get(key, "nothing") != new.get(key, "nothing")]
    if differing:
        each = "; ".join(f"{key}={old.get(key, 'nothing')}, found {new.get(key, 'nothing')}" for key in differing)
        raise ValueError(
            f"resume={now['resume']}: expected the settings of that run, {each}; give them again, or train anew"
        )


def _may_differ(key: str) -> bool:
    return any(key == allowed or key.startswith(f"{allowed}.") for allowed in MAY_DIFFER)
