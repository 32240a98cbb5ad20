"""The segmentation model: an encoder, a neck and a decoder; one image in, one map out."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from e2net.decoders import Pyramid
from e2net.decoders.necks import Identity
from e2net.decoders.pyramid import PyramidName
from e2net.encoders import Encoder, Tuning
from e2net.structures import Output


class SegmentationModel(nn.Module):
    """An encoder under a tuning policy with a decoder on its feature maps.

    Args:
        encoder: gives F1..F4 and says their channels and strides.
        decoder: called with ``channels`` and ``strides``, makes the decoder.
        tuning: what of the encoder trains.
        neck: called with ``channels`` and ``strides``, makes what trains between the two.
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder: Callable[..., nn.Module],
        tuning: Tuning,
        neck: Callable[..., nn.Module] = Identity,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        tuning.apply(encoder)
        self.tuning = tuning
        self.neck = neck(channels=encoder.channels, strides=encoder.strides)
        self.decoder = decoder(channels=self.neck.channels, strides=self.neck.strides)

    def features(self, image: Tensor, pyramid: PyramidName = "standard") -> list[Tensor]:
        """F1..F4 of the pyramid, (B, D_i, H/s_i, W/s_i), from an image (B, 3, H, W) in [0, 1].

        For looking at features; the decoders reduce the channels before they resample, for the same result.
        """
        return Pyramid(pyramid, self.encoder.strides)(self.encoder(image), image.shape[-2:])

    def forward(self, image: Tensor) -> Output:
        """Logits for a batch.

        Args:
            image: (B, 3, H, W) float, RGB in [0, 1]; H and W multiples of ``encoder.size_multiple``.

        Raises:
            ValueError: a size that is no such multiple.
        """
        return self.decode(self.encoder(image), image.shape[-2:])

    def decode(self, features: Sequence[Tensor], image_size: Sequence[int]) -> Output:
        """Logits from the encoder's F1..F4, for images of ``image_size`` (H, W)."""
        return self.decoder(self.neck(features, image_size), image_size)
