"""Eight corruptions of photographs at five strengths, by the definitions and constants of ImageNet-C.

Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019,
arXiv 1903.12261. Their pictures are 224 pixels square, and so every length (of a blur, a trail, a block, a bank of fog)
is counted here in 1/224 of the picture's shorter side: a strength takes the same share of a picture of any size. Noise
and JPEG have no length: they act on the picture's own pixels and on its blocks of 8 × 8, as a sensor and a file do.
"""

import hashlib
import io
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Picture = NDArray[np.uint8]  # (h, w, 3) RGB
# Of a picture, by the position of a constant: a new picture, or its levels 0 to 255, float32 and unclipped.
Levels = NDArray[Any]

STRENGTHS = (1, 2, 3, 4, 5)
_SIDE = 224
# The next are constants by strength, see the functions that take them.
_NOISE = (0.08, 0.12, 0.18, 0.26, 0.38)
_BLUR = (1, 2, 3, 4, 6)
_MOTION = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))
_FOG = ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))
_BRIGHTNESS = (0.1, 0.2, 0.3, 0.4, 0.5)
_CONTRAST = (0.4, 0.3, 0.2, 0.1, 0.05)
_JPEG = (25, 18, 15, 10, 7)
_PIXELATE = (0.6, 0.5, 0.4, 0.3, 0.25)
# Of a motion's direction, degrees to either side of the horizontal.
_ANGLE = 45
# Of a Gaussian, pixels: from here on Fourier transforms are faster than two sums (four times at 641).
_WIDE = 151
# Of a height map of fog, at most: of pictures more than four times as long as wide it is stretched.
_FOG_SIDE = 1024


def corrupt(image: Picture, kind: str, strength: int, rng: np.random.Generator) -> Picture:
    """One corrupted copy of a picture.

    Args:
        image: (h, w, 3) uint8, RGB.
        kind: out of ``KINDS``.
        strength: out of ``STRENGTHS``, 5 being the worst.
        rng: where all randomness comes from; see :func:`drawn_for`.

    Returns:
        (h, w, 3) uint8, RGB; values are rounded.

    Raises:
        ValueError: there is no such kind or strength.
    """
    if kind not in KINDS or strength not in STRENGTHS:
        raise ValueError(
            f"expected a corruption out of {', '.join(KINDS)} and a strength out of {', '.join(map(str, STRENGTHS))},"
            f" found {kind!r} and {strength!r}"
        )
    made = KINDS[kind](image, strength - 1, rng)
    if made.dtype == np.uint8:
        return made
    np.clip(made, 0, 255, out=made)
    made += np.float32(0.5)  # astype cuts off
    return made.astype(np.uint8)


def drawn_for(name: str, kind: str, strength: int) -> np.random.Generator:
    """The randomness of a picture's corrupted copy: by its name, whatever else is corrupted, when and where.

    Args:
        name: the picture's stem.
        kind, strength: see :func:`corrupt`.
    """
    digest = hashlib.sha256(f"{kind} {strength} {name}".encode("utf-8", "surrogateescape")).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def check_kinds(key: str, given: Any) -> tuple[str, ...]:
    """Kinds of corruptions in their order.

    Args:
        key: the setting they come from, for the message.
        given: a list of some of ``KINDS``.

    Raises:
        ValueError: it is none.
    """
    listed = [str(kind) for kind in given] if isinstance(given, Sequence) and not isinstance(given, str) else []
    if not listed or len(set(listed) & set(KINDS)) != len(listed):
        raise ValueError(f"{key}: expected a list of kinds, each once, out of {', '.join(KINDS)}, found {given!r}")
    return tuple(kind for kind in KINDS if kind in listed)


def _unit(image: Picture) -> float:
    """How many of a picture's pixels are one of ImageNet-C's."""
    return min(image.shape[:2]) / _SIDE


def _noise(image: Picture, level: int, rng: np.random.Generator) -> Levels:
    """Gaussian, of a standard deviation that is a fraction of the range."""
    grain = rng.standard_normal(image.shape, dtype=np.float32)
    grain *= np.float32(255 * _NOISE[level])
    grain += image
    return grain


def _blur(image: Picture, level: int, _rng: np.random.Generator) -> Levels:
    """Gaussian, of a standard deviation in ImageNet-C's pixels; cut off at four of it, the border repeated."""
    sigma = _BLUR[level] * _unit(image)
    side = 2 * int(4 * sigma + 0.5) + 1
    values, edge = image.astype(np.float32), cv2.BORDER_REPLICATE
    if side < _WIDE:
        return cv2.GaussianBlur(values, (side, side), sigma, borderType=edge)
    weights = cv2.getGaussianKernel(side, sigma, cv2.CV_32F)
    return cv2.filter2D(values, -1, weights @ weights.T, borderType=edge)  # by Fourier transforms


def _motion(image: Picture, level: int, rng: np.random.Generator) -> Levels:
    """Each pixel is a mean along a trail that starts there: weights are half a Gaussian, the border is repeated.

    Constants are half of the trail's length and the Gaussian's standard deviation in ImageNet-C's pixels.
    """
    radius, sigma = (value * _unit(image) for value in _MOTION[level])
    angle = math.radians(rng.uniform(-_ANGLE, _ANGLE))
    along = np.arange(max(1, round(2 * radius + 1)))
    weights = np.exp(-0.5 * (along / sigma) ** 2)
    reach = len(along) - 1
    x, y = (np.ceil(along * turn - 0.5).astype(int) for turn in (math.cos(angle), math.sin(angle)))
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    np.add.at(kernel, (y + reach, x + reach), weights / weights.sum())
    return cv2.filter2D(image.astype(np.float32), -1, kernel, borderType=cv2.BORDER_REPLICATE)


def _fog(image: Picture, level: int, rng: np.random.Generator) -> Levels:
    """A fractal height map is added, and all is scaled back to the picture's range.

    Constants are the amount of fog, and by how much each finer scale of it is weaker than the last.
    """
    amount, decay = _FOG[level]
    height, width = image.shape[:2]
    rows, columns = (min(_FOG_SIDE, max(1, round(side / _unit(image)))) for side in (height, width))
    whole = _heights(1 << (max(rows, columns) - 1).bit_length(), decay, rng)
    shrinks = rows > height
    cut = whole[:rows, :columns].astype(np.float32) * np.float32(255 * amount)
    fog = cv2.resize(cut, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    top = float(image.max())
    values = image + fog[..., None]
    values *= np.float32(top / (top + 255 * amount))
    return values


def _heights(side: int, decay: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """(side, side) in [0, 1], a power of two: fractal heights that go on over the edges, by diamonds and squares.

    From one corner on, points in the middle of known ones are their mean and a random offset, which is ``decay``² times
    smaller at each halving of the distance.
    """
    heights = np.zeros((side, side))
    step, spread = side, 1.0
    while step > 1:
        half = step // 2
        count = (side // step, side // step)
        corners = heights[::step, ::step]
        right, below = np.roll(corners, -1, axis=1), np.roll(corners, -1, axis=0)
        middles = (corners + right + below + np.roll(below, -1, axis=1)) / 4 + rng.uniform(-spread, spread, count)
        heights[half::step, half::step] = middles
        above, left = np.roll(middles, 1, axis=0), np.roll(middles, 1, axis=1)
        heights[::step, half::step] = (corners + right + middles + above) / 4 + rng.uniform(-spread, spread, count)
        heights[half::step, ::step] = (corners + below + middles + left) / 4 + rng.uniform(-spread, spread, count)
        step, spread = half, spread / decay**2
    low, high = heights.min(), heights.max()
    return (heights - low) / (high - low) if high > low else heights


def _brightness(image: Picture, level: int, _rng: np.random.Generator) -> Levels:
    """The value of HSV, which is the largest channel, grows by a constant up to 1; hue and saturation stay."""
    black = image.max(axis=2, keepdims=True) == 0  # of no hue: it becomes grey
    values = np.maximum(image, black).astype(np.float32)
    largest = values.max(axis=2, keepdims=True)
    values *= np.minimum(np.where(black, 0, largest) + np.float32(255 * _BRIGHTNESS[level]), 255) / largest
    return values


def _contrast(image: Picture, level: int, _rng: np.random.Generator) -> Levels:
    """The distance from each channel's mean is multiplied by a constant."""
    factor = _CONTRAST[level]
    values = image.astype(np.float32)
    values *= np.float32(factor)
    values += ((1 - factor) * image.mean(axis=(0, 1))).astype(np.float32)
    return values


def _jpeg(image: Picture, level: int, _rng: np.random.Generator) -> Levels:
    """Compressed at a constant quality, as Pillow counts it, and decoded."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=_JPEG[level])
    return np.array(Image.open(file))


def _pixelate(image: Picture, level: int, _rng: np.random.Generator) -> Levels:
    """Reduced to a fraction of ImageNet-C's pixels by Pillow's box filter, and enlarged by it again."""
    height, width = image.shape[:2]
    rows, columns = (max(1, min(side, int(side / _unit(image) * _PIXELATE[level]))) for side in (height, width))
    box = Image.Resampling.BOX
    return np.array(Image.fromarray(image).resize((columns, rows), box).resize((width, height), box))


KINDS: Mapping[str, Callable[[Picture, int, np.random.Generator], Levels]] = MappingProxyType(
    {
        "noise": _noise,
        "blur": _blur,
        "motion": _motion,
        "fog": _fog,
        "brightness": _brightness,
        "contrast": _contrast,
        "jpeg": _jpeg,
        "pixelate": _pixelate,
    }
)


def conditions(kinds: Sequence[str]) -> list[tuple[str, int]]:
    """Every kind at every strength."""
    return [(kind, strength) for kind in kinds for strength in STRENGTHS]
