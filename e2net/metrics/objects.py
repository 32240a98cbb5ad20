"""What can make an object hard to find, and what is wrong with a found one: measures of one mask, kinds of error.

Nothing here depends on the other images of a set, so that what is said of one image is the same in every evaluation.
"""

import math
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]

# A part of the object counts from this share of the largest part's pixels on; below are specks of the annotation.
SPECK = 0.02
# How far the surroundings reach, in longer sides of the image.
SURROUNDINGS = 0.04
# The object with its surroundings is looked at in at most so many pixels (longer side): texture then means the same in
# images of any size, and large ones cost no more.
_LOOKED_AT = 192
# Side of the square in which texture is the deviation of the lightness, pixels of what is looked at.
_TEXTURE = 5
# Added to both deviations (of 100), without which two smooth surfaces could be any number of times as rough.
_SMOOTH = 1.0

ERRORS = ("missed", "wrong object", "part only", "too much", "ragged edge", "good")
"""Kinds of error, from the worst to none."""

# Bounds of the kinds of error, see ``error_of``.
FOUND, HIT, PRECISE, OVERLAP, EDGE = 0.1, 0.25, 0.5, 0.75, 0.5
# Width of the band in which two contours are compared, in diagonals of the image.
BAND = 0.02


class ObjectMeasures(NamedTuple):
    """Measures of one mask; NaN where they are not defined, as all but ``megapixels`` are for an empty mask.

    Attributes:
        size: share of the image's pixels that are object.
        parts: how many 8-connected parts there are, see ``SPECK``.
        distance: of the object's centroid from the image's centre, in half diagonals of the image.
        border: 1 where a pixel of the outermost rows or columns is object, else 0.
        complexity: perimeter² / (4 π area), 1 for a disc; the image's border is no contour. The perimeter is Crofton's,
            by lines in four directions: within 6 % of a straight one's in any direction. NaN for a full mask.
        colour: Euclidean distance in CIE L*a*b* between the mean colour of the object and that of its surroundings, the
            background up to ``SURROUNDINGS`` longer sides away. NaN without an image, or where there is no background.
        texture: how many times as rough (at least 1) one of both is as the other: mean standard deviation of the
            lightness L* (0 to 100) within 5 x 5 pixels, plus 1, apart from the contour. NaN as well where nothing lies
            that far from the contour.
        megapixels: of the image, 10⁶ pixels.
    """

    size: float
    parts: float
    distance: float
    border: float
    complexity: float
    colour: float
    texture: float
    megapixels: float


def measure_object(mask: Mask, image: NDArray[np.uint8] | None = None) -> ObjectMeasures:
    """Measures the object of a mask.

    Args:
        mask: (h, w) bool.
        image: (h', w', 3) uint8 RGB, resized to the mask where it has another size; None: contrasts are NaN.
    """
    h, w = mask.shape
    area = int(np.count_nonzero(mask))
    if area == 0:
        return ObjectMeasures(*(math.nan,) * 7, megapixels=h * w / 1e6)
    x, y, wide, high = cv2.boundingRect(mask.view(np.uint8))
    inside = np.ascontiguousarray(mask[y : y + high, x : x + wide])
    ys, xs = inside.sum(axis=1) @ np.arange(high), inside.sum(axis=0) @ np.arange(wide)
    off = (y + ys / area + 0.5 - h / 2, x + xs / area + 0.5 - w / 2)
    colour, texture = (math.nan, math.nan) if image is None else _contrast(mask, image, (x, y, wide, high))
    return ObjectMeasures(
        size=area / mask.size,
        parts=float(_parts(inside)),
        distance=math.hypot(*off) / (math.hypot(h, w) / 2),
        border=float(x == 0 or y == 0 or x + wide == w or y + high == h),
        complexity=_perimeter(mask, (x, y, wide, high)) ** 2 / (4 * math.pi * area) if area < mask.size else math.nan,
        colour=colour,
        texture=texture,
        megapixels=h * w / 1e6,
    )


def _perimeter(mask: Mask, box: tuple[int, int, int, int]) -> float:
    """Length of the contour inside of the image, pixels: π / 2 times the mean over directions of the lines' crossings.

    Args:
        mask: (h, w) bool.
        box: of its object, (x, y, width, height).
    """
    x, y, wide, high = box
    m = mask[max(0, y - 1) : y + high + 1, max(0, x - 1) : x + wide + 1]
    straight = np.count_nonzero(m[1:] != m[:-1]) + np.count_nonzero(m[:, 1:] != m[:, :-1])
    diagonal = np.count_nonzero(m[1:, 1:] != m[:-1, :-1]) + np.count_nonzero(m[1:, :-1] != m[:-1, 1:])
    return math.pi / 8 * (straight + diagonal / math.sqrt(2))  # diagonal lines are that much closer


def _parts(mask: Mask) -> int:
    """How many 8-connected parts are no specks."""
    _, _, facts, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    areas = facts[1:, cv2.CC_STAT_AREA]
    return int((areas >= SPECK * areas.max()).sum())


def _contrast(mask: Mask, image: NDArray[np.uint8], box: tuple[int, int, int, int]) -> tuple[float, float]:
    """Colour and texture of an object against its surroundings, see ``ObjectMeasures``.

    Args:
        mask: (h, w) bool, not empty.
        image: (h', w', 3) uint8 RGB.
        box: of the object, (x, y, width, height).
    """
    (h, w), (x, y, wide, high) = mask.shape, box
    if image.shape[:2] != (h, w):
        image = np.asarray(cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA), np.uint8)
    reach = max(1, round(SURROUNDINGS * max(h, w)))
    rows, columns = slice(max(0, y - reach), y + high + reach), slice(max(0, x - reach), x + wide + reach)
    covered, part = mask[rows, columns].astype(np.float32), image[rows, columns]
    scale = _LOOKED_AT / max(covered.shape)
    if scale < 1:
        size = tuple(max(1, round(scale * side)) for side in covered.shape[::-1])
        covered = np.asarray(cv2.resize(covered, size, interpolation=cv2.INTER_AREA))
        part = np.asarray(cv2.resize(part, size, interpolation=cv2.INTER_AREA))
        reach = max(1, round(scale * reach))
    # Lines thinner than a pixel cover no pixel by half; then it is those that are covered most.
    inside = (covered >= min(0.5, float(covered.max()))).astype(np.uint8)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    outside, apart = (covered == 0).astype(np.uint8), np.ones((_TEXTURE, _TEXTURE), np.uint8)
    near = np.asarray(cv2.dilate(inside, disc), np.uint8)
    if not (near & outside).any():
        return math.nan, math.nan
    lab = np.asarray(cv2.cvtColor(part.astype(np.float32) / 255, cv2.COLOR_RGB2LAB))
    means = [np.array(cv2.mean(lab, region)[:3]) for region in (inside, near & outside)]
    apart_from = [np.asarray(cv2.erode(region, apart), np.uint8) for region in (inside, outside)]
    ratio = _roughness_ratio(lab[..., 0], apart_from[0], near & apart_from[1])
    return float(np.linalg.norm(means[0] - means[1])), ratio


def _roughness_ratio(lightness: NDArray[Any], *regions: NDArray[Any]) -> float:
    """How many times as rough the rougher of two regions (h, w) uint8 is; NaN where one of them is empty."""
    if not all(region.any() for region in regions):
        return math.nan
    side = (_TEXTURE, _TEXTURE)
    mean = cv2.blur(lightness, side)
    deviation = np.sqrt(np.maximum(cv2.blur(lightness * lightness, side) - mean * mean, 0))
    rough = [cv2.mean(deviation, region)[0] + _SMOOTH for region in regions]
    return max(rough) / min(rough)


def error_of(found: Mask, mask: Mask) -> str:
    """The kind of error of what was found, one of ``ERRORS``.

    The first that holds, of:

    - "missed": found is less than a tenth as large as the object;
    - "wrong object": less than a quarter of the object is found, and less than half of what is found is object;
    - "part only": intersection over union is below .75, and more of the object is missing than there is too much;
    - "too much": it is below .75, and at least as much background is found as is missing;
    - "ragged edge": it is above, but that of the bands along the contours (inside, 2 % of the diagonal wide; Boundary
      IoU of Cheng et al., CVPR 2021) is below .5: a contour that is off by a third of the band, everywhere;
    - "good".

    Where there is no object, anything found is a "wrong object", and nothing is "good".

    Args:
        found, mask: (h, w) bool.
    """
    area, size = int(np.count_nonzero(mask)), int(np.count_nonzero(found))
    if area == 0:
        return "wrong object" if size else "good"
    hit = int(np.count_nonzero(found & mask))
    if size < FOUND * area:
        return "missed"
    if hit < HIT * area and hit < PRECISE * size:
        return "wrong object"
    if hit < OVERLAP * (area + size - hit):
        return "part only" if area > size else "too much"
    return "ragged edge" if _boundary_iou(found, mask) < EDGE else "good"


def _boundary_iou(found: Mask, mask: Mask) -> float:
    """Intersection over union of the bands inside of two contours; beyond the image is background, as in the paper."""
    width = max(1, round(BAND * math.hypot(*mask.shape)))
    bands = [_band(one, width) for one in (found, mask)]
    return np.count_nonzero(bands[0] & bands[1]) / np.count_nonzero(bands[0] | bands[1])


def _band(mask: Mask, width: int) -> Mask:
    square = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    core = cv2.erode(mask.view(np.uint8), square, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return mask & ~core.astype(np.bool_)
