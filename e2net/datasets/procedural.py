"""Generated camouflage: a textured object on a background of nearly the same texture."""

import colorsys
import hashlib
import math
from typing import Any

import cv2
import numpy as np

# (hue, saturation, value) around which a palette varies, as fractions: what animals hide in
_SURROUNDINGS = (
    (0.08, 0.45, 0.45),  # soil, bark
    (0.10, 0.35, 0.70),  # sand, dry grass
    (0.24, 0.50, 0.40),  # leaves
    (0.18, 0.45, 0.50),  # moss
    (0.08, 0.12, 0.50),  # rock
    (0.55, 0.25, 0.50),  # sea floor
    (0.04, 0.45, 0.50),  # coral, dead leaves
    (0.60, 0.06, 0.80),  # snow
)


def _noise(
    shape: tuple[int, int],
    rng: np.random.Generator,
    cell: float,
    angle: float,
    stretch: float,
    roughness: float,
    bend: np.ndarray,
) -> np.ndarray:
    """Multi-octave oriented noise of zero mean and unit variance.

    Args:
        shape: (h, w).
        rng: five octaves are drawn from it, whatever the other arguments.
        cell: size of the coarsest features, pixels.
        angle: direction that the texture runs along, radians.
        stretch: how many times longer than wide features are.
        roughness: amplitude of an octave relative to the next coarser one.
        bend: (h, w, 2) float32, displacement in pixels that makes straight texture organic.

    Returns:
        (h, w) float32.
    """
    height, width = shape
    ys, xs = np.mgrid[:height, :width].astype(np.float32)
    xs, ys = xs + bend[..., 0], ys + bend[..., 1]
    cos, sin = math.cos(angle), math.sin(angle)
    along = (cos * xs + sin * ys) / math.sqrt(stretch)
    across = (cos * ys - sin * xs) * math.sqrt(stretch)
    total = np.zeros(shape, np.float32)
    for octave in range(5):
        grid = rng.standard_normal((64, 64), dtype=np.float32)
        offset = rng.random(2) * 64
        size = cell / 2**octave
        map_x, map_y = along / size + offset[0], across / size + offset[1]
        layer = cv2.remap(
            grid,
            (map_x % 64).astype(np.float32),
            (map_y % 64).astype(np.float32),
            cv2.INTER_CUBIC,
            borderMode=cv2.BORDER_WRAP,
        )
        total += layer * roughness**octave
    return (total - total.mean()) / (total.std() + 1e-6)


def _smooth(shape: tuple[int, int], rng: np.random.Generator, cells: int) -> np.ndarray:
    """Slowly varying noise (h, w) float32, about unit variance; `cells` across the picture."""
    grid = rng.standard_normal((cells + 1, cells + 1), dtype=np.float32)
    return cv2.resize(grid, shape[::-1], interpolation=cv2.INTER_CUBIC)


def _blob(
    centre: np.ndarray, radius: float, lean: float, slim: float, rough: float, rng: np.random.Generator
) -> np.ndarray:
    """An irregular closed outline (96, 2): an ellipse whose radius wobbles by a few random harmonics."""
    turn = np.linspace(0, 2 * math.pi, 96, endpoint=False)
    order = np.arange(2, 8)[:, None]
    phases, sizes = rng.uniform(0, 2 * math.pi, (6, 1)), rng.normal(0, 1, (6, 1)) / order
    wobble = np.exp(rough * (sizes * np.cos(order * turn + phases)).sum(axis=0))
    x, y = radius * wobble * np.cos(turn) * math.sqrt(slim), radius * wobble * np.sin(turn) / math.sqrt(slim)
    cos, sin = math.cos(lean), math.sin(lean)
    return np.stack([centre[0] + cos * x - sin * y, centre[1] + sin * x + cos * y], axis=1)


def _limb(start: np.ndarray, direction: float, length: float, thick: float, rng: np.random.Generator) -> np.ndarray:
    """A bent, tapering limb or tail: outline (24, 2)."""
    along = np.linspace(0, 1, 12)
    heading = direction + rng.normal(0, 0.5) * along + rng.normal(0, 0.5) * np.sin(math.pi * along)
    step = np.stack([np.cos(heading), np.sin(heading)], axis=1)
    spine = start + np.cumsum(step, axis=0) * length / len(along)
    side = np.stack([-step[:, 1], step[:, 0]], axis=1) * (thick * (1 - 0.8 * along) / 2)[:, None]
    return np.concatenate([spine + side, (spine - side)[::-1]])


def _shape(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """An animal-like silhouette somewhere in the picture, perhaps partly out of it.

    Returns:
        (h, w) float32, 0 to 1, with an anti-aliased edge of about two pixels; above 0.5 is object.
    """
    height, width = shape
    # a log-uniform size, and a place that is uniform but for keeping the middle of the object in the picture
    radius = math.sqrt(height * width / math.pi * math.exp(rng.uniform(math.log(0.02), math.log(0.16))))
    margin = 0.55 * radius
    centre = np.array([rng.uniform(margin, width - margin), rng.uniform(margin, height - margin)])
    lean, slim = rng.uniform(0, math.pi), math.exp(rng.uniform(0, math.log(3)))
    outlines = [_blob(centre, radius, lean, slim, rng.uniform(0.15, 0.6), rng)]
    axis = np.array([math.cos(lean), math.sin(lean)])
    reach = radius * math.sqrt(slim)
    kind = rng.random()
    if kind < 0.55:  # a head at one end, perhaps a tail at the other, and legs
        head = centre + axis * reach * rng.uniform(0.95, 1.15)
        head_size, turn, head_slim = radius * rng.uniform(0.35, 0.5), rng.normal(0, 0.4), rng.uniform(1, 1.6)
        outlines.append(_blob(head, head_size, lean + turn, head_slim, 0.2, rng))
        if rng.random() < 0.6:
            tail, length = centre - axis * reach * 0.8, reach * rng.uniform(0.7, 1.4)
            outlines.append(_limb(tail, lean + math.pi, length, radius * 0.35, rng))
        side = rng.choice([-1.0, 1.0])
        for place in np.linspace(-0.7, 0.7, int(rng.integers(0, 5))):
            root = centre + axis * reach * (place + rng.normal(0, 0.06))
            leg = lean + side * math.pi / 2 + rng.normal(0, 0.3)
            outlines.append(_limb(root, leg, radius * rng.uniform(1.0, 1.6), radius * 0.32, rng))
    elif kind < 0.75:  # limbs all round, as of a spider, a crab or a frog
        first, count = rng.uniform(0, 2 * math.pi), int(rng.integers(3, 8))
        for direction in first + np.arange(count) * 2 * math.pi / count:
            away = np.array([math.cos(direction), math.sin(direction)])
            length = radius * rng.uniform(0.8, 1.5)
            outlines.append(_limb(centre + away * radius * 0.5, direction, length, radius * 0.3, rng))
    elif kind < 0.85:  # a second one nearby
        bearing = rng.uniform(0, 2 * math.pi)
        other = centre + np.array([math.cos(bearing), math.sin(bearing)]) * radius * rng.uniform(2, 3)
        outlines.append(_blob(other, radius * rng.uniform(0.4, 0.8), rng.uniform(0, math.pi), slim, 0.4, rng))

    canvas = np.zeros(shape, np.uint8)
    for outline in outlines:
        cv2.fillPoly(canvas, [np.round(outline * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    if rng.random() < 0.2:  # a blade of grass or a twig across it, cutting it into parts
        across = lean + math.pi / 2 + rng.normal(0, 0.4)
        away = np.array([math.cos(across), math.sin(across)]) * 300
        middle = centre + axis * reach * rng.uniform(-0.5, 0.5)
        ends = np.round(np.stack([middle - away, middle + away]) * 16).astype(np.int32)
        cv2.line(canvas, ends[0].tolist(), ends[1].tolist(), 0, max(2, round(radius * 0.2)), cv2.LINE_AA, 4)
    # rounds off the corners between the parts, as skin would
    soft = cv2.GaussianBlur(canvas.astype(np.float32) / 255, (0, 0), max(0.8, radius * 0.06))
    return np.clip((soft - 0.5) * max(0.8, radius * 0.06) * 1.5 + 0.5, 0, 1)


def _palette(rng: np.random.Generator) -> tuple[int, np.ndarray]:
    """A kind of surroundings and five colours from dark to light around it: (5, 3) float32 RGB, 0 to 1."""
    kind = int(rng.integers(len(_SURROUNDINGS)))
    hue, saturation, value = _SURROUNDINGS[kind]
    hue += rng.normal(0, 0.02)
    colours = []
    for level in (0.35, 0.7, 1.0, 1.25, 1.6):
        one_hue = (hue + rng.normal(0, 0.025)) % 1
        one_saturation = min(1.0, max(0.0, saturation * rng.uniform(0.7, 1.3) / level**0.3))
        one_value = min(0.95, value * level * rng.uniform(0.9, 1.1))
        colours.append(colorsys.hsv_to_rgb(one_hue, one_saturation, one_value))
    return kind, np.array(colours, np.float32)


def _turn_hue(colours: np.ndarray, angle: float) -> np.ndarray:
    """Turn the hue of (N, 3) colours by an angle in radians, about the grey axis."""
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    turn = math.cos(angle) * np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) / 3
    return np.clip(colours @ turn.T, 0, 1).astype(np.float32)


def _paint(field: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Colours (h, w, 3) float32 for a field (h, w) of unit variance, along the palette."""
    place = np.clip(field * (127.5 / 2.2) + 127.5, 0, 255).astype(np.uint8)
    levels = np.arange(256) / 255 * 4
    table = np.stack([np.interp(levels, np.arange(5), channel) for channel in palette.T], axis=1)
    return table.astype(np.float32)[place]


# The names of the surroundings, in their order; for label maps, where the object comes after them.
SURROUNDINGS = ("soil", "sand", "leaves", "moss", "rock", "sea floor", "coral", "snow")
# Depth of the ground at the upper and the lower edge of a picture, metres.
_FAR, _NEAR = 10.0, 1.5

# Pictures that one process keeps, at most; those of the default run are a tenth of it.
_KEPT_BYTES = 256 << 20


class ProceduralPairs:
    """A seeded generator of camouflage: pictures whose object shares palette and texture with its background.

    An animal-like silhouette of random size (about 2 to 25 % of the picture) and place, sometimes with limbs,
    in two parts or cut by the border, is filled with a texture of its own from the family and palette of its
    background. `difficulty` fades the remaining cues, each drawn anew for every picture: direction, scale and
    contrast of the texture, hue, lightness, shading and a cast shadow. What is left at 1 is a texture that
    breaks off at the outline and 6 % of the cues. Shapes and places are the same at every difficulty.

    Picture i is a function of the arguments and i alone, and does not depend on n.

    Args:
        n: how many pairs.
        seed: of the whole set.
        difficulty: 0 (obvious) to 1 (nearly invisible).
        split: sets of different splits share no picture; also the beginning of the names.
        sides: smallest and largest height and width, pixels; both vary independently.
        target: ``mask`` of the object (h, w) bool; ``labels`` (h, w) uint16, the kind of surroundings, or their number
            for the object; ``depth`` (h, w) float32, metres.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        n: int,
        seed: int = 0,
        difficulty: float = 0.5,
        split: str = "train",
        sides: tuple[int, int] = (96, 192),
        target: str = "mask",
    ) -> None:
        if n < 1:
            raise ValueError(f"expected n of at least 1 picture, found {n}")
        if seed < 0:
            raise ValueError(f"expected a seed of 0 or more, found {seed}")
        if not 0 <= difficulty <= 1:
            raise ValueError(f"expected difficulty from 0 (obvious) to 1 (hardest), found {difficulty}")
        if not 32 <= sides[0] <= sides[1]:
            raise ValueError(f"expected sides as (smallest, largest), 32 pixels or more, found {tuple(sides)}")
        if target not in ("mask", "labels", "depth"):
            raise ValueError(f"expected target as mask, labels or depth, found {target!r}")
        self.n, self.seed, self.difficulty, self.split, self.target = n, seed, difficulty, split, target
        self.sides = (sides[0], sides[1])
        self._split_key = int.from_bytes(hashlib.sha256(split.encode()).digest()[:4], "big")
        self._kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._room = _KEPT_BYTES

    def __len__(self) -> int:
        """How many pairs there are."""
        return self.n

    def name(self, index: int) -> str:
        """Split and number, such as ``train_00007``."""
        return f"{self.split}_{index:05d}"

    def identity(self) -> list[Any]:
        """All arguments: a picture is a function of them."""
        return [self.n, self.seed, self.difficulty, self._split_key, self.sides]

    def check(self) -> None:
        """Nothing can be missing."""

    def read(self, index: int, at_least: tuple[int, int] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Generate pair `index`, or give it again: a picture takes ten times as long to make as to augment.

        Args:
            index: which.
            at_least: without effect, as nothing is decoded.

        Returns:
            Image (h, w, 3) uint8 RGB and target (h, w), both read-only.

        Raises:
            IndexError: there is no such pair.
        """
        if not 0 <= index < self.n:
            raise IndexError(f"pair {index} of {self.n}")
        if index in self._kept:
            return self._kept[index]
        pair = self._generate(index)
        for part in pair:
            part.flags.writeable = False
        size = sum(part.nbytes for part in pair)
        if size <= self._room:
            self._kept[index] = pair
            self._room -= size
        return pair

    def _generate(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        key = [self.seed, self._split_key, index]
        # one stream each, so that nothing drawn for the one moves the others
        size_rng, shape_rng, scene_rng, other_rng, cue_rng = (
            np.random.default_rng(child) for child in np.random.SeedSequence(key).spawn(5)
        )
        height, width = (int(side) for side in size_rng.integers(self.sides[0], self.sides[1] + 1, 2))
        shape = (height, width)
        alpha = _shape(shape, shape_rng)
        visible = 1 - 0.94 * self.difficulty  # never quite nothing: there must be something to learn

        # the scene: one family of texture
        kind, palette = _palette(scene_rng)
        cell = scene_rng.uniform(0.08, 0.3) * math.sqrt(height * width)
        angle, stretch = scene_rng.uniform(0, math.pi), math.exp(scene_rng.uniform(0, math.log(5)))
        roughness = scene_rng.uniform(0.6, 0.9)
        bend = np.stack([_smooth(shape, scene_rng, 4) for _ in range(2)], axis=-1)
        bend *= np.float32(scene_rng.uniform(0.01, 0.09) * math.sqrt(height * width))
        ridged = scene_rng.random() < 0.35

        # the cues, of random sign and at least half of their full strength so that none is lost by chance
        def cue(full: float) -> float:
            return float(cue_rng.choice([-1.0, 1.0]) * cue_rng.uniform(0.5, 1.0) * full * visible)

        turned, scaled = cue(math.pi / 2), math.exp(cue(0.6))
        contrast, hue, light = math.exp(cue(0.5)), cue(0.45), cue(0.3)

        def texture(rng: np.random.Generator, cell: float, angle: float) -> np.ndarray:
            field = _noise(shape, rng, cell, angle, stretch, roughness, bend)
            if ridged:  # veins and cracks instead of clouds
                field = 0.8 - np.abs(field) * 1.4
            return field

        ground = _paint(texture(scene_rng, cell, angle), palette)
        skin = _paint(texture(other_rng, cell * scaled, angle + turned) * contrast, _turn_hue(palette, hue))

        # a rounded body under a light from one side, and its shadow on the ground
        thick = math.sqrt(max(1.0, float((alpha > 0.5).sum()))) / 4
        height_map = cv2.GaussianBlur(alpha, (0, 0), max(1.0, thick * 0.5))
        light_angle = cue_rng.uniform(0, 2 * math.pi)
        slope_y, slope_x = np.gradient(height_map)
        lit = (slope_x * math.cos(light_angle) + slope_y * math.sin(light_angle)) * thick
        skin *= (1 + light + lit * (0.15 + 0.7 * visible))[..., None].astype(np.float32)
        cast = 0.3 * thick
        away = np.array([[1, 0, -math.cos(light_angle) * cast], [0, 1, -math.sin(light_angle) * cast]])
        shadow = cv2.warpAffine(cv2.GaussianBlur(alpha, (0, 0), 2), away, (width, height))
        ground *= (1 - shadow * (0.03 + 0.25 * visible))[..., None].astype(np.float32)

        image = ground + (skin - ground) * alpha[..., None]
        image *= (1 + 0.12 * _smooth(shape, scene_rng, 2))[..., None]  # uneven light
        image += scene_rng.standard_normal(image.shape, dtype=np.float32) * np.float32(0.012)
        return np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8), self._target(alpha > 0.5, kind)

    def _target(self, mask: np.ndarray, surroundings: int) -> np.ndarray:
        """What the pictures are for, (h, w), from the object's mask and the kind of its surroundings."""
        if self.target == "labels":
            return np.where(mask, len(SURROUNDINGS), surroundings).astype(np.uint16)
        if self.target == "depth":
            # Level ground, whose disparity falls off linearly; the object stands on it where its lowest pixel is.
            rows = np.linspace(1 / _FAR, 1 / _NEAR, len(mask))
            ground = np.repeat(1 / rows[:, None], mask.shape[1], axis=1)
            feet = np.flatnonzero(mask.any(axis=1))
            return np.where(mask, ground[feet[-1], 0] if feet.size else 0, ground).astype(np.float32)
        return mask
