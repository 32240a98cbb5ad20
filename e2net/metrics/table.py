"""The scores of a data set: a row an image, and what follows from all rows. Needs no torchmetrics."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from e2net.metrics.calibration import Calibration
from e2net.metrics.functional import f_of
from e2net.metrics.scoring import CURVES, ImageScores, check_scores

# Boundary scores are undefined for masks without a contour; those images are left out of these means only.
_MAY_BE_NAN = ("bMAE", "bwF")

Interval = tuple[float, float]
RESAMPLES = 1000
LEVEL = 0.95


class SetTable(Protocol):
    """The scores of one set's images, ordered by index; each kind of task has its own."""

    @property
    def scores(self) -> tuple[str, ...]:
        """Names of the scores."""
        ...

    def __len__(self) -> int:
        """How many images there are."""
        ...

    def values(self) -> dict[str, float]:
        """Scores of the data set."""
        ...

    def per_image(self) -> list[dict[str, Any]]:
        """A row an image: "index" (int), "name" (str or None), then a float per score."""
        ...

    def intervals(self, seed: int = 0) -> dict[str, Interval]:
        """Percentile bootstrap intervals of 95 % over the images."""
        ...

    def mean_curves(self) -> dict[str, Tensor]:
        """Curves over 256 thresholds, by name; empty where a task has none."""
        ...


@dataclass(frozen=True)
class ScoreTable:
    """Scores and curves of the images of one set, ordered by index.

    Attributes:
        scores: names of the columns, out of ``ALL_SCORES`` and a task's own.
        indices: (n,) of the images in their set, ascending, each once.
        names: of the images, or None.
        rows: (n, len(scores)) float64, fractions; NaN where a score is undefined.
        curves: (n, 4, 256) float64, in the order of ``CURVES``, for thresholds 0..255.
        levels: (n, 2, 256) int32, pixels of each 8-bit level before any stretch, of background and foreground.
    """

    scores: tuple[str, ...]
    indices: list[int]
    names: list[str | None]
    rows: Tensor = field(repr=False)
    curves: Tensor = field(repr=False)
    levels: Tensor = field(repr=False)

    @classmethod
    def of(cls, scores: Sequence[str], images: Iterable[tuple[int, str | None, ImageScores]]) -> Self:
        """Collects images that were scored elsewhere, say in a pool of processes.

        Args:
            scores: which to keep; every image has them.
            images: index, name and scores of each, in any order.
        """
        ordered = sorted(images, key=lambda image: image[0])
        names = check_scores(scores, ordered[0][2].values if ordered else scores)
        rows = np.array([[scored.values[s] for s in names] for _, _, scored in ordered], np.float64)
        curves = np.array([scored.curves for _, _, scored in ordered], np.float64)
        levels = np.array([scored.levels for _, _, scored in ordered], np.int32)
        return cls(
            names,
            [index for index, _, _ in ordered],
            [name for _, name, _ in ordered],
            torch.from_numpy(rows.reshape(-1, len(names))),
            torch.from_numpy(curves.reshape(-1, len(CURVES), 256)),
            torch.from_numpy(levels.reshape(-1, 2, 256)),
        )

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.indices)

    def values(self) -> dict[str, float]:
        """Scores of the data set, fractions.

        Fmax, Fmean, Emax, Emean and FmaxPR are taken on the mean curves over images, all others are means over images;
        bMAE and bwF over those that have a contour.

        Raises:
            ValueError: there is no image.
        """
        if not self.indices:
            raise ValueError("expected scores of at least one image, found none: nothing was scored")
        f, e, precision, recall = self.curves.mean(dim=0)
        over_curves = {
            "Fmax": f.max(),
            "Fmean": f.mean(),
            "Emax": e.max(),
            "Emean": e.mean(),
            "FmaxPR": torch.from_numpy(f_of(precision.numpy(), recall.numpy())).max(),
        }
        found = {}
        for i, name in enumerate(self.scores):
            column = self.rows[:, i]
            mean = column.nanmean() if name in _MAY_BE_NAN else column.mean()
            found[name] = float(over_curves.get(name, mean))
        return found

    def per_image(self) -> list[dict[str, Any]]:
        """One row per image, ordered by index.

        Returns:
            "index" (int), "name" (str or None), then a float per score. Max and mean scores are those of the image's
            own curve, so their mean over rows differs from ``values``.
        """
        return [
            {"index": index, "name": name, **dict(zip(self.scores, row.tolist(), strict=True))}
            for index, name, row in zip(self.indices, self.names, self.rows, strict=True)
        ]

    def mean_curves(self) -> dict[str, Tensor]:
        """(256,) float64 each under "F", "E", "precision", "recall": means over images, for thresholds 0..255."""
        return dict(zip(CURVES, self.curves.mean(dim=0), strict=True))

    def calibration(self) -> Calibration:
        """How far the maps' values are probabilities, over all images."""
        return Calibration(self.levels.numpy())

    def intervals(self, seed: int = 0) -> dict[str, Interval]:
        """See :func:`bootstrap_intervals`."""
        return bootstrap_intervals(self.scores, self.rows.numpy(), self.curves.numpy(), seed=seed)


def bootstrap_intervals(
    names: Sequence[str],
    rows: NDArray[np.float64],
    curves: NDArray[np.float64],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Interval]:
    """Percentile bootstrap intervals of 95 % over the images of a set.

    Images are drawn with replacement, as many as there are, and each score of the data set is computed anew from
    what was drawn. Fmax, Fmean, Emax, Emean and FmaxPR are taken on the mean curves of each draw. Draw i is
    row i of ``np.random.default_rng(seed).integers(0, n, (resamples, n))``.

    Args:
        names: of the scores, in the order of the columns of ``rows``.
        rows: (n, len(names)) scores of each image, fractions; NaN where a score is undefined.
        curves: (n, 4, 256), in the order of ``CURVES``.
        seed: of the draws.
        resamples: how many draws.

    Returns:
        Score name to its 2.5 % and 97.5 % quantile over the draws.

    Raises:
        ValueError: there is no image, or shapes don't fit.
    """
    n = len(rows)
    if n == 0 or rows.shape != (n, len(names)) or curves.shape != (n, len(CURVES), 256):
        raise ValueError(
            f"expected rows (n, {len(names)}) and curves (n, {len(CURVES)}, 256) of at least one image, found "
            f"{rows.shape} and {curves.shape}"
        )
    # Relative to the first image, so that what is the same for all images stays exactly the same in every draw.
    origin = np.nan_to_num(rows[0])
    defined = ~np.isnan(rows)
    shifted = np.where(defined, rows - origin, 0.0)
    flat = curves.reshape(n, -1)
    moved = flat - flat[0]
    drawn = np.empty((resamples, len(names)))
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, 100):  # a block of draws at a time bounds the memory
        draws = rng.integers(0, n, (min(100, resamples - start), n))
        counts = np.stack([np.bincount(draw, minlength=n) for draw in draws]).astype(np.float64)
        block = slice(start, start + len(draws))
        with np.errstate(invalid="ignore"):
            drawn[block] = origin + (counts @ shifted) / (counts @ defined)
        means = (flat[0] + counts @ moved / n).reshape(-1, len(CURVES), 256)
        f, e, precision, recall = means.transpose(1, 0, 2)
        over_curves = {"Fmax": f.max(1), "Fmean": f.mean(1), "Emax": e.max(1), "Emean": e.mean(1)}
        over_curves["FmaxPR"] = f_of(precision, recall).max(1)
        for i, name in enumerate(names):
            if name in over_curves:
                drawn[block, i] = over_curves[name]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice")  # a score that is defined for no image has no interval
        low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return {name: (float(a), float(b)) for name, a, b in zip(names, low, high, strict=True)}
