"""The same file in several sets, found without reading most of them."""

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path

# Of a file, bytes in its middle that tell it from most others of its size.
_PART = 1 << 16

_Place = tuple[str, Path]


def same_files(sets: Mapping[str, Sequence[Path]]) -> list[list[_Place]]:
    """Files of equal bytes that are in more than one set.

    Only files that share their size with one in another set are opened, and read whole only if 64 KiB are the same too.

    Args:
        sets: files of each, by its name.

    Returns:
        Of each such file the sets and paths where it is, in the order of ``sets``.

    Raises:
        OSError: a file is not there any more.
    """
    groups = [[(name, path) for name, files in sets.items() for path in files]]
    for key in (_size, _middle, _whole):
        groups = [part for group in groups for part in _parted(group, key)]
    return groups


def _parted(group: Sequence[_Place], key: Callable[[Path], Hashable]) -> list[list[_Place]]:
    """The group by what ``key`` says of its files; only parts with files of several sets."""
    parts: dict[Hashable, list[_Place]] = {}
    for name, path in group:
        parts.setdefault(key(path), []).append((name, path))
    return [part for part in parts.values() if len({name for name, _ in part}) > 1]


def _size(path: Path) -> int:
    return path.stat().st_size


def _middle(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, (path.stat().st_size - _PART) // 2))
        return hashlib.blake2b(file.read(_PART)).digest()


def _whole(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, hashlib.blake2b).digest()
