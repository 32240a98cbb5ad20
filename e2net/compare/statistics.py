"""Differences between two variants: the paired bootstrap over images."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
_BLOCK = 500  # draws at a time bound the memory


@dataclass(frozen=True)
class Difference:
    """Mean difference over images, its 95 % interval, and the two-sided p-value of its being zero."""

    mean: float
    low: float
    high: float
    p: float


def paired_bootstrap(
    first: NDArray[np.float64], second: NDArray[np.float64], resamples: int = 10000, seed: int = 0
) -> list[Difference]:
    """Percentile bootstrap of the mean of ``second - first`` over images, each score a column.

    Images are drawn with replacement, as many as there are, the same for both. Draw i is row i of
    ``np.random.default_rng(seed).integers(0, n, (resamples, n))``. The p-value is twice the smaller part of the draws
    on either side of zero, draws at zero counted on both, with one added to numerator and denominator so that it is
    never zero (Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 4.2); at most 1, and at
    least 2^(1 - n), by which chance alone gives all n differences one sign: draws of two images would be sure of it.

    Args:
        first, second: (n, scores), the same images in the same order; averages over seeds.
        resamples: how many draws.
        seed: of the draws.

    Raises:
        ValueError: there is no image, or the shapes differ.
    """
    if first.shape != second.shape or first.ndim != 2 or len(first) == 0:
        raise ValueError(f"expected two arrays (images, scores) of one shape, found {first.shape} and {second.shape}")
    change = second - first
    n = len(change)
    rng = np.random.default_rng(seed)
    drawn = np.empty((resamples, change.shape[1]))
    for start in range(0, resamples, _BLOCK):
        draws = rng.integers(0, n, (min(_BLOCK, resamples - start), n))
        counts = np.stack([np.bincount(draw, minlength=n) for draw in draws])
        drawn[start : start + len(draws)] = counts @ change / n
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    tail = np.minimum((drawn <= 0).sum(axis=0), (drawn >= 0).sum(axis=0))
    p = np.clip(2 * (1 + tail) / (resamples + 1), 2.0 ** (1 - n), 1.0)
    columns = zip(change.mean(axis=0), low, high, p, strict=True)
    return [Difference(*(float(value) for value in column)) for column in columns]


def mean_and_deviation(values: list[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (n - 1); no deviation of a single value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None
