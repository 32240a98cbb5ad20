"""CAEM, cross-scale alignment and enhancement, and the decoder that puts a plain head on it."""

from collections.abc import Sequence

from torch import Tensor, nn

from e2net.decoders.base import Decoder
from e2net.decoders.layers import Fuse, SqueezeExcitation, add, conv_bn, convolve, resize
from e2net.decoders.pyramid import Align, Pyramid, PyramidName
from e2net.structures import Output


class CAEM(nn.Module):
    """Aligns F1..F4 to one width, fuses them from coarse to fine, and gates their channels.

    F'i = BN(1x1(Fi)); G4 = F'4, Gi = φ([up(G(i+1)), F'i]) at the pyramid's strides; then squeeze-and-excitation on
    each. Every level stays at its own stride, and what φ upsamples it convolves first, to the same result. With
    ``align`` ``unified``, F'1..F'4 are resampled to the pyramid and all brought to G1's size before anything else, as
    in the published version; the weights are the same, and so are the results where all levels have one size anyway.

    The published version has no BatchNorm after the 1x1 convolution; the features of DINO's blocks differ in scale by
    an order of magnitude, which the norm evens out.

    Args:
        channels: feature channels of F1..F4.
        strides: strides of F1..F4, in pixels.
        width: channels of G1..G4.
        pyramid: ``standard`` or ``simple``, see :class:`~e2net.decoders.pyramid.Pyramid`.
        dropout: probability that a channel of F'i is dropped in training.
        align: ``native`` or ``unified``.

    Raises:
        ValueError: an unknown ``pyramid`` or ``align``.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        width: int,
        pyramid: PyramidName = "standard",
        dropout: float = 0.0,
        align: Align = "native",
    ) -> None:
        super().__init__()
        if align not in ("native", "unified"):
            raise ValueError(f"decoder.align must be 'native' or 'unified', found {align!r}")
        self.align = align
        self.lateral = nn.ModuleList(
            nn.Sequential(conv_bn(c, width, 1, relu=False), nn.Dropout2d(dropout)) for c in channels
        )
        self.pyramid = Pyramid(pyramid, strides)
        self.fuse = nn.ModuleList(Fuse(width) for _ in range(len(channels) - 1))
        self.enhance = nn.ModuleList(SqueezeExcitation(width) for _ in channels)

    def forward(self, features: Sequence[Tensor], image_size: Sequence[int]) -> list[Tensor]:
        """F1..F4 (B, D_i, h_i, w_i), the image's (H, W) -> G1..G4 (B, width, H/s_i, W/s_i); unified: all at s_1."""
        aligned = [conv(f) for conv, f in zip(self.lateral, features, strict=True)]
        sizes = self.pyramid.sizes(*image_size)
        if self.align == "unified":
            aligned = [resize(f, sizes[0]) for f in self.pyramid(aligned, image_size)]
            sizes = [sizes[0]] * len(aligned)
        fused = [resize(aligned[-1], sizes[-1])]
        for fuse, fine, size in zip(self.fuse, aligned[-2::-1], sizes[-2::-1], strict=True):
            fused.append(fuse(fused[-1], fine, size))
        return [enhance(g) for enhance, g in zip(self.enhance, reversed(fused), strict=True)]


class CAEMDecoder(Decoder):
    """CAEM and a plain head: conv3x3 over G1..G4, BN-ReLU-1x1, at G1's size.

    As in :class:`~e2net.decoders.layers.Fuse`, each level's taps are applied before it is upsampled.

    Args:
        channels, strides: of the encoder's maps.
        width: channels inside the decoder.
        pyramid: strides of the four levels, 4 to 32 (``standard``) or as the encoder gives them (``simple``).
        align: ``native``: every level at its own stride; ``unified``: all at G1's size, as published.
        out_channels: of the prediction.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        width: int = 128,
        pyramid: PyramidName = "simple",
        align: Align = "native",
        out_channels: int = 1,
    ) -> None:
        super().__init__()
        self.caem = CAEM(channels, strides, width, pyramid, align=align)
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in channels)
        self.head = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.Conv2d(width, out_channels, 1))

    def forward(self, features: Sequence[Tensor], image_size: Sequence[int]) -> Output:
        """F1..F4 (B, D_i, h_i, w_i) -> the prediction, see :class:`Decoder`."""
        maps = self.caem(features, image_size)
        size = maps[0].shape[-2:]
        fused = add(convolve(conv, g, size) for conv, g in zip(self.convs, maps, strict=True))
        return Output(resize(self.converted(self.head(fused)), image_size))
