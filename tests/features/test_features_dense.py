"""Linear maps of patches against NumPy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from e2net.features.dense import Ridge, activated, targets_of
from e2net.structures import IGNORED
from e2net.tasks import Camouflage, Depth, Semantic


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 4), st.sampled_from([1e-3, 0.1]))
def test_the_linear_map_is_the_one_of_least_squares(seed, parts, penalty):
    rng = np.random.default_rng(seed)
    x, y, weight = rng.normal(3, 2, (40, 5)), rng.normal(size=(40, 2)), rng.random(40) * (rng.random(40) > 0.3)
    ridge = Ridge(5, 2)
    for rows in np.array_split(np.arange(40), parts):
        ridge.add(*(torch.from_numpy(one[rows]) for one in (x, y, weight)))
    found = ridge.solve(penalty)(torch.from_numpy(x).float()).numpy()
    # Least squares over the samples and over rows that stand for the penalty.
    total = weight.sum()
    mean, centre = weight @ x / total, weight @ y / total
    strength = penalty * (weight @ (x - mean) ** 2 / total).mean()
    a = np.vstack([np.sqrt(weight / total)[:, None] * (x - mean), math.sqrt(strength) * np.eye(5)])
    b = np.vstack([np.sqrt(weight / total)[:, None] * (y - centre), np.zeros((5, 2))])
    slope, *_ = np.linalg.lstsq(a, b, rcond=None)
    assert found == pytest.approx((x - mean) @ slope + centre, abs=1e-4)


def test_features_that_never_change_and_targets_that_are_unknown():
    ridge = Ridge(3, 1)
    ridge.add(torch.ones(4, 3), torch.arange(4.0)[:, None], torch.ones(4))
    assert ridge.solve()(torch.ones(1, 3)).item() == pytest.approx(1.5)
    with pytest.raises(ValueError, match="something known"):
        Ridge(3, 1).solve()


def test_targets_of_patches_are_means_over_what_is_known():
    labels = np.array([[0, 1, 2, IGNORED], [1, 1, IGNORED, IGNORED]], np.uint16)
    shares, known = targets_of(Semantic(classes=3), labels, (1, 2))
    assert shares.tolist() == [[0.25, 0.75, 0], [0, 0, 1]]
    assert known.tolist() == [1, 0.25]
    metres = np.array([[1, 4, 0, 0], [1, 4, 0, 2]], np.float32)
    logs, known = targets_of(Depth(), metres, (1, 2))
    assert logs[:, 0].tolist() == pytest.approx([math.log(2), math.log(2)])
    assert known.tolist() == [1, 0.25]
    share, known = targets_of(Camouflage(), np.array([[True, False, True, True]]), (1, 2))
    assert share.tolist() == [[0.5], [1]]
    assert known.tolist() == [1, 1]


def test_maps_are_what_a_task_takes():
    assert activated(Depth(), torch.tensor([[math.log(2)], [99.0]]), (1, 2)).tolist() == [[[2, 10]]]
    assert activated(Camouflage(), torch.tensor([[-1.0], [0.5], [2]]), (3, 1)).tolist() == [[[0], [0.5], [1]]]
    assert activated(Semantic(classes=2), torch.tensor([[-1.0, 2]]), (1, 1)).tolist() == [[[-1]], [[2]]]
