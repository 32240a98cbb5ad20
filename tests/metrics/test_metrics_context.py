import warnings

import cv2
import numpy as np
import py_sod_metrics
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.color import deltaE_ciede2000, rgb2lab

from e2net.metrics import MaskProtocol, camouflage_degree, context_measure
from e2net.metrics.context import _ciede2000, _lab


def scene(seed, h=90, w=110):
    rng = np.random.default_rng(seed)
    mask = cv2.GaussianBlur(rng.random((h, w)), (0, 0), 10) > 0.5
    image = cv2.GaussianBlur(rng.integers(0, 256, (h, w, 3), dtype=np.uint8), (0, 0), 1.5)
    level_map = cv2.GaussianBlur(np.roll(mask, 3, axis=0).astype(np.float64), (0, 0), 2) * 200
    return level_map.astype(np.uint8), mask, image


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.integers(2, 40), st.booleans())
def test_without_image_equals_pysod(seed, h, w, stretch):
    rng = np.random.default_rng(seed)
    mask = rng.random((h, w)) < rng.choice([0.02, 0.3, 0.9])
    if seed % 5 == 0:
        mask[:] = seed % 2
    points = np.argwhere(mask)
    if len(points) > 1 and np.linalg.matrix_rank(points - points[0]) < 2 and (np.ptp(points, axis=0) > 0).all():
        return  # a slanted line: the reference fails, see below
    level_map = rng.integers(0, 256, (h, w), dtype=np.uint8)
    theirs = py_sod_metrics.ContextMeasure()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.step(
            *((level_map, mask.astype(np.uint8) * 255) if stretch else (level_map / 255, mask)), normalize=stretch
        )
    protocol = MaskProtocol(normalize="minmax" if stretch else "as_is")
    found = context_measure(level_map, mask, protocol=protocol)
    assert float(found) == pytest.approx(theirs.get_results()["cm"], abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_with_image_equals_pysod(seed):
    level_map, mask, image = scene(seed)
    theirs = py_sod_metrics.CamouflageContextMeasure()
    theirs.step(level_map, mask.astype(np.uint8) * 255, img=image)
    degree = theirs._calculate_camouflage_degree(image, mask.astype(np.float64))[1]
    found = camouflage_degree(image, mask)
    assert found.max() > 0.1
    np.testing.assert_allclose(found, degree, rtol=0, atol=1e-9)
    score = context_measure(level_map, mask, image, protocol=MaskProtocol())
    assert float(score) == pytest.approx(theirs.get_results()["ccm"], abs=1e-9)


def test_colour_difference():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, 3000, 3), dtype=np.uint8)
    a[:300] = a[:300, :1]  # greys
    b[200:500] = b[200:500, :1]
    a[500:505] = 0
    np.testing.assert_allclose(_lab(a), rgb2lab(a), atol=1e-10)
    np.testing.assert_allclose(_ciede2000(_lab(a), _lab(b)), deltaE_ciede2000(rgb2lab(a), rgb2lab(b)), atol=1e-9)
    # A pair from the table of test data by Sharma, Wu and Dalal.
    found = _ciede2000(np.array([[50.0, 2.6772, -79.7751]]), np.array([[50.0, 0.0, -82.7485]]))
    assert found[0] == pytest.approx(2.0425, abs=5e-5)


def test_slanted_line_and_small_masks_are_finite():
    for mask in (np.eye(9, dtype=bool), np.zeros((9, 9), dtype=bool)):
        assert 0 <= float(context_measure(torch.from_numpy(mask).double(), torch.from_numpy(mask))) < 2
    _, mask, image = scene(0, 5, 5)
    assert not camouflage_degree(image, mask).any()


@pytest.mark.parametrize("value", [False, True])
def test_degree_where_one_side_is_missing(value):
    _, mask, image = scene(0, 20, 30)
    mask[:] = value
    assert not camouflage_degree(image, mask).any()


def test_errors():
    level_map, mask, image = scene(0)
    with pytest.raises(TypeError, match="image: expected uint8, found float64"):
        context_measure(level_map, mask, image / 255)
    with pytest.raises(ValueError, match="image: expected RGB of shape"):
        context_measure(level_map, mask, image[:-1])
