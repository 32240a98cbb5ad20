"""Crops of one picture for student and teacher, in OpenCV: multi-crop as in DINO (arXiv:2104.14294, DINOv2 and DINOv3).

First all is drawn (:meth:`MultiCrop.plan`), from the picture's size alone, then the pixels are made
(:meth:`MultiCrop.cut`): a JPEG is decoded no larger than the crops want it.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from e2net.datasets.transforms import recolour

Box = tuple[int, int, int, int]  # left, top, width and height, pixels

_ASPECT = 4 / 3
_TRIES = 10
_SOLARISED = np.where(np.arange(256) < 128, np.arange(256), 255 - np.arange(256)).astype(np.uint8)


class Crops(NamedTuple):
    """The crops of one picture.

    Attributes:
        global_: (G, 3, S, S) uint8, RGB.
        local: (L, 3, s, s) uint8, RGB.
        gram: (G, 3, S', S') uint8: the regions of the global crops, mirrored as they are, in the picture's own colours;
            None without.
    """

    global_: Tensor
    local: Tensor
    gram: Tensor | None = None


class CropBatch(NamedTuple):
    """The crops of several pictures; each of its tensors is one forward.

    Attributes:
        global_: (G, B, 3, S, S) uint8, RGB.
        local: (L, B, 3, s, s) uint8, RGB.
        gram: (G, B, 3, S', S') uint8, see :class:`Crops`; None without.
        broken: of pictures that could not be read, in whose place are others: name and reason.
    """

    global_: Tensor
    local: Tensor
    gram: Tensor | None = None
    broken: tuple[tuple[str, str], ...] = ()


class Colours(NamedTuple):
    """What was drawn for the colours of a crop; see :func:`~e2net.datasets.transforms.recolour`.

    Attributes:
        factors: brightness, contrast, saturation and, in radians, hue; None leaves all as it is.
        blur: standard deviation of the Gaussian, pixels of the crop; 0: none.
        solarised: whether levels from 128 up are inverted.
    """

    factors: tuple[float, float, float, float] | None = None
    blur: float = 0.0
    solarised: bool = False


class Region(NamedTuple):
    """One crop as it was drawn.

    Attributes:
        box: left, top, width and height, pixels of the whole picture.
        side: of the crop, pixels.
        flipped: whether it is mirrored.
        colours: how they change.
    """

    box: Box
    side: int
    flipped: bool
    colours: Colours


class MultiCrop:
    """Draws and makes the crops of a picture.

    A crop's region has a part of the picture's area and an aspect ratio (log-uniform, 3/4 to 4/3) that are drawn, and
    becomes a square: by cubic interpolation, with averages of blocks where it shrinks to half or less. Then a flip, and
    on all but the gram crops the colours: jitter, grey, blur, solarisation, in this order. Jitter and grey are one
    affine map of RGB, where others turn hues in HSV and round after each step.

    Args:
        global_size: S, side of the global crops, pixels.
        local_size: s, side of the local crops.
        globals: G, how many global crops, at least 1.
        locals: L, how many local ones; 0: none.
        global_scale: smallest and largest part of the picture's area that a global crop has, above 0 to 1.
        local_scale: the same of local crops.
        flip: probability of a left-right flip.
        jitter: strength of brightness, contrast, saturation and hue; the first three are multiplied by 1 - strength to
            1 + strength, hue is turned by up to strength full turns to either side.
        jitter_probability: that a crop's colours change.
        grey: probability that it loses them.
        blur: probability of a blur for the first global crop, the other global ones and the local ones.
        blur_sigma: smallest and largest standard deviation of it, pixels.
        solarise: probability of solarisation for the global crops but the first.
        gram_size: S', side of the gram crops, such as 2 S; None: none are made.

    Raises:
        ValueError: a knob is outside of its range.
    """

    def __init__(
        self,
        global_size: int = 224,
        local_size: int = 96,
        globals: int = 2,
        locals: int = 8,
        global_scale: Sequence[float] = (0.32, 1.0),
        local_scale: Sequence[float] = (0.05, 0.32),
        flip: float = 0.5,
        jitter: Sequence[float] = (0.4, 0.4, 0.2, 0.1),
        jitter_probability: float = 0.8,
        grey: float = 0.2,
        blur: Sequence[float] = (1.0, 0.1, 0.5),
        blur_sigma: Sequence[float] = (0.1, 2.0),
        solarise: float = 0.2,
        gram_size: int | None = None,
    ) -> None:
        for name, count in {
            "global_size": global_size,
            "local_size": local_size,
            "globals": globals,
            "gram_size": 1 if gram_size is None else gram_size,
        }.items():
            _check(isinstance(count, int) and count >= 1, name, "a whole number of 1 or more", count)
        _check(isinstance(locals, int) and locals >= 0, "locals", "a whole number of 0 or more", locals)
        for name, scale in (("global_scale", global_scale), ("local_scale", local_scale)):
            _check(
                len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1, name, "[lo, hi] with 0 < lo <= hi <= 1", list(scale)
            )
        _check(
            len(jitter) == 4 and all(0 <= one <= 1 for one in jitter) and jitter[3] <= 0.5,
            "jitter",
            "strengths of brightness, contrast and saturation, 0 to 1, and hue, 0 to 0.5",
            list(jitter),
        )
        _check(len(blur) == 3, "blur", "[first global, other global, local]", list(blur))
        sigma = blur_sigma
        _check(len(sigma) == 2 and 0 < sigma[0] <= sigma[1], "blur_sigma", "[lo, hi] with 0 < lo <= hi", list(sigma))
        chances = {"flip": flip, "jitter_probability": jitter_probability, "grey": grey, "solarise": solarise}
        for name, chance in [*chances.items(), *(("blur", one) for one in blur)]:
            _check(0 <= chance <= 1, name, "a probability from 0 to 1", chance)
        self.global_size, self.local_size, self.gram_size = global_size, local_size, gram_size
        self.globals, self.locals = globals, locals
        self.global_scale = (global_scale[0], global_scale[1])
        self.local_scale = (local_scale[0], local_scale[1])
        self.flip, self.jitter, self.jitter_probability = flip, tuple(jitter), jitter_probability
        self.grey, self.solarise = grey, solarise
        self.blur, self.blur_sigma = tuple(blur), (blur_sigma[0], blur_sigma[1])

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> Crops:
        """The crops of one picture (h, w, 3) uint8, RGB; the same state of ``rng`` gives the same ones."""
        height, width = image.shape[:2]
        return self.cut(image, self.plan(rng, height, width), (height, width))

    @property
    def pixels(self) -> int:
        """Of all crops of a picture."""
        return self.globals * (self.global_size**2 + (self.gram_size or 0) ** 2) + self.locals * self.local_size**2

    def plan(self, rng: np.random.Generator, height: int, width: int) -> list[Region]:
        """Draws the crops of a picture: the global ones, then the local ones.

        Args:
            rng: where all randomness comes from.
            height: of the whole picture, pixels.
            width: of it.
        """
        regions = []
        for index in range(self.globals + self.locals):
            whole = index < self.globals
            side, scale = (self.global_size, self.global_scale) if whole else (self.local_size, self.local_scale)
            box = _draw_box(rng, height, width, scale)
            flipped = rng.random() < self.flip
            blur = self.blur[2] if not whole else self.blur[min(index, 1)]
            colours = self._draw_colours(rng, blur, self.solarise if whole and index else 0.0)
            regions.append(Region(box, side, flipped, colours))
        return regions

    def reduction(self, plan: Sequence[Region]) -> int:
        """The largest of 8, 4, 2 and 1 by which the picture's sides may be divided without enlarging a crop for it."""
        sides = [max(one.side, self.gram_size or 0) if i < self.globals else one.side for i, one in enumerate(plan)]
        spare = min(min(one.box[2:]) / side for one, side in zip(plan, sides, strict=True))
        return next(factor for factor in (8, 4, 2, 1) if factor <= max(1.0, spare))

    def cut(self, image: np.ndarray, plan: Sequence[Region], size: tuple[int, int]) -> Crops:
        """Makes the crops that were drawn.

        Args:
            image: (h, w, 3) uint8, RGB; whole, or reduced by :meth:`reduction`.
            plan: what :meth:`plan` has drawn.
            size: (h, w) of the whole picture.
        """
        views = [_view(image, one.box, size) for one in plan]
        crops = [_coloured(_resized(view, one.side, one), one.colours) for view, one in zip(views, plan, strict=True)]
        gram = None
        if self.gram_size is not None:
            first = zip(views[: self.globals], plan, strict=False)
            gram = _stack([_resized(view, self.gram_size, one) for view, one in first], self.gram_size)
        global_ = _stack(crops[: self.globals], self.global_size)
        return Crops(global_, _stack(crops[self.globals :], self.local_size), gram)

    def _draw_colours(self, rng: np.random.Generator, blur: float, solarise: float) -> Colours:
        # All is drawn whether it is wanted or not, so that a probability moves nothing else.
        chances, strengths, sigma = rng.random(4), rng.uniform(-1, 1, 4), rng.uniform(*self.blur_sigma)
        jittered, grey = chances[0] < self.jitter_probability, chances[1] < self.grey
        factors = None
        if jittered or grey:
            brightness, contrast, saturation = (
                1 + strength * size if jittered else 1.0
                for strength, size in zip(strengths[:3], self.jitter[:3], strict=True)
            )
            hue = 2 * math.pi * self.jitter[3] * strengths[3] if jittered else 0.0
            factors = (brightness, contrast, 0.0 if grey else saturation, hue)
        return Colours(factors, sigma if chances[2] < blur else 0.0, bool(chances[3] < solarise))


class CropMix:
    """Sizes of crops of which each batch has one, as in DINOv3's high-resolution stage (arXiv:2508.10104, section 5.1).

    Args:
        sizes: makers of crops that differ in their sides.
        shares: of the batches that have each size; they are divided by their sum.

    Raises:
        ValueError: no sizes, or shares that are not as many and above 0.
    """

    def __init__(self, sizes: Sequence[MultiCrop], shares: Sequence[float] = (1.0,)) -> None:
        if not sizes or len(shares) != len(sizes) or not all(0 < share < math.inf for share in shares):
            raise ValueError(f"mix: expected a share above 0 for each size, found {list(shares)} of {len(sizes)} sizes")
        self.sizes, self.shares = tuple(sizes), tuple(share / sum(shares) for share in shares)

    @property
    def largest(self) -> MultiCrop:
        """The one with the most pixels a picture."""
        return max(self.sizes, key=lambda one: one.pixels)

    def of_batch(self, seed: int, epoch: int, batch: int) -> MultiCrop:
        """The maker of a batch's crops; a size is drawn anew for each batch, and the same wherever it is asked for."""
        if len(self.sizes) == 1:
            return self.sizes[0]
        # Of another length than the seeds of pictures, so that no picture's crops are drawn alike.
        drawn = np.random.default_rng([seed, epoch, batch, 1]).choice(len(self.sizes), p=self.shares)
        return self.sizes[int(drawn)]


def collate_crops(samples: Sequence[Crops], broken: Sequence[tuple[str, str]] = ()) -> CropBatch:
    """The crops of several pictures, crop by crop: (G, 3, S, S) each -> (G, B, 3, S, S)."""
    # not torch.stack: see e2net.datasets.datamodule.collate
    parts = {
        name: torch.from_numpy(np.stack([getattr(sample, name).numpy() for sample in samples], axis=1))
        for name in ("global_", "local", "gram")
        if getattr(samples[0], name) is not None
    }
    return CropBatch(**parts, broken=tuple(broken))


def _check(right: bool, name: str, expected: str, found: object) -> None:
    if not right:
        raise ValueError(f"crops: expected {name} as {expected}, found {found}")


def _draw_box(rng: np.random.Generator, height: int, width: int, scale: tuple[float, float]) -> Box:
    """A region inside of the picture; where ten draws do not fit into it, the middle, as square as it must be."""
    for _ in range(_TRIES):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(-math.log(_ASPECT), math.log(_ASPECT)))
        w, h = max(1, round(math.sqrt(area * aspect))), max(1, round(math.sqrt(area / aspect)))
        if w <= width and h <= height:
            return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h
    w, h = min(width, round(height * _ASPECT)), min(height, round(width * _ASPECT))
    return (width - w) // 2, (height - h) // 2, w, h


def _view(image: np.ndarray, box: Box, size: tuple[int, int]) -> np.ndarray:
    """The part of an image that a box in the whole picture of a size (h, w) means; the image may be a reduced one."""
    across, down = image.shape[1] / size[1], image.shape[0] / size[0]
    x, y, w, h = box
    left, top = round(x * across), round(y * down)
    return image[top : max(top + 1, round((y + h) * down)), left : max(left + 1, round((x + w) * across))]


def _resized(view: np.ndarray, side: int, region: Region) -> np.ndarray:
    """A view as a square (side, side, 3), mirrored if its region is."""
    # Averages of whole blocks are a tenth of the work of INTER_AREA at other ratios; what is left, below 2, is cubic.
    blocks = max(1, min(view.shape[:2]) // side)
    crop = cv2.resize(view, (blocks * side, blocks * side), interpolation=cv2.INTER_CUBIC)
    if blocks > 1:
        crop = cv2.resize(crop, (side, side), interpolation=cv2.INTER_AREA)
    return cv2.flip(crop, 1) if region.flipped else crop


def _coloured(crop: np.ndarray, colours: Colours) -> np.ndarray:
    if colours.factors is not None:
        crop = recolour(crop, *colours.factors)
    if colours.blur:
        crop = cv2.GaussianBlur(crop, (0, 0), colours.blur)
    return cv2.LUT(crop, _SOLARISED) if colours.solarised else crop


def _stack(crops: Sequence[np.ndarray], side: int) -> Tensor:
    """(n, 3, side, side)."""
    if not crops:
        return torch.empty((0, 3, side, side), dtype=torch.uint8)
    return torch.from_numpy(np.ascontiguousarray(np.stack(crops).transpose(0, 3, 1, 2)))
