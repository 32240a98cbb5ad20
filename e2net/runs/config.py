"""From a Hydra config to objects, and from any exception of the set-up phase to one line for the user.

:func:`build` is the one place where a ``_target_`` becomes a call. A config may come out of somebody else's checkpoint,
so it names only what e2net offers for its configs.
"""

# Hydra and OmegaConf are imported where they are used, so that the Python API works without them; the model too, as
# torch takes seconds and --help shall take none.
# ruff: noqa: PLC0415

import contextlib
import importlib
import inspect
import os
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, cast, get_args, get_origin

from e2net.installation import conf_folder
from e2net.runs.console import quieten_lightning

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from e2net.datasets import DenseData
    from e2net.model import DenseModel
    from e2net.tasks import Task

# Of these modules a config may name the public classes, and the class methods that e2net gave them.
OFFERED = (
    *("e2net.encoders", "e2net.decoders", "e2net.decoders.necks", "e2net.losses", "e2net.datasets", "e2net.metrics"),
    "e2net.tasks",
    *("e2net.training.optim", "e2net.training.schedules", "e2net.training.cache"),
    *("e2net.training.loggers", "e2net.training.callbacks", "e2net.training.strategies"),
    *("e2net.adapt.pictures", "e2net.adapt.crops", "e2net.adapt.recipe", "e2net.adapt.heads", "e2net.adapt.targets"),
    *("e2net.adapt.follow", "e2net.adapt.probe"),
)
_TRAINER = "lightning.Trainer"
# Names modules of one's own, separated by commas, whose classes configs and checkpoints may name as well.
TRUST = "E2NET_TRUST"
# What a group of a config builds.
_KINDS = {
    "encoder": "e2net.encoders.Encoder",
    "tuning": "e2net.encoders.Tuning",
    "neck": "torch.nn.Module",
    "decoder": "torch.nn.Module",
    "loss": "e2net.losses.DenseLoss",
    "data": "e2net.datasets.DenseData",
    "optim": "e2net.training.optim.AdamW",
    "schedule": "e2net.training.schedules.Schedule",
    "task": "e2net.tasks.Task",
    "protocol": "e2net.metrics.ResultProtocol",
    "cache": "e2net.training.cache.FeatureCache",
    "logger": "e2net.training.loggers.RunLogger",
    "callbacks": "lightning.Callback",
    "strategy": "e2net.training.strategies.Strategy",
    "trainer": _TRAINER,
    # Of conf/adapt.yaml.
    "pictures": "e2net.adapt.pictures.Pictures",
    "adapt": "e2net.adapt.recipe.Recipe",
    "gram": "e2net.adapt.recipe.Anchor",
    "crops": "e2net.adapt.crops.MultiCrop",
    "heads": "e2net.adapt.heads.PrototypeHead",
    "targets": "torch.nn.Module",
    "watch": "e2net.adapt.follow.Watch",
    "probe": "e2net.adapt.probe.Probe",
}
# The keys of conf/train.yaml and conf/eval.yaml that are no groups.
_TRAINING: dict[str, Any] = {
    "size": int | Sequence[int],
    "seed": int,
    "ema": float | None,
    "train_scales": Sequence[float] | Sequence[Sequence[Any]],
    "test_scales": Sequence[float],
    "flip_test": bool,
    "sharpen": float,
    "zoom_test": float,
    "compile": bool,
    "num_samples": int,
    "checkpoint_every_n_steps": int | None,
    "resume": str | int | None,
    "run_dir": str,
}
# Of conf/adapt.yaml.
_ADAPTING: dict[str, Any] = {
    "size": int,
    "mix": Sequence[Sequence[Any]] | None,
    "seed": int,
    "checkpoint_every_n_steps": int,
    "resume": str | int | None,
    "output": str,
    "run_dir": str,
}
_EVALUATION: dict[str, Any] = {
    "ckpt": str | int | None,
    "predictions": str | None,
    "allow_missing": bool,
    "method": str | int | None,
    "scores": Sequence[str] | str,  # of which ReportOptions knows more to say
    "binarised_too": bool,
    "breakdown": bool,
    "corruptions": bool | Sequence[str] | str,  # as above
    "bootstrap_seed": int,
    "num_workers": int | None,
    "encoder_path": str | None,
    "size": int | Sequence[int] | None,
    "flip_test": bool | None,
    "sharpen": float | None,
    "test_scales": Sequence[float] | None,
    "zoom_test": float | None,
    "window": int | Sequence[int] | None,
    "window_overlap": float,
    "seed": int,
    "precision": str | int,
    "accelerator": str,
    "num_samples": int,
    "output": str,
}
# By the name of the config.
PLAIN = {"train": _TRAINING, "eval": _EVALUATION, "adapt": _ADAPTING}
# Numbers beyond it mean nothing anywhere, and would end in an overflow or use up all memory. Seeds go up to here.
_LARGEST = 2**32 - 1
_MOST_WORKERS = 1024


def compose_training(overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A resolved ``conf/train.yaml``, for notebooks and for other programs than ``train.py``.

    Args:
        overrides: in Hydra's syntax; without ``run_dir`` it is ``runs/TIME``, as that of ``train.py``.

    Raises:
        ValueError: an override is wrong; the message is one line.
        FileNotFoundError: see :func:`~e2net.installation.conf_folder`.
    """
    from omegaconf import OmegaConf

    config = _compose("train", overrides)
    if "${hydra:" in str(cast(dict[str, Any], OmegaConf.to_container(config))["run_dir"]):  # which only train.py knows
        config.run_dir = f"runs/{datetime.now():%Y-%m-%d_%H-%M-%S}"
    return resolve(config)


def compose_evaluation(overrides: Sequence[str]) -> dict[str, Any]:
    """A resolved ``conf/eval.yaml`` that takes over from its checkpoint, for other programs than ``eval.py``.

    Args:
        overrides: in Hydra's syntax, with ``ckpt`` and ``output``.

    Raises:
        ValueError, FileNotFoundError: as :func:`compose_training`, or there is no checkpoint.
    """
    from e2net.runs.overrides import inherit

    return resolve(inherit(_compose("eval", overrides), overrides))


def _compose(name: str, overrides: Sequence[str]) -> "DictConfig":
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException

    try:
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            return compose(name, list(overrides))
    except HydraException as error:
        raise ValueError(hydra_message(error)) from error


def hydra_message(error: Exception) -> str:
    """What Hydra says on one line, without its hints for programmers."""
    hints = ("full_key", "object_type", "Set the environment", "See https")
    lines = (line.strip() for line in str(error).splitlines())
    return " ".join(line for line in lines if line and not line.startswith(hints))


def resolve(config: "DictConfig") -> dict[str, Any]:
    """The config as plain containers, every interpolation resolved and no mandatory value missing."""
    from omegaconf import OmegaConf

    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ValueError(f"config: {missing[0]} has no value; give it as {missing[0]}=...")
    resolved = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    for key, value in flatten(resolved).items():
        if isinstance(value, str) and value.lower() in ("on", "off", "yes", "no"):
            raise ValueError(f"{key}={value}: expected true or false")
    return resolved


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{"a.b": value} of nested mappings; lists stay whole."""
    if not isinstance(config, dict) or not config:
        return {prefix: config}
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def check_training(config: dict[str, Any]) -> None:
    """Makes sure that a resolved ``conf/train.yaml`` has all keys, none that nothing reads, and values of their types.

    What depends on the data or the model is checked by those.

    Raises:
        ValueError: it has not; the message names the key.
    """
    groups = ("task", "encoder", "tuning", "neck", "decoder", "loss", "data", "optim", "schedule", "protocol", "cache")
    # What stands for a value of the constructor's own is not known to its signature.
    for group, key, instead in (("data", "batch_size", 1), ("trainer", "precision", "32-true")):
        if isinstance(config.get(group), Mapping) and config[group].get(key) == "auto":
            config = {**config, group: {**config[group], key: instead}}
    callbacks = config.get("callbacks")
    if not isinstance(callbacks, Mapping):
        raise ValueError(
            f"callbacks={callbacks}: expected a mapping of names to callbacks; choose one of conf/callbacks"
        )
    plain = {k: v for k, v in config.items() if k != "callbacks"}
    _check_keys(plain, _TRAINING, (*groups, "logger", "strategy", "trainer"))
    for name, node in callbacks.items():
        _check_kind(node, f"callbacks.{name}", "callbacks")
    _check_range("seed", config["seed"], 0)
    if not config["run_dir"]:
        raise ValueError("run_dir is empty: expected the name of a folder")
    if config["ema"] is not None and not 0 < config["ema"] < 1:
        raise ValueError(f"ema={config['ema']}: expected a decay above 0 and below 1, such as 0.99, or null (off)")
    _check_trainer(config["trainer"])


def check_adapting(config: dict[str, Any]) -> None:
    """The same for a resolved ``conf/adapt.yaml``."""
    data = config.get("data")
    if not isinstance(data, Mapping):
        raise ValueError(f"data={data}: expected settings with a _target_; choose one of conf/data by data=NAME")
    if data.get("batch_size") == "auto":
        data = {**data, "batch_size": 1}
    kind = "pictures" if str(data.get("_target_")).startswith("e2net.adapt.") else "data"
    _check_kind(data, "data", kind)
    config = {**config, "trainer": dict(config["trainer"])}
    if config["trainer"].get("precision") == "auto":
        config["trainer"]["precision"] = "32-true"
    if isinstance(config.get("probe"), Mapping) and config["probe"].get("root") is None:  # there is none then
        config["probe"] = {**config["probe"], "root": ""}
    callbacks = config.get("callbacks")
    if not isinstance(callbacks, Mapping):
        raise ValueError(
            f"callbacks={callbacks}: expected a mapping of names to callbacks; choose one of conf/callbacks"
        )
    for name, node in callbacks.items():
        _check_kind(node, f"callbacks.{name}", "callbacks")
    groups = ("encoder", "tuning", "optim", "schedule", "logger", "trainer", "adapt", "gram", "crops", "heads")
    plain = {k: v for k, v in config.items() if k not in ("callbacks", "data")}
    _check_keys(plain, _ADAPTING, (*groups, "targets", "watch", "probe"))
    _check_range("seed", config["seed"], 0)
    _check_range("size", config["size"], 1)
    _check_range("checkpoint_every_n_steps", config["checkpoint_every_n_steps"], 1)
    for key in ("run_dir", "output"):
        if not config[key]:
            raise ValueError(f"{key} is empty: expected the name of a folder")
    _check_trainer(config["trainer"])


def check_evaluation(config: dict[str, Any]) -> None:
    """The same for a resolved ``conf/eval.yaml``."""
    if isinstance(config.get("data"), Mapping) and config.get("predictions") is not None:  # maps have no size
        config = {**config, "data": {**config["data"], "size": 1}}
    _check_keys(config, _EVALUATION, ("task", "data", "protocol"))
    _check_range("seed", config["seed"], 0)
    size = config["size"]
    if size is not None and min([size] if isinstance(size, int) else size, default=0) < 1:
        raise ValueError(f"size={size}: expected a positive number of pixels or [H, W]")
    if not config["output"]:
        raise ValueError("output is empty: expected the name of a folder")


def check_batches(config: dict[str, Any], training: int, validation: int, processes: int = 1) -> None:
    """Makes sure that a limited epoch has at least one batch: Lightning would stop only when it has begun.

    Args:
        config: as for :func:`check_training`, with a number as ``data.batch_size``.
        training, validation: how many images there are.
        processes: which share them.

    Raises:
        ValueError: it has none.
    """
    trainer = config["trainer"]
    for part, images in (("train", training), ("val", validation)):
        limit = trainer.get(f"limit_{part}_batches")
        batches = -(-images // (config["data"]["batch_size"] * processes))
        if isinstance(limit, float) and batches and int(limit * batches) < 1:
            raise ValueError(
                f"trainer.limit_{part}_batches={limit}: expected at least one of {batches} batches, found "
                f"{limit * batches:.2g}; give a whole number of batches"
            )
        every = trainer.get("check_val_every_n_epoch", 1)
        epochs = trainer.get("max_epochs") or -1
        if part == "val" and batches and every is not None and every > epochs > 0:
            raise ValueError(
                f"trainer.check_val_every_n_epoch={every}: expected at most trainer.max_epochs={epochs}, or "
                "data.val_fraction=0 to train without validation"
            )
        if part == "train":
            batches = min(batches, limit) if isinstance(limit, int) else int(batches * (limit or 1.0))
            every = trainer.get("val_check_interval")
            if type(every) is int and every > batches and trainer.get("check_val_every_n_epoch", 1) is not None:
                raise ValueError(
                    f"trainer.val_check_interval={every}: expected at most the {batches} batches of an epoch, or "
                    "trainer.check_val_every_n_epoch=null beside it"
                )


def _check_keys(config: dict[str, Any], plain: Mapping[str, Any], groups: Sequence[str]) -> None:
    unknown = sorted(config.keys() - plain.keys() - set(groups))
    if unknown:
        raise ValueError(f"{unknown[0]}={config[unknown[0]]}: there is no such setting; --help lists all")
    for key in (*plain, *groups):
        if key not in config:
            raise ValueError(f"config: {key} has no value; give it as {key}=...")
    for key, hint in plain.items():
        _check_value(key, config[key], hint)
    for key in groups:
        check_part(config, key)


def check_setting(key: str, value: Any) -> None:
    """Makes sure that a value is one of a key of ``conf/train.yaml`` that is no group, such as ``size``.

    Raises:
        ValueError: it is of another type.
    """
    _check_value(key, value, _TRAINING[key])


def check_part(config: dict[str, Any], key: str) -> None:
    """Makes sure that a group of a config, such as ``decoder``, can be built, and builds what its name says.

    Raises:
        ValueError: it does not; the message names the key.
    """
    _check_kind(config.get(key), key, key)


def _check_kind(part: Any, place: str, key: str) -> None:
    """Makes sure that what stands at a place of a config builds what its group's name says."""
    if not isinstance(part, Mapping) or "_target_" not in part:
        raise ValueError(f"{place}={part}: expected settings with a _target_; choose one of conf/{key} by {key}=NAME")
    module, _, name = _KINDS[key].rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    target = find_target(part["_target_"], f"{place}._target_", key == "trainer")
    if not issubclass(_built(target), kind):
        raise ValueError(f"{place}._target_={part['_target_']}: expected a kind of {name}, which this is not")
    _check_node(part, place, trainer=key == "trainer")


def _check_trainer(trainer: Mapping[str, Any]) -> None:
    """What Lightning accepts and this program cannot do, or would only find when training has begun."""
    if trainer.get("check_val_every_n_epoch", 1) is None and type(trainer.get("val_check_interval")) is not int:
        raise ValueError(
            "trainer.check_val_every_n_epoch=null: expected trainer.val_check_interval as a whole number of batches "
            "beside it, or a number of epochs"
        )
    trainer = {k: v for k, v in trainer.items() if v is not None}
    for key, remedy in (
        ("strategy", "there is a group for it: give strategy=auto, single, ddp or fsdp"),
        ("sync_batchnorm", "several processes always norm over the images of all; leave it out"),
    ):
        if key in trainer:
            raise ValueError(f"trainer.{key}={trainer[key]}: {remedy}")
    steps = trainer.get("max_steps", -1)
    # Without an end no schedule would know how far training has come.
    if trainer.get("max_epochs", -1) != -1 or steps == -1:
        _check_range("trainer.max_epochs", trainer.get("max_epochs"), 1, "; trainer.max_time may stop it earlier")
    if steps != -1:
        _check_range("trainer.max_steps", steps, 1)
    for key, remedy in (
        ("fast_dev_run", "no checkpoint would be written to test"),
        ("overfit_batches", "validation would be on training images"),
    ):
        if trainer.get(key):
            raise ValueError(
                f"trainer.{key}={trainer[key]}: {remedy}; for a short run take trainer.max_epochs=1 "
                "trainer.limit_train_batches=2"
            )
    for part, instead in (("train", ""), ("val", "data.val_fraction=0"), ("test", "no test sets")):
        key = f"limit_{part}_batches"
        limit = trainer.get(key, 1)
        if limit <= 0 or (type(limit) is float and limit > 1):
            raise ValueError(
                f"trainer.{key}={limit}: expected a whole number of batches from 1, a fraction above 0.0 up to 1.0, or "
                f"null (all){f'; for none: {instead}' if instead else ''}"
            )
    _check_validation(trainer)
    for key, low in (
        ("accumulate_grad_batches", 1),
        ("gradient_clip_val", 0),
        ("log_every_n_steps", 1),
        ("num_sanity_val_steps", -1),
        ("reload_dataloaders_every_n_epochs", 0),
        ("num_nodes", 1),
        ("min_epochs", 0),
        ("min_steps", 0),
    ):
        if key in trainer:
            _check_range(f"trainer.{key}", trainer[key], low)
    if "limit_predict_batches" in trainer:
        raise ValueError("trainer.limit_predict_batches: nothing is predicted in training; leave it out")
    if trainer.get("enable_checkpointing") is False:
        raise ValueError("trainer.enable_checkpointing=false: the best checkpoint is what is tested; leave it out")


def _check_validation(trainer: Mapping[str, Any]) -> None:
    every, interval = trainer.get("check_val_every_n_epoch", 1), trainer.get("val_check_interval", 1.0)
    _check_range("trainer.check_val_every_n_epoch", every, 1)
    if type(interval) in (int, float) and (interval <= 0 or (type(interval) is float and interval > 1)):
        raise ValueError(
            f"trainer.val_check_interval={interval}: expected a whole number of batches from 1, or a fraction of an "
            "epoch above 0.0 up to 1.0"
        )


def _check_range(key: str, value: Any, low: float, remedy: str = "") -> None:
    if value is None or not value >= low:
        raise ValueError(f"{key}={'null' if value is None else value}: expected at least {low}{remedy}")


def build(config: dict[str, Any], *, _partial_: bool = False) -> Any:
    """Calls what a config's ``_target_`` names with its other keys, and what is nested in it before.

    Nothing is called unless everything in the config may be: targets are public classes of e2net's, or of a module
    that the environment variable E2NET_TRUST names; keys and types are those of their signatures; numbers are finite.
    What a constructor raises comes out as it is: a ValueError is the user's fault, anything else the programmer's.

    Args:
        config: plain containers; nothing in it is interpolated.
        _partial_: return a function that takes the arguments which the config lacks.

    Raises:
        ValueError: a target that is not allowed, or settings that do not fit its signature.
    """
    lacking = _partial_ or bool(config.get("_partial_"))
    target = _check_node(config, str(config.get("_target_")).rpartition(".")[2], named=False, whole=not lacking)
    settings = _settings(config)
    return _partial(target, settings) if lacking else target(**settings)


def build_trainer(config: dict[str, Any], **more: Any) -> Any:
    """Lightning's Trainer.

    Args:
        config: of a user, with ``_target_: lightning.Trainer``.
        more: what the program sets itself.

    Raises:
        ValueError: Lightning refuses the settings, or one of them is the program's.
    """
    both = sorted(config.keys() & more.keys())
    if both:
        raise ValueError(f"trainer.{both[0]}: the program sets it itself; leave it out")
    quieten_lightning()
    target = _check_node(config, "trainer", trainer=True)
    try:
        return target(**_settings(config), **more)
    except Exception as error:  # not our code: all that it has to object is about the settings
        raise ValueError(f"trainer: {' '.join(str(error).split()) or type(error).__name__}") from error


def _settings(node: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _build(v) for k, v in node.items() if k not in ("_target_", "_partial_")}


def _build(value: Any) -> Any:
    if isinstance(value, Mapping):
        return build(dict(value)) if "_target_" in value else _settings(value)
    return [_build(one) for one in value] if isinstance(value, list | tuple) else value


def _partial(target: Callable[..., Any], settings: dict[str, Any]) -> Callable[..., Any]:
    def call(**more: Any) -> Any:
        return target(**settings, **more)

    return call


def _check_node(
    node: Mapping[str, Any], path: str, trainer: bool = False, named: bool = True, whole: bool = False
) -> Callable[..., Any]:
    """What ``node`` would call; nothing is called.

    Args:
        node: with a ``_target_``.
        path: its place in the config, or the name of its class.
        trainer: whether that may be Lightning's Trainer.
        named: whether ``path`` is a place.
        whole: whether it is called with nothing but what the config has.

    Raises:
        ValueError: see :func:`build`.
    """
    target = find_target(node.get("_target_"), f"{path}._target_" if named else "_target_", trainer)

    def name(key: str) -> str:
        return f"{path}.{key}" if named else f"{path}: {key}"

    settings = {}
    for key, value in node.items():
        if key in ("_target_", "_partial_"):
            continue
        if not isinstance(key, str) or key.startswith("_"):
            raise ValueError(f"{name(key)}: a config cannot set what begins with an underscore; leave it out")
        settings[key] = value
    signature = inspect.signature(target)
    try:
        (signature.bind if whole else signature.bind_partial)(**settings)
    except TypeError as error:
        raise ValueError(f"{path}: {error}; it takes {', '.join(signature.parameters) or 'no settings'}") from error
    hints = type_hints(target)
    for key, value in settings.items():
        _check_value(name(key), value, hints.get(key, Any))
    return target


def _check_value(name: str, value: Any, hint: Any) -> None:
    """Checks what is nested in a value, then its type."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            if not _takes(hint, _built(find_target(value["_target_"], f"{name}._target_"))):
                raise ValueError(f"{name}._target_={value['_target_']}: expected {type_words(hint)}")
            _check_node(value, name, whole=not value.get("_partial_"))
            return
        for key, one in value.items():
            _check_value(f"{name}.{key}", one, Any)
    elif isinstance(value, list | tuple):
        for position, one in enumerate(value):
            _check_value(f"{name}[{position}]", one, Any)
    elif isinstance(value, int | float) and not abs(value) <= _LARGEST:  # NaN is not either
        raise ValueError(f"{name}={value}: expected a finite number, at most {_LARGEST}")
    if name.rpartition(".")[2].endswith("num_workers") and type(value) is int and value > _MOST_WORKERS:
        raise ValueError(f"{name}={value}: expected at most {_MOST_WORKERS} processes")
    if not _fits(value, hint):
        shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
        hint_path = (
            f"; for a file or folder of that name give ./{value}" if type(value) is int and _fits("", hint) else ""
        )
        raise ValueError(f"{name}={shown}: expected {type_words(hint)}{hint_path}")


def find_target(path: Any, name: str, trainer: bool = False) -> Callable[..., Any]:
    """The class or class method of a dotted path, which ``name`` has as its value.

    Raises:
        ValueError: it is not one that a config may name.
    """
    if path == _TRAINER and trainer:
        return getattr(importlib.import_module("lightning"), "Trainer")  # noqa: B009 - typed as a function of nothing
    target = None
    trusted = [module.strip() for module in os.environ.get(TRUST, "").split(",") if module.strip()]
    if isinstance(path, str) and all(part.isidentifier() for part in path.split(".")):
        offered = max((m for m in OFFERED if path.startswith(f"{m}.")), key=len, default=None)
        if offered is not None:
            target = _offered(offered, path.removeprefix(f"{offered}.").split("."))
        elif any(path.startswith(f"{module}.") for module in trusted):
            return _trusted(path, name)
    if target is None:
        raise ValueError(
            f"{name}={path}: expected a class that e2net offers for its configs; for one of your own, whose code you "
            f"trust, set {TRUST} to its module"
        )
    return target


def _offered(module_name: str, names: list[str]) -> Callable[..., Any] | None:
    module = importlib.import_module(module_name)
    target = getattr(module, names[0], None)
    if names[0].startswith("_") or not isinstance(target, type) or target.__module__.partition(".")[0] != "e2net":
        return None
    public = getattr(module, "__all__", None)
    if names[0] not in public if public is not None else target.__module__ != module_name:
        return None
    if len(names) == 1:
        return target
    # Not what it has from Lightning or torch, of which one reads pickles.
    method = inspect.getattr_static(target, names[1], None)
    ours = isinstance(method, classmethod) and method.__func__.__module__.partition(".")[0] == "e2net"
    return getattr(target, names[1]) if len(names) == 2 and ours and not names[1].startswith("_") else None


def _trusted(path: str, name: str) -> Callable[..., Any]:
    parts, target = path.split("."), None
    for end in range(len(parts) - 1, 0, -1):
        try:
            target = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError as error:
            if error.name and f"{path}.".startswith(f"{error.name}."):
                continue  # no module of that name; what it imports itself would be another matter
            raise
        for part in parts[end:]:
            target = getattr(target, part, None)
        break
    if not callable(target):
        raise ValueError(
            f"{name}={path}: {TRUST} names its module, but there is no such class; see that its folder is on PYTHONPATH"
        )
    return target


def _built(target: Callable[..., Any]) -> type:
    """What a class, or a class method, makes an instance of."""
    return target if isinstance(target, type) else getattr(target, "__self__", object)


def type_hints(target: Callable[..., Any]) -> dict[str, Any]:
    """{parameter: type} of a constructor, as far as its annotations can be read."""
    function = target.__init__ if isinstance(target, type) else target  # type: ignore[misc]
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError):  # of somebody else's class, imported for type checkers only
        return {}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a config's value is of a type; a whole number is a float, a bool no number, and a list any sequence."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any or isinstance(hint, typing.TypeVar):
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in args)
    if origin is Literal:
        return any(value == one and type(value) is type(one) for one in args)
    if hint is None or hint is type(None):
        return value is None
    if hint is float:
        return type(value) in (int, float)
    if hint in (int, bool, str):
        return type(value) is hint or (hint is str and isinstance(value, str | Path))
    kind = origin or hint
    if kind is tuple and args and args[-1] is not Ellipsis:
        return isinstance(value, list | tuple) and len(value) == len(args) and all(map(_fits, value, args))
    if kind in (list, tuple, Sequence, Iterable):
        return isinstance(value, list | tuple) and all(_fits(one, args[0]) for one in value if args)
    if kind in (dict, Mapping):
        fits = len(args) < 2 or (isinstance(value, Mapping) and all(_fits(one, args[1]) for one in value.values()))
        return isinstance(value, Mapping) and fits
    return not isinstance(kind, type) or isinstance(value, kind)


def _takes(hint: Any, kind: type) -> bool:
    """Whether an argument of this type takes an instance of a class."""
    args = get_args(hint)
    if hint is Any or not args:
        return hint is Any or (isinstance(hint, type) and issubclass(kind, hint))
    return any(_takes(one, kind) for one in args)


def type_words(hint: Any) -> str:
    """A type in words."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_words(one) for one in args))
    if origin is Literal:
        return ", ".join(map(str, args))
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    if hint is Any:
        return "anything"
    if hint in names:
        return names[hint]
    kind = origin or hint
    if kind is tuple and args and args[-1] is not Ellipsis:
        return f"a list of {len(args)}, each {type_words(args[0])}"
    if kind in (list, tuple, Sequence, Iterable):
        return f"a list, each {type_words(args[0])}" if args else "a list"
    if kind in (dict, Mapping):
        return "a mapping" + (f" of {type_words(args[1])}" if len(args) == 2 and args[1] is not Any else "")
    return getattr(kind, "__name__", str(kind))


def build_task(config: dict[str, Any]) -> "Task":
    """The task that a resolved config with ``task``, and perhaps ``protocol``, describes.

    Raises:
        ValueError: it cannot be built, or the protocol is that of another task.
    """
    check_part(config, "task")
    if "protocol" not in config:
        return cast("Task", build(config["task"]))
    check_part(config, "protocol")
    made = find_target(config["task"]["_target_"], "task._target_")
    protocol = build(config["protocol"])
    hint = type_hints(made).get("protocol", Any)
    if not _fits(protocol, hint):
        raise ValueError(
            f"protocol={config['protocol']['_target_']}: expected one of task={config['task']['_target_']}, which is a"
            f" {type_words(hint)}; give protocol=... for that task, or leave it out"
        )
    task: Task = build(config["task"], _partial_=True)(protocol=protocol)
    return task


def resolve_task(config: dict[str, Any]) -> dict[str, Any]:
    """The same config with what the task leaves to the data filled in, such as the names of classes.

    Raises:
        ValueError: the data say nothing that can be used, or ``task`` names no task.
    """
    check_part(config, "task")
    kinds: list[Any] = [_built(find_target(config[key]["_target_"], f"{key}._target_")) for key in ("task", "data")]
    return {**config, "task": kinds[0].resolve(config["task"], partial(kinds[1].about, config["data"]))}


def build_data(settings: dict[str, Any], task: "Task") -> "DenseData":
    """The data that the ``data`` group of a resolved config describes, whose targets mean what a task says."""
    data: DenseData = build(settings, _partial_=True)(task=task)
    return data


def build_model(config: dict[str, Any]) -> "DenseModel":
    """The model that a resolved config with ``task``, ``encoder``, ``neck``, ``decoder`` and ``tuning`` describes.

    Without a ``task`` it is one of camouflage.

    Raises:
        ValueError: it cannot be built, or does not fit into this machine's memory.
    """
    from e2net.model import DenseModel

    for key in ("encoder", "neck", "decoder", "tuning"):
        check_part(config, key)
    try:
        return DenseModel(
            encoder=build(config["encoder"]),
            decoder=build(config["decoder"], _partial_=True),
            tuning=build(config["tuning"]),
            neck=build(config["neck"], _partial_=True),
            task=build_task(config) if "task" in config else None,
        )
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "memory" in str(error) or "verflow" in str(error):
            raise ValueError(
                f"the model does not fit into memory ({str(error).splitlines()[0]}); take a smaller one"
            ) from error
        raise


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turns a wrong setting, a missing file or bad data into one line on stderr and exit status 2.

    Those are ValueErrors and OSErrors; a TypeError or another exception is a programmer's, and keeps its traceback.
    Wrap only what happens before the long work starts: later, a traceback is worth more. With E2NET_TRACEBACK=1 the
    exception passes through.
    """
    try:
        yield
    except _user_faults() as error:
        if os.environ.get("E2NET_TRACEBACK") == "1":
            raise
        from e2net.formats import printable

        print(f"error: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        raise SystemExit(2) from error


def _user_faults() -> tuple[type[Exception], ...]:
    """What a wrong setting, file or data raises; of OmegaConf too where it is installed."""
    try:
        from omegaconf.errors import OmegaConfBaseException
    except ImportError:
        return (ValueError, OSError)
    return (ValueError, OSError, OmegaConfBaseException)


def list_groups(conf: Path, without: Iterable[str] = ("adapt", "adapt_with")) -> str:
    """One line per option of every config group in the folder ``conf``: the first comment of its file.

    Not those ``without``, which a program has no use for.

    Hydra's own headers, such as ``# @package _global_``, must come before all else and say nothing to a reader.
    """
    described = {}
    for group in sorted(p for p in conf.iterdir() if p.is_dir() and p.name not in without):
        for file in sorted(group.glob("*.yaml")):
            comments = (line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("# "))
            comment = next((line for line in comments if not line.startswith("# @")), "# ")
            described[f"{group.name}={file.stem}"] = comment[2:]
    width = max(map(len, described)) + 2
    return "\n".join(f"  {option:<{width}}{comment}" for option, comment in described.items())
