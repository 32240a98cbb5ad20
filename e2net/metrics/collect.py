"""What all collectors of a set's scores share: images by index and name, each once, over any number of processes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

Array = NDArray[Any]

# The longest file name that common file systems allow, in bytes.
_NAME_BYTES = 255


class Collector(Metric):
    """Collects what is known of each image; a subclass says what, and makes a table of it.

    An image is identified by its index in the data set. Images that several processes have scored, as happens when a
    distributed sampler pads its last round with repeats, count once. Use one instance per data set.

    Args:
        widths: states by name, and the length and type of their lines. Among them is ``rows``, a line an image; in each
            the first column is the image's index where a state holds several lines of an image.
    """

    is_differentiable = False
    full_state_update = False
    rows: list[Tensor]
    labels: list[Tensor]

    def __init__(self, widths: Mapping[str, tuple[int, torch.dtype]], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # (n, 1 + 255): length and bytes of the UTF-8 name.
        self._widths = {**widths, "labels": (1 + _NAME_BYTES, torch.uint8)}
        self._numbered: bool | None = None
        self._table: Any = None
        for name in self._widths:
            self.add_state(name, [], dist_reduce_fx="cat")

    def _tabulate(self, indices: list[int], names: list[str | None], first: Array, states: dict[str, Tensor]) -> Any:
        """The set's table.

        Args:
            indices, names: of the images, by index.
            first: (n,) where in ``rows`` each of them stands.
            states: all that was collected, on the CPU.
        """
        raise NotImplementedError

    def _place(self, index: int | None) -> int:
        """The index of the next image.

        Raises:
            ValueError: it is negative, or numbered and unnumbered images are mixed.
        """
        if self._numbered not in (None, index is None):
            raise ValueError("index: give it for every image or for none")
        if index is not None and index < 0:
            raise ValueError(f"index: expected at least 0, found {index}")
        return sum(part.shape[0] for part in self.rows) if index is None else index

    def _append(self, name: str | None, numbered: bool = False, **parts: Array) -> None:
        """Adds lines to every state but ``labels``.

        Raises:
            ValueError: the name exceeds 255 bytes.
        """
        encoded = (name or "").encode("utf-8", "surrogateescape")  # a file name that is no UTF-8 keeps its bytes
        if len(encoded) > _NAME_BYTES:
            raise ValueError(f"name: expected at most {_NAME_BYTES} bytes, found {len(encoded)}")
        label = np.zeros(1 + _NAME_BYTES, dtype=np.uint8)
        label[0] = len(encoded)
        label[1 : 1 + len(encoded)] = np.frombuffer(encoded, dtype=np.uint8)
        self._numbered = numbered
        # MPS has no float64; it has no distributed training either, so the states can stay behind.
        device = torch.device("cpu") if self.device.type == "mps" else self.device
        for state, lines in {**parts, "labels": label[None]}.items():
            getattr(self, state).append(torch.from_numpy(lines).to(device))
        self._computed = None
        self._table = None
        self._update_count += 1

    def _sync_dist(self, *args: Any, **kwargs: Any) -> None:
        if self._numbered:
            raise ValueError(
                f"{type(self).__name__} in several processes needs every image's index, to tell repeats apart"
            )
        # A process without images must still offer tensors of the others' type and number of dimensions.
        for name, (width, dtype) in self._widths.items():
            if not getattr(self, name):
                setattr(self, name, [torch.zeros((0, width), dtype=dtype, device=self.device)])
        super()._sync_dist(*args, **kwargs)

    def reset(self) -> None:
        """Forget all images."""
        super().reset()
        self._numbered = None
        self._table = None

    def forget(self) -> None:
        """Drop what is kept of targets: the indices will mean others from here on."""

    def compute(self) -> dict[str, Tensor]:
        """Scores of the data set; in several processes a collective call with the same result in each.

        Returns:
            () float64 CPU tensor per score of the table's ``values``.

        Raises:
            ValueError: if no image was scored.
        """
        self._table = self._merge()
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in self._table.values().items()}

    def _merge(self) -> Any:
        # Lists here, tensors after a reduction over processes.
        found = {name: getattr(self, name) for name in self._widths}
        if len(found["rows"]) == 0:
            raise ValueError(f"{type(self).__name__}: no image was scored; call update or add first")
        states = {name: (torch.cat(x) if isinstance(x, list) else x).cpu() for name, x in found.items()}
        indices, first = np.unique(states["rows"][:, 0].numpy(), return_index=True)
        labels = states["labels"].numpy()[first]
        names = [bytes(x[1 : 1 + x[0]]).decode("utf-8", "surrogateescape") or None for x in labels]
        return self._tabulate(indices.astype(int).tolist(), names, first, states)

    def table(self) -> Any:
        """All images, ordered by index; in several processes a collective call.

        Raises:
            ValueError: if no image was scored.
        """
        if self._table is None:
            self._computed = None
            self.compute()
        return self._table
