"""The model of every task: an encoder, a neck and a decoder; one image in, one map out."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from e2net.decoders import Decoder, Pyramid
from e2net.decoders.necks import Identity
from e2net.decoders.pyramid import PyramidName
from e2net.encoders import Encoder, Tuning
from e2net.structures import Images, Output
from e2net.tasks.base import Task
from e2net.tasks.camouflage import Camouflage


class DenseModel(nn.Module):
    """An encoder under a tuning policy with a decoder on its feature maps.

    Args:
        encoder: gives F1..F4 and says their channels and strides.
        decoder: called with ``channels``, ``strides`` and ``out_channels``, makes the decoder.
        tuning: what of the encoder trains.
        neck: called with ``channels`` and ``strides``, makes what trains between the two.
        task: what its prediction means; None: camouflage.
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder: Callable[..., nn.Module],
        tuning: Tuning,
        neck: Callable[..., nn.Module] = Identity,
        task: Task | None = None,
    ) -> None:
        super().__init__()
        self.task = task or Camouflage()
        self.encoder = encoder
        tuning.apply(encoder)
        self.tuning = tuning
        self.neck = neck(channels=encoder.channels, strides=encoder.strides)
        self.decoder = decoder(
            channels=self.neck.channels, strides=self.neck.strides, out_channels=self.task.out_channels
        )
        if isinstance(self.decoder, Decoder):
            self.decoder.convert = self.task.convert

    def features(self, image: Tensor, pyramid: PyramidName = "standard") -> list[Tensor]:
        """F1..F4 of the pyramid, (B, D_i, H/s_i, W/s_i), from an image (B, 3, H, W) in [0, 1].

        For looking at features; the decoders reduce the channels before they resample, for the same result.
        """
        return Pyramid(pyramid, self.encoder.strides)(self.encoder(image), image.shape[-2:])

    def forward(self, image: Images) -> Output:
        """The prediction for a batch, before any activation.

        Args:
            image: (B, 3, H, W) float, RGB in [0, 1], or encoded; H and W multiples of ``encoder.size_multiple``.

        Raises:
            ValueError: a size that is no such multiple.
        """
        return self.decode(self.encoder(image), image.shape[-2:])

    def decode(self, features: Sequence[Tensor], image_size: Sequence[int]) -> Output:
        """The prediction from the encoder's F1..F4, for images of ``image_size`` (H, W)."""
        return self.decoder(self.neck(features, image_size), image_size)
