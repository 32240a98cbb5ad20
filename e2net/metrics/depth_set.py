"""Depth scores of a data set: a row an image, and what follows from all rows. Needs no torchmetrics."""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from e2net.metrics.depth import HIGHER_IS_BETTER
from e2net.metrics.table import LEVEL, RESAMPLES, Interval

_SCORES = tuple(HIGHER_IS_BETTER)


@dataclass(frozen=True)
class DepthTable:
    """Depth scores of the images of one set, ordered by index.

    Attributes:
        indices: (n,) of the images in their set, ascending, each once.
        names: of the images, or None.
        rows: (n, 8) float64, in the order of ``scores``; NaN for images without a valid pixel.
    """

    indices: list[int]
    names: list[str | None]
    rows: NDArray[np.float64] = field(repr=False)

    @classmethod
    def of(cls, images: Iterable[tuple[int, str | None, Mapping[str, float]]]) -> Self:
        """Collects images that were scored one by one: index, name and scores of each, in any order."""
        ordered = sorted(images, key=lambda image: image[0])
        rows = np.array([[scored[score] for score in _SCORES] for _, _, scored in ordered], np.float64)
        return cls([i for i, _, _ in ordered], [name for _, name, _ in ordered], rows.reshape(-1, len(_SCORES)))

    @property
    def scores(self) -> tuple[str, ...]:
        """Names of the scores."""
        return _SCORES

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.indices)

    def values(self) -> dict[str, float]:
        """Means over the images that have a valid pixel; NaN where none has.

        Raises:
            ValueError: there is no image.
        """
        if not self.indices:
            raise ValueError("expected scores of at least one image, found none: nothing was scored")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Mean of empty slice")
            return dict(zip(_SCORES, np.nanmean(self.rows, axis=0).tolist(), strict=True))

    def per_image(self) -> list[dict[str, Any]]:
        """A row an image: "index" (int), "name" (str or None), then a float per score."""
        return [
            {"index": index, "name": name, **dict(zip(_SCORES, row.tolist(), strict=True))}
            for index, name, row in zip(self.indices, self.names, self.rows, strict=True)
        ]

    def intervals(self, seed: int = 0) -> dict[str, Interval]:
        """Percentile bootstrap intervals of 95 % over the images, with the draws of ``bootstrap_intervals``."""
        n = len(self.rows)
        draws = np.random.default_rng(seed).integers(0, n, (RESAMPLES, n))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "(Mean of empty|All-NaN) slice")
            drawn = np.stack([np.nanmean(self.rows[draw], axis=0) for draw in draws])
            low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        return {name: (float(a), float(b)) for name, a, b in zip(_SCORES, low, high, strict=True)}

    def mean_curves(self) -> dict[str, Tensor]:
        """There are none."""
        return {}
