"""Files that are there whole or not at all."""

import contextlib
import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

# What no config or list of names comes near: a few lines of YAML can stand for any number of values.
_MOST_BYTES, _MOST_VALUES = 1 << 22, 1 << 18


def remove_file(path: Path) -> None:
    """Removes a file if there is one: none is there either where what should be its folder is somebody's file."""
    if path.is_file():
        path.unlink()


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file whole or not at all, under another name first; folders are made.

    A byte of a file name that is no UTF-8 becomes an escape in a text, see ``e2net.formats.printable``.
    """
    with naming(path), replacing(path) as temporary:
        temporary.write_bytes(content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content)


def unescaped(text: str) -> str:
    """A file name as it was before :func:`write_atomically` wrote it into a text."""
    return re.sub(r"\\udc([89a-f][0-9a-f])", lambda found: chr(0xDC00 + int(found[1], 16)), text)


def copy_atomically(old: Path, new: Path) -> None:
    """Copies a file whole or not at all."""
    with naming(new), replacing(new) as temporary:
        shutil.copyfile(old, temporary)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name in the same folder for a new file or folder, which becomes ``path`` in the end, or is gone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = part_of(path)
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of writing name the file that was written, and a library's own that an OSError caused is that OSError."""
    try:
        yield
    except Exception as error:
        cause = _os_error(error)
        if cause is None:
            raise
        raise OSError(cause.errno, cause.strerror or str(cause), str(path)) from error


def _os_error(error: Exception) -> OSError | None:
    """The OSError that an error is, that caused it, or that its text tells: Rust's libraries, as safetensors, do so."""
    if isinstance(error, OSError):
        return error
    if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
        return error.__context__
    found = re.search(r"(?:\(os error |\bOs \{ code: )(\d+)", str(error))  # as it is displayed, or printed to debug
    return OSError(int(found[1]), os.strerror(int(found[1]))) if found else None


def no_space(error: OSError) -> str | None:
    """What to tell where an error says that a disk, a quota or a file's largest size is full; None: it does not."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return None
    return f"no space left for {error.filename or 'a file'} ({os.strerror(error.errno)})"


def part_of(path: Path) -> Path:
    """A free name in the same folder, for what becomes ``path`` when it is whole."""
    return path.with_name(f".{uuid.uuid4().hex}.e2net.part")


def is_part(path: Path) -> bool:
    """Whether a name is one that :func:`part_of` gives; a process that was killed meanwhile leaves it behind."""
    return re.fullmatch(r"\.[0-9a-f]{32}\.e2net\.part", path.name) is not None


def read_yaml(file: Path) -> Any:
    """What a YAML file of somebody else's holds: plain values, no more of them than can be worked with.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no YAML of plain values, or stands for too many of them.
    """
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise ValueError(f"expected at most {_MOST_BYTES >> 20} MiB, found more")
        value = yaml.load(file.read_text(encoding="utf-8"), _PlainLoader)
        if _count(value, {}) > _MOST_VALUES:
            raise ValueError("its aliases stand for too many values; write them out")
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{file}: expected YAML, found what cannot be read ({reason})") from error
    return value


class _PlainLoader(yaml.SafeLoader):
    """Without merge keys, which may multiply while they are read."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            raise yaml.constructor.ConstructorError(None, None, "merge keys are not known here", node.start_mark)
        super().flatten_mapping(node)


def _count(value: Any, known: dict[int, int]) -> int:
    """How many values there are if each alias is written out; ``known`` holds the counts of containers by id."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        known[id(value)] = _MOST_VALUES + 1  # until it is known: for one that contains itself
        parts = value.values() if isinstance(value, dict) else value
        known[id(value)] = min(1 + sum(_count(one, known) for one in parts), _MOST_VALUES + 1)
    return known[id(value)]
