"""What every encoder has in common: normalisation, sizes, what trains, and an identity of its weights."""

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from e2net.structures import Encoded, Images, Tokens

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def are_indices(values: object, length: int) -> bool:
    """Whether ``values`` is a list of different 0-based indices below ``length``; a user may have given anything."""
    return (
        isinstance(values, Sequence)
        and all(isinstance(i, int) and 0 <= i < length for i in values)
        and len(set(values)) == len(values)
    )


def no_masks(backbone: nn.Module) -> ValueError:
    """The error for an encoder that is to mask patches and cannot."""
    return ValueError(
        f"{type(backbone).__name__} cannot mask patches; expected a vision transformer of Hugging Face that can, such "
        "as DINOv2, DINOv3 or ViT"
    )


def method_of(module: nn.Module, function: Callable) -> Any:
    """A method for one module that copies and pickles take along. (A ``MethodType`` of a function cannot be unpickled.)

    Args:
        module: what the function gets as its first argument.
        function: of this package, found by its name.
    """
    method: Any = partial(function, module)
    method.__func__ = function  # as methods have it: torch.compile takes the function
    return method


class Encoder(nn.Module):
    """An image in, feature maps F1..F4 out.

    A subclass sets ``channels``, ``strides`` and ``blocks``, and implements :meth:`encode`, :meth:`encode_tokens` and
    :meth:`layers`.

    Attributes:
        channels: feature channels of F1..F4.
        strides: image pixels per feature pixel of F1..F4.
        blocks: 0-based indices of the blocks behind F1..F4, ascending.
        size_multiple: height and width of an image must be multiples of this, in pixels.
        pretrained: whether the weights came from a file that can be read again. If not, a checkpoint must hold
            them even when they are frozen.
        trained: the modules that train, and so follow ``train()``; everything else stays in eval mode. Set by the
            tuning policy; by default the whole backbone.

    Args:
        backbone: the network itself.
        mean, std: of RGB images in [0, 1], per channel.
        size_multiple, pretrained: see the attributes.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    blocks: tuple[int, ...]

    def __init__(
        self, backbone: nn.Module, mean: Sequence[float], std: Sequence[float], size_multiple: int, pretrained: bool
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.size_multiple = size_multiple
        self.pretrained = pretrained
        self.trained: list[nn.Module] = [backbone]
        # Not in the state dict: they belong to the encoder's files, not to what is trained.
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(tuple(mean)).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(tuple(std)).view(1, 3, 1, 1), persistent=False)
        self.train(False)  # a model built from a config starts in train mode, one from files in eval mode

    def encode(self, pixels: Tensor) -> list[Tensor]:
        """Normalised images (B, 3, H, W) -> F1..F4, each (B, D_i, H/s_i, W/s_i)."""
        raise NotImplementedError

    def encode_tokens(
        self, pixels: Tensor, masked: Tensor | None, blocks: Sequence[int], norm: bool | None
    ) -> list[Tokens]:
        """As :meth:`tokens`, of normalised images."""
        raise NotImplementedError

    def train_mask_token(self) -> None:
        """Has the token train that stands in the place of masked patches; adds one of zeros where there is none.

        Call it after the tuning policy, which leaves the token alone: only masked patches depend on it.

        Raises:
            ValueError: the encoder cannot mask patches.
        """
        raise no_masks(self.backbone)

    def describe(self) -> dict[str, Any] | None:
        """What the class's ``from_description`` builds the same encoder from, without files and with other weights.

        Plain values. None: the class has no such method, and its files are needed.
        """
        return None

    def layers(self) -> list[nn.Module]:
        """The residual blocks in the order in which they run, (B, N, D) or (B, D, h, w) in and out."""
        raise NotImplementedError

    @property
    def frozen(self) -> bool:
        """Whether nothing trains; then no autograd graph is built."""
        return not self.trained

    def forward(self, image: Images) -> list[Tensor]:
        """Encodes a batch, unless it is encoded already.

        Args:
            image: (B, 3, H, W) float, RGB in [0, 1]; H and W multiples of ``size_multiple``.

        Returns:
            F1..F4, each (B, D_i, H/s_i, W/s_i).

        Raises:
            ValueError: a size that is no such multiple. (Hugging Face would crop silently.)
        """
        if isinstance(image, Encoded):
            return image.chosen()
        self.check_size(*image.shape[-2:])
        # no_grad rather than inference_mode: the decoder's first convolution must save its input for backward.
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.encode((image - self.mean) / self.std)

    def tokens(
        self,
        image: Tensor,
        masked: Tensor | None = None,
        blocks: Sequence[int] | None = None,
        norm: bool | None = None,
    ) -> list[Tokens]:
        """Class token, special tokens and patches of chosen blocks; F1..F4 are made of the same.

        Args:
            image: as in :meth:`forward`.
            masked: (B, h·w) bool, the patches in whose place the mask token stands, row by row; None is none.
            blocks: 0-based indices, in any order; None is those behind F1..F4, ``blocks[-1:]`` the last one alone.
            norm: apply the model's final norm; None is as F1..F4 have it.

        Returns:
            One for each of ``blocks``.

        Raises:
            ValueError: a size as in :meth:`forward`, ``blocks`` that the encoder does not have, a mask of another shape
                or for an encoder without mask token, or ``norm`` for one without final norm.
        """
        self.check_size(*image.shape[-2:])
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.encode_tokens(
                (image - self.mean) / self.std, masked, self.blocks if blocks is None else blocks, norm
            )

    def check_size(self, height: int, width: int) -> None:
        """Raises ValueError, naming the nearest legal sizes, unless ``size_multiple`` divides both (pixels)."""
        p = self.size_multiple
        if height > 0 and width > 0 and height % p == 0 and width % p == 0:
            return
        lower = (max(p, height // p * p), max(p, width // p * p))
        upper = (max(p, -(-height // p) * p), max(p, -(-width // p) * p))
        raise ValueError(
            f"image size {height}x{width} (height x width) is not a multiple of {p}, the encoder's patch size or "
            f"largest stride; the nearest legal sizes are {lower[0]}x{lower[1]} and {upper[0]}x{upper[1]}"
        )

    def train(self, mode: bool = True) -> Self:
        """Sets the mode of what trains; the rest stays in eval mode, where DINOv3 does not rescale its coordinates."""
        super().train(False)
        for module in self.trained:
            module.train(mode)
        self.training = mode and not self.frozen
        return self

    def fingerprint(self) -> str:
        """SHA-256 of names and values of the weights that do not train: what a checkpoint relies on from elsewhere."""
        digest = hashlib.sha256()
        for name, parameter in sorted(self.backbone.named_parameters()):
            if not parameter.requires_grad:
                digest.update(name.encode())
                digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()
