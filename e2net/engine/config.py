"""From a Hydra config to objects, and from any exception of the set-up phase to one line for the user."""

# Hydra and OmegaConf are imported where they are used, so that the Python API works without them; the model too, as
# torch takes seconds and --help shall take none.
# ruff: noqa: PLC0415

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from e2net.model import SegmentationModel

_ROOT = Path(__file__).parent.parent.parent


def conf_folder() -> Path:
    """The folder of config files.

    Raises:
        FileNotFoundError: e2net was installed without them.
    """
    if not (_ROOT / "conf" / "train.yaml").is_file():
        raise FileNotFoundError(
            f"expected conf/ beside the package in {_ROOT}, found none; work in a checkout, installed by "
            "pip install -e ."
        )
    return _ROOT / "conf"


def compose_training(overrides: Sequence[str]) -> dict[str, Any]:
    """A resolved ``conf/train.yaml``, for other programs than ``train.py``; ``run_dir`` must be among the overrides.

    Raises:
        ValueError: an override is wrong; the message is one line.
        FileNotFoundError: see :func:`conf_folder`.
    """
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException

    try:
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            return resolve(compose("train", list(overrides)))
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


def build(config: dict[str, Any], **kwargs: Any) -> Any:
    """Instantiates a config with a ``_target_``; ``kwargs`` go to the constructor.

    What a constructor raises comes out as it is, not wrapped into Hydra's exception; a TypeError names the settings.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        return instantiate(config, _convert_="all", **kwargs)
    except InstantiationException as error:
        cause: BaseException = error
        while isinstance(cause, InstantiationException) and cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, TypeError):
            name = config["_target_"].rpartition(".")[2]
            settings = ", ".join(f"{k}={v}" for k, v in flatten(config).items() if not k.endswith("_target_"))
            raise TypeError(f"{name}({settings}): {cause}") from None
        raise cause from None


def build_model(config: dict[str, Any]) -> "SegmentationModel":
    """The model that a resolved config with ``encoder``, ``neck``, ``decoder`` and ``tuning`` describes."""
    from e2net.model import SegmentationModel

    return SegmentationModel(
        encoder=build(config["encoder"]),
        decoder=build(config["decoder"], _partial_=True),
        tuning=build(config["tuning"]),
        neck=build(config["neck"], _partial_=True),
    )


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turns a wrong setting, a missing file or bad data into one line on stderr and exit status 2.

    Wrap only what happens before the long work starts: later, a traceback is worth more. With E2NET_TRACEBACK=1 the
    exception passes through.
    """
    try:
        yield
    except _user_faults() as error:
        if os.environ.get("E2NET_TRACEBACK") == "1":
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from error


def _user_faults() -> tuple[type[Exception], ...]:
    """What a wrong setting, file or data raises; of Hydra and OmegaConf too where they are installed."""
    ours = (ValueError, TypeError, OSError)
    try:
        from hydra.errors import InstantiationException
        from omegaconf.errors import OmegaConfBaseException
    except ImportError:
        return ours
    return (*ours, InstantiationException, OmegaConfBaseException)


def list_groups(conf: Path) -> str:
    """One line per option of every config group in the folder ``conf``: the first comment of its file.

    Hydra's own headers, such as ``# @package _global_``, must come before all else and say nothing to a reader.
    """
    described = {}
    for group in sorted(p for p in conf.iterdir() if p.is_dir()):
        for file in sorted(group.glob("*.yaml")):
            comments = (line for line in file.read_text().splitlines() if line.startswith("# "))
            comment = next((line for line in comments if not line.startswith("# @")), "# ")
            described[f"{group.name}={file.stem}"] = comment[2:]
    width = max(map(len, described)) + 2
    return "\n".join(f"  {option:<{width}}{comment}" for option, comment in described.items())
