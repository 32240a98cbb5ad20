"""Which patches the student does not see: rectangular blocks, as in BEiT (arXiv:2106.08254) and iBOT (2111.07832)."""

import math

import numpy as np
import torch
from torch import Tensor

# Of a block: fewest patches, and its largest aspect ratio (or 1 over it).
_SMALLEST, _ASPECT = 4, 1 / 0.3
# Rectangles that are drawn for one block until one fits.
_TRIES = 10


def block_masks(
    rng: np.random.Generator,
    images: int,
    height: int,
    width: int,
    probability: float = 0.5,
    ratio: tuple[float, float] = (0.1, 0.5),
) -> Tensor:
    """Masks for a batch; the same state of ``rng`` gives the same ones.

    Of the images a share of ``probability`` is masked, to the image; where it is no whole number of images, one more
    is with the probability of the rest. Their ratios are spread evenly over the range, one drawn in each equal part of
    it, so that a batch's number of masked patches varies little. A masked image has exactly as many masked patches
    as its ratio says, rounded, and at least one.

    Args:
        rng: where all randomness comes from.
        images: B.
        height: of the map of patches.
        width: of it.
        probability: that an image is masked, 0 to 1.
        ratio: smallest and largest part of its patches, above 0 to 1.

    Returns:
        (B, height * width) bool, True where a patch is masked; row by row.

    Raises:
        ValueError: a number is outside of its range.
    """
    check_masking(probability, ratio)
    if min(height, width) < 1 or images < 0:
        raise ValueError(f"expected a map of 1x1 patches or more, found {height}x{width} of {images} images")
    masks = np.zeros((images, height, width), bool)
    count = min(images, math.floor(probability * images + rng.random()))
    chosen = rng.permutation(images)[:count]
    low, high = ratio
    for part, image in enumerate(chosen):
        share = low + (high - low) * (part + rng.random()) / count
        _mask(rng, masks[image], max(1, round(share * height * width)))
    return torch.from_numpy(masks.reshape(images, height * width))


def check_masking(probability: float, ratio: tuple[float, float]) -> None:
    """Raises ValueError if settings of :func:`block_masks` are outside of their ranges."""
    if not 0 <= probability <= 1:
        raise ValueError(f"expected a probability of masking from 0 to 1, found {probability}")
    if len(ratio) != 2 or not 0 < ratio[0] <= ratio[1] <= 1:
        raise ValueError(f"expected a ratio of masked patches as [lo, hi] with 0 < lo <= hi <= 1, found {list(ratio)}")


def _mask(rng: np.random.Generator, mask: np.ndarray, count: int) -> None:
    """Masks ``count`` patches of an unmasked map (h, w), block by block."""
    left = count
    while left > 0:
        block = next((b for b in (_block(rng, mask, left) for _ in range(_TRIES)) if 0 < _new(mask, b) <= left), None)
        if block is None:  # nearly full: a rectangle around a free patch, of which as much is taken as is wanted
            free = np.flatnonzero(~mask)
            block = _block(rng, mask, left, int(rng.choice(free)))
            inside = np.argwhere(~mask[block])[:left]
            mask[block][tuple(inside.T)] = True
            left -= len(inside)
        else:
            left -= _new(mask, block)
            mask[block] = True


def _new(mask: np.ndarray, block: tuple[slice, slice]) -> int:
    part = mask[block]
    return part.size - int(np.count_nonzero(part))


def _block(rng: np.random.Generator, mask: np.ndarray, most: int, around: int | None = None) -> tuple[slice, slice]:
    """A rectangle of about ``_SMALLEST`` to ``most`` patches, anywhere or so that it holds a patch."""
    area = rng.uniform(min(_SMALLEST, most), most)
    aspect = math.exp(rng.uniform(-math.log(_ASPECT), math.log(_ASPECT)))
    sides = []
    place = (None, None) if around is None else divmod(around, mask.shape[1])
    for full, side, at in zip(mask.shape, (math.sqrt(area * aspect), math.sqrt(area / aspect)), place, strict=True):
        length = min(full, max(1, round(side)))
        first, last = (0, full - length) if at is None else (max(0, at - length + 1), min(at, full - length))
        start = int(rng.integers(first, last + 1))
        sides.append(slice(start, start + length))
    return sides[0], sides[1]
