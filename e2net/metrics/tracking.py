"""J, F and J&F of objects in a film, as the DAVIS benchmark defines them.

Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation" (CVPR 2016), and
Pont-Tuset et al., "The 2017 DAVIS Challenge" (arXiv:1704.00675).
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

# How far apart outlines may lie and still meet, as a share of the picture's diagonal.
_REACH = 0.008
# Recall is the share of frames above this; decay compares the first of so many parts of a film with the last.
_FOUND, _PARTS = 0.5, 4


class ObjectTrack(NamedTuple):
    """Scores of one object in one film, fractions.

    Attributes:
        j_mean, f_mean: over the frames.
        j_recall, f_recall: the share of frames above .5.
        j_decay, f_decay: the mean of the first quarter less that of the last; NaN below four frames.
    """

    j_mean: float
    j_recall: float
    j_decay: float
    f_mean: float
    f_recall: float
    f_decay: float

    @property
    def mean(self) -> float:
        """J&F."""
        return (self.j_mean + self.f_mean) / 2


def region_similarity(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """J: intersection over union of two masks (h, w) bool; 1 where both are empty.

    Raises:
        ValueError: no masks of one size.
    """
    _check(mask, truth)
    union = np.count_nonzero(mask | truth)
    return float(np.count_nonzero(mask & truth) / union) if union else 1.0


def contour_accuracy(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """F: harmonic mean of the shares of each outline that lie near the other, .8 % of the diagonal, rounded up.

    An outline is of the pixels whose right, lower or lower right neighbour is of the other kind. Where one outline is
    empty, F is 0; where both are, 1. The official code's disc of r pixels holds those at a distance of at most r.

    Args:
        mask, truth: (h, w) bool.

    Raises:
        ValueError: no masks of one size.
    """
    _check(mask, truth)
    reach = int(np.ceil(_REACH * np.linalg.norm(truth.shape)))
    step = np.arange(-reach, reach + 1)
    disc = (step[:, None] ** 2 + step**2 <= reach**2).astype(np.uint8)
    ours, theirs = outline(mask), outline(truth)
    counts = [int(np.count_nonzero(one)) for one in (ours, theirs)]
    if not all(counts):
        return float(not any(counts))
    precision = np.count_nonzero(ours & _grown(theirs, disc)) / counts[0]
    recall = np.count_nonzero(theirs & _grown(ours, disc)) / counts[1]
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of a mask (h, w) bool whose right, lower or lower right neighbour inside the picture differs."""
    lower = np.vstack([mask[1:], mask[-1:]])
    right = np.hstack([mask[:, 1:], mask[:, -1:]])
    both = np.hstack([lower[:, 1:], lower[:, -1:]])
    # In the last row the lower right is the right, in the last column the lower one.
    found = (mask != lower) | (mask != right) | (mask != both)
    return np.asarray(found, np.bool_)


def score_object(regions: Sequence[float], contours: Sequence[float]) -> ObjectTrack:
    """Scores of one object from J and F of its frames, in order, fractions.

    Which frames count is the caller's to say: the benchmark leaves out the first, whose mask is given, and the last.

    Raises:
        ValueError: there is no frame, or not one of each for each frame.
    """
    if not regions or len(regions) != len(contours):
        raise ValueError(
            f"expected J and F of each of at least one frame, found {len(regions)} and {len(contours)} values"
        )
    return ObjectTrack(*_statistics(np.asarray(regions)), *_statistics(np.asarray(contours)))


def _statistics(values: NDArray[np.float64]) -> tuple[float, float, float]:
    # The ends of the parts belong to both of their neighbours, as in the official code.
    ends = (np.round(np.linspace(1, len(values), _PARTS + 1) + 1e-10) - 1).astype(int)
    first, last = values[: ends[1] + 1], values[ends[-2] :]
    decay = float(first.mean() - last.mean()) if len(values) >= _PARTS else np.nan
    return float(values.mean()), float((values > _FOUND).mean()), decay


def _grown(mask: NDArray[np.bool_], disc: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return cv2.dilate(mask.astype(np.uint8), disc).astype(np.bool_)


def _check(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> None:
    if mask.dtype != np.bool_ or truth.dtype != np.bool_ or mask.ndim != 2 or not mask.size:
        raise ValueError(
            f"expected masks (h, w) of bool, found {mask.dtype} {mask.shape} and {truth.dtype} {truth.shape}"
        )
    if mask.shape != truth.shape:
        raise ValueError(f"expected a mask of the true mask's size {truth.shape}, found {mask.shape}")
