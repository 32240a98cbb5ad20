"""What every decoder is called with, and what it may leave out."""

from collections.abc import Callable, Collection, Sequence
from typing import ClassVar

from torch import Tensor, nn

from e2net.structures import Output


class Decoder(nn.Module):
    """From the encoder's maps to a prediction with as many channels as a task asks for.

    A decoder's constructor takes ``channels`` and ``strides`` of the encoder's maps, its own settings, and
    ``out_channels``.
    """

    # What `forward` gives beside the prediction.
    AUXILIARY: ClassVar[frozenset[str]] = frozenset()
    # Of the task: what its last layers' maps (B, out_channels, h, w) become before they are resized. None: they stay.
    convert: Callable[[Tensor], Tensor] | None = None

    def forward(self, features: Sequence[Tensor], image_size: Sequence[int]) -> Output:
        """F1..F4 (B, D_i, h_i, w_i) -> prediction (B, K, H, W) at the image's size, without activation.

        K is ``out_channels``, or what :meth:`converted` makes of them.
        """
        raise NotImplementedError

    def leave_out(self, auxiliary: Collection[str]) -> None:
        """Does without some of the maps in ``AUXILIARY``, which no loss looks at."""

    def converted(self, maps: Tensor) -> Tensor:
        """What the last layer gave, as the task takes it: at its own resolution, where many channels cost least."""
        return maps if self.convert is None else self.convert(maps)
