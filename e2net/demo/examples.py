"""What the page offers to those who have no picture at hand."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from e2net.datasets import ProceduralPairs
from e2net.demo.look import SMALL
from e2net.film import FilmReader
from e2net.formats import encoded, read_image
from e2net.page.pictures import shrunk
from e2net.trees import FILMS, PICTURES, walk

# At most so many, the first by name; and how many are generated.
_MOST, _GENERATED = 24, 6
_SIDES = (320, 480)
_DIFFICULTY = 0.4


class Example(NamedTuple):
    """A file to choose.

    Attributes:
        file: a picture or a film.
        small: what it looks like, (h, w, 3) uint8 RGB.
    """

    file: Path
    small: NDArray[np.uint8]


def find_examples(folder: str | None, place: Path) -> list[Example]:
    """The examples of a page.

    Args:
        folder: with pictures and films, also in folders inside; None generates pictures of camouflage.
        place: an empty folder for generated ones.

    Raises:
        ValueError: there is none in the folder, or one of the first is broken.
        OSError: the folder cannot be read.
    """
    if folder is None:
        return [_example(file) for file in _generate(place)]
    top = Path(folder).expanduser()
    if not top.is_dir():
        raise ValueError(f"examples={folder}: expected a folder of pictures or films, found none")
    files = sorted(file for file in walk(top, {}) if file.suffix.lower() in PICTURES + FILMS)
    if not files:
        raise ValueError(f"examples={folder}: expected pictures or films in it, found none")
    return [_example(file) for file in files[:_MOST]]


def _generate(place: Path) -> list[Path]:
    pairs = ProceduralPairs(_GENERATED, difficulty=_DIFFICULTY, split="demo", sides=_SIDES)
    files = []
    for k in range(len(pairs)):
        image, _ = pairs.read(k)
        files.append(place / f"generated_{k + 1}.png")
        files[-1].write_bytes(encoded(image))
    return files


def _example(file: Path) -> Example:
    read: Callable[[Path], NDArray[np.uint8]] = _first_frame if file.suffix.lower() in FILMS else read_image
    return Example(file, shrunk(read(file), SMALL))


def _first_frame(file: Path) -> NDArray[np.uint8]:
    return next(FilmReader(file).frames())
