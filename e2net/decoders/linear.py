"""The linear probe: the baseline that every decoder has to beat."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from e2net.decoders.base import Decoder
from e2net.decoders.layers import resize
from e2net.structures import Output


class LinearDecoder(Decoder):
    """BatchNorm and a 1x1 convolution over all levels, as DINO's linear evaluation does.

    The levels' contributions are added, which is the same as one 1x1 convolution over their concatenation but does
    not ask them to be of one size.

    Args:
        channels, strides: of the encoder's maps.
        levels: ``last``: the last level alone, as DINOv3's published probes.
        out_channels: of the prediction.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        levels: Literal["all", "last"] = "all",
        out_channels: int = 1,
    ) -> None:
        super().__init__()
        channels = channels[-1:] if levels == "last" else channels
        self.probes = nn.ModuleList(nn.Sequential(nn.BatchNorm2d(c), nn.Conv2d(c, out_channels, 1)) for c in channels)

    def forward(self, features: Sequence[Tensor], image_size: Sequence[int]) -> Output:
        """F1..F4 (B, D_i, h_i, w_i) -> logits (B, out_channels, *image_size)."""
        features = features[-len(self.probes) :]
        finest = max((f.shape[-2:] for f in features), key=lambda size: size[0] * size[1])
        logits = [resize(probe(f), finest) for probe, f in zip(self.probes, features, strict=True)]
        return Output(resize(self.converted(torch.stack(logits).sum(0)), image_size))
