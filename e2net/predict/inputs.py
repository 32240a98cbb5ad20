"""Which files to predict, and under which names their results are written."""

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
FILMS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv")
# Folders of the output, one for each kind of result; no input may lie in them.
MAPS, OVERLAYS, CUTOUTS = "maps", "overlays", "cutouts"
_EXPECTED = f"pictures ({', '.join(PICTURES)}) or films ({', '.join(FILMS)})"


@dataclass(frozen=True)
class Item:
    """One file to predict.

    Attributes:
        source: the file.
        relative: its path below the input.
        name: of its results, relative to each folder of the output, without extension.
        film: whether it is one.
    """

    source: Path
    relative: Path
    name: Path
    film: bool


def find_inputs(text: str, output: Path) -> list[Item]:
    """Lists what ``input=...`` means: a file, a folder with all below it, or a glob pattern.

    Files of other kinds in a folder, hidden files and folders, and everything in an ``output`` inside of the folder
    are left out.

    Args:
        text: path or pattern (``*``, ``?``, ``[...]``, ``**`` for any folders); a path that exists is no pattern.
        output: where results will be written.

    Returns:
        At least one item, sorted by path; names are unique.

    Raises:
        FileNotFoundError: no such file, or no match.
        ValueError: nothing there can be predicted, or a result could overwrite an input.
    """
    path = Path(text).expanduser()
    if path.is_dir():
        if path.resolve() == output.resolve():
            raise ValueError(f"output={output}: expected another folder than the input's, such as {path / 'predicted'}")
        base, files = path, list(_walk(path, output.resolve()))
    elif path.exists():
        base, files = path.parent, [path]
    elif glob.has_magic(text):
        matches = [Path(m) for m in glob.glob(str(path), recursive=True)]  # noqa: PTH207 - Path.glob wants a base
        base, files = _fixed_part(path), [m for m in matches if m.is_file() and not _within(m, output.resolve())]
        if not matches:
            raise FileNotFoundError(f"input={text}: expected a pattern that matches files, found no match")
    else:
        raise FileNotFoundError(f"input={text}: expected a file, a folder or a pattern, found nothing there")
    known = sorted(f for f in files if f.suffix.lower() in PICTURES + FILMS)
    if not known:
        kinds = ", ".join(sorted({f.suffix or "no extension" for f in files})[:5])
        found = f"{len(files)} other files ({kinds})" if files else "no files"
        raise ValueError(f"input={text}: expected {_EXPECTED}, found {found}")
    inside = [f for f in known for kind in (MAPS, OVERLAYS, CUTOUTS) if _within(f, (output / kind).resolve())]
    if inside:
        raise ValueError(f"output={output}: {inside[0]} is an input and lies where results are written; choose another")
    return _named(known, base)


def _walk(folder: Path, output: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        here = Path(place)
        folders[:] = [f for f in folders if not f.startswith(".") and (here / f).resolve() != output]
        yield from (here / f for f in files if not f.startswith("."))


def _within(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder)


def _fixed_part(pattern: Path) -> Path:
    """The folder above the first part of a pattern that is one."""
    fixed = Path(pattern.anchor)
    for part in pattern.parts[len(fixed.parts) : -1]:
        if glob.has_magic(part):
            break
        fixed /= part
    return fixed


def _named(files: Iterable[Path], base: Path) -> list[Item]:
    """Stems as names, as evaluation pairs maps by stem; the whole file name where two stems would meet."""
    sources = [(f, f.relative_to(base)) for f in files]

    def key(relative: Path, name: Path) -> tuple[str, bool]:
        # Some file systems do not tell capitals apart. A film and a picture never meet: their results end differently.
        return str(name).casefold(), relative.suffix.lower() in FILMS

    stems = Counter(key(r, r.with_suffix("")) for _, r in sources)
    items, taken = [], set()
    for source, relative in sources:
        film = relative.suffix.lower() in FILMS
        name = relative if stems[key(relative, relative.with_suffix(""))] > 1 else relative.with_suffix("")
        if key(relative, name) in taken:
            raise ValueError(f"{source}: another input's results have the same name; rename one of the two")
        taken.add(key(relative, name))
        items.append(Item(source, relative, name, film))
    return items
