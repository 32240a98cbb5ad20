"""The feature pyramid: which stride each of F1..F4 has when a decoder works on it."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from e2net.decoders.layers import resize

PyramidName = Literal["standard", "simple"]
Align = Literal["native", "unified"]
STANDARD_STRIDES = (4, 8, 16, 32)


class Pyramid(nn.Module):
    """Resamples four feature maps bilinearly to the pyramid's strides; it has no parameters.

    Bilinear weights sum to one, so resampling and a 1x1 convolution commute: a decoder reduces the channels first,
    at the encoder's own stride, and gets the same maps for a fraction of the work.

    Args:
        name: ``standard`` gives strides 4, 8, 16 and 32; ``simple`` leaves every map at the encoder's stride.
        strides: the encoder's own strides, in pixels.
    """

    def __init__(self, name: PyramidName, strides: Sequence[int]) -> None:
        super().__init__()
        if name not in ("standard", "simple"):
            raise ValueError(f"pyramid must be 'standard' or 'simple', found {name!r}")
        self.strides = STANDARD_STRIDES if name == "standard" else tuple(strides)

    def sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Height and width of each level, in feature pixels, for an image of ``height`` x ``width``; rounded up."""
        return [(-(-height // s), -(-width // s)) for s in self.strides]

    def forward(self, maps: Sequence[Tensor], image_size: Sequence[int]) -> list[Tensor]:
        """(B, C, h_i, w_i) each -> (B, C, ceil(H/s_i), ceil(W/s_i)) each, for ``image_size`` (H, W)."""
        return [resize(m, size) for m, size in zip(maps, self.sizes(*image_size), strict=True)]
