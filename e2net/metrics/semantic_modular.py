"""Scores of label maps as a torchmetrics class: collect over images, reduce over processes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from e2net.metrics.collect import Collector
from e2net.metrics.semantic import (
    COUNTS,
    LabelCounts,
    LabelProtocol,
    Labels,
    LabelTable,
    matrix_of,
    score_labels,
)

Array = NDArray[Any]


class LabelScores(Collector):
    """Scores of a data set's label maps, with the counts of every image.

    Args:
        classes: K, how many there are.
        protocol: how maps are scored; by default with bands of 2 % of the diagonal.
    """

    def __init__(self, classes: int, protocol: LabelProtocol | None = None, **kwargs: Any) -> None:
        # Index, then counts, exact up to 2**53 pixels. Index, cell of the confusion matrix, pixels.
        widths = {"rows": (1 + len(COUNTS) * classes, torch.float64), "cells": (3, torch.int64)}
        super().__init__(widths, **kwargs)
        self.classes, self.protocol = classes, protocol or LabelProtocol()

    def update(self, prediction: Labels, labels: Labels, index: int | None = None, name: str | None = None) -> None:
        """Scores one image: label maps (h, w), the target's unscored pixels being ``IGNORED``; see ``score_labels``."""
        self.add(index, self.score(prediction, labels), name)

    def score(
        self,
        prediction: Labels,
        labels: Labels,
        index: int | None = None,
        image: Callable[[], Array | None] | None = None,
    ) -> LabelCounts:
        """Scores one image without keeping it: for a thread beside, ``add`` takes what this gives."""
        return score_labels(prediction, labels, self.classes, self.protocol)

    def add(self, index: int | None, scored: LabelCounts, name: str | None = None) -> None:
        """Collects one image.

        Args:
            index: of the image in the data set, at least 0; None to number it.
            scored: from ``score`` or ``score_labels``.
            name: of the image, for the table.

        Raises:
            ValueError: the index is negative, the name exceeds 255 bytes, or numbered and unnumbered images are mixed.
        """
        place = self._place(index)
        row = np.append(np.float64(place), scored.counts.ravel().astype(np.float64))
        cells = np.insert(scored.cells, 0, place, axis=1)
        self._append(name, index is None, rows=row[None], cells=cells)

    def _tabulate(
        self, indices: list[int], names: list[str | None], first: Array, states: dict[str, Tensor]
    ) -> LabelTable:
        counts = states["rows"].numpy()[first, 1:].astype(np.int64).reshape(-1, len(COUNTS), self.classes)
        cells = states["cells"].numpy()
        once = np.unique(cells[:, :2], axis=0, return_index=True)[1]  # an image that came twice has its cells twice
        return LabelTable(indices, names, counts, matrix_of(cells[once, 1:], self.classes))
