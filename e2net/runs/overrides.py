"""What was given to an evaluation, and what it takes over from the checkpoint's training."""

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from e2net.datasets.datamodule import VALIDATION
from e2net.runs.config import find_target

# What an evaluation by ready maps and one of a checkpoint have no use for.
_OF_MODELS = (
    *("encoder_path", "size", "flip_test", "test_scales", "zoom_test", "sharpen", "window", "window_overlap"),
    *("seed", "precision"),
)
_NOT_WITH_MAPS = (*_OF_MODELS, "accelerator", "num_samples", "corruptions")
_DATA_OF_MODELS = ("n_train", "size", "batch_size", "num_workers", "seed", "augment")
# Which images are held out matters where they are what is scored.
_SPLIT = ("train", "val_fraction", "val")


def inherit(config: DictConfig, given: Sequence[str]) -> DictConfig:
    """Fills an evaluation config from its checkpoint: ``size`` where null, ``data`` unless its group or root is given.

    Without those ``data`` is that of training, with what was given of it. With them too, ``data.test=validation`` means
    what was held out in training.

    Args:
        config: a composed ``conf/eval.yaml``, with ``ckpt`` or ``predictions``.
        given: the overrides that it was composed with, in Hydra's syntax: what equals a default counts as well.

    Raises:
        ValueError: a setting was given that such an evaluation has no use for.
    """
    overrides = OverridesParser.create().parse_overrides(list(given))
    keys = [override.key_or_group for override in overrides]
    _refuse_unused(config, keys)
    if config.ckpt is None:
        return config
    from e2net.runs.checkpoint import KEY, read_checkpoint  # noqa: PLC0415 - maps on disk need no model

    trained = read_checkpoint(config.ckpt)[KEY]["config"]
    _take_task(config, trained, keys)
    resized = config.size is not None
    if not resized:
        config.size = trained.get("size")
    data: Any = dict(trained.get("data") or {})
    if "data" in keys or "data.root" in keys:
        if config.data.get("test") == VALIDATION:  # the images that were held out in training, not some others
            for key in _SPLIT:
                if key in data and key in config.data and f"data.{key}" not in keys:
                    config.data[key] = data[key]
        return config
    asked: Any = OmegaConf.to_container(config.data)
    if resized:
        data["size"] = "${size}"
    if "seed" in keys:
        data["seed"] = "${seed}"
    for override in overrides:
        first, *path = override.key_or_group.split(".")
        if first == "data" and path:
            _carry_over(data, asked, path, override.is_delete())
    config.data = data
    return config


def _take_task(config: DictConfig, trained: Mapping[str, Any], keys: Sequence[str]) -> None:
    """Sets the task of a checkpoint, and the protocol that goes with it unless one was given.

    What was given of how files are to be read is used, as another set's may be others.

    Raises:
        ValueError: another task was given, or something of it that is part of the trained network.
    """
    if config.task._target_ != trained["task"]["_target_"]:
        if any(key == "task" or key.startswith("task.") for key in keys):
            raise ValueError(
                f"ckpt={config.ckpt}: expected a checkpoint of task={config.task._target_}, found one of"
                f" {trained['task']['_target_']}; leave task=... out"
            )
        if not any(key == "protocol" or key.startswith("protocol.") for key in keys):
            config.protocol = trained["protocol"]
    asked: Any = OmegaConf.to_container(config.task)
    task = dict(trained["task"])
    for key in keys:
        group, _, path = key.partition(".")
        name = path.partition(".")[0]
        if group != "task" or not name or (name in asked and asked[name] == task.get(name)):
            continue
        if name not in asked or name not in getattr(find_target(task["_target_"], "task._target_"), "of_files", ()):
            raise ValueError(
                f"task.{name}={asked.get(name)}: expected that of the checkpoint's training, {task.get(name)}; leave it"
                " out"
            )
        task[name] = asked[name]
    config.task = task


def _carry_over(data: dict[str, Any], asked: dict[str, Any], path: Sequence[str], delete: bool) -> None:
    """Sets one key of ``data``, given by its path, to what is ``asked``, or deletes it."""
    *parents, last = path
    for key in parents:
        if not isinstance(data.get(key), dict):  # switched off in training: all of it, as asked
            data[key] = asked[key]
            return
        data[key] = dict(data[key])
        data, asked = data[key], asked[key]
    if delete:
        data.pop(last, None)
    else:
        data[last] = asked[last]


def _refuse_unused(config: DictConfig, keys: Sequence[str]) -> None:
    """Raises ValueError for a key that was given and that nothing would read."""
    of_maps = config.predictions is not None
    unused = list(_NOT_WITH_MAPS) if of_maps else ["allow_missing"]
    if of_maps:
        split = () if config.data.get("test") == VALIDATION else _SPLIT
        unused += [f"data.{key}" for key in (*_DATA_OF_MODELS, *split)]
    elif not config.binarised_too:
        unused.append("num_workers")  # data.num_workers read images
    if not of_maps and config.window is None:
        unused.append("window_overlap")
    for key in keys:
        if any(key == one or key.startswith(f"{one}.") for one in unused):
            why = "maps that are there already" if of_maps else "a checkpoint"
            remedy = {"num_workers": "; data.num_workers=... reads images", "window_overlap": " without window=..."}
            raise ValueError(f"{key}: an evaluation of {why} has no use for it{remedy.get(key, '')}; leave it out")
