"""What can be found about one pair of picture and target."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from e2net.check.hashing import Print, fingerprint
from e2net.datasets import Source
from e2net.datasets.pairs import pair_files, read_pair, size_fault
from e2net.drawing import as_rgb
from e2net.formats import UnreadableError, printable, read_header, read_image
from e2net.tasks.base import Array, Severity, Task

# Whatever a task does not know better: kind, and what it means.
MEANINGS: Mapping[str, str] = {
    "set": "A set that cannot be listed or split as training does it.",
    "not there": "A set that the config names and that is not there: it was not checked.",
    "no target": "Pictures without a target: training stops at them.",
    "no picture": "Targets without a picture: training stops at them.",
    "same stem": "Two files of one stem: which of them belongs to the pair? Training stops at them.",
    "no file": "Named as a picture, but no file: a folder, a link to nothing, or a listed name. Training stops at it.",
    "unreadable picture": "Truncated, or of no known format: training stops at it.",
    "unreadable target": "Truncated, or of no known format: training stops at it.",
    "unusable target": "It can be decoded, but its meaning would be a guess: training stops at it.",
    "size mismatch": "Picture and target have different sizes: training stops at them.",
    "same picture across sets": "The same picture in training, validation or test: a score there says nothing.",
    "similar picture across sets": "Nearly the same picture in training, validation or test, perhaps mirrored, scaled, "
    "cropped or compressed: a score there flatters.",
    "same picture twice": "The same picture more than once within a set, or in two test sets.",
    "similar pictures": "Nearly the same picture within a set, or in two test sets: frames of a film, or copies that "
    "were mirrored, scaled, cropped or compressed.",
    "EXIF rotated": "The file says that it is to be turned or mirrored; e2net does so, other programs may not.",
    "CMYK": "Colours for print: e2net makes RGB of them, other programs may not.",
    "16 bit": "16 bits a channel: e2net scales them to 8, other programs may cut them off.",
    "alpha": "Transparency: e2net drops it, other programs may draw a background.",
    "palette": "Colours by number: e2net looks them up, other programs may take the numbers for grey.",
    "1 bit": "Black and white only: e2net makes 0 and 255 of it, other programs may make 0 and 1.",
    "colour space": "Neither grey nor RGB: e2net makes RGB of it, other programs may not.",
    "misnamed": "The name ends as that of another format does: e2net goes by the content, other programs may not.",
}


# Kinds of which the pictures are equal, and what differs may be the targets.
SAME = ("same picture across sets", "same picture twice")


@dataclass(frozen=True)
class Place:
    """Where something was found.

    Attributes:
        part: name of the set.
        name: of the pair; empty where the whole set is meant.
        file: relative to the folder of the data, or None where there is none.
        index: position of the pair in its part, or None where there is no pair.
    """

    part: str
    name: str = ""
    file: str | None = None
    index: int | None = None

    @property
    def title(self) -> str:
        """For people."""
        return printable(self.file or self.name or self.part)


@dataclass(frozen=True)
class Finding:
    """Something wrong or suspect.

    Attributes:
        kind: of ``MEANINGS``, or of the task's ``suspicions``.
        words: what was found.
        places: the pair, or the pictures that are the same or similar.
    """

    severity: Severity
    kind: str
    words: str
    places: tuple[Place, ...]


@dataclass(frozen=True)
class Examined:
    """One pair: what was found, and what it takes to find its picture again."""

    place: Place
    findings: tuple[Finding, ...]
    print: Print | None


def examine(source: Source, index: int, task: Task, part: str, root: Path | None) -> Examined:
    """Reads one pair and says what is wrong or suspect about it; a file that is damaged is a finding, no error.

    Args:
        source: of the pairs of one part.
        index: which of them.
        task: what the targets mean.
        part: name of the set.
        root: the folder of the data, which no message names.
    """
    files = pair_files(source, index)
    if files is None:
        return _examine_arrays(source, index, task, part)
    image_path, target_path = files
    name = source.name(index)
    of_picture, of_target = (Place(part, name, relative(path, root), index) for path in files)
    findings = _read_header_of(image_path, of_picture)
    image = target = None
    try:
        image = read_image(image_path)
    except (ValueError, OSError) as error:
        findings.append(Finding("error", "unreadable picture", _words(error, image_path, root), (of_picture,)))
    try:
        target, suspicions = task.inspect_target(target_path)
    except (ValueError, OSError) as error:
        damaged = isinstance(error, (UnreadableError, OSError))
        kind = "unreadable target" if damaged else "unusable target"
        findings.append(Finding("error", kind, _words(error, target_path, root), (of_target,)))
    else:
        findings += [Finding(s.severity, s.kind, s.words, (of_target,)) for s in suspicions]
        findings += _turned(target_path, of_target)
    if image is not None and target is not None and image.shape[:2] != target.shape[:2]:
        words = size_fault(task, image_path, image.shape, target_path, target.shape)
        findings.append(Finding("error", "size mismatch", _said(words, target_path, root), (of_target,)))
    known = None if image is None else fingerprint(image, image_path.read_bytes(), _digest(task, target))
    return Examined(of_picture, tuple(findings), known)


def _examine_arrays(source: Source, index: int, task: Task, part: str) -> Examined:
    """The same for a source without files, such as a generated one."""
    place = Place(part, source.name(index), None, index)
    try:
        image, target = read_pair(source, index, task=task)
    except (ValueError, OSError) as error:
        return Examined(place, (Finding("error", "unreadable picture", " ".join(str(error).split()), (place,)),), None)
    found = [Finding(s.severity, s.kind, s.words, (place,)) for s in task.suspect(target)]
    return Examined(place, tuple(found), fingerprint(image, None, _digest(task, target)))


def _digest(task: Task, target: Array | None) -> str | None:
    return None if target is None else task.digest(target)


def _read_header_of(path: Path, place: Place) -> list[Finding]:
    header = read_header(path)
    traps = {} if header is None else header.traps()
    return [Finding("note", kind, words, (place,)) for kind, words in traps.items()]


def _turned(path: Path, place: Place) -> list[Finding]:
    """Of a target's header, what its task does not ask about: it may be of any mode, but seldom lies on its side."""
    header = read_header(path)
    words = None if header is None else header.traps().get("EXIF rotated")
    return [] if words is None else [Finding("note", "EXIF rotated", words, (place,))]


def relative(path: Path, root: Path | None) -> str:
    """A file's name within the folder of the data: what is above it is a matter of the machine."""
    if root is not None and path.is_relative_to(root):
        path = path.relative_to(root)
        return path.as_posix()
    return path.name


def _words(error: Exception, path: Path, root: Path | None) -> str:
    if isinstance(error, OSError) and error.strerror:  # its text has the path in quotes
        return error.strerror
    return _said(str(error), path, root)


def _said(text: str, path: Path, root: Path | None) -> str:
    return without_root(text.replace(f"{path}: ", "").replace(str(path), path.name), root)


def without_root(text: str, root: Path | None) -> str:
    """A message on one line, without where the data lie on this machine."""
    if root is not None and root.is_absolute():
        text = text.replace(f"{root}/", "").replace(str(root), "data.root")
    return " ".join(text.split())


def shown(source: Source, index: int, task: Task) -> list[tuple[str, NDArray[np.uint8]]]:
    """What can be seen of a pair: captions and pictures (h, w, 3) uint8 RGB; nothing where nothing can be read."""
    files = pair_files(source, index)
    image: NDArray[np.uint8] | None = None
    target: Array | None = None
    if files is None:
        image, target = read_pair(source, index, task=task)
    else:
        with contextlib.suppress(ValueError, OSError):  # which is a finding already
            image = read_image(files[0])
        with contextlib.suppress(ValueError, OSError):
            target = task.inspect_target(files[1])[0]
    pictures = [] if image is None else [("picture", image)]
    if target is not None:
        over = image is not None and image.shape[:2] == target.shape[:2]
        drawn = task.target_overlay(image, target) if over and image is not None else as_rgb(task.shown(target))
        pictures.append((task.target_name, drawn))
    return pictures
