"""Which files to predict, and under which names their results are written."""

import fnmatch
import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

from e2net.trees import FILMS, PICTURES, other_kind, walk

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
        fault: why it cannot be predicted, if that is known before it is opened.
    """

    source: Path
    relative: Path
    name: Path
    film: bool
    fault: str | None = None


def find_inputs(text: str, output: Path) -> list[Item]:
    """Lists what ``input=...`` means: a file, a folder with all below it, or a glob pattern.

    Files of other kinds in a folder, hidden files and folders, and everything in an ``output`` inside of the folder
    are left out. Links to folders are followed; a folder to which several ways lead is walked once, by the way without
    links if there is one. Something else under a picture's name (a pipe, a socket, a device, a link to nothing), and a
    folder that cannot be listed, become items with a ``fault``.

    Args:
        text: path or pattern (``*``, ``?``, ``[...]``, ``**`` for any folders); a path that exists is no pattern.
        output: where results will be written.

    Returns:
        At least one item, sorted by path; no two items' results have the same name.

    Raises:
        FileNotFoundError: no such file, or no match.
        ValueError: nothing there can be predicted, or a result could overwrite an input.
    """
    path = Path(text).expanduser()
    faults: dict[Path, str] = {}
    if path.is_dir():
        if path.resolve() == output.resolve():
            raise ValueError(f"output={output}: expected another folder than the input's, such as {path / 'predicted'}")
        base, files = path, list(walk(path, faults, output.resolve()))
    elif os.path.lexists(path):
        base, files = path.parent, [path]
    elif glob.has_magic(text):
        matches = list(_glob(path, output.resolve(), faults))
        base, files = _fixed_part(path), list(_once(m for m in matches if not _within(m, output.resolve())))
        if not matches:
            raise FileNotFoundError(f"input={text}: expected a pattern that matches files, found no match")
    else:
        raise FileNotFoundError(f"input={text}: expected a file, a folder or a pattern, found nothing there")
    known = [f for f in files if f.suffix.lower() in PICTURES + FILMS]
    if not known and not faults:
        kinds = ", ".join(sorted({f.suffix or "no extension" for f in files})[:5])
        found = f"{len(files)} other files ({kinds})" if files else "no files"
        raise ValueError(f"input={text}: expected {_EXPECTED}, found {found}")
    for file in known:
        if (other := other_kind(file)) is not None:
            faults[file] = f"expected a file, found {other}"
    items = _named(sorted({*known, *faults}), base, faults)
    _check_inputs_are_safe(items, output)
    return items


def shown(path: Path) -> str:
    """A path as text that can be printed and written in UTF-8: bytes that are none, and line breaks, are escaped."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _glob(pattern: Path, output: Path, faults: dict[Path, str]) -> Iterator[Path]:
    """What matches; below ``**`` as :func:`walk` finds it, as the glob module follows links in circles for ever."""
    parts = pattern.parts
    first = parts.index("**") if "**" in parts else len(parts)
    for top in map(Path, glob.glob(str(Path(*parts[:first])))):  # noqa: PTH207 - Path.glob wants a base
        if first == len(parts):
            yield top
        elif top.is_dir():
            yield from (f for f in walk(top, faults, output) if _matches(f.relative_to(top).parts, parts[first:]))


def _matches(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    if not pattern or not parts:
        return not parts and set(pattern) <= {"**"}
    if pattern[0] == "**":
        return _matches(parts, pattern[1:]) or _matches(parts[1:], pattern)
    return fnmatch.fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _once(matches: Iterable[Path]) -> Iterator[Path]:
    """Matches that are no folders, each folder by one way only."""
    seen = set()
    for match in sorted(matches, key=lambda m: (len(m.parts), m)):
        place = (os.path.realpath(match.parent), match.name)
        if not match.is_dir() and place not in seen:
            seen.add(place)
            yield match


def _within(path: Path, folder: Path) -> bool:
    return _resolved(path).is_relative_to(folder)


def _resolved(path: Path) -> Path:
    """As ``path.resolve()``, but for links that lead in a circle."""
    return Path(os.path.realpath(path))


def _fixed_part(pattern: Path) -> Path:
    """The folder above the first part of a pattern that is one."""
    fixed = Path(pattern.anchor)
    for part in pattern.parts[len(fixed.parts) : -1]:
        if glob.has_magic(part):
            break
        fixed /= part
    return fixed


def _named(files: list[Path], base: Path, faults: dict[Path, str]) -> list[Item]:
    """Names for results: stems, as evaluation pairs maps by stem; the whole file name where two stems would meet.

    If that is taken too, by a file or a folder of the results (``a.jpg`` beside ``a.png/b.jpg`` would be ``a.png``
    twice), a number follows.
    """
    sources = [(f, f.relative_to(base)) for f in files]

    def key(relative: Path, name: Path) -> tuple[str, bool]:
        # Some file systems do not tell capitals apart. A film and a picture never meet: their results end differently.
        return str(name).casefold(), relative.suffix.lower() in FILMS

    stems = Counter(key(r, r.with_suffix("")) for _, r in sources)
    folders = {str(folder).casefold() for _, relative in sources for folder in relative.parents}
    taken: set[str] = set()
    items = []
    for source, relative in sources:
        film = relative.suffix.lower() in FILMS
        stem = [] if stems[key(relative, relative.with_suffix(""))] > 1 else [relative.with_suffix("")]
        numbered = (relative.with_name(f"{relative.name}~{i}") for i in count(2))
        for name in chain(stem, [relative], numbered):
            results = {f"{name}{extension}".casefold() for extension in ((".mp4",) if film else (".png", ".jpg"))}
            if not results & (folders | taken):
                break
        taken |= results
        items.append(Item(source, relative, name, film, faults.get(source)))
    return items


def _check_inputs_are_safe(items: list[Item], output: Path) -> None:
    """Raises ValueError if an input lies where results are written, be it by way of a link in the output."""
    inputs = {_resolved(item.source): item.source for item in items}
    parents = {real.parent for real in inputs}
    places = [_resolved(output / kind) for kind in (MAPS, OVERLAYS, CUTOUTS)]
    written = {output / kind / item.name.parent for item in items for kind in (MAPS, OVERLAYS, CUTOUTS)}
    linked = parents & {_resolved(folder) for folder in written}
    for real, source in inputs.items():
        if real.parent in linked or any(real.is_relative_to(place) for place in places):
            raise ValueError(
                f"output={output}: {shown(source)} is an input and lies where results are written; choose another"
            )
