"""Corruptions against plain loops in float64, colorsys, Pillow and OpenCV's own JPEG; and as augmentation."""

import colorsys
import itertools
import math
from io import BytesIO

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from e2net.datasets import Augment, ProceduralPairs
from e2net.datasets.corruptions import KINDS, STRENGTHS, check_kinds, conditions, corrupt, drawn_for

# Of the paper's published code, by strength.
NOISE = [0.08, 0.12, 0.18, 0.26, 0.38]
BLUR = [1, 2, 3, 4, 6]
MOTION = [(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)]
FOG = [(1.5, 2), (2.0, 2), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4)]
BRIGHTNESS = [0.1, 0.2, 0.3, 0.4, 0.5]
CONTRAST = [0.4, 0.3, 0.2, 0.1, 0.05]
JPEG = [25, 18, 15, 10, 7]
PIXELATE = [0.6, 0.5, 0.4, 0.3, 0.25]


def _photograph(height, width, seed=0):
    """Smooth and fine structure in colour, with black and white in it."""
    rng = np.random.default_rng(seed)
    layers = [cv2.resize(rng.random((n, n, 3)), (width, height), interpolation=cv2.INTER_CUBIC) for n in (3, 9, 40)]
    image = np.clip((layers[0] * 0.6 + layers[1] * 0.4 + layers[2] * 0.3) * 255 - 40, 0, 255).astype(np.uint8)
    image[: height // 8, : width // 8] = 0
    image[: height // 8, -width // 8 :] = 255
    return image


def _made(image, kind, strength, seed=0):
    return corrupt(image, kind, strength, np.random.default_rng(seed)).astype(np.float64)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_noise_has_its_deviation(strength):
    grey = np.full((200, 300, 3), 120, np.uint8)
    made = _made(grey, "noise", strength)
    expected = np.clip(120 + 255 * NOISE[strength - 1] * np.random.default_rng(9).standard_normal(400_000), 0, 255)
    assert made.std() == pytest.approx(expected.std(), rel=0.02)
    assert made.mean() == pytest.approx(expected.mean(), abs=0.8)
    neighbours = np.corrcoef(made[:, :-1].ravel(), made[:, 1:].ravel())[0, 1]
    assert abs(neighbours) < 0.02 and abs(np.corrcoef(made[..., 0].ravel(), made[..., 1].ravel())[0, 1]) < 0.02


def _clamped(image, dy, dx):
    """The image seen from (dy, dx) further on; beyond the border there is the border."""
    rows = np.clip(np.arange(image.shape[0]) + dy, 0, image.shape[0] - 1)
    columns = np.clip(np.arange(image.shape[1]) + dx, 0, image.shape[1] - 1)
    return image[rows][:, columns].astype(np.float64)


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize(("size", "wide"), [((224, 230), 151), ((120, 84), 151), ((70, 448), 151), ((120, 184), 9)])
def test_blur_is_a_gaussian_of_a_share_of_the_picture(size, wide, strength, monkeypatch):
    monkeypatch.setattr("e2net.datasets.corruptions._WIDE", wide)  # both ways of computing it
    image = _photograph(*size)
    sigma = BLUR[strength - 1] * min(size) / 224
    reach = int(4 * sigma + 0.5)
    weights = np.array([math.exp(-(i**2) / (2 * sigma**2)) for i in range(-reach, reach + 1)])
    weights /= weights.sum()
    across = sum(w * _clamped(image, 0, i) for i, w in zip(range(-reach, reach + 1), weights, strict=True))
    both = sum(w * _clamped(across, i, 0) for i, w in zip(range(-reach, reach + 1), weights, strict=True))
    assert np.abs(_made(image, "blur", strength) - both).max() <= 0.51


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("size", [(224, 250), (90, 64)])
def test_motion_is_a_fading_trail(strength, size):
    image, unit = _photograph(*size), min(size) / 224
    radius, sigma = (value * unit for value in MOTION[strength - 1])
    angle = math.radians(np.random.default_rng(3).uniform(-45, 45))
    total, expected = 0.0, np.zeros(image.shape)
    for i in range(max(1, round(2 * radius + 1))):
        weight = math.exp(-(i**2) / (2 * sigma**2))
        total += weight
        dy, dx = (math.ceil(i * turn - 0.5) for turn in (math.sin(angle), math.cos(angle)))
        expected += weight * _clamped(image, dy, dx)
    assert np.abs(_made(image, "motion", strength, seed=3) - expected / total).max() <= 0.51


def test_motion_has_directions_within_45_degrees():
    dot = np.zeros((224, 224, 3), np.uint8)
    dot[112, 112] = 255
    angles = []
    for seed in range(60):
        # A dot leaves its trail behind it, so the trail of a dot is the kernel turned about.
        y, x = np.nonzero(_made(dot, "motion", 3, seed)[..., 0] > 1)
        assert 4 <= len(x) <= 31 and x.max() == 112
        far = np.argmin(x)
        angles.append(math.degrees(math.atan2(112 - y[far], 112 - x[far])))
    assert -48 < min(angles) < -30 and 30 < max(angles) < 48 and abs(np.mean(angles)) < 12


def _fractal(side, decay, rng):
    """Point by point, on a torus."""
    heights, step, spread = np.zeros((side, side)), side, 1.0
    while step > 1:
        half = step // 2
        starts = range(0, side, step)
        middle, across, down = (rng.uniform(-spread, spread, (side // step, side // step)) for _ in range(3))
        for (i, y), (j, x) in itertools.product(enumerate(starts), enumerate(starts)):
            corners = [heights[(y + a) % side, (x + b) % side] for a in (0, step) for b in (0, step)]
            heights[y + half, x + half] = sum(corners) / 4 + middle[i, j]
        for (i, y), (j, x) in itertools.product(enumerate(starts), enumerate(starts)):
            for row, column, draw in ((y, x + half, across[i, j]), (y + half, x, down[i, j])):
                near = [(row + a, column + b) for a, b in ((half, 0), (-half, 0), (0, half), (0, -half))]
                heights[row, column] = sum(heights[a % side, b % side] for a, b in near) / 4 + draw
        step, spread = half, spread / decay**2
    return (heights - heights.min()) / (heights.max() - heights.min())


@pytest.mark.parametrize("strength", STRENGTHS)
def test_fog_is_a_fractal_over_the_picture(strength):
    image = _photograph(224, 224)
    amount, decay = FOG[strength - 1]
    fog = _fractal(256, decay, np.random.default_rng(5))[:224, :224, None]
    values, top = image / 255, image.max() / 255
    expected = 255 * np.clip((values + amount * fog) * top / (top + amount), 0, 1)
    assert np.abs(_made(image, "fog", strength, seed=5) - expected).max() <= 0.51


@pytest.mark.parametrize("strength", STRENGTHS)
def test_brightness_is_the_value_of_hsv(strength):
    image = _photograph(20, 30)
    made = _made(image, "brightness", strength)
    for y, x in np.ndindex(image.shape[:2]):
        hue, saturation, value = colorsys.rgb_to_hsv(*(image[y, x] / 255))
        expected = colorsys.hsv_to_rgb(hue, saturation, min(1, value + BRIGHTNESS[strength - 1]))
        assert np.abs(made[y, x] - 255 * np.array(expected)).max() <= 0.501


@pytest.mark.parametrize("strength", STRENGTHS)
def test_contrast_is_about_the_mean_of_each_channel(strength):
    image = _photograph(40, 30)
    mean = image.reshape(-1, 3).mean(axis=0)
    expected = (image - mean) * CONTRAST[strength - 1] + mean
    assert np.abs(_made(image, "contrast", strength) - expected).max() <= 0.501


@pytest.mark.parametrize("strength", STRENGTHS)
def test_jpeg_has_its_quality(strength):
    image = _photograph(100, 124)
    made = _made(image, "jpeg", strength)
    _, coded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG[strength - 1]])
    shown = np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR))[..., ::-1]
    assert np.abs(made - shown).mean() < 0.5
    file = BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=JPEG[strength - 1])
    assert np.array_equal(made, np.array(Image.open(file)))


@pytest.mark.parametrize("strength", STRENGTHS)
def test_pixels_of_a_picture_of_224_are_pillows(strength):
    image, side = _photograph(224, 224), int(224 * PIXELATE[strength - 1])
    small = Image.fromarray(image).resize((side, side), Image.Resampling.BOX)
    assert np.array_equal(_made(image, "pixelate", strength), np.array(small.resize((224, 224), Image.Resampling.BOX)))


@pytest.mark.parametrize(("strength", "block"), [(2, 2), (5, 4)])
@pytest.mark.parametrize("times", [1, 3])
def test_pixels_are_blocks_of_a_share_of_the_picture(strength, block, times):
    image, side = _photograph(224 * times, 224 * times), block * times
    blocks = image.reshape(224 // block, side, 224 // block, side, 3).mean(axis=(1, 3))
    assert np.abs(_made(image, "pixelate", strength) - blocks.repeat(side, 0).repeat(side, 1)).max() <= 1


@pytest.mark.parametrize("kind", ["blur", "motion", "fog", "brightness", "contrast"])
@pytest.mark.parametrize("strength", [1, 3, 5])
def test_a_strength_is_the_same_at_any_size(kind, strength):
    small = _photograph(224, 288)
    large = small.repeat(3, 0).repeat(3, 1)
    reduced = cv2.resize(_made(large, kind, strength, seed=2), (288, 224), interpolation=cv2.INTER_AREA)
    changed = np.abs(_made(small, kind, strength, seed=2) - small).mean()
    # Grids and rounding differ.
    assert np.abs(reduced - _made(small, kind, strength, seed=2)).mean() < 0.2 * changed + 0.25


@pytest.mark.parametrize("kind", KINDS)
def test_each_strength_changes_more_than_the_last(kind):
    image = _photograph(150, 200)
    distance = [np.mean([np.abs(_made(image, kind, s, seed) - image).mean() for seed in range(8)]) for s in STRENGTHS]
    assert distance[0] > 1 and all(a < b for a, b in itertools.pairwise(distance))


@given(
    st.sampled_from(list(KINDS)), st.sampled_from(STRENGTHS), st.integers(1, 90), st.integers(1, 90), st.integers(0, 9)
)
@settings(max_examples=60, deadline=None)
def test_pictures_of_any_size_stay_pictures(kind, strength, height, width, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    before = image.copy()
    made = corrupt(image, kind, strength, np.random.default_rng(seed))
    assert made.shape == image.shape and made.dtype == np.uint8 and np.array_equal(image, before)
    assert np.array_equal(made, corrupt(image, kind, strength, np.random.default_rng(seed)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(2, 1500), (1400, 3)])
@pytest.mark.parametrize("level", [0, 255])
def test_narrow_and_plain_pictures(kind, shape, level):
    made = corrupt(np.full((*shape, 3), level, np.uint8), kind, 5, np.random.default_rng(0))
    assert made.shape == (*shape, 3)
    if kind in ("blur", "motion", "contrast", "pixelate"):
        assert (made == level).all()


def test_draws_belong_to_name_kind_and_strength():
    asked = [(name, *condition) for name in ("a", "b", "é\udce9") for condition in conditions(list(KINDS))]
    drawn = [int(drawn_for(*one).integers(2**63)) for one in asked]
    assert len(set(drawn)) == len(asked) == 120
    assert drawn == [int(drawn_for(*one).integers(2**63)) for one in asked]
    # Of NumPy's default generator seeded with SHA-256 of "fog 3 a": whoever makes the copies anew gets the same.
    assert int(drawn_for("a", "fog", 3).integers(2**31)) == 1925655599


@pytest.mark.parametrize("given", [[], ["noise", "noise"], ["rain"], "noise", 3, True, None, ["noise", 1]])
def test_kinds_that_are_none_are_refused(given):
    with pytest.raises(ValueError, match="some_key: expected a list of kinds"):
        check_kinds("some_key", given)


def test_kinds_come_in_their_order():
    assert check_kinds("k", ["fog", "noise"]) == ("noise", "fog")
    assert Augment().corrupt_kinds == tuple(KINDS)
    for kind, strength in (("rain", 1), ("fog", 0), ("fog", 6)):
        with pytest.raises(ValueError, match="expected a corruption out of"):
            corrupt(_photograph(8, 8), kind, strength, np.random.default_rng(0))


# As augmentation


IMAGE, MASK = ProceduralPairs(1, 4, 0.2, "train").read(0)


def _augmented(seed, image=IMAGE, mask=MASK, **knobs):
    return Augment(**knobs)(image, mask, (48, 56), np.random.default_rng(seed))


def test_augmentation_ends_in_a_mild_corruption_of_what_it_was():
    seen = set()
    for seed in range(40):
        plain, mask = _augmented(seed)
        made, same_mask = _augmented(seed, corrupt=1.0, corrupt_kinds=["contrast", "pixelate", "jpeg"])
        assert np.array_equal(mask, same_mask)
        found = [
            (kind, strength)
            for kind, strength in conditions(["contrast", "jpeg", "pixelate"])
            if np.array_equal(made, corrupt(plain, kind, strength, np.random.default_rng(0)))
        ]
        assert found
        seen |= {found[0]}
    assert {kind for kind, _ in seen} == {"contrast", "jpeg", "pixelate"}
    assert {strength for kind, strength in seen if kind == "contrast"} == {1, 2, 3}


def test_augmentation_corrupts_as_often_as_it_should():
    for part in (0.0, 0.3):
        changed = [not np.array_equal(_augmented(s)[0], _augmented(s, corrupt=part)[0]) for s in range(200)]
        assert abs(np.mean(changed) - part) <= 0.1 * (part > 0)


@pytest.mark.parametrize(
    ("knobs", "words"),
    [({"corrupt": 1.5}, "corrupt between 0"), ({"corrupt_kinds": ["rain"]}, "augment.corrupt_kinds: expected a list")],
)
def test_augmentation_refuses_what_is_out_of_range(knobs, words):
    with pytest.raises(ValueError, match=words):
        Augment(**knobs)
