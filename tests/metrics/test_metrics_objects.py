"""Measures of an object and kinds of error against SciPy, plain loops, and pictures whose values are known."""

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from e2net.metrics.objects import ERRORS, ObjectMeasures, error_of, measure_object

SMALL = st.tuples(st.integers(1, 9), st.integers(1, 9))
MASKS = SMALL.flatmap(lambda shape: arrays(np.bool_, shape))
PAIRS = SMALL.flatmap(lambda shape: st.tuples(arrays(np.bool_, shape), arrays(np.bool_, shape)))


def _blobs(rng, shape, share):
    field = cv2.GaussianBlur(rng.random(shape), (0, 0), max(shape) / 12)
    return field > np.quantile(field, 1 - share)


def _disc(radius, shape=(200, 240), at=(100, 120)):
    y, x = np.indices(shape)
    return (y - at[0]) ** 2 + (x - at[1]) ** 2 <= radius**2


def _expected(mask):
    """All that needs no image, by other means."""
    h, w = mask.shape
    if not mask.any():
        return [math.nan] * 5
    parts, _ = ndimage.label(mask, np.ones((3, 3)))
    areas = np.bincount(parts.ravel())[1:]
    y, x = ndimage.center_of_mass(mask)
    middle = ((h - 1) / 2, (w - 1) / 2)
    crossings = {(1, 0): 0, (0, 1): 0, (1, 1): 0, (1, -1): 0}
    for dy, dx in crossings:
        for i in range(h - dy):
            for j in range(max(0, -dx), w - max(0, dx)):
                crossings[dy, dx] += int(mask[i, j] != mask[i + dy, j + dx])
    # Lines of each direction, apart by one over the length of its step.
    perimeter = math.pi / 2 * np.mean([count / math.hypot(*step) for step, count in crossings.items()])
    edge = np.pad(np.zeros((max(h - 2, 0), max(w - 2, 0)), bool), 1, constant_values=True)[:h, :w]
    return [
        mask.mean(),
        sum(area >= 0.02 * areas.max() for area in areas),
        math.dist((y, x), middle) / (math.hypot(h, w) / 2),
        float((mask & edge).any()),
        math.nan if mask.all() else perimeter**2 / (4 * math.pi * mask.sum()),
    ]


@settings(max_examples=200, deadline=None)
@given(MASKS)
def test_measures_of_a_mask_are_those_of_plain_loops(mask):
    found = measure_object(mask)
    assert found[:5] == pytest.approx(_expected(mask), abs=1e-12, nan_ok=True)
    assert math.isnan(found.colour) and math.isnan(found.texture)
    assert found.megapixels == mask.size / 1e6


def test_measures_of_larger_masks_too():
    rng = np.random.default_rng(0)
    for share in (0.002, 0.1, 0.5, 0.95):
        mask = _blobs(rng, (63, 81), share)
        assert measure_object(mask)[:5] == pytest.approx(_expected(mask))


def test_specks_are_no_parts():
    mask = np.zeros((100, 100), bool)
    mask[10:20, 10:20] = True
    mask[50, 50] = True
    assert measure_object(mask).parts == 1
    mask[50, 51] = True  # 2 of 100
    assert measure_object(mask).parts == 2


def test_complexity_is_that_of_geometry():
    assert measure_object(_disc(90)).complexity == pytest.approx(1, abs=0.02)
    y, x = np.indices((300, 300)) - 150
    for degrees in range(0, 91, 9):
        angle = math.radians(degrees)
        along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
        bar = (abs(along) < 100) & (abs(across) < 10)
        assert measure_object(bar).complexity == pytest.approx(440**2 / (4 * math.pi * 4000), rel=0.13)


def _painted(mask, inside, outside, far=None):
    """The object in one colour, the background in another; beyond the surroundings in a third."""
    image = np.where(mask[..., None], np.uint8(inside), np.uint8(outside))
    if far is not None:
        reach = round(0.04 * max(mask.shape))
        away = ndimage.distance_transform_edt(~mask) > reach + 1
        image[away] = far
    return np.ascontiguousarray(image, np.uint8)


def _lab(colour):
    """CIE L*a*b* of an sRGB colour, D65, by the formulas."""
    linear = np.array([c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in np.array(colour) / 255])
    xyz = np.array([[0.412453, 0.35758, 0.180423], [0.212671, 0.71516, 0.072169], [0.019334, 0.119193, 0.950227]])
    f = [t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in xyz @ linear / [0.950456, 1, 1.088754]]
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("radius", [0, 2, 20, 60])
def test_colour_contrast_is_the_distance_in_lab_to_the_surroundings(radius):
    inside, outside = (90, 140, 60), (130, 110, 70)
    mask = _disc(radius)
    found = measure_object(mask, _painted(mask, inside, outside, far=(255, 0, 255)))
    assert found.colour == pytest.approx(np.linalg.norm(_lab(inside) - _lab(outside)), rel=0.02, abs=0.1)
    assert measure_object(mask, _painted(mask, inside, inside, far=(255, 0, 255))).colour < 0.2
    # Not the whole picture's business: without a magenta rest it is the same.
    assert measure_object(mask, _painted(mask, inside, outside)).colour == pytest.approx(found.colour, abs=0.2)


def test_texture_contrast_is_that_of_roughness_whatever_the_size():
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((200, 240))
    mask = _disc(60)

    def texture(rough, smooth, scale=1):
        grey = np.clip(128 + noise * np.where(mask, rough, smooth), 0, 255).astype(np.uint8)
        large = [cv2.resize(x.astype(np.uint8), None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
                 for x in (grey, mask)]  # fmt: skip
        return measure_object(large[1] > 0, np.repeat(large[0][..., None], 3, 2)).texture

    assert texture(10, 10) == pytest.approx(1, abs=0.05)
    assert texture(30, 5) > 2
    assert texture(30, 5) == pytest.approx(texture(5, 30), rel=0.05)
    assert texture(30, 5, scale=4) == pytest.approx(texture(30, 5), rel=0.15)
    assert texture(0, 0) == 1
    # What is rough beyond the surroundings is no matter: they reach 10 pixels, and leave the corners of the disc's box.
    away = ndimage.distance_transform_edt(~mask) > 14
    assert texture(10, np.where(away, 60, 10)) == pytest.approx(texture(10, 10), abs=0.02)


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (17, 3), (60, 80)])
@pytest.mark.parametrize("of", ["empty", "full", "one", "line", "all but one"])
def test_any_mask_and_image_have_measures(shape, of):
    mask = np.full(shape, of in ("full", "all but one"))
    if of in ("one", "all but one"):
        mask[shape[0] // 2, shape[1] // 2] ^= True
    if of == "line":
        mask[shape[0] // 2] = True
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    for given_image in (image, image[:1, :1], np.repeat(np.repeat(image, 2, 0), 2, 1)):
        found = measure_object(mask, given_image)
        assert isinstance(found, ObjectMeasures)
        nothing = not mask.any()
        assert math.isnan(found.size) == math.isnan(found.border) == nothing
        assert math.isnan(found.colour) == (nothing or bool(mask.all()))
        assert math.isnan(found.complexity) == (nothing or bool(mask.all()))


def test_a_line_thinner_than_a_pixel_of_the_view_has_a_contrast():
    mask = np.zeros((1500, 2000), bool)
    mask[700, 100:1900] = True
    found = measure_object(mask, _painted(mask, (0, 0, 0), (250, 250, 250)))
    assert 1 < found.colour < 100  # mixed with its surroundings, as it is seen from afar


def _error(found, mask):
    """The rule once more, by SciPy's erosion and with fractions."""
    both, whole, most = (found & mask).sum(), mask.sum(), found.sum()
    if whole == 0:
        return "wrong object" if most else "good"
    width = max(1, round(0.02 * math.hypot(*mask.shape)))
    bands = []
    for one in (found, mask):
        inner = ndimage.binary_erosion(np.pad(one, width), np.ones((2 * width + 1,) * 2))
        bands.append(one & ~inner[width:-width, width:-width])
    rules = {
        "missed": 10 * most < whole,
        "wrong object": 4 * both < whole and 2 * both < most,
        "part only": 4 * both < 3 * (found | mask).sum() and (mask & ~found).sum() > (found & ~mask).sum(),
        "too much": 4 * both < 3 * (found | mask).sum(),
        "ragged edge": 2 * (bands[0] & bands[1]).sum() < (bands[0] | bands[1]).sum(),
        "good": True,
    }
    return next(kind for kind, holds in rules.items() if holds)


@settings(max_examples=300, deadline=None)
@given(PAIRS)
def test_kinds_of_error_are_those_of_the_rule(pair):
    assert error_of(*pair) == _error(*pair)


def test_kinds_of_error_of_larger_masks_too():
    rng, kinds = np.random.default_rng(0), set()
    for _ in range(150):
        mask = _blobs(rng, (90, 120), rng.uniform(0.02, 0.5))
        found = mask
        if rng.random() < 0.7:
            found = np.roll(mask, rng.integers(-9, 10, 2), (0, 1))
        if rng.random() < 0.8:
            side = np.ones((int(rng.integers(1, 9)),) * 2)
            found = (ndimage.binary_dilation if rng.random() < 0.5 else ndimage.binary_erosion)(found, side)
        assert error_of(found, mask) == _error(found, mask)
        kinds.add(_error(found, mask))
    assert kinds == set(ERRORS)


def test_kinds_of_error_are_what_people_call_them():
    mask = _disc(40)
    nothing = np.zeros_like(mask)
    left = mask & (np.indices(mask.shape)[1] < 110)
    expected = {
        "missed": [nothing, _disc(5)],
        "wrong object": [_disc(40, at=(40, 40)), _disc(30, at=(160, 200))],
        "part only": [left, _disc(30)],
        "too much": [~nothing, _disc(60), mask | _disc(30, at=(40, 40))],
        "good": [mask, _disc(41)],
    }
    assert {kind: [error_of(found, mask) for found in given] for kind, given in expected.items()} == {
        kind: [kind] * len(given) for kind, given in expected.items()
    }
    large, rows = _disc(70), np.indices(mask.shape)[0]
    assert error_of(large ^ ((rows % 8 < 4) & _disc(76) & ~_disc(64)), large) == "ragged edge"
    assert error_of(nothing, nothing) == "good" and error_of(_disc(1), nothing) == "wrong object"
    dot = _disc(0)
    assert error_of(dot, dot) == "good" and error_of(~nothing, ~nothing) == "good"
    assert error_of(~nothing, dot) == "too much" and error_of(dot, ~nothing) == "missed"
