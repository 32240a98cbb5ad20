"""Thousands of bad and odd files: each is read as what it holds, or refused by a message of ours that names it.

    E2NET_FUZZ=5000 pytest tests/fuzz

tries that many in all; without it a few hundred. Never is there a hang, another exception, or another result than what
was written or what an independent reader finds.
"""

import collections
import io
import time
import warnings
from typing import Any

import bad_files
import cv2
import formats
import numpy as np
import pytest
import torch
from counts import fuzz
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from sod import assert_equal

from e2net.formats import read_depth, read_image, read_labels, read_map, read_mask, verify_image
from e2net.tasks import Camouflage

SECONDS = 20.0  # of a machine that does other things as well
counted = collections.Counter()
seeds = st.integers(0, 2**32 - 1)
damages = st.sampled_from(bad_files.DAMAGES)
suffixes = st.sampled_from(bad_files.SUFFIXES)
kinds = st.sampled_from(["mask", "labels", "flat", "map"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    yield tmp_path_factory.mktemp("fuzz")
    print("\n", "; ".join(f"{what}: {count}" for what, count in sorted(counted.items())))


def read(reader, path, what):
    """What a reader gives, or the message with which it refuses the file."""
    start = time.monotonic()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = reader(path)
    except (ValueError, OSError) as error:
        assert str(path) in str(error) and len(str(error).splitlines()) == 1, (what, error)
        found = str(error)
    assert time.monotonic() - start < SECONDS, what
    counted[f"{reader.__name__} {'refused' if isinstance(found, str) else 'read'}"] += 1
    return found


def by_pillow(data):
    """A picture (h, w, 3) as Pillow reads it; None where it cannot, or where its colours need a profile."""
    try:
        with Image.open(io.BytesIO(data)) as file:
            file.load()
            if file.mode in ("LAB", "F") or file.mode.startswith("I"):
                return None
            return np.asarray(ImageOps.exif_transpose(file).convert("RGBA").convert("RGB"))
    except Exception:  # whatever Pillow raises
        return None


def by_opencv(data):
    """(h, w) or (h, w, c) as OpenCV reads it, upright; None where it cannot."""
    try:
        values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    except cv2.error:
        return None
    if values is None or not data.startswith((b"\x89PNG", b"\xff\xd8")):  # TIFFs are turned, some BMPs upside down
        return values
    try:
        with Image.open(io.BytesIO(data)) as file:
            turn = file.getexif().get(0x0112, 1)
    except Exception:  # whatever Pillow raises
        return None
    return formats.TURNS[turn if turn in formats.TURNS else 1](values)


def check_damage(found, data, what):
    """What shows that a file is damaged must have been seen: a PNG's checksums, a JPEG's missing end."""
    if not isinstance(found, str):
        assert not data.startswith(b"\x89PNG") or bad_files.png_is_damaged(data) is None, what
        assert not bad_files.jpeg_is_cut(data) or by_pillow(data) is not None, what  # the end alone is missing


def told(file, how, seed):
    return f"{file.what}, {how}, seed {seed}"


def write_damaged(folder, kind, how, suffix, seed):
    """A file of some kind, its damaged bytes, their place, and all of it in words."""
    rng = np.random.default_rng(seed)
    file = bad_files.written(rng, kind)
    data = bad_files.damaged(file.data, how, rng)
    (path := folder / f"a{suffix}").write_bytes(data)
    return file, data, path, told(file, how, seed)


@fuzz(0.2)
@given(seed=seeds, kind=kinds, how=damages, suffix=suffixes)
def test_pictures(folder, seed, kind, how, suffix):
    file, data, path, what = write_damaged(folder, kind, how, suffix, seed)
    found, size = read(read_image, path, what), read(verify_image, path, what)
    if isinstance(found, str):
        assert isinstance(size, str) or data.startswith(b"\xff\xd8"), what
        rare = "compression" in found  # of 16 bits, which only Pillow could unpack, and to 8 bits
        assert data != file.data or file.samples is None or rare, (what, found)
        return
    check_damage(found, data, what)
    assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3, what
    assert isinstance(size, str) or size == found.shape[:2], what
    if data == file.data and file.samples is not None and file.samples.dtype == np.uint8:
        assert (found == file.samples[..., None]).all(), what
    expected = by_pillow(data)
    if expected is not None:
        assert expected.shape == found.shape, what
        assert np.abs(expected.astype(int) - found).max() <= 3, what


def as_mask(samples):
    """What a mask's documentation says of samples; None: refused."""
    half, largest = np.iinfo(samples.dtype).max // 2, int(samples.max())
    if largest > half:
        return samples > half
    two = largest in (0, 1, 255, 65535) and set(np.unique(samples)) <= {0, largest}
    return samples != 0 if two else None


def as_map(samples):
    """The same of a prediction map."""
    if samples.dtype == np.uint8:
        return samples
    return None if 0 < samples.max() <= 255 else np.floor(samples / 257 + 0.5).astype(np.uint8)


def grey(values):
    """One channel of equal ones with a constant alpha, in OpenCV's order; None where they are not."""
    if values is None or values.dtype not in (np.uint8, np.uint16):
        return None
    values = np.atleast_3d(values)
    colours = values[..., :3] if values.shape[2] >= 3 else values[..., :1]
    same = (colours == colours[..., :1]).all() and (values.shape[2] != 4 or np.ptp(values[..., 3]) == 0)
    return colours[..., 0] if same else None


@pytest.mark.parametrize(("reader", "meaning", "kind"), [(read_mask, as_mask, "mask"), (read_map, as_map, "map")])
@fuzz(0.16)
@given(seed=seeds, other=kinds, same=st.booleans(), how=damages, suffix=suffixes)
def test_masks_and_maps(folder, reader, meaning, kind, seed, other, same, how, suffix):
    file, data, path, what = write_damaged(folder, kind if same else other, how, suffix, seed)
    found = read(reader, path, what)
    if data == file.data and file.samples is not None:
        expected = meaning(file.samples)
        assert isinstance(found, str) == (expected is None), (what, found)
        assert expected is None or np.array_equal(found, expected), what
    check_damage(found, data, what)
    seen = grey(by_opencv(data))
    if isinstance(found, str) or seen is None:
        return
    assert found.shape == seen.shape, what
    expected = meaning(seen)
    lossy = data.startswith((b"\xff\xd8", b"RIFF"))
    assert lossy or np.array_equal(found, expected), what


@fuzz(0.12)
@given(seed=seeds, kind=kinds, how=damages, suffix=suffixes)
def test_label_maps(folder, seed, kind, how, suffix):
    file, data, path, what = write_damaged(folder, kind, how, suffix, seed)
    found = read(read_labels, path, what)
    check_damage(found, data, what)
    if isinstance(found, str):
        one = any(f" {mode} " in file.what for mode in ("L", "P", "I;16")) or file.what.endswith("x 1")
        assert data != file.data or file.samples is None or not one, (what, found)
        return
    assert found.dtype == np.uint16 and found.ndim == 2, what
    if data == file.data and file.samples is not None:
        assert np.array_equal(found, file.samples), what


@fuzz(0.1)
@given(seed=seeds, how=damages, scale=st.sampled_from([0.001, 1.0, 0.25]))
def test_depth_arrays(folder, seed, how, scale):
    rng = np.random.default_rng(seed)
    file, _ = bad_files.array_file(rng)
    data, what = bad_files.damaged(file.data, how, rng), told(file, how, seed)
    (path := folder / "a.npy").write_bytes(data)
    found = read(lambda file: read_depth(file, scale), path, what)
    values = bad_files.parsed_array(data)
    numbers = values is not None and values.ndim == 2 and values.size and values.dtype.kind in "fiu"
    if isinstance(found, str):
        assert data != file.data or not numbers, (what, found)
        return
    assert numbers, what
    with np.errstate(all="ignore"):
        metres = values if values.dtype.kind == "f" else values * np.float64(scale)
        np.testing.assert_array_equal(found, metres.astype(np.float32), err_msg=what)


@fuzz(0.06)
@given(seed=seeds, kind=kinds, how=damages, suffix=suffixes)
def test_depth_pictures(folder, seed, kind, how, suffix):
    file, data, path, what = write_damaged(folder, kind, how, suffix, seed)
    found = read(read_depth, path, what)
    check_damage(found, data, what)
    wide = file.samples is not None and file.samples.dtype == np.uint16
    if data == file.data and wide and "x 3" not in file.what:
        np.testing.assert_allclose(found, file.samples * 0.001, rtol=1e-6, err_msg=what)
    assert wide or data != file.data or file.samples is None or isinstance(found, str), what


pairs = st.tuples(st.integers(2, 24), st.integers(2, 24)).flatmap(
    lambda shape: st.tuples(formats.masks(shape), formats.maps(shape))
)


@fuzz(0.1)
@given(pair=pairs, seed=seeds, how=st.lists(damages, min_size=2, max_size=2))
def test_scores(folder, pair, seed, how):
    """Of what can be read, as PySODMetrics has them of what was written; of damaged files, of what is read."""
    rng = np.random.default_rng(seed)
    found = []
    for (file, truth), one, reader in zip(pair, how, (read_mask, read_map), strict=True):
        data = bad_files.damaged(file.data, one, rng)
        (path := folder / f"a{file.suffix}").write_bytes(data)
        values = read(reader, path, file.what)
        if isinstance(values, str):
            assert data != file.data, values
            return
        check_damage(values, data, file.what)
        found.append(truth if data == file.data else values)
        assert data != file.data or np.array_equal(values, truth), file.what
    mask, levels = found
    if mask.shape != levels.shape:
        return
    scores: Any = Camouflage().set_scores(1 << 20)
    scores.update(torch.from_numpy(np.ascontiguousarray(levels)), mask, 0, "a")
    counted["scored"] += 1
    assert_equal(scores.per_image()[0], levels, mask, f"{pair[0][0].what}; {pair[1][0].what}; {how}")
