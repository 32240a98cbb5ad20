"""Pictures whose values set the ranges of 8-bit activations."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from e2net.datasets import DenseData
from e2net.datasets.pairs import read_pair
from e2net.datasets.transforms import Resize
from e2net.formats import read_image
from e2net.trees import PICTURES, walk


def find_pictures(folder: str) -> list[Path]:
    """Pictures in a folder and below.

    Raises:
        ValueError: there are none, or a folder cannot be listed.
    """
    faults: dict[Path, str] = {}
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise ValueError(f"calibration={folder}: expected a folder of pictures, found no folder")
    found = sorted(file for file in walk(path, faults) if file.suffix.lower() in PICTURES)
    if faults:
        place, fault = next(iter(faults.items()))
        raise ValueError(f"calibration={folder}: {place}: {fault}")
    if not found:
        raise ValueError(f"calibration={folder}: expected pictures, found none")
    return found


def read_pictures(files: list[Path], size: tuple[int, int], count: int) -> Iterator[NDArray[np.uint8]]:
    """(1, 3, H, W) each, resized as in evaluation."""
    resize = Resize(size)
    for i in spread(len(files), count):
        yield _planes(resize.image(read_image(files[i])))


def training_pictures(data: DenseData, size: tuple[int, int], count: int) -> Iterator[NDArray[np.uint8]]:
    """The same of the training part."""
    source, resize = data.source("train"), Resize(size)
    indices = data.split()[0]
    for i in spread(len(indices), count):
        yield _planes(resize.image(read_pair(source, indices[i], size, data.task)[0]))


def spread(length: int, count: int) -> list[int]:
    """So many indices below ``length``, or all, evenly spread."""
    count = min(length, count)
    return [i * length // count for i in range(count)]


def _planes(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, 3) -> (1, 3, H, W)."""
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None])
