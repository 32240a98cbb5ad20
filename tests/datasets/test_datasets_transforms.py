from typing import Any

import cv2
import numpy as np
import pytest

from e2net.datasets import Augment, Resize

Pair = tuple[np.ndarray, np.ndarray]
OFF: dict[str, Any] = {"flip": 0.0, "scale": (1.0, 1.0), "rotate": 0.0, "colour": 0.0, "noise": 0.0}


@pytest.fixture
def pair():
    """A smooth image (90, 130, 3) whose mask is exactly where red is high, so that both can be compared."""
    rng = np.random.default_rng(1)
    image = cv2.resize(rng.integers(40, 216, (6, 8, 3), dtype=np.uint8), (130, 90), interpolation=cv2.INTER_CUBIC)
    mask = np.zeros((90, 130), np.uint8)
    cv2.ellipse(mask, (45, 40), (30, 18), 20, 0, 360, 1, -1)
    image[..., 0] = np.where(mask, 250, 5)
    return image, mask > 0


def rng(seed=0):
    return np.random.default_rng(seed)


def test_resize(pair):
    image, mask = Resize((64, 48))(*pair)
    assert image.shape == (64, 48, 3)
    assert image.dtype == np.uint8
    assert mask.shape == (64, 48)
    assert mask.dtype == bool
    assert abs(mask.mean() - pair[1].mean()) < 0.01


def test_resize_to_own_size_changes_nothing(pair):
    image, mask = Resize((90, 130))(*pair)
    np.testing.assert_array_equal(image, pair[0])
    np.testing.assert_array_equal(mask, pair[1])


def test_resize_does_not_alias():
    # one-pixel stripes become an even grey when shrunk; skipping pixels would keep black or white
    image = np.zeros((240, 240, 3), np.uint8)
    image[:, ::2] = 255
    small, _ = Resize((60, 60))(image, np.zeros((240, 240), bool))
    assert np.abs(small.astype(int) - 128).max() <= 1
    turned, _ = Augment(**{**OFF, "rotate": 10})(image, np.zeros((240, 240), bool), (60, 60), rng())
    assert turned.std() < 16


def test_everything_off_is_resize(pair: Pair):
    image, mask = Augment(**OFF)(*pair, (64, 48), rng())
    expected_image, expected_mask = Resize((64, 48))(*pair)
    np.testing.assert_array_equal(image, expected_image)
    np.testing.assert_array_equal(mask, expected_mask)


@pytest.mark.parametrize("size", [(64, 48), (33, 20), (180, 200)])
def test_flip_is_the_mirror_image_of_resize(pair: Pair, size):
    image, mask = Augment(**{**OFF, "flip": 1.0})(*pair, size, rng())
    expected_image, expected_mask = Resize(size)(*pair)
    assert np.abs(image.astype(int) - expected_image[:, ::-1]).mean() < 1
    assert (mask != expected_mask[:, ::-1]).mean() < 0.005


@pytest.mark.parametrize(
    ("knob", "value", "moves"),
    [
        ("flip", 1.0, True),
        ("scale", (0.3, 0.6), True),
        ("rotate", 30, True),
        ("colour", 0.4, False),
        ("noise", 0.1, False),
    ],
)
def test_every_knob_changes_something_and_zero_nothing(pair: Pair, knob, value, moves):
    base_image, base_mask = Augment(**OFF)(*pair, (64, 64), rng())
    image, mask = Augment(**{**OFF, knob: value})(*pair, (64, 64), rng())
    assert np.abs(image.astype(int) - base_image).mean() > 2
    assert ((mask != base_mask).any()) == moves
    assert abs(int(image.mean()) - 128) < 100


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("size", [(40, 40), (96, 64), (200, 240)])
def test_image_and_mask_move_together(pair: Pair, seed, size):
    augment = Augment(flip=0.5, scale=(0.3, 1.0), rotate=40, colour=0, noise=0)
    image, mask = augment(*pair, size, rng(seed))
    assert image.shape == (*size, 3)
    assert mask.shape == size
    assert ((image[..., 0] > 127) != mask).mean() < 0.004


def test_same_generator_same_result(pair: Pair):
    augment = Augment(scale=(0.3, 1.0), rotate=40, colour=0.5, noise=0.1)
    first, second, other = (augment(*pair, (50, 60), rng(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    assert (first[0] != other[0]).any()


def test_input_is_left_alone(pair: Pair):
    image, mask = pair[0].copy(), pair[1].copy()
    Augment()(*pair, (50, 60), rng())
    np.testing.assert_array_equal(pair[0], image)
    np.testing.assert_array_equal(pair[1], mask)


def test_a_crop_never_loses_the_object():
    image = np.zeros((100, 100, 3), np.uint8)
    mask = np.zeros((100, 100), bool)
    mask[2:8, 90:98] = True  # in a corner, where most crops of a tenth of the area miss it
    augment = Augment(flip=0.5, scale=(0.1, 0.2), rotate=20, colour=0, noise=0)
    areas = [augment(image, mask, (100, 100), rng(seed))[1].sum() for seed in range(200)]
    assert min(areas) > 0
    # and most of it stays in most crops, in which it is magnified
    assert np.mean(np.array(areas) > mask.sum()) > 0.5


def test_empty_mask_stays_empty():
    image, mask = Augment()(np.zeros((30, 40, 3), np.uint8), np.zeros((30, 40), bool), (20, 20), rng())
    assert not mask.any()
    assert image.shape == (20, 20, 3)


def test_colour_keeps_grey_grey_under_hue_and_saturation(pair):
    # with brightness and contrast acting on all channels alike, a grey picture stays grey whatever is drawn
    grey = np.repeat(pair[0][..., 1:2], 3, axis=2)
    image, _ = Augment(**{**OFF, "colour": 1.0})(grey, pair[1], (64, 64), rng(2))
    assert np.ptp(image.astype(int), axis=2).max() <= 1


def test_noise_is_unbiased():
    image = np.full((100, 100, 3), 100, np.uint8)
    noisy, _ = Augment(**{**OFF, "noise": 0.05})(image, np.zeros((100, 100), bool), (100, 100), rng())
    assert abs(noisy.mean() - 100) < 0.2
    assert 0 < noisy.std() <= 0.05 * 255 * 1.05


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"flip": 1.5}, "flip between 0 .* and 1, found 1.5"),
        ({"rotate": -1}, "rotate between 0"),
        ({"colour": 2}, "colour between 0"),
        ({"noise": -0.1}, "noise between 0"),
        ({"scale": (0.0, 1.0)}, r"scale as \[lo, hi\].*found \[0\.0, 1\.0\]"),
        ({"scale": (0.9, 0.5)}, r"scale as \[lo, hi\]"),
        ({"scale": (0.5, 1.5)}, r"scale as \[lo, hi\]"),
    ],
)
def test_knobs_out_of_range(knobs, message):
    with pytest.raises(ValueError, match=message):
        Augment(**knobs)
