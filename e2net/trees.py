"""Pictures and films below a folder, what else may have their names, and names that are each there once."""

import os
import stat
from collections.abc import Iterable, Iterator
from itertools import chain, count
from pathlib import Path

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
FILMS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv")


def other_kind(path: Path) -> str | None:
    """What a path leads to in words, if it is no regular file; None if it is one, or nothing is there at all."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "a link to nothing" if path.is_symlink() else None
    except OSError as error:  # a link to itself, a folder that may not be entered
        return error.strerror or str(error)
    words = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return None if stat.S_ISREG(mode) else words.get(stat.S_IFMT(mode), "a device")


def distinct(names: Iterable[str]) -> list[str]:
    """The names, each once on any file system: with a number behind it where it is there already."""
    seen: set[str] = set()
    found = []
    for place, name in enumerate(names, 1):
        numbered = (f"{name}~{number}" for number in count(place))
        chosen = next(one for one in chain([name], numbered) if one.casefold() not in seen)
        seen.add(chosen.casefold())
        found.append(chosen)
    return found


def walk(folder: Path, faults: dict[Path, str], without: Path | None = None) -> Iterator[Path]:
    """The files below a folder, but for hidden ones.

    Links to folders are followed; a folder to which several ways lead is walked once, by the way without links if there
    is one.

    Args:
        folder: where to begin.
        faults: gets each folder that cannot be listed, and why.
        without: a folder, resolved, that is left out with all below it.

    Raises:
        OSError: the first folder itself cannot be listed.
    """

    def note(error: OSError) -> None:
        if Path(error.filename) == folder:
            raise error
        faults[Path(error.filename)] = f"this folder cannot be listed ({error.strerror})"

    seen: set[str] = set()
    links = [folder]
    while links:  # all that lies below a folder before the links in it, so that the way without links comes first
        top = links.pop(0)
        for place, folders, files in os.walk(top, onerror=note):
            here, real = Path(place), os.path.realpath(place)
            if real in seen or Path(real) == without:
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(f for f in folders if not f.startswith("."))
            links += [here / f for f in folders if (here / f).is_symlink()]
            yield from (here / f for f in files if not f.startswith("."))
