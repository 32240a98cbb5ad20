"""From a Hydra config to objects, and from any exception of the set-up phase to one line for the user."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from e2net.model import SegmentationModel


def resolve(config: DictConfig) -> dict[str, Any]:
    """The config as plain containers, every interpolation resolved and no mandatory value missing."""
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ValueError(f"config: {missing[0]} has no value; give it as {missing[0]}=...")
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))


def build(config: dict[str, Any], **kwargs: Any) -> Any:
    """Instantiates a config with a ``_target_``; ``kwargs`` go to the constructor.

    What a constructor raises comes out as it is, not wrapped into Hydra's exception.
    """
    try:
        return instantiate(config, _convert_="all", **kwargs)
    except InstantiationException as error:
        cause: BaseException = error
        while isinstance(cause, InstantiationException) and cause.__cause__ is not None:
            cause = cause.__cause__
        raise cause from None


def build_model(config: dict[str, Any]) -> SegmentationModel:
    """The model that a resolved config with ``encoder``, ``decoder`` and ``tuning`` describes."""
    return SegmentationModel(
        encoder=build(config["encoder"]),
        decoder=build(config["decoder"], _partial_=True),
        tuning=build(config["tuning"]),
    )


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turns a wrong setting, a missing file or bad data into one line on stderr and exit status 2.

    Wrap only what happens before the long work starts: later, a traceback is worth more. With E2NET_TRACEBACK=1 the
    exception passes through.
    """
    try:
        yield
    except (ValueError, TypeError, OSError, InstantiationException, OmegaConfBaseException) as error:
        if os.environ.get("E2NET_TRACEBACK") == "1":
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from error


def list_groups(conf: Path) -> str:
    """One line per option of every config group in the folder ``conf``: the first comment of its file."""
    lines = []
    for group in sorted(p for p in conf.iterdir() if p.is_dir()):
        for file in sorted(group.glob("*.yaml")):
            comment = next((line for line in file.read_text().splitlines() if line.startswith("# ")), "# ")
            lines.append(f"  {group.name + '=' + file.stem:<24}{comment[2:]}")
    return "\n".join(lines)
