"""Depth scores as a torchmetrics class: collect over images, reduce over processes."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from e2net.metrics.collect import Collector
from e2net.metrics.depth import HIGHER_IS_BETTER, Depth, DepthProtocol, score_depth
from e2net.metrics.depth_set import DepthTable


class DepthSetScores(Collector):
    """All depth scores of a data set, with a row per image.

    Args:
        function: scores one image from result and target; None: ``score_depth`` under the default protocol, for maps
            in metres.
    """

    def __init__(self, function: Callable[[Any, Any], dict[str, float]] | None = None, **kwargs: Any) -> None:
        # Index, then scores.
        super().__init__({"rows": (1 + len(HIGHER_IS_BETTER), torch.float64)}, **kwargs)
        self._function = function or partial(score_depth, protocol=DepthProtocol())

    def update(self, depth: Depth, target: Depth, index: int, name: str | None = None) -> None:
        """Scores one image: result and target (h, w), its index in the set, and its name."""
        self.add(index, self.score(depth, target), name)

    def score(
        self,
        result: Depth,
        target: Depth,
        index: int | None = None,
        image: Callable[[], NDArray[Any] | None] | None = None,
    ) -> dict[str, float]:
        """Scores one image without keeping it: for a thread beside, ``add`` takes what this gives."""
        return self._function(result, target)

    def add(self, index: int | None, scored: Mapping[str, float], name: str | None = None) -> None:
        """Collects the scores of one image.

        Raises:
            ValueError: it has no index from 0 up, or its name exceeds 255 bytes.
        """
        if index is None or index < 0:
            raise ValueError(f"expected an index from 0 up, found {index}")
        row = np.array([self._place(index), *(scored[score] for score in HIGHER_IS_BETTER)], np.float64)
        self._append(name, rows=row[None])

    def _tabulate(
        self, indices: list[int], names: list[str | None], first: NDArray[Any], states: dict[str, Tensor]
    ) -> DepthTable:
        return DepthTable(indices, names, states["rows"].numpy()[first, 1:])
