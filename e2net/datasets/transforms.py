"""Resizing and augmentation of an image together with its target, in OpenCV."""

import math
from collections.abc import Sequence

import cv2
import numpy as np

from e2net.datasets.corruptions import KINDS, check_kinds, corrupt
from e2net.tasks.base import Task
from e2net.tasks.camouflage import Camouflage

Size = tuple[int, int]  # (height, width) in pixels


def _reduce(image: np.ndarray, factor: int) -> np.ndarray:
    """Average blocks of about factor x factor pixels; 1 leaves the image alone."""
    if factor < 2:
        return image
    height, width = image.shape[:2]
    small = (max(1, round(width / factor)), max(1, round(height / factor)))
    return cv2.resize(image, small, interpolation=cv2.INTER_AREA)


def _warp(
    image: np.ndarray, matrix: np.ndarray, size: Size, factor: float, frame: Size, nearest: bool = False
) -> np.ndarray:
    """Sample an image along an affine map.

    Args:
        image: (h, w) or (h, w, 3); uint8 unless ``nearest``.
        matrix: (2, 3), from output to input, both in continuous coordinates: (0, 0) is the upper left CORNER
            of the image and (w, h) the lower right one, so that sizes scale without half-pixel terms.
        size: of the output.
        factor: how many input pixels go into one output pixel; whole multiples are averaged first, since
            bilinear sampling looks at four pixels only.
        frame: (h, w) that the matrix and the factor count in; the image may be a reduced one.
        nearest: take the nearest pixel instead.

    Returns:
        (*size) or (*size, 3) of the same type. Outside of the image it is mirrored.
    """
    height, width = frame
    image = image if nearest else _reduce(image, int(factor * min(image.shape[0] / height, image.shape[1] / width)))
    scale = np.array([[image.shape[1] / width], [image.shape[0] / height]])
    inverse = matrix * scale
    inverse[:, 2] += 0.5 * inverse[:, :2].sum(axis=1) - 0.5  # corners -> OpenCV's pixel centres
    flags = (cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR) | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, inverse, size[::-1], flags=flags, borderMode=cv2.BORDER_REFLECT_101)


def recolour(image: np.ndarray, brightness: float, contrast: float, saturation: float, hue: float) -> np.ndarray:
    """Changes the colours of an image by one affine map of RGB, hence with one rounding.

    Args:
        image: (h, w, 3) uint8, RGB.
        brightness: everything is multiplied by it.
        contrast: by which distances from the mean luma are multiplied.
        saturation: by which distances from the grey of equal luma are; 0 gives a grey image.
        hue: turn of the colours about the grey axis, radians.

    Returns:
        (h, w, 3) uint8.
    """
    # The turn is Rodrigues' formula.
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    turn = math.cos(hue) * np.eye(3) + math.sin(hue) * cross + (1 - math.cos(hue)) / 3
    luma = np.array([0.299, 0.587, 0.114])
    saturate = saturation * np.eye(3) + (1 - saturation) * luma
    matrix = saturate @ turn
    mean = float(luma @ matrix @ np.array(cv2.mean(image)[:3]))
    matrix = brightness * np.column_stack([contrast * matrix, np.full(3, (1 - contrast) * mean)])
    return cv2.transform(image, matrix)


class Resize:
    """Resize image and target to one size, changing the aspect ratio where needed: for evaluation.

    Bilinear; where both sides shrink to half or less, blocks of whole pixels are averaged first (as OpenCV's
    INTER_AREA does), since bilinear sampling alone would skip pixels and alias fine texture, which is what
    camouflage is made of. `Augment` with everything off samples in the same way, so the network sees the
    same kind of picture in training and evaluation.

    Args:
        size: (H, W) in pixels.
        task: how a target is resized; None: camouflage, a pixel being object if more than half of its area is.
    """

    def __init__(self, size: Size, task: Task | None = None) -> None:
        self.size, self.task = size, task or Camouflage()

    def __call__(self, image: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Resize one pair.

        Args:
            image: (h, w, 3) uint8.
            target: (h, w), in the task's canonical form.

        Returns:
            Image (H, W, 3) uint8 and target (H, W).
        """
        return self._fit(image), self.task.resample(target, self._fit)

    def image(self, image: np.ndarray) -> np.ndarray:
        """An image (h, w, 3) uint8 alone, resized."""
        return self._fit(image)

    def _fit(self, image: np.ndarray, nearest: bool = False) -> np.ndarray:
        if nearest:
            return cv2.resize(image, self.size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        factor = int(min(image.shape[0] / self.size[0], image.shape[1] / self.size[1]))
        return cv2.resize(_reduce(image, factor), self.size[::-1], interpolation=cv2.INTER_LINEAR)


class Augment:
    """Random changes of an image and its target, ending at the training size.

    Crop, flip, rotation and resizing are one affine map, hence one interpolation. Colour is one affine map of
    RGB, hence one rounding. Zero (or ``scale=(1, 1)``) switches a knob off. The defaults are mild in colour:
    a camouflaged object differs from its surroundings by little else than slight colour and texture.

    Where the task has objects, a crop should keep at least half of their area. Where the first, free draw does not,
    crops around a random point of the object are drawn, the best of them is taken, and the whole image if even those
    lose it (by rotation). A crop without object would teach "answer nothing", a habit that
    costs far more in this task, where every image has its object, than rare borders gain.

    Args:
        flip: probability of a left-right flip, 0 to 1.
        scale: range of the crop's area as a fraction of the image's, above 0 to 1. The crop's aspect ratio
            varies by up to `ASPECT` around the image's own, as far as the area leaves room for it.
        rotate: largest rotation to either side, degrees, 0 to 180. The corners are filled by mirroring.
        colour: strength, 0 to 1: brightness, contrast and saturation are multiplied by 1 - colour to
            1 + colour, the hue is turned by up to 60 * colour degrees.
        noise: largest standard deviation of the added Gaussian noise, as a fraction of the range, 0 to 1.
        corrupt: probability, 0 to 1, that what has come of it is corrupted, see :mod:`e2net.datasets.corruptions`: by a
            kind and a strength, `MILD` at most, that are drawn. An evaluation under the same kinds is then no longer
            one of something unseen.
        corrupt_kinds: which ones; None: all.

    Raises:
        ValueError: a knob is outside of its range.
    """

    ASPECT = 4 / 3
    KEEP = 0.5  # of the object's area
    TRIES = 6
    MILD = 3

    def __init__(
        self,
        flip: float = 0.5,
        scale: tuple[float, float] = (0.5, 1.0),
        rotate: float = 15.0,
        colour: float = 0.2,
        noise: float = 0.02,
        corrupt: float = 0.0,
        corrupt_kinds: Sequence[str] | None = None,
    ) -> None:
        for name, value, top in (
            ("flip", flip, 1),
            ("rotate", rotate, 180),
            ("colour", colour, 1),
            ("noise", noise, 1),
            ("corrupt", corrupt, 1),
        ):
            if not 0 <= value <= top:
                raise ValueError(f"augment: expected {name} between 0 (off) and {top}, found {value}")
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(
                f"augment: expected scale as [lo, hi] with 0 < lo <= hi <= 1 (fractions of the image's area;"
                f" [1, 1] is off), found {list(scale)}"
            )
        self.flip, self.rotate, self.colour, self.noise = flip, rotate, colour, noise
        self.scale = (scale[0], scale[1])
        kinds = tuple(KINDS) if corrupt_kinds is None else check_kinds("augment.corrupt_kinds", corrupt_kinds)
        self.corrupt, self.corrupt_kinds = corrupt, kinds

    def __call__(
        self, image: np.ndarray, target: np.ndarray, size: Size, rng: np.random.Generator, task: Task | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Change one pair; the same state of `rng` gives the same result.

        Args:
            image: (h, w, 3) uint8, RGB; or reduced, to not less than :meth:`needs` says.
            target: (h, w), in the task's canonical form.
            size: (H, W) of the results, pixels.
            rng: where all randomness comes from.
            task: whose target it is; None: camouflage.

        Returns:
            Image (H, W, 3) uint8 and target (H, W).
        """
        image, target = self._move(image, target, size, rng, task or Camouflage())
        if self.colour:
            image = self._recolour(image, rng)
        if self.noise:
            sigma = 255 * self.noise * rng.random()
            grain = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(sigma)
            # astype cuts off instead of rounding, so half a level is added
            image = np.clip(image + grain + np.float32(0.5), 0, 255).astype(np.uint8)
        # Last, so that all else is drawn as without it.
        if self.corrupt and rng.random() < self.corrupt:
            kind = self.corrupt_kinds[int(rng.integers(len(self.corrupt_kinds)))]
            image = corrupt(image, kind, int(rng.integers(1, self.MILD + 1)), rng)
        return image, target

    def needs(self, size: Size) -> Size:
        """(h, w) that suffice for an image: two pixels for each of the smallest crop's at ``size``, either way."""
        crop = math.sqrt(self.scale[0] / self.ASPECT)
        turned = max(size) if self.rotate else 0  # a turn may exchange the sides
        return math.ceil(2 * max(size[0], turned) / crop), math.ceil(2 * max(size[1], turned) / crop)

    def _move(
        self, image: np.ndarray, target: np.ndarray, size: Size, rng: np.random.Generator, task: Task
    ) -> tuple[np.ndarray, np.ndarray]:
        frame = (target.shape[0], target.shape[1])
        mask = task.foreground(target)
        flipped = rng.random() < self.flip
        moving = self.scale != (1, 1) or self.rotate > 0
        if not moving and not flipped:
            return Resize(size, task)(image, target)

        if mask is None:
            matrix, factor = self._draw(*frame[::-1], size, flipped, False, None, rng)
        else:
            matrix, factor = self._keeping(mask, size, flipped, moving, rng)
        warped = task.resample(target, lambda array, nearest: _warp(array, matrix, size, factor, frame, nearest))
        part = size[0] * size[1] * abs(float(np.linalg.det(matrix[:, :2]))) / (frame[0] * frame[1])  # of the image
        return _warp(image, matrix, size, factor, frame), task.moved(warped, matrix[:, :2], part**-0.5)

    def _keeping(
        self, mask: np.ndarray, size: Size, flipped: bool, moving: bool, rng: np.random.Generator
    ) -> tuple[np.ndarray, float]:
        """As ``_draw``, for a crop that keeps enough of the object in ``mask`` (h, w) bool."""
        height, width = mask.shape
        grey = mask.astype(np.uint8) * 255
        total = int(np.count_nonzero(mask))
        best: tuple[float, np.ndarray, float] | None = None
        object_at = np.empty(0, np.int64)
        for attempt in range(self.TRIES + 1 if moving else 1):
            whole = attempt == self.TRIES  # nothing kept the object: fall back to the whole image
            point = None
            if attempt > 0:
                object_at = object_at if object_at.size else np.flatnonzero(mask)
                y, x = divmod(int(rng.choice(object_at)), width)
                point = (x + 0.5, y + 0.5)
            matrix, factor = self._draw(width, height, size, flipped, whole, point, rng)
            warped = _warp(grey, matrix, size, factor, mask.shape) > 127
            area = abs(float(np.linalg.det(matrix[:, :2])))  # input pixels in one output pixel
            kept = np.count_nonzero(warped) * area / total if total else 1.0
            if best is None or kept > best[0]:
                best = (kept, matrix, factor)
            if kept >= self.KEEP or (attempt == self.TRIES - 1 and best[0] > 0):
                break
        assert best is not None  # the loop runs at least once
        return best[1], best[2]

    def _draw(
        self,
        width: int,
        height: int,
        size: Size,
        flipped: bool,
        whole: bool,
        point: tuple[float, float] | None,
        rng: np.random.Generator,
    ) -> tuple[np.ndarray, float]:
        """Draw a crop, around a point if there is one, and a rotation.

        Returns:
            The affine map (2, 3) from output to input in continuous coordinates, and its factor of reduction.
        """
        area = 1.0 if whole else rng.uniform(*self.scale)
        # neither side may exceed the image's: the closer to the whole image, the less the aspect can vary
        bound = max(0.0, min(math.log(self.ASPECT), -math.log(area)))
        stretch = math.exp(rng.uniform(-bound, bound) / 2)
        crop_w, crop_h = width * math.sqrt(area) * stretch, height * math.sqrt(area) / stretch
        centre = []
        for side, crop, at in zip((width, height), (crop_w, crop_h), point or (None, None), strict=True):
            low, high = crop / 2, side - crop / 2
            if at is not None:
                low, high = max(low, at - crop / 2), min(high, at + crop / 2)
            centre.append(low + rng.random() * (high - low))
        angle = 0.0 if whole else math.radians(rng.uniform(-self.rotate, self.rotate))
        cos, sin = math.cos(angle), math.sin(angle)
        # output -> crop (centred, in input pixels) -> turned there, where pixels are square -> moved
        step_x, step_y = crop_w / size[1] * (-1 if flipped else 1), crop_h / size[0]
        linear = np.array([[cos * step_x, -sin * step_y], [sin * step_x, cos * step_y]])
        offset = np.array(centre) - linear @ np.array([size[1] / 2, size[0] / 2])
        return np.column_stack([linear, offset]), min(abs(step_x), step_y)

    def _recolour(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        brightness, contrast, saturation = rng.uniform(1 - self.colour, 1 + self.colour, 3)
        hue = math.radians(rng.uniform(-60, 60) * self.colour)
        return recolour(image, brightness, contrast, saturation, hue)
