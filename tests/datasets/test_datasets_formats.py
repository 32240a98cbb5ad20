"""Masks, maps and pictures as files of every mode; names and kinds of files that are not plain; sizes without end."""

import logging
import os
import re
import socket
import struct
import zlib
from pathlib import Path

import cv2
import formats
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from e2net.datasets import FolderPairs, in_validation
from e2net.datasets.pairs import FolderTargets
from e2net.formats import find_by_stem, printable, read_image, read_map, read_mask, some, verify_image

shapes = st.tuples(st.integers(1, 20), st.integers(1, 20))
many = settings(max_examples=400, deadline=None, derandomize=True, database=None)
BAD = b"caf\xe9"  # Latin-1: no UTF-8


def put(file, folder):
    path = folder / f"a{file.suffix}"
    path.write_bytes(file.data)
    return path


def canonical(values, dtype):
    return values.dtype == dtype and values.flags.c_contiguous and values.flags.writeable


@many
@given(case=shapes.flatmap(formats.masks))
def test_masks_of_every_mode_are_read_as_what_was_written(case, tmp_path_factory):
    file, truth = case
    mask = read_mask(put(file, tmp_path_factory.getbasetemp()))
    assert canonical(mask, bool) and mask.view(np.uint8).max() <= 1
    np.testing.assert_array_equal(mask, truth, err_msg=file.what)


@many
@given(case=shapes.flatmap(formats.maps))
def test_maps_of_every_mode_are_read_as_what_was_written(case, tmp_path_factory):
    file, truth = case
    levels = read_map(put(file, tmp_path_factory.getbasetemp()))
    assert canonical(levels, np.uint8)
    np.testing.assert_array_equal(levels, truth, err_msg=file.what)


@many
@given(case=shapes.flatmap(formats.pictures))
def test_pictures_of_every_mode_are_read_as_what_was_written(case, tmp_path_factory):
    file, truth = case
    path = put(file, tmp_path_factory.getbasetemp())
    image = read_image(path)
    assert canonical(image, np.uint8) and image.ndim == 3 and image.shape[2] == 3
    with path.open("rb") as opened, Image.open(opened) as picture:
        upright = ImageOps.exif_transpose(picture).size[::-1]
    assert image.shape[:2] == verify_image(path) == upright, file.what
    if truth is not None:
        np.testing.assert_allclose(image.astype(int), truth, rtol=0, atol=1, err_msg=file.what)


@pytest.mark.parametrize("value, kind", formats.WIDE_MASKS.items())
def test_masks_of_32_bits(tmp_path, value, kind):
    mask = np.random.default_rng(0).random((9, 14)) > 0.5
    path = tmp_path / "a.tif"
    path.write_bytes(formats.tiff(mask * value, 32, kind=kind))
    np.testing.assert_array_equal(read_mask(path), mask)


@pytest.mark.parametrize("reader, table", [(read_mask, formats.NO_MASKS), (read_map, formats.NO_MAPS)])
def test_what_would_be_a_guess_is_refused_with_its_reason(tmp_path, reader, table):
    rng = np.random.default_rng(0)
    mask = rng.random((9, 14)) > 0.5
    for name, (suffix, write, words) in table.items():
        (path := tmp_path / f"bad{suffix}").write_bytes(write(mask, rng))
        with pytest.raises(ValueError, match=r"bad\.") as caught:
            reader(path)
        assert re.search(words, str(caught.value)), name
        assert words == "truncated" or "truncated" not in str(caught.value), name


# pictures that cannot be read, and why


@pytest.mark.parametrize("reader", [read_image, verify_image])
@pytest.mark.parametrize(
    "bits, kind, words", [(32, 3, "32-bit floats"), (64, 3, "64-bit floats"), (32, 1, "32-bit int"), (16, 2, "signed")]
)
def test_pictures_of_other_numbers_are_not_called_truncated(tmp_path, reader, bits, kind, words):
    (path := tmp_path / "a.tif").write_bytes(formats.tiff(np.ones((4, 5), int), bits, kind=kind))
    with pytest.raises(
        ValueError, match=rf"a\.tif: expected an 8- or 16-bit picture, found .*{words}.*Save it"
    ) as caught:
        reader(path)
    assert "truncated" not in str(caught.value)


def _huge(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "reader, sides",
    [
        (read_mask, (20000, 10000)),
        (read_map, (20000, 10000)),
        (verify_image, (20000, 10000)),
        (read_image, (1 << 15, 1 << 16)),
    ],
)
def test_pictures_of_more_pixels_than_can_be_read_are_not_called_truncated(tmp_path, reader, sides):
    (path := tmp_path / "a.png").write_bytes(_huge(*sides))
    with pytest.raises(
        ValueError, match=r"a\.png: expected a \w+ of at most 178 million pixels, found.*Scale"
    ) as caught:
        reader(path)
    assert "truncated" not in str(caught.value)


def test_more_pixels_than_opencv_takes_where_pillow_has_no_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    (path := tmp_path / "a.png").write_bytes(_huge(1 << 15, 1 << 16))
    with pytest.raises(ValueError, match=r"at most 2\^30 pixels, found 32768x65536"):
        read_image(path)


def test_what_the_file_system_refuses_is_not_called_truncated(tmp_path, monkeypatch):
    (path := tmp_path / "a.png").write_bytes(formats.png(np.ones((4, 4), int), 1, formats.GREY))

    def denied(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.open", denied)
    for reader in (read_mask, read_map, verify_image):
        with pytest.raises(PermissionError, match=r"a\.png"):
            reader(path)


# what is named like an image and is none


def _make(kind, path):
    if kind == "a folder":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a socket":
        here = Path.cwd()  # the path of a socket must be short
        os.chdir(path.parent)
        try:
            socket.socket(socket.AF_UNIX).bind(path.name)
        finally:
            os.chdir(here)
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    else:
        path.symlink_to(path.parent / "nowhere.png" if path.suffix == ".png" else path)


KINDS = ("a folder", "a pipe", "a socket", "a device", "a link to nothing")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_what_is_no_file_neither_hangs_nor_counts(tmp_path, kind, suffix, caplog):
    _make(kind, tmp_path / f"odd{suffix}")
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((2, 2), np.uint8))
    with pytest.raises(ValueError, match=rf"expected image files, found odd\{suffix} \({kind}\)\. Remove or rename"):
        find_by_stem(tmp_path)
    for reader in (read_image, verify_image, read_mask, read_map):
        with pytest.raises((ValueError, OSError)) as caught:
            reader(tmp_path / f"odd{suffix}")
        assert kind == "a link to nothing" or f"expected a file, found {kind}" in str(caught.value)
    cv2.imwrite(str(tmp_path / "odd.bmp"), np.zeros((2, 2), np.uint8))  # now the stem has a file
    with caplog.at_level(logging.WARNING):
        assert [path.name for path in find_by_stem(tmp_path).values()] == ["a.png", "odd.bmp"]
    assert f"odd{suffix} ({kind})" in caplog.text


def test_links_to_files_and_folders_are_followed(tmp_path):
    for folder in ("there/Image", "there/GT"):
        (tmp_path / folder).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / folder / "x.png"), np.full((3, 4), 255, np.uint8))
    (tmp_path / "set" / "GT").mkdir(parents=True)
    (tmp_path / "set" / "Image").symlink_to(tmp_path / "there" / "Image")
    (tmp_path / "set" / "GT" / "x.png").symlink_to(tmp_path / "there" / "GT" / "x.png")
    pairs = FolderPairs(tmp_path / "set")
    pairs.check()
    assert pairs.read(0)[1].all()


# names that are no UTF-8


def test_names_that_are_no_utf8_are_paired_read_and_split(tmp_path):
    name = os.fsdecode(BAD)
    for folder in ("Image", "GT"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.png").write_bytes(formats.png(np.full((3, 4), 1), 1, formats.GREY))
    pairs = FolderPairs(tmp_path)
    pairs.check()
    assert pairs.name(0) == name and pairs.read(0)[1].all() and FolderTargets(tmp_path).target(0).all()
    assert in_validation(name, 0.999999) and not in_validation(name, 0.0)
    assert printable(name) == r"caf\udce9" and some([name]) == printable(name)
    (tmp_path / "Image" / f"{name}.png").rename(tmp_path / "Image" / "other.png")
    with pytest.raises(ValueError, match=r"masks without image \(caf\\udce9\.png\)"):
        FolderPairs(tmp_path)


def test_hashes_of_other_names_are_what_they_were():
    assert [in_validation(stem, 0.1) for stem in ("camourflage_00012", "fröschlein", "a")] == [False, False, False]
    assert sum(in_validation(f"image_{i}", 0.1) for i in range(1000)) == 89
