"""The vote of the nearest against a plain loop."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from e2net.neighbours import nearest


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 12))
def test_neighbours_are_those_of_a_plain_loop(seed, count):
    rng = np.random.default_rng(seed)
    bank, targets, rows = rng.normal(size=(9, 4)), rng.random((9, 3)), rng.normal(size=(6, 4))
    known, labels, asked = (torch.from_numpy(one).float() for one in (bank, targets, rows))
    found = nearest(known, labels, count)(asked)
    for row, one in zip(rows, found.numpy(), strict=True):
        cosine = [float(row @ b) / math.sqrt(float(row @ row) * float(b @ b)) for b in bank]
        chosen = sorted(range(9), key=lambda i: -cosine[i])[:count]
        votes = [math.exp(cosine[i] / 0.07) for i in chosen]
        assert one == pytest.approx(
            sum(v * targets[i] for v, i in zip(votes, chosen, strict=True)) / sum(votes), abs=1e-4
        )
