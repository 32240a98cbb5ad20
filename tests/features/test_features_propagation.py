"""Labels through a film against a plain loop, and films in which the right answer is known."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from e2net.features import propagation
from e2net.features.propagation import labels_of, propagate, shares_of


def _loop(target, context, labels, radius, top, temperature):
    """The protocol in its own words, patch by patch."""
    h, w, _ = target.shape
    found = np.zeros((h, w, labels[0].shape[2]))
    for y in range(h):
        for x in range(w):
            voters = []
            for frame, shares in zip(context, labels, strict=True):
                for v in range(h):
                    for u in range(w):
                        if radius is None or (y - v) ** 2 + (x - u) ** 2 <= radius**2:
                            a, b = target[y, x], frame[v, u]
                            cosine = float(a @ b) / (float(a @ a) ** 0.5 * float(b @ b) ** 0.5)
                            voters.append((cosine, shares[v, u]))
            voters = sorted(voters, key=lambda one: -one[0])[:top]
            weights = [math.exp(cosine / temperature) for cosine, _ in voters]
            found[y, x] = sum(k * one for k, (_, one) in zip(weights, voters, strict=True)) / sum(weights)
    return found


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000), h=st.integers(1, 6), w=st.integers(1, 6), frames=st.integers(1, 3),
    radius=st.sampled_from([0, 1, 1.5, 2, 3, None]), top=st.integers(1, 9), held=st.sampled_from([1, 60, 1 << 23]),
)  # fmt: skip
def test_propagation_is_that_of_a_plain_loop(seed, h, w, frames, radius, top, held):
    rng = np.random.default_rng(seed)
    target = rng.normal(size=(h, w, 5)).astype(np.float32)
    context = rng.normal(size=(frames, h, w, 5)).astype(np.float32)
    labels = rng.dirichlet(np.ones(3), (frames, h, w)).astype(np.float32)
    before, propagation._HELD = propagation._HELD, held  # one row at a time, some, all
    try:
        found = propagate(
            torch.from_numpy(target), list(torch.from_numpy(context)), list(torch.from_numpy(labels)), radius, top, 0.2
        )
    finally:
        propagation._HELD = before
    expected = _loop(target.astype(float), context.astype(float), labels.astype(float), radius, top, 0.2)
    assert found.numpy() == pytest.approx(expected, abs=1e-5)


def test_shares_are_those_of_the_pixels_in_a_patch():
    mask = torch.tensor([[0, 1, 2, 2], [1, 1, 2, 0]])
    assert shares_of(mask, 2, (1, 2)).tolist() == [[[0.25, 0.75, 0], [0.25, 0, 0.75]]]


def test_objects_that_fill_the_picture_or_are_gone_stay_so():
    gone = torch.zeros(3, 4, 3)
    gone[..., 0] = 1 - 1e-6 * torch.rand(3, 4)
    full = torch.zeros(3, 4, 3)
    full[..., 2] = 1 - 1e-6 * torch.rand(3, 4)
    for stretch in (True, False):
        assert (labels_of(gone, (33, 47), stretch) == 0).all()
        assert (labels_of(full, (33, 47), stretch) == 2).all()


def test_stretching_lets_a_small_object_win():
    shares = torch.zeros(5, 5, 2)
    shares[2, 2, 1] = 0.4
    shares[..., 0] = 1 - shares[..., 1]
    assert not labels_of(shares, (5, 5), stretch=False).any()
    assert labels_of(shares, (5, 5)).nonzero().tolist() == [[2, 2]]


def test_wrong_settings_and_films_that_change_their_size_are_errors():
    frame, shares = torch.ones(2, 3, 4), torch.ones(2, 3, 2)
    with pytest.raises(ValueError, match="changes its size"):
        propagate(frame, [torch.ones(3, 3, 4)], [torch.ones(3, 3, 2)])
    with pytest.raises(ValueError, match="at least one frame"):
        propagate(frame, [], [])
    for wrong in ({"radius": -1}, {"top": 0}, {"temperature": 0}, {"temperature": math.nan}):
        with pytest.raises(ValueError, match="expected radius from 0"):
            propagate(frame, [frame], [shares], **wrong)
