"""Depth scores as a torchmetrics class: collect over images, reduce over processes."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from e2net.metrics.depth import HIGHER_IS_BETTER, Depth, DepthProtocol, score_depth
from e2net.metrics.depth_set import DepthTable

# The longest file name that common file systems allow, in bytes.
_NAME_BYTES = 255
_WIDTHS = {"rows": (1 + len(HIGHER_IS_BETTER), torch.float64), "labels": (1 + _NAME_BYTES, torch.uint8)}


class DepthSetScores(Metric):
    """All depth scores of a data set, with a row per image; an image that several processes scored counts once.

    Args:
        function: scores one image from result and target; None: ``score_depth`` under the default protocol, for maps
            in metres.
    """

    is_differentiable = False
    full_state_update = False
    rows: list[Tensor]
    labels: list[Tensor]

    def __init__(self, function: Callable[[Any, Any], dict[str, float]] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._function = function or partial(score_depth, protocol=DepthProtocol())
        self._table: DepthTable | None = None
        # (n, 1 + scores): index, then scores. (n, 1 + 255): length and bytes of the UTF-8 name.
        self.add_state("rows", [], dist_reduce_fx="cat")
        self.add_state("labels", [], dist_reduce_fx="cat")

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
        encoded = (name or "").encode("utf-8", "surrogateescape")  # a file name that is no UTF-8 keeps its bytes
        if index is None or index < 0 or len(encoded) > _NAME_BYTES:
            raise ValueError(
                f"expected an index from 0 up and a name of at most {_NAME_BYTES} bytes, found {index} and"
                f" {len(encoded)} bytes"
            )
        label = np.zeros(1 + _NAME_BYTES, np.uint8)
        label[0] = len(encoded)
        label[1 : 1 + len(encoded)] = np.frombuffer(encoded, np.uint8)
        row = np.array([index, *(scored[score] for score in HIGHER_IS_BETTER)], np.float64)
        # MPS has no float64; it has no distributed training either, so the states can stay behind.
        device = torch.device("cpu") if self.device.type == "mps" else self.device
        self.rows.append(torch.from_numpy(row)[None].to(device))
        self.labels.append(torch.from_numpy(label)[None].to(device))
        self._computed = self._table = None
        self._update_count += 1

    def _sync_dist(self, *args: Any, **kwargs: Any) -> None:
        # A process without images must still offer tensors of the others' type and number of dimensions.
        for name, (width, dtype) in _WIDTHS.items():
            if not getattr(self, name):
                setattr(self, name, [torch.zeros((0, width), dtype=dtype, device=self.device)])
        super()._sync_dist(*args, **kwargs)

    def compute(self) -> dict[str, Tensor]:
        """() float64 CPU tensor per score, see ``DepthTable.values``; in several processes a collective call.

        Raises:
            ValueError: no image was scored.
        """
        if len(self.rows) == 0:
            raise ValueError("DepthSetScores: no image was scored; call update or add first")
        # Lists here, tensors after a reduction over processes.
        states = (torch.cat(x) if isinstance(x, list) else x for x in (self.rows, self.labels))
        values, names = (state.cpu().numpy() for state in states)
        indices, first = np.unique(values[:, 0], return_index=True)
        decoded = [bytes(x[1 : 1 + x[0]]).decode("utf-8", "surrogateescape") or None for x in names[first]]
        self._table = DepthTable(indices.astype(int).tolist(), decoded, values[first, 1:])
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in self._table.values().items()}

    def table(self) -> DepthTable:
        """A row an image, ordered by index; in several processes a collective call."""
        if self._table is None:
            self._computed = None
            self.compute()
        assert self._table is not None
        return self._table

    def reset(self) -> None:
        """Forgets all images."""
        super().reset()
        self._table = None

    def forget(self) -> None:
        """Nothing is kept of targets."""
