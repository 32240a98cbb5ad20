"""Sizes other than the configured one: which are legal, and batches resized to one drawn at random."""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from e2net.datasets.transforms import Size
from e2net.structures import Images
from e2net.tasks.base import Task

# Tells these draws from the augmentation's, which come from (seed, epoch, position).
_STREAM = 1


def check_scales(key: str, scales: Sequence[float]) -> tuple[float, ...]:
    """The scales as a tuple.

    Args:
        key: the setting they come from, for the message.
        scales: factors on height and width.

    Raises:
        ValueError: none at all, or one that is not positive.
    """
    if (
        not isinstance(scales, Sequence)
        or not scales
        or not all(isinstance(s, int | float) and 0 < s < math.inf for s in scales)
    ):
        raise ValueError(
            f"{key}: expected a list of positive factors on the size, such as [0.75, 1, 1.25], got {scales}"
        )
    return tuple(float(scale) for scale in scales)


def scaled_size(size: Sequence[int], scale: float, multiple: int) -> Size:
    """The (height, width) nearest to ``scale`` times ``size`` that ``multiple`` divides, in pixels; at least one of it.

    Scale 1 gives ``size`` as it is, so that a size which does not fit is refused by the encoder and not changed here.
    """
    height, width = size
    if scale == 1:
        return height, width
    return max(1, round(height * scale / multiple)) * multiple, max(1, round(width * scale / multiple)) * multiple


class RandomScale:
    """Resizes each training batch by one of several factors.

    The factor depends on seed, epoch and batch and on nothing else, as does everything that the data sets draw: a
    resumed run draws what the uninterrupted one would have drawn, and all processes draw the same.

    Args:
        scales: factors on the size; ``(1.0,)`` leaves every batch alone.
        seed: for the draws.

    Raises:
        ValueError: see :func:`check_scales`.
    """

    def __init__(self, scales: Sequence[float] = (1.0,), seed: int = 0) -> None:
        self.scales, self.seed = check_scales("train_scales", scales), seed

    def draw(self, epoch: int, batch: int) -> float:
        """The factor of one batch; every one of ``scales`` is equally likely."""
        rng = np.random.default_rng([self.seed, epoch, batch, _STREAM])
        return self.scales[int(rng.integers(len(self.scales)))]

    def __call__(
        self, image: Images, target: Tensor, multiple: int, epoch: int, batch: int, task: Task
    ) -> tuple[Images, Tensor]:
        """Resizes one batch, bilinearly with antialiasing.

        Args:
            image: (B, 3, H, W) float; encoded ones can't be resized.
            target: (B, 1, H, W), what the loss takes.
            multiple: the new height and width are multiples of it, pixels.
            epoch, batch: which batch this is.
            task: whose targets these are.

        Returns:
            Image (B, 3, H', W') and target (B, 1, H', W').
        """
        size = scaled_size(image.shape[-2:], self.draw(epoch, batch), multiple)
        if size == tuple(image.shape[-2:]):
            return image, target
        with torch.autocast(target.device.type, enabled=False):
            return resize(image, size), task.resize_batch(target, size)


class ScaledRows:
    """Images as :func:`resize` makes them, some rows at a time: of all of it there is only what it is made from.

    Args:
        image: (B, 3, H, W) uint8.
        size: (H', W') of the scaled images, pixels.
    """

    def __init__(self, image: Tensor, size: Size) -> None:
        self.image, self.size = image, size

    def __call__(self, first: int, last: int) -> Tensor:
        """Rows from ``first`` up to ``last``, (B, 3, last - first, W') float32, RGB in [0, 1]."""
        height, width = self.image.shape[-2:]
        if (height, width) == self.size:
            return self.image[:, :, first:last].float() / 255
        step = height / self.size[0]
        reach = max(1.0, step)  # of the triangle by which pixels are weighted, as torch's antialiasing has it
        centres = (torch.arange(first, last, dtype=torch.float64) + 0.5) * step
        top, bottom = max(0, int(centres[0] - reach)), min(height, math.ceil(centres[-1] + reach))
        distances = (torch.arange(top, bottom) + 0.5 - centres[:, None]).abs() / reach
        weights = (1 - distances).clamp(min=0)
        weights = (weights / weights.sum(1, keepdim=True)).float().to(self.image.device)
        rows = self.image[:, :, top:bottom].float() / 255
        with torch.autocast(self.image.device.type, enabled=False):
            return weights @ resize(rows, (bottom - top, self.size[1]))


def resize(image: Images, size: Size) -> Tensor:
    """(B, C, H, W) float -> (B, C, *size), bilinear, antialiased where it shrinks; float32 under autocast too."""
    assert isinstance(image, Tensor)
    with torch.autocast(image.device.type, enabled=False):
        return F.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=True)
