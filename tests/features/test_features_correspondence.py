"""Matches against a plain loop, and a picture against its own shifted copy."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2net.features import correspondence
from e2net.features.correspondence import centres, locate, mutual_nearest, pck, spread


def _cosine(a, b):
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def _nearest(one, places, patches):
    return max(places, key=lambda place: _cosine(one, patches[place]))


def _mutual(first, second):
    ours = [(y, x) for y in range(first.shape[0]) for x in range(first.shape[1])]
    theirs = [(y, x) for y in range(second.shape[0]) for x in range(second.shape[1])]
    there = {p: _nearest(first[p], theirs, second) for p in ours}
    back = {q: _nearest(second[q], ours, first) for q in theirs}
    return {(p, there[p]): _cosine(first[p], second[there[p]]) for p in ours if back[there[p]] == p}


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000), sizes=st.tuples(*[st.integers(1, 6)] * 4), rows=st.sampled_from([1, 7, 4096])
)  # fmt: skip
def test_matches_are_those_of_a_plain_loop(seed, sizes, rows):
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=(*sizes[:2], 4)), rng.normal(size=(*sizes[2:], 4))
    before, correspondence._ROWS = correspondence._ROWS, rows
    try:
        found = mutual_nearest(first, second)
    finally:
        correspondence._ROWS = before
    pairs = [(tuple(p), tuple(q)) for p, q in zip(found.first.tolist(), found.second.tolist(), strict=True)]
    expected = _mutual(first, second)
    assert dict(zip(pairs, found.similarity.tolist(), strict=True)) == pytest.approx(expected, abs=1e-5)
    assert (np.diff(found.similarity) <= 0).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 3), st.integers(0, 3))
def test_a_shifted_copy_is_found_where_it_lies(seed, down, right):
    patches = np.random.default_rng(seed).normal(size=(9, 12, 16))
    first, second = patches[:6, :9], patches[down : down + 6, right : right + 9]
    seen = [(y, x) for y in range(down, 6) for x in range(right, 9)]
    found = mutual_nearest(first, second)
    exact = found.similarity > 0.9999
    assert {tuple(p) for p in found.first[exact].tolist()} == set(seen)
    assert (found.first[exact] - found.second[exact] == (down, right)).all()
    # Pictures of 20 and 10 pixels a patch, across and down alike.
    points = centres(np.array(seen), (6, 9), (120, 180))
    there = locate(points, first, second, (120, 180), (60, 90))
    assert there == pytest.approx((points + 0.5) / 2 - 0.5 - np.array([right, down]) * 10)


def test_points_between_patches_and_at_the_edge_are_interpolated():
    first = np.zeros((1, 3, 3))
    first[0] = np.eye(3)
    second = np.array([[[1, 1, 0], [0, 1, 1], [0, 0, 1.0]]])
    # The pixel between the first two patches of 10 pixels; one beyond the last patch's middle.
    found = locate(np.array([[9.5, 4.5], [29, 0]]), first, second, (10, 30), (10, 30))
    assert found.tolist() == [[4.5, 4.5], [24.5, 4.5]]


def test_drawn_matches_lie_apart():
    places = np.array([[0, 0], [0, 1], [3, 0], [3, 4], [0, 5]])
    matches = correspondence.Matches(places, places[::-1], np.linspace(1, 0.5, 5, dtype=np.float32))
    assert spread(matches, 10, 3).first.tolist() == [[0, 0], [3, 0], [3, 4], [0, 5]]
    assert spread(matches, 2, 3).second.tolist() == [[0, 5], [3, 0]]
    assert len(spread(matches, 9, 0).first) == 5


def test_pck_counts_what_lies_within_reach():
    truth = np.array([[0.0, 0.0], [10, 10], [50, 50], [90, 20]])
    found = truth + np.array([[0, 10], [7, 8], [0, 0], [8, 6]])
    assert pck(found, truth, 100, 0.1) == 0.75  # 10, 10.6, 0 and 10 pixels away
    with pytest.raises(ValueError, match="at least one, found 0 and 0"):
        pck(truth[:0], truth[:0], 100)
    with pytest.raises(ValueError, match="found 3 and 4"):
        pck(truth[:3], truth, 100)


def test_features_that_cannot_be_compared_are_errors():
    with pytest.raises(ValueError, match="one width, found 3 and 4"):
        mutual_nearest(np.ones((1, 2, 3)), np.ones((1, 2, 4)))
    with pytest.raises(ValueError, match="at least one patch"):
        mutual_nearest(np.ones((0, 2, 3)), np.ones((1, 2, 3)))
