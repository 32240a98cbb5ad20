"""The linear probe: the baseline that every decoder has to beat."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from e2net.decoders.base import Decoder
from e2net.decoders.layers import resize
from e2net.structures import Output


class LinearDecoder(Decoder):
    """BatchNorm and a 1x1 convolution, as DINO's linear evaluation has them, over all levels or the last.

    The levels' contributions are added, which is the same as one 1x1 convolution over their concatenation but does
    not ask them to be of one size.

    Args:
        channels, strides: of the encoder's maps.
        out_channels: of the prediction.
        last_only: look at the last level alone, as the published probes do.
        dropout: of whole channels before the convolution, 0 to below 1.

    Raises:
        ValueError: ``dropout`` is out of its range.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        out_channels: int = 1,
        last_only: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError(f"decoder.dropout: expected a share from 0 (off) to below 1, found {dropout}")
        self.last_only = last_only
        self.dropout = nn.Dropout2d(dropout) if dropout else nn.Identity()  # of 0 it would still draw numbers
        chosen = channels[-1:] if last_only else channels
        self.probes = nn.ModuleList(nn.Sequential(nn.BatchNorm2d(c), nn.Conv2d(c, out_channels, 1)) for c in chosen)

    def forward(self, features: Sequence[Tensor], image_size: Sequence[int]) -> Output:
        """F1..F4 (B, D_i, h_i, w_i) -> the prediction, see :class:`Decoder`."""
        features = features[-1:] if self.last_only else features
        finest = max((f.shape[-2:] for f in features), key=lambda size: size[0] * size[1])
        logits = []
        for probe, feature in zip(self.probes, features, strict=True):
            norm, convolution = probe.children()
            logits.append(resize(convolution(self.dropout(norm(feature))), finest))
        return Output(resize(self.converted(torch.stack(logits).sum(0)), image_size))
