"""Values of key=value arguments, for the commands whose settings are a typed dataclass. Imports nothing heavy."""

import io
import sys
from pathlib import Path
from typing import Any, get_args

import yaml


def print_anywhere() -> None:
    """Has this program print question marks for what a terminal or file of another encoding than UTF-8 cannot hold.

    Python would stop it there, after hours of training, at the first × of a table.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def read_value(key: str, text: str, expected: Any) -> Any:
    """The value of ``key=text``: text stays as it stands, everything else is read as YAML.

    (Text as YAML, as in Hydra, would turn ``input=*.jpg`` into a syntax error.)

    Args:
        key: for the message.
        text: after the equals sign.
        expected: a type or a union of types, as in the dataclass; a whole number is a float too.

    Raises:
        ValueError: the value is of another type.
    """
    if expected is str:
        return text
    if expected == str | None:
        return None if text == "null" else text
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    kinds = get_args(expected) or (expected,)
    if float in kinds and type(value) is int:
        return float(value)
    if type(value) not in kinds:  # not isinstance: bool is a kind of int, but "batch_size=true" is a mistake
        names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
        raise ValueError(f"{key}={text}: expected {names}, found {value!r}")
    return value


def check_folder(key: str, folder: Path) -> None:
    """Makes sure that a folder is there or can be made.

    Raises:
        ValueError: it, or something above it, is a file.
    """
    found = next(p for p in (folder, *folder.parents) if p.exists())
    if not found.is_dir():
        raise ValueError(f"{key}={folder}: expected a folder or a free name, found a file: {found}")
