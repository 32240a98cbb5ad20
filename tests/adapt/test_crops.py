"""Multi-crop against what a plain look at its regions says."""

import math
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from e2net.adapt.crops import Colours, MultiCrop, Region, _coloured, collate_crops
from e2net.datasets import ProceduralPairs
from e2net.formats import read_image

PLAIN: dict[str, Any] = {"jitter_probability": 0.0, "grey": 0.0, "blur": (0.0, 0.0, 0.0), "solarise": 0.0}
SIDES = st.integers(1, 400)


def _rng(seed=0):
    return np.random.default_rng(seed)


def _picture(height, width, cell=16):
    """Smooth, so that resizing has an answer; of cells that many pixels wide."""
    noise = _rng().integers(0, 256, (max(2, height // cell), max(2, width // cell), 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 2**32), st.integers(1, 400), st.integers(1, 400), st.tuples(*[st.floats(0.02, 1)] * 2).map(sorted)
)
def test_regions_are_as_large_as_they_may_be_and_inside(seed, height, width, scale):
    crops = MultiCrop(32, 16, 2, 3, scale, scale)
    for x, y, w, h in (region.box for region in crops.plan(_rng(seed), height, width)):
        assert x >= 0 and x + w <= width and y >= 0 and y + h <= height and w >= 1 and h >= 1
        middle = (x, y) == ((width - w) // 2, (height - h) // 2)
        # half a pixel of rounding at each side, but for what fits nowhere
        low, high = (w - 0.5) * (h - 0.5) / (height * width), (w + 0.5) * (h + 0.5) / (height * width)
        fits = (
            low <= scale[1] and high >= scale[0] and (w - 0.5) / (h + 0.5) <= 4 / 3 and (h - 0.5) / (w + 0.5) <= 4 / 3
        )
        assert fits or middle or min(w, h) == 1


def test_scales_and_places_are_uniform():
    regions = [one for seed in range(400) for one in MultiCrop(locals=2).plan(_rng(seed), 300, 300)]
    for kind, (low, high) in (
        (regions[0::4] + regions[1::4], (0.32, 1)),
        (regions[2::4] + regions[3::4], (0.05, 0.32)),
    ):
        parts = np.array([one.box[2] * one.box[3] for one in kind]) / 300**2
        assert low * 0.98 < parts.min() and parts.max() <= min(1, high * 1.03)
        if high < 1:  # large ones are drawn anew where their aspect has no room
            assert abs(parts.mean() - (low + high) / 2) < 4 * (high - low) / math.sqrt(12 * len(kind))
        centre = np.array([one.box[0] + one.box[2] / 2 for one in kind])
        assert abs(centre.mean() - 150) < 4 * centre.std() / math.sqrt(len(kind))
    assert abs(np.mean([one.flipped for one in regions]) - 0.5) < 4 * 0.5 / math.sqrt(len(regions))


def _expected(image, region, side):
    """The region by its corners alone: places of pixel centres, each the mean of 4x4 bilinear samples."""
    x, y, w, h = region.box
    fine = (np.arange(4 * side) + 0.5) / (4 * side)
    map_x, map_y = np.meshgrid(x + fine * w - 0.5, y + fine * h - 0.5)
    samples = cv2.remap(
        image.astype(np.float32), map_x.astype(np.float32), map_y.astype(np.float32), cv2.INTER_LINEAR, None,
        cv2.BORDER_REPLICATE,
    )  # fmt: skip
    crop = samples.reshape(side, 4, side, 4, 3).mean((1, 3))
    return crop[:, ::-1] if region.flipped else crop


@pytest.mark.parametrize("size", [(240, 320), (60, 45)])  # crops shrink, and grow
@pytest.mark.parametrize("seed", range(4))
def test_crops_show_their_regions(size, seed):
    image, crops = _picture(*size), MultiCrop(48, 24, gram_size=96, **PLAIN)
    plan, made = crops.plan(_rng(seed), *size), crops(image, _rng(seed))
    assert {one.flipped for s in range(4) for one in crops.plan(_rng(s), *size)} == {True, False}
    assert made.gram is not None and made.global_.shape == (2, 3, 48, 48) and made.local.shape == (8, 3, 24, 24)
    assert made.gram.shape == (2, 3, 96, 96) and all(part.dtype == torch.uint8 for part in made)
    for kind, regions in ((made.global_, plan[:2]), (made.local, plan[2:]), (made.gram, plan[:2])):
        for crop, region in zip(kind, regions, strict=True):
            difference = np.abs(crop.permute(1, 2, 0).numpy() - _expected(image, region, crop.shape[-1]))
            assert difference.mean() < 2.5, region  # another region or no flip: 30 and more


def test_gram_crops_have_the_pictures_own_colours_whatever_the_others_have():
    image = _picture(200, 150)
    loud = MultiCrop(48, 24, gram_size=96, jitter_probability=1.0, blur=(1, 1, 1), solarise=1.0)
    first, second = loud(image, _rng(3)), MultiCrop(48, 24, gram_size=96, **PLAIN)(image, _rng(3))
    assert first.gram is not None and second.gram is not None
    assert torch.equal(first.gram, second.gram) and not torch.equal(first.global_, second.global_)
    # the global crops are the same with and without gram crops
    without = MultiCrop(48, 24, jitter_probability=1.0, blur=(1, 1, 1), solarise=1.0)(image, _rng(3))
    assert torch.equal(first.global_, without.global_) and torch.equal(first.local, without.local)
    assert without.gram is None


def test_no_local_crops():
    made = MultiCrop(32, 16, locals=0)(_picture(50, 50), _rng())
    assert made.local.shape == (0, 3, 16, 16)
    batch = collate_crops([made, made])
    assert batch.local.shape == (0, 2, 3, 16, 16) and batch.gram is None and batch.broken == ()


def test_colours_come_as_often_as_was_asked_for():
    n = 1500
    plans = [MultiCrop(locals=2).plan(_rng(seed), 100, 100) for seed in range(n)]
    shares = {
        "blur": ([1.0, 0.1, 0.5], lambda c: c.blur > 0),
        "solarise": ([0.0, 0.2, 0.0], lambda c: c.solarised),
        "grey": ([0.2] * 3, lambda c: c.factors is not None and c.factors[2] == 0),
        "changed": ([1 - 0.2 * 0.8] * 3, lambda c: c.factors is not None),
    }
    for name, (expected, test) in shares.items():
        for index, share in enumerate(expected):
            found = np.mean([test(plan[index].colours) for plan in plans])
            assert abs(found - share) <= 4 * math.sqrt(share * (1 - share) / n), (name, index)
    jittered = [f for plan in plans if (f := plan[0].colours.factors) is not None and f[:2] != (1, 1)]
    low, high = np.min(jittered, axis=0), np.max(jittered, axis=0)
    bounds = [(0.6, 1.4), (0.6, 1.4), (0.0, 1.2), (-0.2 * math.pi, 0.2 * math.pi)]
    for index, (least, most) in enumerate(bounds):
        assert least <= low[index] and high[index] <= most and high[index] - low[index] > 0.95 * (most - least)
    sigmas = [plan[0].colours.blur for plan in plans]
    assert 0.1 <= min(sigmas) < 0.12 and 1.98 < max(sigmas) <= 2


def test_a_probability_moves_nothing_else():
    first, second = (one.plan(_rng(7), 90, 120) for one in (MultiCrop(), MultiCrop(**PLAIN)))
    assert [one[:3] for one in first] == [one[:3] for one in second]
    assert [one.colours for one in second] == [Colours()] * 10


def _luma(pixels):
    return pixels @ np.array([0.299, 0.587, 0.114])


def test_each_change_of_colours_is_what_its_name_says():
    image = _picture(40, 30)
    x = image.astype(np.float64)

    def close(colours, expected):
        return np.abs(_coloured(image, colours) - np.clip(expected, 0, 255)).max() <= 1

    assert close(Colours((1.3, 1, 1, 0)), 1.3 * x)
    assert close(Colours((1, 0.6, 1, 0)), _luma(x).mean() + 0.6 * (x - _luma(x).mean()))
    assert close(Colours((1, 1, 0, 0)), np.repeat(_luma(x)[..., None], 3, 2))
    assert close(Colours((1, 1, 0.5, 0)), 0.5 * x + 0.5 * _luma(x)[..., None])
    assert close(Colours((1, 1, 1, 2 * math.pi / 3)), x[..., [2, 0, 1]])  # a third of a turn: red becomes green
    assert np.array_equal(_coloured(image, Colours(None, 0.0, True)), np.where(image < 128, image, 255 - image))
    assert np.array_equal(_coloured(image, Colours()), image)
    impulse = np.zeros((31, 31, 3), np.uint8)
    impulse[15, 15] = 255
    at = np.arange(31) - 15
    gauss = np.exp(-(at**2) / (2 * 1.5**2))
    expected = 255 * np.outer(gauss, gauss) / gauss.sum() ** 2
    assert np.abs(_coloured(impulse, Colours(None, 1.5)) - expected[..., None]).max() <= 1


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([None, 64, 200]))
def test_reduction_is_the_largest_that_enlarges_no_crop(seed, height, width, gram):
    crops = MultiCrop(48, 24, gram_size=gram)
    plan = crops.plan(_rng(seed), height, width)
    wanted = [max(48, gram or 0)] * 2 + [24] * 8

    def enlarges(factor):
        return any(min(one.box[2:]) / factor < side for one, side in zip(plan, wanted, strict=True))

    factor = crops.reduction(plan)
    assert factor == max([1, *(f for f in (2, 4, 8) if not enlarges(f))])


def test_crops_of_a_reduced_picture_are_those_of_the_whole(tmp_path):
    file = tmp_path / "large.jpg"
    # of sides that 2, 4 and 8 do not divide
    cv2.imwrite(str(file), _picture(901, 1203, 200), [cv2.IMWRITE_JPEG_QUALITY, 95])
    whole, factors = read_image(file), set()
    for seed in range(12):
        crops = MultiCrop(48, 24, gram_size=(64, 150, 300)[seed % 3])
        plan = crops.plan(_rng(seed), 901, 1203)
        factor = crops.reduction(plan)
        factors.add(factor)
        reduced = crops.cut(read_image(file, factor), plan, (901, 1203))
        for first, second in zip(reduced, crops.cut(whole, plan, (901, 1203)), strict=True):
            assert (first.float() - second.float()).abs().mean() < 3  # other regions: 30 and more
    assert {2, 4, 8} <= factors


def test_collated_crop_by_crop():
    crops, source = MultiCrop(32, 16, gram_size=48), ProceduralPairs(3)
    samples = [crops(source.read(index)[0], _rng(index)) for index in range(3)]
    batch = collate_crops(samples, [("a.jpg", "cut")])
    assert batch.global_.shape == (2, 3, 3, 32, 32) and batch.local.shape == (8, 3, 3, 16, 16)
    assert batch.gram.shape == (2, 3, 3, 48, 48) and batch.broken == (("a.jpg", "cut"),)
    for index, one in enumerate(samples):
        for whole, part in zip(batch[:3], one, strict=True):
            assert whole is not None and part is not None and torch.equal(whole[:, index], part)


@pytest.mark.parametrize(
    ("knob", "words"),
    [
        ({"global_size": 0}, "global_size as a whole number of 1 or more, found 0"),
        ({"local_size": 9.5}, "local_size as a whole number of 1 or more, found 9.5"),
        ({"globals": 0}, "globals as"),
        ({"locals": -1}, "locals as a whole number of 0 or more"),
        ({"gram_size": 0}, "gram_size as"),
        ({"global_scale": [0.5, 0.2]}, "global_scale as"),
        ({"local_scale": [0, 0.2]}, "local_scale as"),
        ({"jitter": [0.4, 0.4, 0.2]}, "jitter as"),
        ({"jitter": [0.4, 0.4, 0.2, 0.6]}, "hue, 0 to 0.5"),
        ({"jitter_probability": 2}, "jitter_probability as a probability"),
        ({"grey": -0.1}, "grey as a probability"),
        ({"blur": [1, 0]}, "blur as"),
        ({"blur": [1, 0, 2]}, "blur as a probability from 0 to 1, found 2"),
        ({"blur_sigma": [0, 1]}, "blur_sigma as"),
        ({"solarise": 1.1}, "solarise as"),
        ({"flip": -1}, "flip as"),
    ],
)
def test_knobs_out_of_range(knob, words):
    with pytest.raises(ValueError, match=f"crops: expected {words}|crops: expected.*{words}"):
        MultiCrop(**knob)


def test_a_view_of_one_pixel():
    region = Region((0, 0, 1, 1), 8, False, Colours())
    crops = MultiCrop(8, globals=1, locals=0)
    assert (crops.cut(np.full((1, 1, 3), 7, np.uint8), [region], (3, 5)).global_ == 7).all()
