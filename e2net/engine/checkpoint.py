"""Checkpoints: plain tensors and the resolved config, without weights that can be read from elsewhere."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from e2net.engine.config import build_model, conf_folder
from e2net.model import SegmentationModel

if TYPE_CHECKING:
    from omegaconf import DictConfig

BEST, LAST = "best.ckpt", "last.ckpt"
# The key under which a checkpoint holds what is ours, beside Lightning's own keys.
KEY = "e2net"


def saved_state(model: SegmentationModel) -> dict[str, Tensor]:
    """The tensors that a checkpoint must hold: all but what a pretrained encoder has as it was read from its files."""
    state = model.state_dict()
    encoder = model.encoder
    if not encoder.pretrained:
        return state
    # Buffers too: those of a part in train mode may change.
    changing = {buffer for module in encoder.trained for buffer in module.buffers()}
    changing |= {parameter for parameter in encoder.parameters() if parameter.requires_grad}
    as_read = {k for k, v in encoder.state_dict(prefix="encoder.", keep_vars=True).items() if v not in changing}
    return {k: v for k, v in state.items() if k not in as_read}


def encoder_fingerprint(model: SegmentationModel) -> str | None:
    """Identity of the weights that :func:`saved_state` leaves out, None where there are none."""
    relied_upon = model.encoder.pretrained and not all(p.requires_grad for p in model.encoder.parameters())
    return model.encoder.fingerprint() if relied_upon else None


def load_state(model: SegmentationModel, state: dict[str, Tensor]) -> None:
    """Loads what :func:`saved_state` returned.

    Raises:
        ValueError: a tensor is missing, unexpected or of another shape; nothing is loaded then.
    """
    expected = saved_state(model)
    faults = [f"{k} is missing" for k in expected.keys() - state.keys()]
    faults += [f"{k} is unexpected" for k in state.keys() - expected.keys()]
    faults += [
        f"{k} has shape {tuple(state[k].shape)}, expected {tuple(expected[k].shape)}"
        for k in expected.keys() & state.keys()
        if state[k].shape != expected[k].shape
    ]
    if faults:
        raise ValueError(
            f"checkpoint does not fit the model: {len(faults)} tensors differ "
            f"({'; '.join(sorted(faults)[:3])}); it was trained with another encoder, decoder or tuning"
        )
    model.load_state_dict(state, strict=False)


def restore(model: SegmentationModel, content: dict[str, Any]) -> None:
    """Loads what :func:`read_checkpoint` returned, and makes sure that the rest is as it was in training.

    Raises:
        ValueError: the checkpoint does not fit the model, or the encoder's frozen weights are not those of training.
    """
    load_state(model, content["state_dict"])
    expected = content[KEY]["encoder_fingerprint"]
    if expected is not None and encoder_fingerprint(model) != expected:
        raise ValueError(
            "the weights in the encoder's files are not those of this checkpoint's training (expected SHA-256 "
            f"{expected[:12]}...); give the right ones by encoder_path=..., or to resume by encoder.path=..."
        )


def find_checkpoint(path: str | Path, prefer: str = BEST) -> Path:
    """The file itself, or a run folder's checkpoint: the one that is preferred, else the other.

    A run without a validation part has no best one, a run that was stopped early no last one.

    Raises:
        FileNotFoundError: neither.
    """
    path = Path(path)
    candidates = (
        [path]
        if path.is_file()
        else [path / "checkpoints" / name for name in sorted((BEST, LAST), key=lambda name: name != prefer)]
    )
    for file in candidates:
        if file.is_file():
            return file
    found = "an empty or other folder" if path.is_dir() else "nothing"
    raise FileNotFoundError(
        f"no checkpoint at {path}: expected a checkpoint file or a run folder with checkpoints/{BEST} or {LAST}, "
        f"found {found}"
    )


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint file, tensors on the CPU, without running any code from it.

    Raises:
        FileNotFoundError: see :func:`find_checkpoint`.
        ValueError: the file is no checkpoint of e2net.
    """
    file = find_checkpoint(path)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the unpickler trips over, from KeyError to UnpicklingError
        reason = str(error).splitlines()[0].split(". ")[0]
        raise ValueError(f"{file} is not a readable checkpoint ({reason})") from error
    if not isinstance(content, dict) or KEY not in content:
        raise ValueError(f"{file} was not written by e2net: it holds no '{KEY}' entry with the config")
    return content


def load_model(path: str | Path, encoder_path: str | None = None) -> tuple[SegmentationModel, dict[str, Any]]:
    """Rebuilds a trained model from its checkpoint alone.

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
    config = content[KEY]["config"]
    if encoder_path is not None:
        if "path" not in config["encoder"]:
            raise ValueError("encoder_path is given, but this checkpoint's encoder was not loaded from files")
        config["encoder"]["path"] = encoder_path
    model = build_model(config)
    restore(model, content)
    return model.eval(), config


def inherit(config: "DictConfig") -> "DictConfig":
    """Fills an evaluation config from its checkpoint: ``size`` where null, ``data`` where no root is given.

    Without a root, ``data`` is that of training but for what differs from ``conf/data/folder.yaml``: what was given.
    """
    from omegaconf import OmegaConf  # noqa: PLC0415 - see config.py

    if not OmegaConf.is_missing(config, "ckpt"):
        trained = read_checkpoint(config.ckpt)[KEY]["config"]
        if config.size is None:
            config.size = trained["size"]
        if OmegaConf.is_missing(config.data, "root"):
            plain: Any = OmegaConf.to_container(OmegaConf.load(conf_folder() / "data" / "folder.yaml"))
            asked: Any = OmegaConf.to_container(config.data)
            given = {k: v for k, v in asked.items() if k not in plain or plain[k] != v}
            config.data = {**trained["data"], **given}
    return config
