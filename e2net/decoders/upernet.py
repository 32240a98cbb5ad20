"""The UPerNet decoder: context of the whole scene, spread over a feature pyramid."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from e2net.decoders.base import Decoder
from e2net.decoders.layers import add, conv_bn, convolve, resize
from e2net.decoders.pyramid import Pyramid, PyramidName
from e2net.structures import Output
from e2net.symbolic import is_exporting


class BinMeans(nn.AdaptiveAvgPool2d):
    """Means of so many by so many parts of a map, (B, C, h, w) -> (B, C, bins, bins); exported, at any size."""

    def forward(self, x: Tensor) -> Tensor:
        if not is_exporting():
            return super().forward(x)
        bins = self.output_size
        assert isinstance(bins, int), bins
        rows, columns = (_bin_weights(side, bins, x) for side in x.shape[-2:])
        return rows @ x @ columns.T


def _bin_weights(length: int, bins: int, like: Tensor) -> Tensor:
    """(bins, length): by what each pixel counts in the mean of a part, as ``nn.AdaptiveAvgPool2d`` divides a side."""
    number, pixel = torch.arange(bins, device=like.device), torch.arange(length, device=like.device)
    first, end = number * length // bins, ((number + 1) * length + bins - 1) // bins
    inside = (pixel >= first[:, None]) & (pixel < end[:, None])
    return inside.to(like.dtype) / (end - first)[:, None].to(like.dtype)


class PyramidPooling(nn.Module):
    """Pyramid pooling (Zhao et al. 2017, section 3.2): each pixel beside the means of 1, 4, 9 and 36 parts of the map.

    The published convolution over all of them concatenated, after upsampling, is taken apart: 3x3 on the map itself,
    1x1 on the means, before their upsampling. The means have no BatchNorm: of a single image there is one mean of the
    whole, which has no variance.

    Args:
        width: channels.
    """

    BINS = (1, 2, 3, 6)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.context = nn.ModuleList(
            nn.Sequential(
                BinMeans(bins),
                nn.Conv2d(width, width, 1),
                nn.ReLU(inplace=True),
                nn.Conv2d(width, width, 1, bias=False),
            )
            for bins in self.BINS
        )
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        context = add(resize(branch(x), x.shape[-2:]) for branch in self.context)
        return F.relu(self.norm(self.conv(x) + context), inplace=True)


class UPerNetDecoder(Decoder):
    """Unified perceptual parsing's decoder (Xiao et al. 2018, section 3.1), its head one 1x1 convolution.

    L1..L4 are the levels at ``width`` channels, the last after pyramid pooling; P4 = L4, Pi = Li + up(P(i+1)). Each Pi
    goes through conv3x3-BN-ReLU, and all of them, at the finest size, through another one and 1x1.

    Convolutions are linear, so that of Pi is the sum of those of Li and P(i+1), each at its own stride; that over the
    concatenated levels likewise.

    Args:
        channels, strides: of the encoder's maps.
        width: channels inside the decoder; published with 512.
        pyramid: strides of the four levels, 4 to 32 (``standard``) or as the encoder gives them (``simple``).
        out_channels: of the prediction.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        width: int = 128,
        pyramid: PyramidName = "standard",
        out_channels: int = 1,
    ) -> None:
        super().__init__()

        def conv() -> nn.Conv2d:
            return nn.Conv2d(width, width, 3, padding=1, bias=False)

        self.lateral = nn.ModuleList(conv_bn(c, width, 1) for c in channels)
        self.pyramid = Pyramid(pyramid, strides)
        self.pool = PyramidPooling(width)
        self.smooth = nn.ModuleList(conv() for _ in channels[1:])
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in channels[1:])
        self.fuse = nn.ModuleList(conv() for _ in channels)
        self.head = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.Conv2d(width, out_channels, 1))

    def forward(self, features: Sequence[Tensor], image_size: Sequence[int]) -> Output:
        """F1..F4 (B, D_i, h_i, w_i), the image's (H, W) -> the prediction, see :class:`Decoder`."""
        maps = [conv(f) for conv, f in zip(self.lateral, features, strict=True)]
        sizes = self.pyramid.sizes(*image_size)
        tops = [self.pool(resize(maps[-1], sizes[-1]))]  # P4, P3, P2
        for lateral, size in zip(maps[-2:0:-1], sizes[-2:0:-1], strict=True):
            tops.append(resize(lateral, size) + resize(tops[-1], size))
        fused = convolve(self.fuse[-1], tops[0], sizes[0])
        for i, top in zip(reversed(range(len(self.smooth))), tops, strict=True):
            smoothed = convolve(self.smooth[i], maps[i], sizes[i]) + convolve(self.smooth[i], top, sizes[i])
            fused = fused + convolve(self.fuse[i], F.relu(self.norms[i](smoothed), inplace=True), sizes[0])
        return Output(resize(self.converted(self.head(fused)), image_size))
