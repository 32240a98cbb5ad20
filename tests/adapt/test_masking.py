"""Block masks: exact counts, blocks, and nothing but the generator decides."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from e2net.adapt.masking import block_masks

SIDES = st.integers(1, 20)
RATIOS = st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 9), SIDES, SIDES, st.floats(0, 1), RATIOS)
def test_counts_are_those_that_were_asked_for(seed, images, height, width, probability, ratio):
    masks = block_masks(np.random.default_rng(seed), images, height, width, probability, tuple(ratio))
    assert masks.shape == (images, height * width) and masks.dtype == torch.bool
    counts = sorted(count for count in masks.sum(1).tolist() if count)
    assert len(counts) in (math.floor(probability * images), math.ceil(probability * images))
    low, high = ratio
    for part, count in enumerate(counts):  # one in each equal part of the range
        first, last = (low + (high - low) * (part + k) / len(counts) for k in (0, 1))
        assert max(1, round(first * height * width)) <= count <= max(1, round(last * height * width))


@pytest.mark.parametrize(("height", "width"), [(14, 14), (7, 20), (1, 9), (32, 32)])
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9, 1.0])
def test_one_ratio_gives_one_count(height, width, ratio):
    masks = block_masks(np.random.default_rng(1), 20, height, width, 1.0, (ratio, ratio))
    assert masks.sum(1).unique().tolist() == [max(1, round(ratio * height * width))]


def test_a_share_of_the_images_is_masked_where_it_is_no_whole_number():
    rng = np.random.default_rng(0)
    masked = [bool(block_masks(rng, 1, 4, 4, 0.3).any()) for _ in range(2000)]
    assert abs(np.mean(masked) - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 2000)
    assert not block_masks(rng, 50, 4, 4, 0.0).any() and block_masks(rng, 50, 4, 4, 1.0).any(1).all()
    # and every image as often as another
    often = sum(block_masks(rng, 5, 4, 4, 0.4).any(1).long() for _ in range(2000)) / 2000
    assert (often - 0.4).abs().max() < 4 * math.sqrt(0.4 * 0.6 / 2000)


def _neighbours(masks, height, width):
    """Of masked patches the share of patches beside them, to the right and below, that are masked too."""
    maps = masks.view(-1, height, width)
    right, down = maps[:, :, :-1] & maps[:, :, 1:], maps[:, :-1] & maps[:, 1:]
    return (right.sum() / maps[:, :, :-1].sum() + down.sum() / maps[:, :-1].sum()).item() / 2


def test_patches_are_masked_in_blocks_and_everywhere():
    rng = np.random.default_rng(2)
    masks = block_masks(rng, 400, 14, 14, 1.0, (0.3, 0.3))
    single = torch.from_numpy(rng.permuted(masks.numpy(), axis=1))  # the same counts without blocks
    assert abs(_neighbours(single, 14, 14) - 0.3) < 0.02 and _neighbours(masks, 14, 14) > 0.7
    share = masks.float().mean(0)
    assert share.min() > 0.01 and share.max() < 0.6


def test_a_small_mask_is_often_one_rectangle():
    masks = block_masks(np.random.default_rng(3), 300, 16, 16, 1.0, (0.024, 0.024)).view(-1, 16, 16)
    full = 0
    for mask in masks:
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        area = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
        full += int(area == mask.sum())
    assert full > 60  # of 6 patches: one of 2x3, or a smaller one and more


def test_the_generator_alone_decides():
    first, second, other = (block_masks(np.random.default_rng(seed), 8, 14, 14) for seed in (5, 5, 6))
    assert torch.equal(first, second) and not torch.equal(first, other)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((2, 4, 4, 1.5), "probability of masking from 0 to 1, found 1.5"),
        ((2, 4, 4, 0.5, (0.5, 0.1)), "0 < lo <= hi <= 1, found"),
        ((2, 4, 4, 0.5, (0.0, 0.1)), "0 < lo <= hi <= 1, found"),
        ((2, 0, 4), "1x1 patches or more, found 0x4"),
    ],
)
def test_numbers_out_of_range(arguments, words):
    with pytest.raises(ValueError, match=words):
        block_masks(np.random.default_rng(0), *arguments)
