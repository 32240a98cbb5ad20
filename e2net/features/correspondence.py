"""Which patches of two pictures belong together, and how often key points are found."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
# Patches of the first picture that are compared at once.
_ROWS = 4096


class Matches(NamedTuple):
    """Patches that are each other's nearest, the most similar first.

    Attributes:
        first, second: (n, 2) int, row and column of the patch in either picture.
        similarity: (n,) float32, cosine.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    similarity: NDArray[np.float32]


def mutual_nearest(first: Floats, second: Floats) -> Matches:
    """Pairs of patches of which each is the other's most similar.

    Args:
        first, second: (h, w, D), sizes may differ.

    Raises:
        ValueError: no patches, or features of different widths.
    """
    ours, theirs = unit_rows(first), unit_rows(second)
    if ours.shape[1] != theirs.shape[1]:
        raise ValueError(f"expected features of one width, found {ours.shape[1]} and {theirs.shape[1]}")
    best = np.full(len(theirs), -np.inf, np.float32)
    back = np.zeros(len(theirs), np.int64)
    there = np.empty(len(ours), np.int64)
    for start in range(0, len(ours), _ROWS):
        cosine = ours[start : start + _ROWS] @ theirs.T
        there[start : start + _ROWS] = cosine.argmax(1)
        nearest = cosine.argmax(0)
        values = cosine[nearest, np.arange(len(theirs))]
        better = values > best
        best[better], back[better] = values[better], nearest[better] + start
    mutual = np.flatnonzero(back[there] == np.arange(len(ours)))
    similarity = best[there[mutual]]
    order = np.argsort(-similarity, kind="stable")
    mutual = mutual[order]
    return Matches(_places(mutual, first), _places(there[mutual], second), similarity[order])


def spread(matches: Matches, count: int, apart: float) -> Matches:
    """The most similar ``count`` of matches of which no two lie closer than ``apart`` patches in the first picture."""
    chosen: list[int] = []
    for index in range(len(matches.first)):
        if len(chosen) == count:
            break
        steps = matches.first[chosen] - matches.first[index]
        if not chosen or (np.hypot(steps[:, 0], steps[:, 1]) >= apart).all():
            chosen.append(index)
    return Matches(matches.first[chosen], matches.second[chosen], matches.similarity[chosen])


def locate(
    points: Floats, first: Floats, second: Floats, first_size: tuple[int, int], second_size: tuple[int, int]
) -> Floats:
    """Where points of one picture lie in another one: in the middle of the patch most similar to them.

    Args:
        points: (n, 2), x and y in pixels of the first picture; its features there are interpolated bilinearly.
        first, second: (h, w, D), the patches.
        first_size, second_size: (H, W) of the pictures.

    Returns:
        (n, 2) float64, x and y in pixels of the second picture.
    """
    found = [_sampled(first, xy, first_size) for xy in np.asarray(points, np.float64).reshape(-1, 2)]
    if not found:
        return np.empty((0, 2))
    cosine = unit_rows(np.stack(found)) @ unit_rows(second).T
    return centres(_places(cosine.argmax(1), second), second.shape[:2], second_size)


def centres(places: NDArray[np.int64], grid: tuple[int, ...], size: tuple[int, int]) -> Floats:
    """(n, 2) row and column of patches of a ``grid`` (h, w) as x and y of their middle in a picture (H, W)."""
    y = (places[:, 0] + 0.5) / grid[0] * size[0] - 0.5
    x = (places[:, 1] + 0.5) / grid[1] * size[1] - 0.5
    return np.stack([x, y], 1)


def pck(found: Floats, truth: Floats, extent: float, alpha: float = 0.1) -> float:
    """PCK, the share of key points that lie at most ``alpha`` times ``extent`` from where they should.

    Args:
        found, truth: (n, 2), x and y in pixels.
        extent: pixels; of SPair-71k the longer side of the object's box, else of the picture.
        alpha: above 0.

    Raises:
        ValueError: no points, or not as many.
    """
    if len(truth) == 0 or np.shape(found) != np.shape(truth):
        raise ValueError(
            f"expected as many points as there are key points, at least one, found {len(found)} and {len(truth)}"
        )
    away = np.hypot(*(np.asarray(found, np.float64) - np.asarray(truth, np.float64)).T)
    return float((away <= alpha * extent).mean())


def unit_rows(patches: Floats) -> NDArray[np.float32]:
    """(..., D) -> (n, D) float32, each of length 1; rows of zeros stay."""
    if patches.size == 0:
        raise ValueError(f"expected at least one patch, found features of shape {patches.shape}")
    rows = np.asarray(patches, np.float32).reshape(-1, patches.shape[-1])
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _sampled(patches: Floats, xy: NDArray[np.float64], size: tuple[int, int]) -> Floats:
    h, w = patches.shape[:2]
    x = np.clip((xy[0] + 0.5) / size[1] * w - 0.5, 0, w - 1)
    y = np.clip((xy[1] + 0.5) / size[0] * h - 0.5, 0, h - 1)
    left, top = int(x), int(y)
    right, low = min(left + 1, w - 1), min(top + 1, h - 1)
    upper = patches[top, left] * (1 - x + left) + patches[top, right] * (x - left)
    lower = patches[low, left] * (1 - x + left) + patches[low, right] * (x - left)
    return np.asarray(upper * (1 - y + top) + lower * (y - top))


def _places(indices: NDArray[np.int64], patches: Floats) -> NDArray[np.int64]:
    return np.stack(np.divmod(indices, patches.shape[1]), 1)
