"""A second look, enlarged, at the place where the first one found something: E2Net's search and zoom, over pictures."""

import math

import numpy as np
import torch
from torch import Tensor

from e2net.datasets.transforms import Size
from e2net.tasks.base import Task

Box = tuple[int, int, int, int]  # upper, lower, left and right edge in pixels, the lower and right one exclusive

# A second look is never at less of a side than this: more enlargement shows blur.
_LEAST = 0.3


def check_zoom(zoom: float, task: Task) -> None:
    """Raises ValueError for a ``zoom`` that is neither 0 nor at least 1, or for a task that finds no objects."""
    if not zoom:
        return
    if not 1 <= zoom < math.inf:
        raise ValueError(
            "zoom_test: expected 0 (off) or a number of at least 1, the side of the second look as a multiple of the "
            f"found object's, found {zoom}"
        )
    if not task.objects:
        raise ValueError(f"zoom_test={zoom:g}: task={task.name} has no objects to look at again; expected 0")


def found_box(certainty: Tensor, zoom: float) -> Box:
    """Where to look again: the box of what is more certain than not, its sides times ``zoom``, moved into the image.

    Of an image where nothing is, the box of what is at least half as certain as the most certain pixel; the whole image
    where no number is one.

    Args:
        certainty: (H, W) in [0, 1], how certain each pixel is of an object.
        zoom: at least 1.
    """
    found = certainty > 0.5
    if not found.any():
        found = ~(certainty < certainty.max() / 2)  # of NaN all: who gets the map refuses it by the image's name
    edges = []
    for axis, side in enumerate(certainty.shape):
        at = torch.nonzero(found.any(1 - axis))[:, 0]
        first, last = int(at[0]), int(at[-1]) + 1
        length = min(side, max(round((last - first) * zoom), math.ceil(_LEAST * side)))
        start = min(max(0, round((first + last - length) / 2)), side - length)
        edges += [start, start + length]
    return edges[0], edges[1], edges[2], edges[3]


def cut_out(picture: np.ndarray, box: Box, size: Size) -> np.ndarray:
    """The part of a picture that a box shows, to whole pixels; at least one.

    Args:
        picture: (h, w, 3), of any size.
        box: within an image of ``size`` that shows the same.
        size: (H, W) of the image, pixels.
    """
    rows, columns = (
        slice(box[2 * axis] * length // size[axis], -(-box[2 * axis + 1] * length // size[axis]))
        for axis, length in enumerate(picture.shape[:2])
    )
    return picture[rows, columns]
