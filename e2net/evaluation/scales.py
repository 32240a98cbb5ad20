"""Sizes other than the configured one: which are legal, and batches resized to one drawn at random."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from e2net.datasets.transforms import Size
from e2net.progress import Steps
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
            f"{key}: expected a list of positive factors on the size, such as [0.75, 1, 1.25], found {scales}"
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
    """Resizes each training batch by one of several factors, which may change in the course of training.

    The factor depends on seed, epoch, batch and the progress of training and on nothing else, as does everything that
    the data sets draw: a resumed run draws what the uninterrupted one would have drawn, and all processes draw alike.

    Args:
        scales: factors on the size, such as ``(0.75, 1.0, 1.25)``; ``(1.0,)`` leaves every batch alone. Or steps,
            ``[[0, [0.5, 0.75]], [0.6, [1.0]]]``: pairs of (progress, factors), each from there on; 0.6 is after 60 % of
            all steps. Small pictures first cost a fraction of the time (progressive resizing).
        seed: for the draws.

    Attributes:
        scales: all factors that ever occur.

    Raises:
        ValueError: see :func:`check_scales`; or steps that don't rise from 0 within [0, 1).
    """

    def __init__(self, scales: "Sequence[float] | Sequence[Sequence[Any]]" = (1.0,), seed: int = 0) -> None:
        stepped = isinstance(scales, Sequence) and any(isinstance(step, Sequence) for step in scales)
        pairs = scales if stepped else [(0, scales)]
        self.factors = Steps("train_scales", pairs, partial(check_scales, "train_scales"))
        self.scales = tuple(dict.fromkeys(factor for factors in self.factors.values for factor in factors))
        self.seed = seed

    def draw(self, epoch: int, batch: int, progress: float = 0.0) -> float:
        """The factor of one batch; each one of its time is equally likely."""
        factors = self.factors(progress)
        rng = np.random.default_rng([self.seed, epoch, batch, _STREAM])
        return factors[int(rng.integers(len(factors)))]

    def __call__(
        self, image: Images, target: Tensor, multiple: int, epoch: int, batch: int, task: Task, progress: float = 0.0
    ) -> tuple[Images, Tensor]:
        """Resizes one batch, bilinearly with antialiasing.

        Args:
            image: (B, 3, H, W) float; encoded ones can't be resized.
            target: (B, 1, H, W), what the loss takes.
            multiple: the new height and width are multiples of it, pixels.
            epoch, batch: which batch this is.
            task: whose targets these are.
            progress: the share of training that is done, in [0, 1].

        Returns:
            Image (B, 3, H', W') and target (B, 1, H', W').
        """
        size = scaled_size(image.shape[-2:], self.draw(epoch, batch, progress), multiple)
        if size == tuple(image.shape[-2:]):
            return image, target
        with torch.autocast(target.device.type, enabled=False):
            return resize(image, size), task.resize_batch(target, size)


def resize(image: Images, size: Size) -> Tensor:
    """(B, C, H, W) float -> (B, C, *size), bilinear, antialiased where it shrinks; float32 under autocast too."""
    assert isinstance(image, Tensor)
    with torch.autocast(image.device.type, enabled=False):
        return F.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=True)
