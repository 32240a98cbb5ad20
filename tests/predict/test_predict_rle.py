"""COCO run-length encoding against a decoder written from the format, and against pycocotools' own output."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2net.predict.rle import compress, find_objects, run_lengths


def _uncompress(text):
    counts, i = [], 0
    while i < len(text):
        value = shift = 0
        more = True
        while more:
            bits = ord(text[i]) - 48
            value |= (bits & 31) << shift
            more = bool(bits & 32)
            i, shift = i + 1, shift + 5
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
    return counts


def _decode(segmentation):
    height, width = segmentation["size"]
    counts = _uncompress(segmentation["counts"])
    values = np.repeat(np.arange(len(counts)) % 2, counts)
    assert values.size == height * width
    return values.reshape(width, height).T.astype(bool)


def _blobs(height, width, seed, share=0.5):
    return np.random.default_rng(seed).random((height, width)) < share


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 1000), st.sampled_from([0.05, 0.5, 0.95, 1.0]))
def test_objects_are_the_mask_taken_apart(height, width, seed, share):
    mask = _blobs(height, width, seed, share)
    prob = np.random.default_rng(seed + 1).random(mask.shape, dtype=np.float32)
    objects = find_objects(mask, prob)
    parts = [_decode(o["segmentation"]) for o in objects]
    assert np.array_equal(np.sum(parts, axis=0) if parts else np.zeros_like(mask, int), mask.astype(int))
    for part, found in zip(parts, objects, strict=True):
        ys, xs = np.nonzero(part)
        assert found["bbox"] == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
        assert found["area"] == part.sum()
        assert found["score"] == pytest.approx(prob[part].mean(), abs=1e-5)
    assert [o["area"] for o in objects] == sorted((o["area"] for o in objects), reverse=True)


@given(st.lists(st.integers(0, 10**7), min_size=1, max_size=30))
def test_compression_keeps_the_counts(counts):
    assert _uncompress(compress(counts)) == counts


def test_touching_corners_are_one_object_and_small_ones_can_be_left_out():
    mask = np.zeros((6, 8), bool)
    mask[0, 0] = mask[1, 1] = mask[4:6, 5:8] = True
    prob = np.where(mask, np.float32(0.75), np.float32(0))
    assert [(o["area"], o["score"]) for o in find_objects(mask, prob)] == [(6, 0.75), (2, 0.75)]
    assert [o["area"] for o in find_objects(mask, prob, min_area=3)] == [6]
    assert find_objects(np.zeros((6, 8), bool), prob) == []


def test_a_run_goes_on_from_the_bottom_of_a_column_to_the_top_of_the_next():
    assert run_lengths(np.ones((3, 2), bool), (1, 0), (3, 4)) == [3, 6, 3]
    assert run_lengths(np.ones((3, 4), bool), (0, 0), (3, 4)) == [0, 12]


def _stripes():
    y, x = np.mgrid[:37, :60]
    return ((x // 20) % 2 == 0) & (y > 10)


def _ellipse():
    y, x = np.mgrid[:500, :64]
    return (y - 250) ** 2 + 70 * (x - 32) ** 2 < 50000


def _speckles():
    y, x = np.mgrid[:9, :13]
    return (x * y + x) % 7 < 3


# Made by pycocotools 2.0.11: encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].
GOLDEN = {
    _stripes: ";j0;0000000000000000000000000000000000000Tg00lXO0000000000000000000000000000000000000",
    _ellipse: (
        "oS3W3a;h1aNV1nNn0TOj0WOh0ZOd0]Ob0_O`0A>B>C<E:F:G8H8H8I6J6K4L4L4L4M2O0O2O"
        "0001N101N3L4L4L4L5J6J7H8H8H9F:F;D=B>B?@a0^Oc0\\Of0XOi0VOl0ROR1jN_1XNiX2"
    ),
    _speckles: "0;4INM011ON00020N010O0100141L82INM011ON00020N010O010010",
}


@pytest.mark.parametrize("make", GOLDEN)
def test_text_is_that_of_pycocotools(make):
    mask = make()
    assert compress(run_lengths(mask, (0, 0), mask.shape)) == GOLDEN[make]


def test_pycocotools_reads_it():
    coco = pytest.importorskip("pycocotools.mask")
    mask = _blobs(50, 70, 0, 0.3)
    for found in find_objects(mask, mask.astype(np.float32)):
        assert np.array_equal(coco.decode(found["segmentation"]).astype(bool), _decode(found["segmentation"]))
