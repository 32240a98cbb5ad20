"""The scores of a data set: a row an image, and what follows from all rows. Needs no torchmetrics."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from e2net.metrics.functional import f_of
from e2net.metrics.scoring import CURVES, ImageScores, check_scores

# Boundary scores are undefined for masks without a contour; those images are left out of these means only.
_MAY_BE_NAN = ("bMAE", "bwF")


@dataclass(frozen=True)
class ScoreTable:
    """Scores and curves of the images of one set, ordered by index.

    Attributes:
        scores: names of the columns, out of ``ALL_SCORES``.
        indices: (n,) of the images in their set, ascending, each once.
        names: of the images, or None.
        rows: (n, len(scores)) float64, fractions; NaN where a score is undefined.
        curves: (n, 4, 256) float64, in the order of ``CURVES``, for thresholds 0..255.
    """

    scores: tuple[str, ...]
    indices: list[int]
    names: list[str | None]
    rows: Tensor = field(repr=False)
    curves: Tensor = field(repr=False)

    @classmethod
    def of(cls, scores: Sequence[str], images: Iterable[tuple[int, str | None, ImageScores]]) -> Self:
        """Collects images that were scored elsewhere, say in a pool of processes.

        Args:
            scores: which to keep; every image has them.
            images: index, name and scores of each, in any order.
        """
        names = check_scores(scores)
        ordered = sorted(images, key=lambda image: image[0])
        rows = np.array([[scored.values[s] for s in names] for _, _, scored in ordered], np.float64)
        curves = np.array([scored.curves for _, _, scored in ordered], np.float64)
        return cls(
            names,
            [index for index, _, _ in ordered],
            [name for _, name, _ in ordered],
            torch.from_numpy(rows.reshape(-1, len(names))),
            torch.from_numpy(curves.reshape(-1, len(CURVES), 256)),
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
