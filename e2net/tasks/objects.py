"""How pictures of objects are told apart: by what is wrong with the result, and by what makes objects hard to find."""

import math
from bisect import bisect_right
from collections.abc import Sequence

from e2net.metrics.objects import BAND, EDGE, ERRORS, SPECK, SURROUNDINGS, Mask, error_of, measure_object
from e2net.tasks.base import Array, Group, Grouping, Placed

# Bounds of the groups of each measure, each the least value of the next group: fixed ones, so that two evaluations have
# the same groups. With them what a group is called.
_BOUNDS: dict[str, tuple[Sequence[float], Sequence[str]]] = {
    "size": ((0.01, 0.05, 0.15, 0.3), ("below 1 %", "1 to 5 %", "5 to 15 %", "15 to 30 %", "from 30 %")),
    "parts": ((2, 3), ("1", "2", "3 or more")),
    "colour": ((5, 10, 20), ("below 5", "5 to 10", "10 to 20", "from 20")),
    "texture": ((1.1, 1.25, 1.5), ("below 1.1", "1.1 to 1.25", "1.25 to 1.5", "from 1.5")),
    "complexity": ((2, 4, 8), ("below 2", "2 to 4", "4 to 8", "from 8")),
    "border": ((0.5,), ("inside", "touches")),
    "distance": ((0.1, 0.2, 0.3), ("below .1", ".1 to .2", ".2 to .3", "from .3")),
    "megapixels": ((0.1, 0.3, 1, 4), ("below 0.1", "0.1 to 0.3", "0.3 to 1", "1 to 4", "from 4")),
}
_ABOUT = {
    "size": ("object size", "Share of the picture's pixels that are object."),
    "parts": (
        "parts",
        "How many objects, counted as connected parts of the mask (by edges or corners); those below "
        f"{100 * SPECK:.0f} % of the largest are specks and not counted. An object behind a branch has two parts.",
    ),
    "colour": (
        "colour contrast",
        "Distance in CIE L*a*b* between the mean colour of the object and that of its surroundings, the background up "
        f"to {100 * SURROUNDINGS:.0f} % of the longer side away; 2 is hardly seen, 20 is another colour.",
    ),
    "texture": (
        "texture contrast",
        "How many times as rough the rougher one of object and surroundings is: mean local deviation of the lightness "
        "L*, plus 1, in 5 x 5 pixels of a view of the object that is at most 192 pixels wide and high.",
    ),
    "complexity": ("boundary", "Perimeter² / (4 π area) of the mask: 1 for a disc, more for legs, leaves and holes."),
    "border": ("border", "Whether the object reaches the outermost pixels of the picture."),
    "distance": ("off centre", "From the picture's centre to the object's centroid, in half diagonals."),
    "megapixels": ("picture size", "Megapixels."),
}
_UNDEFINED = Group("undefined", "There is no object, no picture beside the mask, or nothing to compare with.")
_ERRORS = {
    "missed": "Found is less than a tenth as much as the object has.",
    "wrong object": "Less than a quarter of the object is found, and less than half of what is found is object. Also "
    "what is found where there is no object.",
    "part only": "Intersection over union is below .75, and more is missing than there is too much.",
    "too much": "Intersection over union is below .75, and at least as much background is found as object is missing.",
    "ragged edge": "Intersection over union is at least .75, but within the bands inside of both contours "
    f"({100 * BAND:.0f} % of the diagonal wide) it is below {EDGE}.",
    "good": "None of these.",
}
# Of one picture, the first that holds.
_ERROR = Grouping(
    "error",
    "What is wrong with the map's decision at 0.5, as the protocol prepares it: the first kind that holds.",
    tuple(Group(name, _ERRORS[name]) for name in ERRORS),
)


def _grouping(measure: str) -> Grouping:
    _, names = _BOUNDS[measure]
    return Grouping(*_ABOUT[measure], (*(Group(name, name) for name in names), _UNDEFINED))


GROUPINGS = (_ERROR, *map(_grouping, _BOUNDS))
"""Kinds of error, then all that is measured of an object."""


def place_object(found: Mask, mask: Mask, image: Array | None) -> Placed:
    """Where a picture belongs in each of ``GROUPINGS``.

    Args:
        found, mask: (h, w) bool.
        image: (h', w', 3) uint8 RGB, or None.
    """
    measures = measure_object(mask, image)
    values = [getattr(measures, name) for name in _BOUNDS]
    groups = [_group(name, value) for name, value in zip(_BOUNDS, values, strict=True)]
    return Placed((ERRORS.index(error_of(found, mask)), *groups), (math.nan, *values))


def _group(measure: str, value: float) -> int:
    bounds, names = _BOUNDS[measure]
    return len(names) if math.isnan(value) else bisect_right(bounds, value)
