"""Pictures from anywhere: which ones, in which order, what is broken, and the same batches however they are read."""

import gc
import logging
import math
import os
import resource
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from e2net.adapt.crops import CropMix, MultiCrop
from e2net.adapt.pictures import Pictures
from e2net.datasets import FolderData, ProceduralData, ProceduralPairs
from e2net.film import FilmWriter
from e2net.formats import read_image, write_map

PAIRS = ProceduralPairs(12, sides=(40, 64))
CROPS = MultiCrop(24, 16, locals=2)


def _encoded(index, kind=".png"):
    return cv2.imencode(kind, PAIRS.read(index)[0][..., ::-1])[1].tobytes()


def _write(file, index=0):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(_encoded(index, file.suffix.lower()))
    return file


def _folder(folder, n=6, kind=".png"):
    for index in range(n):
        _write(folder / f"{index:02d}{kind}", index)
    return folder


def _pictures(root, **settings):
    return Pictures(root, **{"num_workers": 0, "batch_size": 2, **settings})


def _names(pictures):
    return [pictures.name(index) for index in range(len(pictures))]


def _film(file, levels):
    with FilmWriter(file, 10) as film:
        for level in levels:
            film.write(np.full((32, 48, 3), level, np.uint8))
    return file


def test_a_tree_is_walked_whole(tmp_path):
    root = tmp_path / "photos"
    odd = ["a b.JPG", "b/c/d.webp", "b/ünïcödé 雪.png", "b/z\n.png", os.fsdecode(b"caf\xe9.bmp"), "x.tiff"]
    for index, name in enumerate(odd):
        _write(root / name, index)
    for hidden in (".cache/a.png", "b/.a.png", "notes.txt", "b/film.srt"):
        (root / hidden).parent.mkdir(exist_ok=True)
        (root / hidden).write_bytes(b"no picture")
    _write(tmp_path / "elsewhere" / "more" / "e.png", 7)
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (root / "b" / "circle").symlink_to(root)
    (root / "gone.png").symlink_to(tmp_path / "nowhere")
    pictures = _pictures(root)
    shown = ["a b.JPG", "b/c/d.webp", "b/z\\n.png", "b/ünïcödé 雪.png", "caf\\udce9.bmp", "link/more/e.png", "x.tiff"]
    assert _names(pictures) == shown and pictures.broken == {"gone.png": "expected a file, found a link to nothing"}
    for index, source in enumerate((0, 1, 3, 2, 4, 7, 5)):
        difference = np.abs(pictures.read(index).astype(int) - PAIRS.read(source)[0])
        assert difference.mean() < 8 if index < 2 else not difference.any()


def test_a_list_says_which_and_in_which_order(tmp_path):
    _folder(tmp_path / "pictures")
    absolute = _write(tmp_path / "other" / "a.png", 9)
    _film(tmp_path / "f.mp4", [50, 100])
    lines = ["pictures/03.png", "", f"{absolute}", "pictures/00.png ", "pictures/03.png", "pictures/99.png", "f.mp4"]
    (tmp_path / "list.txt").write_text("\n".join(lines), encoding="utf-8-sig")  # as editors of Windows begin a file
    pictures = _pictures(tmp_path / "list.txt")
    assert _names(pictures) == [lines[0], lines[2], "pictures/00.png", "f.mp4 frame 0", "f.mp4 frame 1"]
    assert pictures.broken == {"pictures/99.png": "expected a file, found nothing there"}


@pytest.mark.parametrize("every", [1, 3])
def test_frames_of_films_among_pictures(tmp_path, every):
    levels = list(range(10, 250, 30))
    _film(tmp_path / "b.mp4", levels)
    _write(tmp_path / "a.png")
    _write(tmp_path / "c.png")
    pictures = _pictures(tmp_path, every=every)
    frames = range(0, len(levels), every)
    assert _names(pictures) == ["a.png", *(f"b.mp4 frame {number}" for number in frames), "c.png"]
    for index, number in enumerate(frames):
        assert abs(pictures.read(index + 1).mean() - levels[number]) < 4
    assert [batch.global_.shape[1] for batch in pictures.loader(CROPS)] == [2] * (len(pictures) // 2)
    folder = Path(pictures._frames.name)
    assert folder.is_dir()
    del pictures
    gc.collect()
    assert not folder.exists()


def test_a_cut_film_gives_what_it_has(tmp_path):
    rng, file = np.random.default_rng(0), tmp_path / "cut.avi"
    film = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 64))
    for _ in range(20):
        film.write(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    film.release()
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    (tmp_path / "no.mp4").write_bytes(b"no film")
    pictures = _pictures(tmp_path)
    assert 5 < len(pictures) < 15 and list(pictures.broken) == ["cut.avi", "no.mp4"]
    assert f"({len(pictures)} frames are used)" in pictures.broken["cut.avi"]
    assert "expected a film that OpenCV can decode" in pictures.broken["no.mp4"]


def test_a_full_disk_is_named_before_training(tmp_path):
    rng = np.random.default_rng(0)
    with FilmWriter(tmp_path / "a.mp4", 10) as film:
        film.write(rng.integers(0, 256, (256, 256, 3), dtype=np.uint8))
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: .*jpg"):
            _pictures(tmp_path).check()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_the_training_part_of_a_folder_without_its_targets(tmp_path):
    for index in range(10):
        _write(tmp_path / "train" / "Image" / f"{index}.png", index)
        write_map(tmp_path / "train" / "GT" / f"{index}.png", PAIRS.read(index)[1].astype(np.uint8) * 255)
    data = FolderData(str(tmp_path), 32, val=["3", "7"], batch_size=4, num_workers=0, seed=5)
    expected = data.train_names()
    for file in (tmp_path / "train" / "GT").iterdir():
        file.write_bytes(b"broken")
    pictures = Pictures.of(data)
    assert _names(pictures) == expected == [str(index) for index in range(10) if index not in (3, 7)]
    assert (pictures.batch_size, pictures.num_workers, pictures.seed) == (4, 0, 5)
    assert all(np.array_equal(pictures.read(i), PAIRS.read(int(name))[0]) for i, name in enumerate(expected))
    assert len(list(pictures.loader(CROPS))) == 2


def test_the_training_part_of_generated_data():
    data = ProceduralData(32, n_train=20, sides=(40, 64), batch_size=4, num_workers=0, val_fraction=0.3)
    pictures = Pictures.of(data)
    assert _names(pictures) == data.train_names() and len(pictures) < 20 and pictures.warnings(CROPS) == []
    source = data.source("train")
    assert np.array_equal(pictures.read(3), source.read(data.split()[0][3])[0])
    assert next(iter(pictures.loader(CROPS))).global_.shape == (2, 4, 3, 24, 24)


def _cut(tmp_path, kind):
    data = _encoded(3, kind)
    for index in range(1, 12):  # at the beginning, in the middle, and but for the last byte
        (tmp_path / f"cut{index:02d}{kind}").write_bytes(data[: len(data) * index // 12])
    (tmp_path / f"last{kind}").write_bytes(data[:-1])
    (tmp_path / f"none{kind}").write_bytes(b"")
    return 13


@pytest.mark.parametrize("kind", [".png", ".jpg"])
def test_cut_files_are_found_before_training(tmp_path, kind):
    count = _cut(tmp_path, kind)
    _folder(tmp_path, 3)
    trailing = _write(tmp_path / "trailing.jpg", 4)
    trailing.write_bytes(trailing.read_bytes() + bytes(5000))  # whole, though it does not look so
    pictures = _pictures(tmp_path)
    pictures.check()
    assert len(pictures.broken) == count and _names(pictures) == ["00.png", "01.png", "02.png", "trailing.jpg"]
    (line,) = pictures.warnings(CROPS)
    cut = ", ".join(f"cut{number:02d}{kind}" for number in (1, 2, 3))
    assert line.startswith(f"{count} broken files of {tmp_path} are left out: {cut} and {count - 3} more. The first: ")


def test_none_but_broken_files_is_one_line(tmp_path):
    count = _cut(tmp_path, ".png")
    with pytest.raises(ValueError, match=rf"none of {count} pictures and films can be read\. .*cut01.png") as error:
        _pictures(tmp_path).check()
    assert "\n" not in str(error.value)


def _damage(file):
    """In the middle, where neither its beginning nor its end says so."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_broken_inside_is_replaced_and_said_once(tmp_path, caplog, workers):
    _folder(tmp_path)
    _damage(tmp_path / "02.png")
    pictures = _pictures(tmp_path, num_workers=workers)
    loader = pictures.loader(CROPS)
    with caplog.at_level(logging.WARNING):
        first = [batch for _ in range(2) for batch in loader]
    assert len(first) == 6 and sum(len(batch.broken) for batch in first) == 2
    assert len(caplog.records) == 1 and "left out, the 1. broken one: 02.png: " in caplog.text
    assert "checksum" in pictures.broken["02.png"]
    # all others are as they were, and in its place is the next one
    (tmp_path / "02.png").write_bytes((tmp_path / "03.png").read_bytes())
    loader = _pictures(tmp_path).loader(CROPS)
    second = [batch for _ in range(2) for batch in loader]
    for batch, other in zip(first, second, strict=True):
        assert torch.equal(batch.global_, other.global_) and torch.equal(batch.local, other.local)


def test_a_disk_that_is_gone_ends_the_run(tmp_path):
    loader = _pictures(_folder(tmp_path)).loader(CROPS)
    for file in tmp_path.iterdir():
        file.unlink()
    with pytest.raises(ValueError, match="none of 6 pictures in a row can be read any more"):
        next(iter(loader))


def _equal(first, second):
    same = [torch.equal(a, b) for a, b in zip(first[:2], second[:2], strict=True)]
    return all(same)


def test_resumed_runs_see_what_the_straight_one_saw(tmp_path):
    _folder(tmp_path, 9, ".jpg")
    straight = []
    loader = _pictures(tmp_path, seed=3).loader(CROPS)
    for _ in range(3):
        straight.append(list(loader))
    assert [len(epoch) for epoch in straight] == [4, 4, 4] and not _equal(straight[0][0], straight[1][0])
    for epoch, batches, workers in ((0, 3, 0), (1, 1, 2), (2, 0, 0)):
        resumed = _pictures(tmp_path, seed=3, num_workers=workers)
        resumed.begin_at(epoch, batches)
        loader = resumed.loader(CROPS)
        for number in range(epoch, 3):
            expected = straight[number][batches if number == epoch else 0 :]
            found = list(loader)
            assert len(found) == len(expected)
            assert all(_equal(a, b) for a, b in zip(found, expected, strict=True)), (epoch, number, workers)
    other = list(_pictures(tmp_path, seed=4).loader(CROPS))
    assert not _equal(other[0], straight[0][0])


def test_each_batch_of_a_mix_has_one_size(tmp_path):
    """As often as its share says, the same in every worker and in a run that goes on."""
    _folder(tmp_path, 9, ".jpg")
    mix = CropMix([MultiCrop(24, 16, locals=2, gram_size=36), MultiCrop(40, 16, locals=2, gram_size=60)], [0.75, 0.25])
    loader = _pictures(tmp_path, seed=3).loader(mix)
    epochs = [list(loader) for _ in range(3)]
    sizes = [(batch.global_.shape[-1], batch.gram.shape[-1]) for epoch in epochs for batch in epoch]
    assert set(sizes) == {(24, 36), (40, 60)}
    for workers, epoch, batches in ((2, 0, 0), (0, 1, 3)):
        other = _pictures(tmp_path, seed=3, num_workers=workers)
        other.begin_at(epoch, batches)
        assert all(_equal(a, b) for a, b in zip(other.loader(mix), epochs[epoch][batches:], strict=True))
    drawn = [mix.of_batch(0, epoch, batch).global_size for epoch in range(20) for batch in range(50)]
    assert 0.7 < drawn.count(24) / len(drawn) < 0.8
    assert mix.largest is mix.sizes[1]
    for shares in ((1.0,), (1.0, 0.0), (math.inf, 1.0)):
        with pytest.raises(ValueError, match="mix: expected a share above 0 for each size"):
            CropMix(mix.sizes, shares)


def test_crops_larger_than_pictures_are_counted(tmp_path):
    for index, side in enumerate((20, 30, 60, 100)):
        cv2.imwrite(str(tmp_path / f"{index}.png"), np.zeros((side, 200, 3), np.uint8))
    lines = _pictures(tmp_path).warnings(MultiCrop(60, 24, gram_size=120))
    assert lines == [
        "global crops of 60 pixels are larger than 2 of 4 pictures (0.png, 1.png), which are enlarged",
        "local crops of 24 pixels are larger than 1 of 4 pictures (0.png), which are enlarged",
        "gram crops of 120 pixels are larger than 4 of 4 pictures (0.png, 1.png, 2.png and 1 more), which are enlarged",
    ]
    assert _pictures(tmp_path).warnings(MultiCrop(20, 20)) == []


@pytest.mark.parametrize("orientation", range(1, 9))
def test_sizes_are_those_of_the_upright_picture(tmp_path, orientation):
    from PIL import Image  # noqa: PLC0415

    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PAIRS.read(0)[0][:40, :50]).save(tmp_path / "a.jpg", exif=exif)
    (tmp_path / "b.png").write_bytes(_encoded(1))
    images = _pictures(tmp_path).images
    for index, name in enumerate(("a.jpg", "b.png")):
        assert images.size(index) == read_image(tmp_path / name).shape[:2]


def test_a_picture_that_is_another_than_it_was(tmp_path):
    """Cut as it is now, with nothing stretched or missing: here to a quarter of its old height."""
    file = _folder(tmp_path, 1) / "00.png"
    pictures = _pictures(tmp_path)
    pictures.check()
    cv2.imwrite(str(file), np.full((15, 80, 3), 90, np.uint8))
    plain = MultiCrop(24, 16, jitter_probability=0, grey=0, solarise=0)
    (batch,) = pictures.loader(plain)
    assert batch.broken == () and (batch.global_ == 90).all() and (batch.local == 90).all()


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (
            lambda at: at / "nowhere",
            FileNotFoundError,
            "data.root=.*nowhere: expected a folder, .* found nothing",
        ),
        (lambda at: at / "empty", ValueError, "data.root=.*empty: expected pictures .* found none"),
        (lambda at: at / "notes.md", ValueError, "data.root=.*notes.md: expected a folder, .* found another file"),
        (lambda at: at / "list.txt", ValueError, "data.root=.*list.txt: expected pictures .* found none"),
    ],
)
def test_roots_that_are_none(tmp_path, make, error, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.md").write_text("# notes")
    (tmp_path / "list.txt").write_text("\n\n")
    with pytest.raises(error, match=words):
        _pictures(make(tmp_path))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"every": 0}, "data.every"),
        ({"batch_size": 0}, "batch_size"),
        ({"seed": -1}, "seed"),
        ({"num_workers": -1}, "num_w"),
    ],
)
def test_arguments_out_of_range(tmp_path, settings, words):
    with pytest.raises(ValueError, match=words):
        _pictures(_folder(tmp_path, 1), **settings)
