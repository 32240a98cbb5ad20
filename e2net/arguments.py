"""key=value arguments of the programs whose settings are a frozen dataclass of fields ``Annotated[type, help]``.

Ours, as no library has these rules: chz, the nearest, takes the second of two values, 1 for true and "null" for text,
and keeps nothing for Hydra; Hydra itself makes a syntax error of ``input=*.jpg``. Imports nothing heavy.
"""

import difflib
import io
import math
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import MISSING, fields
from datetime import datetime
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

S = TypeVar("S", bound="DataclassInstance")
# The field that takes what is no setting, in programs that pass this on to conf/train.yaml.
_OVERRIDES = "overrides"


def read_settings(schema: type[S], arguments: Sequence[str]) -> S:
    """Reads key=value arguments: text is taken as it stands, everything else as YAML.

    What is no setting is an error, or goes into the field ``overrides: tuple[str, ...]`` where the schema has one.

    Raises:
        ValueError: an argument is no key=value, a key is unknown, missing or given twice, a value is of another type,
            or what the schema itself refuses.
    """
    hints, abouts = get_type_hints(schema), _abouts(schema)
    values: dict[str, Any] = {}
    overrides = []
    for argument in arguments:
        key, equals, text = argument.partition("=")
        passed_on = _OVERRIDES in hints and key not in abouts
        if not equals and not (passed_on and key.startswith("~")):  # Hydra's way to leave a key out
            raise ValueError(f"expected key=value, found {argument!r}; write it so or leave it out (see --help)")
        if passed_on:
            overrides.append(argument)
        elif key not in abouts:
            near = nearest_key(schema, key)
            raise ValueError(f"unknown setting {key!r}; " + (f"did you mean {near}?" if near else "see --help"))
        elif key in values:
            raise ValueError(f"{key} is given twice; leave one out")
        else:
            values[key] = _read(key, text, hints[key])
    for one in fields(schema):
        if one.name in abouts and one.default is MISSING and not values.get(one.name):
            raise ValueError(f"{one.name} has no value; give it as {one.name}=... (--help lists all keys)")
    return schema(**values, **({_OVERRIDES: tuple(overrides)} if _OVERRIDES in hints else {}))


def help_text(schema: type[S], usage: str) -> str:
    """The text of ``--help``: ``usage``, and a line for each setting with its default."""
    given = {one.name: f"{one.name}={_written(one.default)}" for one in fields(schema)}
    abouts = _abouts(schema)
    width = max(len(given[key]) for key in abouts)
    return "\n".join([usage, "Settings (key=value):", *(f"  {given[k]:<{width}}  {abouts[k]}" for k in abouts)])


def nearest_key(schema: type[S], key: str, cutoff: float = 0.6) -> str | None:
    """The setting that a mistyped key may have been meant for; ``cutoff`` from 0, anything, to 1, the same."""
    return next(iter(difflib.get_close_matches(key, _abouts(schema), n=1, cutoff=cutoff)), None)


def refuse_overrides(overrides: Sequence[str], reserved: Sequence[str], why: str) -> None:
    """Makes sure that no override is one of ``reserved`` or below it: a key, or a config group.

    Raises:
        ValueError: one is; the message says ``why``.
    """
    for override in overrides:
        key = override.partition("=")[0].lstrip("+~")
        if any(key == word or key.startswith((f"{word}.", f"{word}/")) for word in reserved):
            raise ValueError(f"{key}: {why}; leave it out")


def is_a(value: Any, hint: Any) -> bool:
    """Whether a value is of a setting's type, a class, one of some words, or a union of such.

    A tuple is as good as a list, NumPy's numbers are as good as Python's, and a whole number is a float too.
    """
    return any(_is_a(value, kind) for kind in _kinds(hint))


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the one type; words are one type."""
    return (hint,) if get_origin(hint) is Literal else get_args(hint) or (hint,)


def _is_a(value: Any, kind: type) -> bool:
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if isinstance(value, bool) or kind is bool:  # bool is a kind of int, but "batch_size=true" is a mistake
        return isinstance(value, bool) and kind is bool
    if kind is list:
        return isinstance(value, Sequence) and not isinstance(value, str | bytes)
    if kind is float:
        return isinstance(value, Real) and math.isfinite(value)
    return isinstance(value, Integral if kind is int else kind)


def type_names(hint: Any) -> str:
    """A setting's type in words."""
    return " or ".join(_type_name(kind) for kind in _kinds(hint))


def _type_name(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(get_args(kind))
    return "null" if kind is type(None) else str(kind.__name__)


def check_folder(key: str, folder: Path) -> None:
    """Makes sure that a folder is there or can be made.

    Raises:
        ValueError: it, or something above it, is a file.
    """
    found = next(p for p in (folder, *folder.parents) if p.exists())
    if not found.is_dir():
        raise ValueError(f"{key}={folder}: expected a folder or a free name, found a file: {found}")


def check_port(host: str, port: int) -> None:
    """Makes sure that this machine can listen at an address, before a model is loaded.

    Raises:
        ValueError: it has no such address, or somebody listens there already.
    """
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except OSError as error:
        raise ValueError(f"host={host} port={port}: cannot listen there ({error})") from None


def output_folder(given: str | None, program: str) -> Path:
    """Where a program writes its results: the folder that was given, else one of this moment in ``runs``.

    Raises:
        ValueError: see :func:`check_folder`.
    """
    # To the microsecond: of several processes that a loop starts in one second each has its own.
    folder = Path(given or f"runs/{program}_{datetime.now():%Y-%m-%d_%H-%M-%S-%f}").expanduser()
    check_folder("output", folder)
    return folder


def print_anywhere() -> None:
    """Has this program print question marks for what a terminal or file of another encoding than UTF-8 cannot hold.

    Python would stop it there, after hours of training, at the first × of a table. Where standard error is no terminal,
    the Hub's library and transformers, which read this when they are imported, draw no bars either.
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _abouts(schema: type[S]) -> dict[str, str]:
    hints = get_type_hints(schema, include_extras=True)
    return {key: hint.__metadata__[0] for key, hint in hints.items() if get_origin(hint) is Annotated}


def _written(default: Any) -> str:
    if default is MISSING:
        return ""
    return default if isinstance(default, str) else str(default).lower().replace("none", "null")


def _read(key: str, text: str, hint: Any) -> Any:
    kinds = _kinds(hint)
    if str in kinds:
        return None if text == "null" and type(None) in kinds else text
    try:
        value = yaml.safe_load(text)
        if float in kinds and isinstance(value, int | str) and not isinstance(value, bool):
            value = float(value)  # 1e-3 is text in YAML 1.1
    except (yaml.YAMLError, ValueError, OverflowError):
        value = text
    if not is_a(value, hint):
        raise ValueError(f"{key}={text}: expected {type_names(hint)}, found {value!r}")
    return value
