"""Large JPEGs are decoded at a reduced size for training: the same crops and masks, nearly the same pixels."""

import math
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from e2net.datasets import Augment, FolderPairs, ProceduralPairs
from e2net.formats import read_image

SIZE = (64, 64)


def _write(root, height, width, extension=".jpg", orientation=None):
    """A picture with structure at all scales, and a mask that is not centred."""
    image, mask = ProceduralPairs(1, 0, 0.3, "train", (180, 200)).read(0)
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
    mask = cv2.resize(mask.astype(np.uint8) * 255, (width, height), interpolation=cv2.INTER_LINEAR)
    for folder in ("Image", "GT"):
        (root / folder).mkdir(parents=True)
    picture = Image.fromarray(image)
    exif = picture.getexif()
    if orientation is not None:
        exif[0x0112] = orientation
        mask = mask.T[:, ::-1]  # 6: to be shown turned by 90 degrees
    options: dict[str, Any] = {"quality": 95, "exif": exif} if extension == ".jpg" else {}
    picture.save(root / "Image" / f"a{extension}", **options)
    Image.fromarray(np.ascontiguousarray(mask)).save(root / "GT" / "a.png")
    return FolderPairs(root)


@pytest.mark.parametrize(
    ("at_least", "factor"),
    [(None, 1), ((601, 801), 1), ((451, 601), 1), ((450, 600), 2), ((226, 100), 2), ((225, 300), 4), ((1, 1), 8)],
)
def test_as_small_as_is_asked_for(tmp_path, at_least, factor):
    image, mask = _write(tmp_path, 901, 1203).read(0, at_least)
    assert mask.shape == (901, 1203)
    assert image.shape[:2] == (-(-901 // factor), -(-1203 // factor))
    if at_least is not None and factor > 1:
        assert image.shape[0] >= at_least[0] and image.shape[1] >= at_least[1]


def test_other_formats_and_turned_pictures(tmp_path):
    assert _write(tmp_path / "png", 400, 600, ".png").read(0, (10, 10))[0].shape == (400, 600, 3)
    image, mask = _write(tmp_path / "turned", 400, 600, orientation=6).read(0, (300, 200))
    assert mask.shape == (600, 400) and image.shape == (300, 200, 3)


def test_a_mask_of_another_size_is_still_found(tmp_path):
    pairs = _write(tmp_path, 400, 600)
    Image.fromarray(np.zeros((400, 604), np.uint8)).save(tmp_path / "GT" / "a.png")
    with pytest.raises(ValueError, match=r"the mask has 604x400 pixels, its image a\.jpg 600x400"):
        pairs.read(0, (50, 50))


@pytest.mark.parametrize("rotate", [0, 15])
@pytest.mark.parametrize("seed", range(5))
def test_augmentation_sees_the_same_crop(tmp_path, seed, rotate):
    pairs: FolderPairs = _write(tmp_path, 1201, 1603)
    augment = Augment(rotate=rotate, colour=0, noise=0)
    small = pairs.read(0, augment.needs(SIZE))
    assert small[0].shape[0] in (301, 601)
    whole = pairs.read(0)
    image, mask = augment(*small, SIZE, np.random.default_rng(seed))
    expected, expected_mask = augment(*whole, SIZE, np.random.default_rng(seed))
    assert np.array_equal(mask, expected_mask)
    # Filtered otherwise, but not displaced: the default noise alone adds as much.
    assert np.abs(image.astype(int) - expected).mean() < 3
    before, after = (picture.mean(-1).astype(np.float32) for picture in (expected, image))
    shift, _ = cv2.phaseCorrelate(before, after, cv2.createHanningWindow(SIZE, cv2.CV_32F))
    assert math.hypot(*shift) < 0.2  # pixels


def test_what_a_crop_needs():
    assert Augment(scale=(1, 1), rotate=0).needs((100, 200)) == (231, 462)  # 2 · sqrt(4/3)
    assert Augment(scale=(0.5, 1), rotate=15).needs((100, 200)) == (654, 654)


def test_a_picture_at_its_own_size_is_the_same_as_ever(tmp_path):
    pairs = _write(tmp_path, 400, 600)
    assert np.array_equal(pairs.read(0)[0], read_image(tmp_path / "Image" / "a.jpg"))
