"""Folders of results: a file of somebody else's is never written over, nor removed.

A folder that e2net has written into holds ``.e2net.json``, which lists what of it is e2net's.
"""

import contextlib
import json
import shutil
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from e2net.files import naming, part_of, remove_file, write_atomically

MARKER = ".e2net.json"
_FORMAT = 1
# Of versions that wrote no marker: documents that say what wrote them, and what a run folder always has.
_DOCUMENTS = ("scores.json", "test_scores.json", "comparison.json")


def check_free(key: str, folder: Path, patterns: Iterable[str]) -> None:
    """Makes sure that what is to be written into a folder replaces nothing but e2net's own.

    Args:
        key: the setting that names the folder, for the message.
        folder: it need not be there.
        patterns: of the names of the files and folders that are to be written, as for ``Path.glob``.

    Raises:
        ValueError: a file or folder of such a name is there, and e2net did not write it.
    """
    there = sorted({path.name for pattern in patterns for path in folder.glob(pattern)}) if folder.is_dir() else []
    own = _own(folder)
    foreign = [] if there and _is_older(folder) else [name for name in there if name not in own]
    if (folder / MARKER).exists() and not _read(folder):
        foreign = [MARKER]
    if foreign:
        raise ValueError(
            f"{key}={folder}: {foreign[0]} is there and was not written by e2net; move it away, or give another folder"
        )


def claim(folder: Path, patterns: Iterable[str], files: Iterable[str] | None = None) -> None:
    """Notes in a folder's marker what of it is e2net's: after :func:`check_free`, before anything is written.

    Args:
        folder: of the results.
        patterns: of the names in it that are e2net's from now on.
        files: all that is to be written, relative to the folder, with ``/``: what an earlier run has noted so under
            these patterns, and is not among them, is removed, so that results of two runs do not mingle. None: nothing
            is removed.
    """
    patterns = set(patterns)
    document: dict[str, Any] = {"format": _FORMAT, "patterns": sorted({*_read(folder), *patterns})}
    noted = _json(folder / MARKER).get("files")
    noted = [name for name in noted if isinstance(name, str)] if isinstance(noted, list) else []
    if files is not None:
        written = set(files)
        stale = {name for name in noted if any(fnmatchcase(name.split("/")[0], one) for one in patterns)}
        for name in stale - written:
            _remove(folder, name)
        noted = [*(set(noted) - stale), *written]
    if noted:
        document["files"] = sorted(noted)
    write_atomically(folder / MARKER, json.dumps(document, indent=1) + "\n")


def is_claimed(folder: Path, patterns: Iterable[str]) -> bool:
    """Whether a folder's marker says that all of these are e2net's."""
    return set(patterns) <= set(_read(folder))


@contextlib.contextmanager
def staged(folder: Path, names: Iterable[str]) -> Iterator[Path]:
    """A folder, not there yet, whose files become those of another one when all of them are written, and not before.

    Args:
        folder: where they shall be; made if need be. After :func:`check_free`.
        names: of the files.

    Raises:
        OSError: the folder cannot be written; what was there is still there.
    """
    names = tuple(names)
    with naming(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    stage = part_of(folder)
    try:
        yield stage
        if not folder.exists():
            claim(stage, names)
            stage.replace(folder)
            return
        claim(folder, names)
        for name in names:
            (stage / name).replace(folder / name)
    finally:
        if stage.is_dir():
            shutil.rmtree(stage)


def _remove(folder: Path, name: str) -> None:
    """Removes a file that e2net noted, and the folders between that are empty then; of a link's target nothing."""
    file = folder / name
    inside = ".." not in Path(name).parts and not Path(name).is_absolute()
    if not inside or file.is_symlink() or file.parent.resolve() != (folder.resolve() / name).parent:
        return
    remove_file(file)
    for place in file.parents:
        if place == folder or not place.is_dir() or any(place.iterdir()):
            break
        place.rmdir()


def _own(folder: Path) -> set[str]:
    return {path.name for pattern in _read(folder) for path in folder.glob(pattern)}


def _read(folder: Path) -> list[str]:
    document = _json(folder / MARKER)
    patterns = document.get("patterns") if document.get("format") == _FORMAT else None
    return [p for p in patterns if isinstance(p, str) and p and "/" not in p] if isinstance(patterns, list) else []


def _is_older(folder: Path) -> bool:
    """Whether a folder without a marker is one that an earlier version has written."""
    if (folder / MARKER).is_file():
        return False
    run = (folder / "checkpoints").is_dir() and "packages" in _json(folder / "environment.json")
    return run or any("e2net" in _json(folder / name) for name in _DOCUMENTS)


def _json(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}
