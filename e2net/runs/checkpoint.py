"""Checkpoints: plain tensors and the resolved config, without weights that can be read from elsewhere."""

import copy
import errno
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from e2net.model import DenseModel
from e2net.processes import split_like
from e2net.runs.config import build_model, check_setting, flatten
from e2net.runs.folder import BEST, CHECKPOINTS, LAST
from e2net.runs.pretrained import find_saved, is_saved, read_saved

# The key under which a checkpoint holds what is ours, beside Lightning's own keys.
KEY = "e2net"
# Of that entry. Those of before 1 have no "format" and no "backbone", and lack what never trains under full tuning.
FORMAT = 1
_PARTS = ("encoder", "neck", "decoder", "tuning")


# What checkpoints were trained with before there was a choice.
_FIRST: dict[str, Any] = {
    "task": {"_target_": "e2net.tasks.Camouflage"},
    "neck": {"_target_": "e2net.decoders.necks.Identity"},
    "sharpen": 1.0,
    "zoom_test": 0.0,
}
_FIRST_SETTINGS = {"flip_test": False, "test_scales": [1.0]}
# Where classes that configs name have lain before.
_MOVED = {f"e2net.engine.{name}.": f"e2net.training.{name}." for name in ("optim", "schedules", "cache")}
_MOVED |= {"e2net.metrics.Protocol": "e2net.metrics.MaskProtocol"}


def of_today(config: dict[str, Any]) -> dict[str, Any]:
    """A run's config as it would be written now: with what was not a setting yet, and classes where they lie today."""
    return {**copy.deepcopy(_FIRST), **_moved(config)}


def _moved(value: Any) -> Any:
    """A config, or a value of one, with the names of classes as they are today."""
    if isinstance(value, dict):
        target = value.get("_target_")
        old = next((old for old in _MOVED if isinstance(target, str) and target.startswith(old)), None)
        moved = {} if old is None else {"_target_": str(target).replace(old, _MOVED[old])}
        return {**{key: _moved(one) for key, one in value.items()}, **moved}
    return [_moved(one) for one in value] if isinstance(value, list) else value


def trained_with(config: dict[str, Any], key: str) -> Any:
    """A setting of a checkpoint's training that prediction goes by, such as ``size`` or ``flip_test``.

    Raises:
        ValueError: it is not there, or of another type.
    """
    value = config.get(key, _FIRST_SETTINGS.get(key))
    try:
        check_setting(key, value)
    except ValueError as error:
        raise ValueError(f"checkpoint's config: {error}") from error
    return value


def checkpoint_entry(model: DenseModel, config: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint holds of ours, beside the tensors: see :func:`read_checkpoint`."""
    # A process that has shapes alone, and writes none.
    hollow = any(parameter.is_meta for parameter in model.encoder.parameters())
    return {
        "format": FORMAT,
        "config": config,
        "encoder_fingerprint": None if hollow else encoder_fingerprint(model),
        # How to build the encoder without its files, where no weight of theirs is needed.
        "backbone": model.encoder.describe() if not hollow and _holds_all(model) else None,
    }


def _holds_all(model: DenseModel) -> bool:
    """Whether a checkpoint holds every tensor: a pretrained encoder trains as a whole, or there are no files of it."""
    encoder = model.encoder
    return not encoder.pretrained or any(module is encoder.backbone for module in encoder.trained)


def saved_state(model: DenseModel) -> dict[str, Tensor]:
    """The tensors that a checkpoint must hold: all but what a pretrained encoder has as it was read from its files."""
    state = model.state_dict()
    if _holds_all(model):
        return state
    encoder = model.encoder
    # Buffers too: those of a part in train mode may change.
    changing = {buffer for module in encoder.trained for buffer in module.buffers()}
    changing |= {parameter for parameter in encoder.parameters() if parameter.requires_grad}
    as_read = {k for k, v in encoder.state_dict(prefix="encoder.", keep_vars=True).items() if v not in changing}
    return {k: v for k, v in state.items() if k not in as_read}


def encoder_fingerprint(model: DenseModel) -> str | None:
    """Identity of the weights that :func:`saved_state` leaves out, None where there are none."""
    return None if _holds_all(model) else model.encoder.fingerprint()


def load_state(model: DenseModel, state: dict[str, Tensor]) -> None:
    """Loads what :func:`saved_state` returned.

    Raises:
        ValueError: a tensor is missing, unexpected or of another shape; nothing is loaded then.
    """
    expected = saved_state(model)
    # Before format 1 a fully tuned encoder's mask token was left out, and its fingerprint stored.
    untrained = {f"encoder.{name}" for name, p in model.encoder.named_parameters() if not p.requires_grad}
    optional = untrained if model.encoder.pretrained else set()
    faults = [f"{k} is missing" for k in expected.keys() - state.keys() - optional]
    faults += [f"{k} is unexpected" for k in state.keys() - expected.keys()]
    faults += [
        f"{k} has shape {tuple(state[k].shape)}, expected {tuple(expected[k].shape)}"
        for k in expected.keys() & state.keys()
        if state[k].shape != expected[k].shape
    ]
    if faults:
        raise ValueError(
            f"checkpoint does not fit the model: {len(faults)} tensors differ "
            f"({', '.join(sorted(faults)[:3])}) as it is of another encoder, decoder or tuning; give those of its run"
        )
    model.load_state_dict({k: split_like(v, expected.get(k)) for k, v in state.items()}, strict=False)


def restore(model: DenseModel, content: dict[str, Any]) -> None:
    """Loads what :func:`read_checkpoint` returned, and makes sure that the rest is as it was in training.

    Raises:
        ValueError: the checkpoint does not fit the model, or the encoder's frozen weights are not those of training.
    """
    expected = content[KEY]["encoder_fingerprint"]
    # Before the state is loaded, which now has what never trains as well.
    found = None if expected is None else model.encoder.fingerprint()
    load_state(model, content["state_dict"])
    if expected != found:
        raise ValueError(
            "the weights in the encoder's files are not those of this checkpoint's training (expected SHA-256 "
            f"{expected[:12]}...); give the right ones by encoder_path=..., or to resume by encoder.path=..."
        )


def find_checkpoint(path: str | Path, prefer: str = BEST) -> Path:
    """The file itself, or a run folder's checkpoint: the one that is preferred, else the other.

    A run without a validation part has no best one, a run that was stopped early no last one. A model that was saved
    in a folder or pushed to the Hub is found as well, unless the last checkpoint is preferred, to train on from: it has
    no optimiser's state.

    Raises:
        FileNotFoundError: none of these.
        ValueError: a saved model is named where the last checkpoint is preferred.
    """
    path = Path(str(path)).expanduser()  # a folder of a multirun is called 0, which YAML reads as a number
    candidates = (
        [path]
        if path.is_file()
        else [path / CHECKPOINTS / name for name in sorted((BEST, LAST), key=lambda name: name != prefer)]
    )
    for file in candidates:
        if file.is_file():
            if is_saved(file) and prefer == LAST:
                raise ValueError(
                    f"{file} is a saved model, which has no optimiser's state: expected a run's checkpoint"
                )
            return file
    saved = find_saved(str(path)) if prefer == BEST else None
    if saved is not None:
        return saved
    found = "an empty or other folder" if path.is_dir() else "nothing"
    raise FileNotFoundError(
        f"no checkpoint at {path}: expected a checkpoint file or a run folder with {CHECKPOINTS}/{BEST} or {LAST}"
        f"{', or a saved model' if prefer == BEST else ''}, found {found}"
    )


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint file or a saved model, tensors on the CPU, without running any code from it.

    Returns:
        Lightning's keys, and under ``KEY`` ours: ``format``, the resolved ``config``, ``encoder_fingerprint`` of what
        is not among the tensors, ``backbone``, by which an encoder is built without its files, or None, and
        ``threshold``, the best one of these weights on the validation part, or None where they were not validated.

    Raises:
        FileNotFoundError: see :func:`find_checkpoint`.
        ValueError: the file is no checkpoint of e2net, or a newer version's.
    """
    file = find_checkpoint(path)
    content = read_saved(file) if is_saved(file) else _unpickle(file)
    entry = content.get(KEY) if isinstance(content, dict) else None
    if not isinstance(entry, dict) or not isinstance(entry.get("config"), dict):
        raise ValueError(
            f"{file} was not written by e2net: it holds no '{KEY}' entry with the config; give a checkpoint of a run"
        )
    version = entry.get("format", 0)
    if type(version) is not int or version > FORMAT:
        raise ValueError(
            f"{file} was written by a newer version of e2net: its format is {version}, this version reads up to "
            f"{FORMAT}; update e2net"
        )
    fault = _not_plain(entry["config"])
    if fault is not None:
        raise ValueError(f"{file}: expected plain values in its config, found {fault}")
    config = of_today(entry["config"])
    return {
        **content,
        KEY: {
            **{"backbone": None, "encoder_fingerprint": None, "threshold": None},
            **entry,
            "config": config,
            "format": version,
        },
    }


def _unpickle(file: Path) -> Any:
    """What torch has saved in a file, without running any code from it.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        _check_whole(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the unpickler trips over, from KeyError to UnpicklingError
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # as a way to an offset that a broken file names
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0]
        others = [file.with_name(name) for name in (LAST, BEST) if name != file.name and file.name in (LAST, BEST)]
        hint = next((f"; {other} beside it may be whole" for other in others if other.is_file()), "")
        raise ValueError(f"{file} is not a readable checkpoint ({reason}){hint}") from error


def _check_whole(file: Path) -> None:
    """Raises an error unless a file is an archive as torch writes it, each part as it was: torch reads no checksums.

    One changed bit in a tensor would be another model otherwise, and a part that is packed could be of any size.
    """
    with zipfile.ZipFile(file) as archive:
        for part in archive.infolist():
            if part.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{part.filename} in it is packed, which torch never does; copy the file again")
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"{damaged} in it is damaged: its checksum is another one; copy the file again")


def _not_plain(config: Any) -> str | None:
    """What in a config is no value of YAML's, or stands for something of this machine's, such as ${oc.env:HOME}."""
    for key, value in flatten(config).items():
        if isinstance(value, list | tuple):
            fault = next(filter(None, (_not_plain({key: one}) for one in value)), None)
            if fault is not None:
                return fault
        elif "${" in key or (isinstance(value, str) and "${" in value):
            return f"{key}={value}, an interpolation"
        elif value != {} and not isinstance(value, str | int | float | bool | None):
            return f"{key}, a {type(value).__name__}"
    return None


def load_model(path: str | Path, encoder_path: str | None = None) -> tuple[DenseModel, dict[str, Any]]:
    """Rebuilds a trained model from its checkpoint; the encoder's files are needed unless it trained as a whole.

    Args:
        path: a run folder or a checkpoint file.
        encoder_path: where the pretrained encoder lies now, if it has moved since training.

    Returns:
        The model in eval mode on the CPU, and the resolved config it was trained with.

    Raises:
        FileNotFoundError: no checkpoint there, or the encoder's files are missing.
        ValueError: the checkpoint does not fit its config, or the encoder's frozen weights are not those of training.
    """
    content = read_checkpoint(path)
    return model_of(content, path, encoder_path), content[KEY]["config"]


def model_of(content: dict[str, Any], path: str | Path, encoder_path: str | None = None) -> DenseModel:
    """As :func:`load_model`, of what :func:`read_checkpoint` has read from ``path``."""
    config = content[KEY]["config"]
    for part in _PARTS:
        if not isinstance(config.get(part), dict):
            raise ValueError(f"{path}: expected {part} in the checkpoint's config, found {config.get(part)}")
    if encoder_path is not None:
        if "path" not in config["encoder"]:
            raise ValueError(
                "encoder_path is given, but this checkpoint's encoder was not loaded from files; leave it out"
            )
        # Not in the content: the config says where the encoder is published, and stays that of the training.
        config = {**config, "encoder": {**config["encoder"], "path": encoder_path}}
    described = encoder_path is None and content[KEY]["backbone"] is not None
    model = build_model({**config, "encoder": _without_files(content[KEY])} if described else config)
    restore(model, content)
    return model.eval()


def _without_files(entry: dict[str, Any]) -> dict[str, Any]:
    """The config of the same encoder, built by its description."""
    encoder = dict(entry["config"]["encoder"])
    class_name = str(encoder.pop("_target_", "")).rpartition(".")[0]
    for place in ("path", "file", "weights", "checkpoint_dir", "config", "mean", "std"):
        encoder.pop(place, None)
    if not isinstance(entry["backbone"], dict):
        raise ValueError(f"checkpoint: expected a description of its encoder, found {entry['backbone']}")
    description = dict(entry["backbone"])
    means = {key: description.pop(key, None) for key in ("mean", "std")}
    return {"_target_": f"{class_name}.from_description", "description": description, **means, **encoder}
