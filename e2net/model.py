"""The segmentation model: one encoder, one decoder, one image in, one map out."""

from collections.abc import Callable

from torch import Tensor, nn

from e2net.decoders import Pyramid
from e2net.decoders.pyramid import PyramidName
from e2net.encoders import Frozen, Full, ViTEncoder
from e2net.structures import SegOutput


class SegmentationModel(nn.Module):
    """An encoder under a tuning policy with a decoder on its feature maps.

    Args:
        encoder: gives F1..F4 and says their channels and strides.
        decoder: called with ``channels`` and ``strides``, makes the decoder.
        tuning: what of the encoder trains.
    """

    def __init__(self, encoder: ViTEncoder, decoder: Callable[..., nn.Module], tuning: Frozen | Full) -> None:
        super().__init__()
        self.encoder = encoder
        tuning.apply(encoder)
        self.tuning = tuning
        self.decoder = decoder(channels=encoder.channels, strides=encoder.strides)

    def features(self, image: Tensor, pyramid: PyramidName = "standard") -> list[Tensor]:
        """F1..F4 of the pyramid, (B, D_i, H/s_i, W/s_i), from an image (B, 3, H, W) in [0, 1].

        For looking at features; the decoders reduce the channels before they resample, for the same result.
        """
        return Pyramid(pyramid, self.encoder.strides)(self.encoder(image), image.shape[-2:])

    def forward(self, image: Tensor) -> SegOutput:
        """Logits for a batch.

        Args:
            image: (B, 3, H, W) float, RGB in [0, 1]; H and W multiples of ``encoder.patch_size``.

        Raises:
            ValueError: a size that the patch size does not divide.
        """
        return self.decoder(self.encoder(image), image.shape[-2:])
