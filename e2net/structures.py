"""The containers that pass between data, model, loss and metrics."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# In label maps, uint16: a pixel that is not scored and not learned from.
IGNORED = 65535


def plain(array: np.ndarray) -> np.ndarray:
    """The same, C-contiguous, writable, strides positive: what torch takes without an error or a warning."""
    array = np.require(array, requirements=["C", "W"])
    return array if min(array.strides, default=1) > 0 else array.copy()  # an axis of length 1 may have any stride


def canonical_mask(mask: np.ndarray) -> np.ndarray:
    """The one form in which masks travel: C-contiguous, free to be written to, every byte 0 or 1.

    A bool array can hold other bytes: Pillow hands over bilevel images with True as 255, ``array.view(bool)`` takes
    what there is. Comparisons don't notice, sums of bytes do.

    Args:
        mask: bool of any shape and strides; copied only where it has another form.
    """
    mask = plain(mask)
    levels = mask.view(np.uint8)
    return mask if mask.size == 0 or levels.max() <= 1 else levels != 0


class Encoded(NamedTuple):
    """Images of which the encoder's maps are known; stands in for their pixels, up to the encoder's call.

    Attributes:
        maps: F1..F4, each (B, V, D_i, h_i, w_i), of one image without the B: of the images, and as a second view of
            their mirror images where both may be asked for.
        size: (H, W) of the images, pixels.
        view: which one the encoder is to give.
        pixels: the images, (B, 3, H, W) uint8, where there are any to show; None in training.
    """

    maps: tuple[Tensor, ...]
    size: tuple[int, int]
    view: int = 0
    pixels: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        """(B, 3, H, W), of the images."""
        return torch.Size((len(self.maps[0]), 3, *self.size))

    def flip(self, dim: int) -> "Encoded":
        """The mirror images, ``dim`` -1."""
        assert dim == -1, dim
        return self._replace(view=1 - self.view)

    def chosen(self) -> list[Tensor]:
        """F1..F4 of the view, float32, (B, D_i, h_i, w_i)."""
        return [maps[:, self.view].float() for maps in self.maps]


Images = Tensor | Encoded


class Tokens(NamedTuple):
    """What one block of an encoder says about images.

    Attributes:
        class_token: (B, D); None where the encoder has none.
        special: (B, S, D), registers and other tokens that stand for no patch; S is 0 where there are none.
        patches: (B, h·w, D), row by row.
    """

    class_token: Tensor | None
    special: Tensor
    patches: Tensor


def unit_range(image: Images) -> Images:
    """uint8 images (B, 3, H, W) as float32 in [0, 1]; encoded ones as they are."""
    return image if isinstance(image, Encoded) else image.float() / 255


class Sample(NamedTuple):
    """One image as a data set yields it, resized for the network.

    Attributes:
        image: (3, H, W) uint8, RGB; or what the feature cache has in its place.
        target: (1, H, W), what the network is to say there; for masks float32, 0 or 1.
        native_target: (h, w) array at the file's own size, for scoring, such as a bool mask; None in training.
        name: file stem, unique within its set.
        position: index within its set; tells repeats apart when several processes score one set.
    """

    image: Images
    target: Tensor
    native_target: np.ndarray | None
    name: str
    position: int


class Batch(NamedTuple):
    """Samples stacked for one step.

    Attributes:
        image: (B, 3, H, W) uint8, RGB, or encoded. The encoder owns mean and std, so nothing here depends on it.
        target: (B, 1, H, W), see :class:`Sample`.
        native_targets: B arrays (h, w), each at its own size; empty in training.
        names: B file stems.
        positions: B indices within the set.
    """

    image: Images
    target: Tensor
    native_targets: list[np.ndarray]
    names: list[str]
    positions: list[int]


class Output(NamedTuple):
    """What a decoder says about one batch, before any activation.

    Attributes:
        prediction: (B, K, H, W), at the image's size; K is the task's ``out_channels``, or what its ``convert`` makes
            of them.
        auxiliary: by name, further maps for the loss alone, (B, K, h_i, w_i) each; empty where a decoder has none.
    """

    prediction: Tensor
    auxiliary: Mapping[str, tuple[Tensor, ...]] = MappingProxyType({})

    def maps(self) -> list[Tensor]:
        """The prediction and all auxiliary maps."""
        return [self.prediction, *(one for maps in self.auxiliary.values() for one in maps)]


class NotFiniteError(ValueError):
    """A training, or a model's result, has values that are not finite; the message says what to change."""
