"""J, F and J&F of DAVIS against plain loops over pixels, and against films whose scores are known."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from e2net.metrics.tracking import contour_accuracy, outline, region_similarity, score_object

SIZES = st.tuples(st.integers(1, 12), st.integers(1, 12))
PAIRS = SIZES.flatmap(lambda shape: st.tuples(arrays(np.bool_, shape), arrays(np.bool_, shape)))


def _outline(mask):
    h, w = mask.shape
    found = np.zeros((h, w), bool)
    for y in range(h):
        for x in range(w):
            for dy, dx in ((0, 1), (1, 0), (1, 1)):
                # The last row looks to the right alone, the last column down alone, the last pixel nowhere.
                there = (y + dy if y + dy < h else y, x + dx if x + dx < w else x)
                found[y, x] |= mask[y, x] != mask[there]
    return found


def _near(points, others, reach):
    others = np.argwhere(others).tolist()
    return sum(any((y - v) ** 2 + (x - u) ** 2 <= reach**2 for v, u in others) for y, x in np.argwhere(points).tolist())


def _contour(mask, truth):
    reach = math.ceil(0.008 * math.hypot(*mask.shape))
    ours, theirs = _outline(mask), _outline(truth)
    n, m = int(ours.sum()), int(theirs.sum())
    if n == 0 and m == 0:
        precision = recall = 1.0
    elif n == 0:
        precision, recall = 1.0, 0.0
    elif m == 0:
        precision, recall = 0.0, 1.0
    else:
        precision, recall = _near(ours, theirs, reach) / n, _near(theirs, ours, reach) / m
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@settings(max_examples=150, deadline=None)
@given(PAIRS)
@example((np.zeros((3, 4), bool), np.ones((3, 4), bool)))
@example((np.zeros((3, 4), bool), np.zeros((3, 4), bool)))
def test_region_and_contour_are_those_of_a_plain_loop(pair):
    mask, truth = pair
    both = sum(bool(a and b) for a, b in zip(mask.flat, truth.flat, strict=True))
    either = sum(bool(a or b) for a, b in zip(mask.flat, truth.flat, strict=True))
    assert region_similarity(mask, truth) == (both / either if either else 1.0)
    assert np.array_equal(outline(mask), _outline(mask))
    assert contour_accuracy(mask, truth) == pytest.approx(_contour(mask, truth), abs=1e-12)


@pytest.mark.parametrize("shape", [(90, 160), (360, 640)])  # a reach of 2 and of 6 pixels
@pytest.mark.parametrize("shift", [1, 2, 3, 6, 7])
def test_outlines_meet_up_to_the_reach_of_the_picture(shape, shift):
    truth = np.zeros(shape, bool)
    truth[20:60, 30:90] = True
    mask = np.roll(truth, shift, axis=1)
    assert contour_accuracy(mask, truth) == pytest.approx(_contour(mask, truth), abs=1e-12)
    reach = math.ceil(0.008 * math.hypot(*shape))
    assert (contour_accuracy(mask, truth) == 1) == (shift <= reach)


def test_decay_compares_the_first_quarter_with_the_last():
    found = score_object([0.9, 0.9, 0.8, 0.5, 0.4, 0.3, 0.2, 0.1], [1.0] * 8)
    # Eight frames part at 1, 2.75, 4.5, 6.25, 8, which round to frames 1, 3, 5, 6, 8; ends are shared.
    assert found.j_decay == pytest.approx((0.9 + 0.9 + 0.8) / 3 - (0.3 + 0.2 + 0.1) / 3)
    assert found.j_mean == pytest.approx(0.5125)
    assert found.j_recall == 3 / 8  # .5 itself is not above it
    assert (found.f_mean, found.f_recall, found.f_decay) == (1, 1, 0)
    assert found.mean == pytest.approx((0.5125 + 1) / 2)
    assert math.isnan(score_object([1.0], [1.0]).j_decay)


def test_masks_of_other_sizes_and_films_without_frames_are_errors():
    with pytest.raises(ValueError, match=r"size \(3, 4\), found \(4, 3\)"):
        region_similarity(np.zeros((4, 3), bool), np.zeros((3, 4), bool))
    with pytest.raises(ValueError, match="of bool, found uint8"):
        contour_accuracy(np.zeros((4, 3), np.uint8), np.zeros((4, 3), bool))
    with pytest.raises(ValueError, match="at least one frame"):
        score_object([], [])
