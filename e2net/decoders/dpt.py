"""The DPT decoder: one residual path from the coarsest map to the finest."""

from collections.abc import Sequence

from torch import Tensor, nn

from e2net.decoders.base import Decoder
from e2net.decoders.layers import conv_bn, resize
from e2net.decoders.pyramid import Pyramid, PyramidName
from e2net.structures import Output


class ResidualUnit(nn.Module):
    """RefineNet's residual convolution unit with BatchNorm (Lin et al. 2017). (B, C, h, w) -> (B, C, h, w).

    Args:
        width: channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(nn.ReLU(), conv_bn(width, width, 3), conv_bn(width, width, 3, relu=False))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.residual(x)


class DPTDecoder(Decoder):
    """Dense prediction transformer's decoder (Ranftl et al. 2021, section 3.1), with BatchNorm.

    Reassemble: 1x1-BN per level, then the pyramid's strides. Fusion, from coarse to fine: the level through one
    residual unit is added to the upsampled result so far, and both go through another one and a 1x1 convolution.
    Head: conv3x3-BN-ReLU-1x1 at the finest stride.

    A level is resampled after its first unit, which thus runs at the encoder's stride, and bilinearly; for the
    learned resampling of the published version put ``neck=vitdet`` before it. The published version also doubles the
    resolution once more before its head.

    Args:
        channels, strides: of the encoder's maps.
        width: channels inside the decoder; published with 256.
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
        self.project = nn.ModuleList(conv_bn(c, width, 1, relu=False) for c in channels)
        self.pyramid = Pyramid(pyramid, strides)
        self.adapt = nn.ModuleList(ResidualUnit(width) for _ in channels[1:])
        self.fuse = nn.ModuleList(nn.Sequential(ResidualUnit(width), nn.Conv2d(width, width, 1)) for _ in channels)
        self.head = nn.Sequential(conv_bn(width, width, 3), nn.Conv2d(width, out_channels, 1))

    def forward(self, features: Sequence[Tensor], image_size: Sequence[int]) -> Output:
        """F1..F4 (B, D_i, h_i, w_i), the image's (H, W) -> the prediction, see :class:`Decoder`."""
        maps = [conv(f) for conv, f in zip(self.project, features, strict=True)]
        sizes = self.pyramid.sizes(*image_size)
        x = self.fuse[-1](resize(maps[-1], sizes[-1]))
        for i in reversed(range(len(self.adapt))):
            x = self.fuse[i](resize(x, sizes[i]) + resize(self.adapt[i](maps[i]), sizes[i]))
        return Output(resize(self.converted(self.head(x)), image_size))
