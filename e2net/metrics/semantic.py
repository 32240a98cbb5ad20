"""Scores of label maps, as functions of counts that are summed over the images of a set.

Published mIoU sums intersections and unions over the set and divides then. So one image gives a small array of counts
(``image_counts``), a set's counts are the sum over its images, and ``scores_from`` makes scores of either.

Classes that are absent: the IoU of a class with no pixel in targets or predictions is 0 / 0, here NaN, and left out of
the mean (mmsegmentation, detectron2, torchmetrics alike). A class that is predicted but never in a target has IoU 0,
which counts in mIoU; its accuracy is 0 / 0, and left out of mAcc. Pixels with the label to ignore count nowhere, what
is predicted there included.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Self

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from e2net.metrics.geometry import to_numpy
from e2net.metrics.protocol import ResultProtocol
from e2net.structures import IGNORED

Labels = Tensor | NDArray[Any]
Counts = NDArray[np.int64]
Float64 = NDArray[np.float64]

HIGHER_IS_BETTER = {"mIoU": True, "bIoU": True, "aAcc": True, "mAcc": True}
"""The scores of a set in the order of tables, and their direction.

mIoU: mean of the classes' IoU. bIoU: the same within the bands along the outlines of target and prediction (Boundary
IoU). aAcc: share of pixels that are right. mAcc: mean over classes of the share of its pixels that are right.
"""

COUNTS = ("intersection", "target", "predicted", "boundary_intersection", "boundary_union")
"""Rows of an image's counts: pixels of each class that both have, that the target has, that the prediction has; and
what both bands share, and what either covers."""

CLASS_SCORES = ("IoU", "bIoU", "Acc")
"""Names of the scores of one class."""

_IGNORE = 255
_LEVEL = 0.95
_BLOCK = 100
_MOST = 65534  # 16 bits, less one value below and one above all classes


class Intervals(NamedTuple):
    """Percentile intervals of 95 %.

    Attributes:
        scores: score of the set to (low, high).
        classes: score of a class to (2, K), low and high; NaN where a class is in no draw.
    """

    scores: dict[str, tuple[float, float]]
    classes: dict[str, Float64]


@dataclass(frozen=True)
class LabelProtocol(ResultProtocol):
    """How label maps are scored.

    Args:
        boundary: the bands of bIoU are so wide, as a share of an image's diagonal.

    Raises:
        ValueError: the share is not above 0 and below 1.
    """

    boundary: float = 0.02

    def __post_init__(self) -> None:
        if not 0 < self.boundary < 1:
            raise ValueError(f"protocol.boundary: expected a share of the diagonal, as 0.02, found {self.boundary}")

    def describe(self) -> dict[str, Any]:
        """Plain values for a score file."""
        return {
            **asdict(self),
            "resize": "probabilities, bilinear, align_corners=False, to the target's own size; the likeliest class",
            "mIoU": "intersections and unions summed over the set, then the mean over classes that occur",
        }


class LabelCounts(NamedTuple):
    """All that is known of one scored image.

    Attributes:
        counts: (5, K) int64, see ``image_counts``.
        cells: (m, 2) int64, of its confusion matrix the cells with pixels: row * K + column, and how many.
    """

    counts: Counts
    cells: Counts


def score_labels(prediction: Labels, labels: Labels, classes: int, protocol: LabelProtocol) -> LabelCounts:
    """Counts of one image, pixels that are ``IGNORED`` in ``labels`` left out; for the rest see ``image_counts``."""
    flat = confusion(prediction, labels, classes, IGNORED).ravel()
    cells = np.flatnonzero(flat)
    counts = image_counts(prediction, labels, classes, IGNORED, protocol.boundary)
    return LabelCounts(counts, np.stack([cells, flat[cells]], axis=1))


@dataclass(frozen=True)
class LabelTable:
    """Counts of the images of one set, ordered by index; a ``SetTable``.

    Attributes:
        indices: (n,) of the images in their set, ascending, each once.
        names: of the images, or None.
        counts: (n, 5, K) int64, see ``image_counts``.
        matrix: (K, K) int64, the set's confusion matrix: rows are the target's class.
    """

    indices: list[int]
    names: list[str | None]
    counts: Counts = field(repr=False)
    matrix: Counts = field(repr=False)

    @classmethod
    def of(cls, classes: int, images: Iterable[tuple[int, str | None, LabelCounts]]) -> Self:
        """Collects images that were scored one by one: index, name and counts of each, in any order."""
        ordered = sorted(images, key=lambda image: image[0])
        counts = np.array([scored.counts for _, _, scored in ordered], np.int64)
        cells = np.concatenate([np.zeros((0, 2), np.int64), *(scored.cells for _, _, scored in ordered)])
        return cls(
            [index for index, _, _ in ordered],
            [name for _, name, _ in ordered],
            counts.reshape(-1, len(COUNTS), classes),
            matrix_of(cells, classes),
        )

    @property
    def scores(self) -> tuple[str, ...]:
        """Names of the scores."""
        return tuple(HIGHER_IS_BETTER)

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.indices)

    def values(self) -> dict[str, float]:
        """Scores of the set, fractions; see ``scores_from``.

        Raises:
            ValueError: there is no image.
        """
        if not self.indices:
            raise ValueError("expected scores of at least one image, found none: nothing was scored")
        return scores_from(self.counts.sum(0))

    def per_image(self) -> list[dict[str, Any]]:
        """A row an image: "index", "name", then the scores of its own counts; NaN where no pixel counts."""
        return [
            {"index": index, "name": name, **scores_from(one)}
            for index, name, one in zip(self.indices, self.names, self.counts, strict=True)
        ]

    def intervals(self, seed: int = 0) -> dict[str, tuple[float, float]]:
        """See ``bootstrap_intervals``."""
        return bootstrap_intervals(self.counts, seed).scores

    def mean_curves(self) -> dict[str, Tensor]:
        """There are none."""
        return {}

    def per_class(self, names: Sequence[str], seed: int = 0) -> list[dict[str, Any]]:
        """A row a class: its name, pixels, and each of ``CLASS_SCORES`` with the ends of its interval."""
        total = self.counts.sum(0)
        found, intervals = class_scores(total), bootstrap_intervals(self.counts, seed).classes
        return [
            {
                "class": name,
                "pixels": int(total[1, k]),
                "predicted": int(total[2, k]),
                **{
                    f"{score}{end}": float(value)
                    for score in CLASS_SCORES
                    for end, value in (
                        ("", found[score][k]),
                        ("_low", intervals[score][0, k]),
                        ("_high", intervals[score][1, k]),
                    )
                },
            }
            for k, name in enumerate(names)
        ]


def matrix_of(cells: Counts, classes: int) -> Counts:
    """(K, K) int64 from the ``cells`` (m, 2) of any number of images."""
    matrix = np.zeros(classes**2, np.int64)
    np.add.at(matrix, cells[:, 0], cells[:, 1])
    return matrix.reshape(classes, classes)


def confusion(prediction: Labels, labels: Labels, classes: int, ignore: int = _IGNORE) -> Counts:
    """How many pixels of each class were taken for each class.

    Args:
        prediction: (h, w) labels 0 to ``classes`` - 1, of any integer type; any value where ``labels`` is ``ignore``.
        labels: (h, w) the target, of any integer type: labels as above, or ``ignore``.
        classes: K, how many there are.
        ignore: label of pixels that do not count.

    Returns:
        (K, K) int64: rows are the target's class, columns the predicted one.

    Raises:
        TypeError: no integers.
        ValueError: sizes that don't fit, or a label outside the classes.
    """
    predicted, target, counted = _pair(prediction, labels, classes, ignore)
    pairs = target[counted] * classes + predicted[counted]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def image_counts(
    prediction: Labels, labels: Labels, classes: int, ignore: int = _IGNORE, boundary: float = 0.02
) -> Counts:
    """Counts of one image, on which all scores of a set depend through their sum.

    The bands of bIoU are those of Cheng et al. 2021: pixels of a class at most d pixels along either axis or both from
    another class or from outside the image, d being 2 % of its diagonal. An ignored pixel is no other class, for the
    target's band as for the prediction's, so there is no outline along it.

    Args:
        prediction, labels, classes, ignore: as for ``confusion``.
        boundary: d as a share of the diagonal.

    Returns:
        (5, K) int64, rows as in ``COUNTS``.

    Raises:
        TypeError, ValueError: as ``confusion``.
    """
    predicted, target, counted = _pair(prediction, labels, classes, ignore)
    if classes > _MOST:
        raise ValueError(f"expected at most {_MOST} classes, found {classes}")
    reach = max(1, round(boundary * float(np.hypot(*target.shape))))
    near_target = _band(target, counted, reach)
    near_predicted = _band(predicted, counted, reach)
    right = counted & (predicted == target)

    def pixels(of: NDArray[np.int64], where: NDArray[np.bool_]) -> Counts:
        return np.bincount(of[where], minlength=classes)

    both = pixels(target, right & near_target & near_predicted)
    either = pixels(target, near_target) + pixels(predicted, near_predicted) - both
    return np.stack([pixels(target, right), pixels(target, counted), pixels(predicted, counted), both, either])


def class_scores(counts: NDArray[Any]) -> dict[str, Float64]:
    """Scores of each class, fractions; NaN where there is nothing to score.

    Args:
        counts: (..., 5, K), of an image or summed over images.

    Returns:
        (..., K) each under "IoU", "bIoU" (within the bands) and "Acc" (share of the class's pixels that are right).
    """
    both, target, predicted, near_both, near_either = np.moveaxis(np.asarray(counts, np.float64), -2, 0)
    with np.errstate(invalid="ignore"):
        return {"IoU": both / (target + predicted - both), "bIoU": near_both / near_either, "Acc": both / target}


def scores_from(counts: NDArray[Any]) -> dict[str, float]:
    """Scores of a set, by the names of ``HIGHER_IS_BETTER``, fractions; NaN where no pixel counts.

    Args:
        counts: (5, K), of an image or summed over images.
    """
    return {name: float(value) for name, value in _means(counts, class_scores(counts)).items()}


def bootstrap_intervals(counts: NDArray[Any], seed: int = 0, resamples: int = 1000) -> Intervals:
    """Percentile bootstrap intervals of 95 % over the images of a set.

    Images are drawn with replacement, as many as there are, and their counts are summed anew. Draw i is row i of
    ``np.random.default_rng(seed).integers(0, n, (resamples, n))``, as for masks. A score that is undefined in some
    draws (a rare class that is in none of their images) has its interval over the others.

    Args:
        counts: (n, 5, K), of each image.
        seed: of the draws.
        resamples: how many draws.

    Raises:
        ValueError: there is no image, or the shape is another.
    """
    if counts.ndim != 3 or len(counts) == 0 or counts.shape[1] != len(COUNTS):
        raise ValueError(f"expected counts (n, {len(COUNTS)}, K) of at least one image, found shape {counts.shape}")
    n = len(counts)
    flat = counts.reshape(n, -1).astype(np.float64)  # exact up to 2**53 pixels
    rng = np.random.default_rng(seed)
    drawn: dict[str, list[Float64]] = {}
    for start in range(0, resamples, _BLOCK):  # a block of draws at a time bounds the memory
        draws = rng.integers(0, n, (min(_BLOCK, resamples - start), n))
        times = np.stack([np.bincount(draw, minlength=n) for draw in draws]).astype(np.float64)
        sums = (times @ flat).reshape(-1, *counts.shape[1:])
        of_classes = class_scores(sums)
        values = {**_means(sums, of_classes), **{f"class {name}": of_classes[name] for name in CLASS_SCORES}}
        for name, value in values.items():
            drawn.setdefault(name, []).append(value)
    found = {name: _interval(np.concatenate(blocks)) for name, blocks in drawn.items()}
    return Intervals(
        {name: (float(found[name][0]), float(found[name][1])) for name in HIGHER_IS_BETTER},
        {name: found[f"class {name}"] for name in CLASS_SCORES},
    )


def _means(counts: NDArray[Any], of_classes: dict[str, Float64]) -> dict[str, Float64]:
    """(...,) each, from (..., 5, K) counts and their class scores."""
    counts = np.asarray(counts, np.float64)
    with np.errstate(invalid="ignore"):
        right = counts[..., 0, :].sum(-1) / counts[..., 1, :].sum(-1)
    return {
        "mIoU": _mean(of_classes["IoU"]),
        "bIoU": _mean(of_classes["bIoU"]),
        "aAcc": right,
        "mAcc": _mean(of_classes["Acc"]),
    }


def _mean(values: Float64) -> Float64:
    """Mean along the last axis of what is defined; NaN where nothing is."""
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(defined, values, 0.0).sum(-1) / defined.sum(-1)


def _interval(drawn: Float64) -> Float64:
    """(2, ...) quantiles along the first axis of what is defined; NaN where nothing is."""
    defined = ~np.isnan(drawn)
    # In place of an empty column, which NumPy would warn of.
    values = np.where(defined.any(0), drawn, 0.0)
    low, high = np.nanquantile(values, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2], axis=0)
    return np.where(defined.any(0), np.stack([low, high]), np.nan)


def _band(labels: NDArray[np.int64], counted: NDArray[np.bool_], reach: int) -> NDArray[np.bool_]:
    """Counted pixels with another class, or the outside, at most ``reach`` pixels along either axis or both.

    For all classes at once: a pixel is inside its class where the least and the greatest label about it are the same.
    """
    ranked = np.where(counted, labels + 1, 0).astype(np.uint16)
    window = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    greatest = cv2.dilate(ranked, window)  # an ignored pixel is below all others here,
    ranked[~counted] = _MOST + 1
    least = cv2.erode(ranked, window)  # and above them here
    inside = np.asarray(greatest == least)
    inside[:reach] = inside[-reach:] = False
    inside[:, :reach] = inside[:, -reach:] = False
    return counted & ~inside


def _pair(
    prediction: Labels, labels: Labels, classes: int, ignore: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Prediction and target as int64 (h, w), and which pixels count; checked."""
    predicted, target = _as_labels(prediction, "prediction"), _as_labels(labels, "labels")
    if predicted.shape != target.shape:
        raise ValueError(f"expected a prediction of the labels' size {target.shape}, found {predicted.shape}")
    counted = target != ignore
    for array, what in ((predicted, "prediction"), (target, "labels")):
        strange = counted & ((array < 0) | (array >= classes))
        if strange.any():
            found = ", ".join(map(str, np.unique(array[strange])[:5]))
            expected = f"classes 0 to {classes - 1}" + (f" or {ignore} to ignore" if array is target else "")
            raise ValueError(f"{what}: expected {expected}, found {found}; check the number of classes")
    return predicted, target, counted


def _as_labels(labels: Labels, what: str) -> NDArray[np.int64]:
    array = to_numpy(labels, what) if isinstance(labels, Tensor) else np.asarray(labels)
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{what}: expected labels of an integer type, found {array.dtype}")
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"{what}: expected one non-empty label map (h, w), found shape {array.shape}")
    return array.astype(np.int64, copy=False)
