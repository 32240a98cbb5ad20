"""Two pictures: which patches belong together, and where key points of one lie in the other."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from e2net.features.correspondence import Matches, centres, locate, mutual_nearest, pck, spread
from e2net.features.extract import Extractor, Features
from e2net.pictures import Picture

# Height of the drawn pictures, pixels, and the gap between them.
_HEIGHT, _GAP = 480, 12


class Matched(NamedTuple):
    """Patches of two pictures that are each other's nearest, in pixels of the pictures as they came.

    Attributes:
        first, second: (n, 2) float64, x and y of the patch's middle in either picture, the most similar pair first.
        similarity: (n,) float32, cosine.
        places: the same as rows and columns of patches.
        features: of both pictures.
    """

    first: NDArray[np.floating]
    second: NDArray[np.floating]
    similarity: NDArray[np.float32]
    places: Matches
    features: tuple[Features, Features]


def match(extractor: Extractor, first: Picture, second: Picture) -> Matched:
    """Mutual nearest patches of two pictures; they need not be of one size.

    Args:
        extractor: whose patches are compared, by cosine.
        first, second: files, arrays (H, W, 3) uint8 or Pillow's pictures.

    Raises:
        ValueError, FileNotFoundError: one of them is no picture.
    """
    one, other = extractor([first, second], batch_size=2)
    found = mutual_nearest(one.patches, other.patches)
    return Matched(
        centres(found.first, one.patches.shape[:2], one.size),
        centres(found.second, other.patches.shape[:2], other.size),
        found.similarity,
        found,
        (one, other),
    )


def find_points(
    points: Sequence[Sequence[float]] | NDArray[np.floating], first: Features, second: Features
) -> NDArray[np.floating]:
    """Points (n, 2), x and y in pixels of the first picture as it came, as points of the second one."""
    return locate(np.asarray(points, np.float64), first.patches, second.patches, first.size, second.size)


def score_points(
    found: Any, truth: Any, extent: float, alphas: Sequence[float] = (0.05, 0.1, 0.15)
) -> dict[str, float]:
    """PCK at some shares of ``extent`` (pixels), by name; see :func:`e2net.features.correspondence.pck`."""
    return {f"pck@{alpha:g}": pck(np.asarray(found), np.asarray(truth), extent, alpha) for alpha in alphas}


def drawn(matched: Matched, pictures: Sequence[np.ndarray], count: int = 40) -> NDArray[np.uint8]:
    """Both pictures side by side, and lines between the most similar patches that lie apart in the first one.

    Args:
        matched: what :func:`match` has found.
        pictures: both as they came, (H, W, 3) uint8 RGB.
        count: how many lines.

    Returns:
        (480, W, 3) uint8 RGB.
    """
    grid = matched.places.first.max(0, initial=0) + 1
    chosen = spread(matched.places, count, apart=float(np.sqrt(grid[0] * grid[1] / max(1, count)) / 2))
    sizes = [one.size for one in matched.features]
    grids = [one.patches.shape[:2] for one in matched.features]
    first, second = (centres(*one) for one in zip(chosen[:2], grids, sizes, strict=True))
    return joined(pictures, first, second, sizes, [True] * len(first))


def joined(
    pictures: Sequence[np.ndarray],
    first: NDArray[np.floating],
    second: NDArray[np.floating],
    sizes: Sequence[tuple[int, int]],
    right: Sequence[bool],
) -> NDArray[np.uint8]:
    """Two pictures with lines from points (n, 2) of the one to those of the other; wrong ones are red."""
    scales = [_HEIGHT / size[0] for size in sizes]
    panels = [
        cv2.resize(p, (max(1, round(size[1] * scale)), _HEIGHT), interpolation=cv2.INTER_AREA)
        for p, size, scale in zip(pictures, sizes, scales, strict=True)
    ]
    gap = np.full((_HEIGHT, _GAP, 3), 255, np.uint8)
    sheet = cv2.hconcat([panels[0], gap, panels[1]])
    offset = panels[0].shape[1] + _GAP
    # Hues along the first picture's width, so that crossing lines can be told apart.
    for a, b, ok in zip(first, second, right, strict=True):
        hue = int(150 * np.clip(a[0] / sizes[0][1], 0, 1)) + 15
        bright = cv2.cvtColor(np.array([[[hue, 230, 255]]], np.uint8), cv2.COLOR_HSV2RGB)[0, 0]
        colour = tuple(int(v) for v in bright) if ok else (255, 0, 0)
        p = tuple(round(float(v) * scales[0]) for v in a)
        q = (round(float(b[0]) * scales[1]) + offset, round(float(b[1]) * scales[1]))
        cv2.line(sheet, p, q, colour, 1, cv2.LINE_AA)
        for point in (p, q):
            cv2.circle(sheet, point, 4, (20, 20, 20), -1, cv2.LINE_AA)
            cv2.circle(sheet, point, 3, colour, -1, cv2.LINE_AA)
    return sheet  # type: ignore[return-value]
