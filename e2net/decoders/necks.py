"""Necks: what trains between the encoder's maps and the decoder; F1..F4 in, F1..F4 out.

A neck is built with the encoder's ``channels`` and ``strides``, says its own under the same names, and is called with
the maps and the image's (H, W).
"""

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from e2net.decoders.layers import ChannelNorm
from e2net.decoders.pyramid import STANDARD_STRIDES, Pyramid


class Identity(nn.Module):
    """The encoder's maps as they are.

    Attributes:
        channels, strides: of the maps that come out.

    Args:
        channels, strides: of the encoder's maps.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        self.channels, self.strides = tuple(channels), tuple(strides)

    def forward(self, features: Sequence[Tensor], image_size: Sequence[int]) -> list[Tensor]:
        """F1..F4 (B, D_i, h_i, w_i), the image's (H, W) -> the same maps."""
        return list(features)


class Norm(nn.Module):
    """A norm with weights of its own on each map: DINO's blocks differ in scale by an order of magnitude.

    Attributes:
        channels, strides: of the maps that come out; those of the encoder.

    Args:
        channels, strides: of the encoder's maps.
        kind: ``layer``, over the channels of each pixel, or ``batch``, over the pixels of a batch.

    Raises:
        ValueError: another ``kind``.
    """

    def __init__(
        self, channels: Sequence[int], strides: Sequence[int], kind: Literal["layer", "batch"] = "layer"
    ) -> None:
        super().__init__()
        if kind not in ("layer", "batch"):
            raise ValueError(f"neck.kind must be 'layer' or 'batch', found {kind!r}")
        self.channels, self.strides = tuple(channels), tuple(strides)
        norm = ChannelNorm if kind == "layer" else nn.BatchNorm2d
        self.norms = nn.ModuleList(norm(c) for c in channels)

    def forward(self, features: Sequence[Tensor], image_size: Sequence[int]) -> list[Tensor]:
        """F1..F4 (B, D_i, h_i, w_i), the image's (H, W) -> maps of the same shapes."""
        return [norm(f) for norm, f in zip(self.norms, features, strict=True)]


class LearnedPyramid(nn.Module):
    """Strides 4, 8, 16 and 32 by learned resampling, as ViTDet's simple feature pyramid (Li et al. 2022, section 3).

    Each level: 1x1 to ``width`` channels, then 2x2 transposed convolutions that double the resolution, or 3x3
    convolutions that halve it, as many as bring the encoder's stride nearest to the pyramid's; each with LayerNorm, and
    GELU between. What is left (patches of 14, odd sizes) is resampled bilinearly. Levels that have their stride already
    get the 1x1 convolution and the norm alone.

    The published version makes all levels from the last map, reduces the channels after the upsampling, and ends in a
    3x3 convolution at each stride, which here is left to the decoder.

    Attributes:
        channels, strides: of the maps that come out; ``width`` and 4, 8, 16, 32.

    Args:
        channels, strides: of the encoder's maps.
        width: channels of each map that comes out.

    Raises:
        ValueError: ``width`` is not positive.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], width: int = 128) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"neck.width must be at least 1, found {width}")
        self.channels, self.strides = (width,) * len(STANDARD_STRIDES), STANDARD_STRIDES
        self.levels = nn.ModuleList(
            _level(c, width, round(math.log2(stride / target)))
            for c, stride, target in zip(channels, strides, self.strides, strict=True)
        )
        self.pyramid = Pyramid("standard", strides)

    def forward(self, features: Sequence[Tensor], image_size: Sequence[int]) -> list[Tensor]:
        """F1..F4 (B, D_i, h_i, w_i), the image's (H, W) -> (B, width, ceil(H/s_i), ceil(W/s_i)) each."""
        maps = [level(f) for level, f in zip(self.levels, features, strict=True)]
        return self.pyramid(maps, image_size)


def _level(channels: int, width: int, doublings: int) -> nn.Sequential:
    """1x1 to ``width`` and as many doublings of the resolution; halvings where it is negative."""
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 1), ChannelNorm(width)]
    for _ in range(abs(doublings)):
        layers += [
            nn.GELU(),
            nn.ConvTranspose2d(width, width, 2, stride=2)
            if doublings > 0
            else nn.Conv2d(width, width, 3, stride=2, padding=1),
            ChannelNorm(width),
        ]
    return nn.Sequential(*layers)
