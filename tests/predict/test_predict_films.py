"""Films that break, disks that are full, and names that mean something else to FFmpeg."""
# ruff: noqa: F401, F811

import contextlib
import json
import os
import resource
import shutil
import struct

import cv2
import numpy as np
import pytest
from test_predict import PAIRS, _file_names, _film, _predict, run

from e2net import film as films
from e2net.film import FilmReader, FilmWriter, FrameFolder
from e2net.predict.job import Job

NOISE = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)


def _count(path):
    return sum(1 for _ in FilmReader(path).frames())


@contextlib.contextmanager
def _files_of_at_most(limit):
    """Whoever writes beyond that many bytes is told so by the system, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_no_film_no_picture_and_no_annotation(run, tmp_path, capsys):
    """Of a film, whose writer says nothing; nor of a large picture, whose map fits and whose overlay does not."""
    (tmp_path / "in").mkdir()
    with FilmWriter(tmp_path / "in" / "film.mp4", 5) as writer:
        for i in range(40):
            writer.write(np.roll(NOISE, i, 1))
    cv2.imwrite(str(tmp_path / "in" / "big.png"), np.tile(NOISE, (4, 4, 1)))
    cv2.imwrite(str(tmp_path / "in" / "small.png"), cv2.resize(PAIRS.read(0)[0], (20, 20)))
    with _files_of_at_most(20_000):
        assert _predict(run, tmp_path / "in", tmp_path / "out", "rle=true", "threshold=0.001") == 1
    error = capsys.readouterr().err
    assert "2 of 3 files failed:" in error and "File too large" in error
    assert f"{tmp_path}/in/film.mp4: " in error and "expected a film of 40 frames, found" in error
    names = _file_names(tmp_path / "out")
    assert names == ["maps/big.png", "maps/small.png", "objects.json", "overlays/small.jpg"]
    document = json.loads((tmp_path / "out" / "objects.json").read_text())
    assert [i["file_name"] for i in document["images"]] == ["small.png"]
    assert {a["image_id"] for a in document["annotations"]} == {1}


def test_objects_that_do_not_fit_are_a_failure_too(run, tmp_path, capsys):
    for i in range(30):
        cv2.imwrite(str(tmp_path / f"{i}.png"), NOISE[:8, :8])
    with _files_of_at_most(1000):
        assert _predict(run, f"{tmp_path}/*.png", tmp_path / "out", "rle=true", "overlays=false") == 1
    error = capsys.readouterr().err
    assert "objects.json: " in error and "File too large" in error and "1 of 30 files failed" in error
    assert _file_names(tmp_path / "out") == sorted(f"maps/{i}.png" for i in range(30))


@pytest.mark.parametrize("dead", ["map", "overlay", "cutout"])
def test_a_film_that_fails_midway_leaves_nothing_and_the_earlier_result(run, tmp_path, monkeypatch, capsys, dead):
    _film(tmp_path / "in" / "a.mp4")
    _film(tmp_path / "in" / "b.mp4", 5)
    options = ("cutouts=true", "rle=true", "batch_size=4")
    assert _predict(run, tmp_path / "in" / "a.mp4", tmp_path / "out", *options) == 0
    before = {n: (tmp_path / "out" / n).read_bytes() for n in _file_names(tmp_path / "out") if n != "objects.json"}
    real = Job._write_frame

    def broken(self, item, frame, result, writers, cutouts):
        if frame == 9:
            if dead == "cutout":
                cutouts.file = lambda frame: tmp_path / "in" / "a.mp4" / "no folder.png"
            else:
                writers[dead].write = lambda frame: (_ for _ in ()).throw(OSError("device lost"))
        return real(self, item, frame, result, writers, cutouts)

    monkeypatch.setattr(Job, "_write_frame", broken)
    assert _predict(run, tmp_path / "in", tmp_path / "out", *options) == 1
    assert f"{tmp_path}/in/a.mp4" in capsys.readouterr().err
    after = _file_names(tmp_path / "out")
    assert {n: (tmp_path / "out" / n).read_bytes() for n in before} == before
    assert set(after) - set(before) == {
        "objects.json",
        *(f"{kind}/b.mp4" for kind in ("maps", "overlays")),
        *(f"cutouts/b.mp4/{i:06d}.png" for i in range(5)),
    }
    document = json.loads((tmp_path / "out" / "objects.json").read_text())
    assert [(i["file_name"], i["frame"]) for i in document["images"]] == [("b.mp4", i) for i in range(5)]


@pytest.mark.parametrize("kept", [4, 0])
def test_frames_that_opencv_has_lost_are_noticed(tmp_path, kept):
    writer = FilmWriter(tmp_path / "a.mp4", 5)
    with pytest.raises(OSError, match=f"expected a film of 5 frames, found {kept} on the disk"), writer:
        for _ in range(kept or 1):
            writer.write(NOISE)
        writer.count = 5
        if not kept:
            writer._writer.release()
            writer._temporary.write_bytes(b"")
    assert _file_names(tmp_path) == []


@pytest.mark.parametrize(
    "rate", [0.1, 1, 12.5, 23.976023976, 30000 / 1001, 59.94005994, 119.88, 239.7602, 240.0038, 999.9]
)
def test_frame_rates_are_kept(tmp_path, rate):
    _film(tmp_path / "a.mp4", 3, rate=rate)
    assert FilmReader(tmp_path / "a.mp4").rate == pytest.approx(rate, rel=1e-3)


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 5), (17, 64), (65, 33), (300, 2)])
def test_sizes_are_kept_up_to_even_sides(tmp_path, size):
    _film(tmp_path / "a.mp4", 3, size)
    frames = list(FilmReader(tmp_path / "a.mp4").frames())
    assert len(frames) == 3 and frames[0].shape == (size[0] + size[0] % 2, size[1] + size[1] % 2, 3)


def test_frames_that_are_too_large_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"at most 8191 pixels a side, found \(4, 8192\)"):
        _film(tmp_path / "a.mp4", 1, (4, 8192))


def test_a_turned_film_is_seen_upright(run, tmp_path):
    """Telephones store a matrix instead of turning the pixels."""
    _film(tmp_path / "plain.mp4", 4, (48, 80))
    data = bytearray((tmp_path / "plain.mp4").read_bytes())
    matrix = data.find(b"tkhd") + 44
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 48 << 16, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(data)
    assert _predict(run, tmp_path / "turned.mp4", tmp_path / "out") == 0
    for kind in ("maps", "overlays"):
        assert next(FilmReader(tmp_path / "out" / kind / "turned.mp4").frames()).shape == (80, 48, 3)


def test_frames_of_uneven_length_keep_their_number_and_the_time(run, tmp_path):
    """The sample table of an MP4, rewritten: ten frames of one tick, ten of three."""
    _film(tmp_path / "even.mp4", 20, (48, 64), 10)
    data = (tmp_path / "even.mp4").read_bytes()
    at = data.find(b"stts") - 4
    size, _, _, entries, count, delta = struct.unpack(">I4sIIII", data[at : at + 24])
    assert (size, entries, count) == (24, 1, 20)
    table = struct.pack(">I4sIIIIII", 32, b"stts", 0, 2, 10, delta, 10, 3 * delta)
    data = data[:at] + table + data[at + 24 :]
    for box in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):  # those that hold the table have grown
        start = data.find(box) - 4
        data = data[:start] + struct.pack(">I", struct.unpack(">I", data[start : start + 4])[0] + 8) + data[start + 4 :]
    data = data.replace(b"edts", b"free")  # the list of cuts, which would end the film at its old length
    (tmp_path / "uneven.mp4").write_bytes(data)
    source = FilmReader(tmp_path / "uneven.mp4")
    assert _predict(run, tmp_path / "uneven.mp4", tmp_path / "out") == 0
    result = FilmReader(tmp_path / "out" / "maps" / "uneven.mp4")
    assert len(list(result.frames())) == len(list(source.frames())) == 20
    assert result.rate == pytest.approx(source.rate, rel=1e-3) == pytest.approx(5, rel=0.01)


def test_a_film_that_changes_its_size_is_refused_as_a_whole(run, tmp_path, monkeypatch, capsys):
    _film(tmp_path / "a.mp4", 8)
    real = FilmReader.frames

    def changing(self):
        for i, frame in enumerate(real(self)):
            yield frame if i < 5 else frame[:20]

    monkeypatch.setattr(FilmReader, "frames", changing)
    assert _predict(run, tmp_path / "a.mp4", tmp_path / "out", "cutouts=true", "rle=true") == 1
    error = capsys.readouterr().err
    assert f"{tmp_path}/a.mp4" in error and "a film that changes its size" in error
    assert _file_names(tmp_path / "out") == ["objects.json"]
    assert json.loads((tmp_path / "out" / "objects.json").read_text())["images"] == []


@pytest.mark.parametrize("share", [0, 10, 40, 70, 97])
def test_cut_films_are_listed_and_never_crash(run, tmp_path, capsys, share):
    _film(tmp_path / "whole.avi.mp4", 12)
    (tmp_path / "in").mkdir()
    data = (tmp_path / "whole.avi.mp4").read_bytes()
    (tmp_path / "in" / "cut.mp4").write_bytes(data[: len(data) * share // 100])
    shutil.copy(tmp_path / "whole.avi.mp4", tmp_path / "in" / "whole.mp4")
    assert _predict(run, tmp_path / "in", tmp_path / "out") == 1
    assert "1 of 2 files failed" in (error := capsys.readouterr().err) and f"{tmp_path}/in/cut.mp4" in error
    assert _file_names(tmp_path / "out") == ["maps/whole.mp4", "overlays/whole.mp4"]


NAMES = [
    b"100%.mp4",
    b"a%03d.mp4",
    b"clip_01.mp4",
    b"http:x.mp4",
    b"pipe:0.mp4",
    b"concat:a.mp4",
    b"-i.mp4",
    b"a b'\".mp4",
]
NAMES += ["ünïcödé 雪.mp4".encode(), b"caf\xe9.mp4", b"line\nbreak.mp4", b"a..mp4", b"[0].mp4"]


@pytest.mark.parametrize("place", [b"plain", b"caf\xe9%02d", b"rtsp:"])
def test_names_mean_files_and_nothing_else(run, tmp_path, monkeypatch, place, capsys):
    """FFmpeg takes some for addresses or numbered series, and OpenCV dies of those that are not UTF-8."""
    _film(tmp_path / "film.mp4", 3)
    folder = tmp_path / os.fsdecode(place)
    folder.mkdir()
    for name in NAMES:
        shutil.copy(tmp_path / "film.mp4", folder / os.fsdecode(name))
    monkeypatch.chdir(tmp_path)  # relative paths, where the danger lies
    output = os.fsdecode(place) + "/out"
    assert _predict(run, os.fsdecode(place), output, "rle=true", "cutouts=true", "batch_size=3") == 0
    for film in map(os.fsdecode, NAMES):
        assert all((folder / "out" / kind / film).stat().st_size > 100 for kind in ("maps", "overlays")), film
        assert len(list((folder / "out" / "cutouts" / film).iterdir())) == 3
    text = (tmp_path / output / "objects.json").read_bytes().decode()  # strict UTF-8
    shown = {i["file_name"] for i in json.loads(text)["images"]}
    assert len(shown) == len(NAMES) and {"caf\\xe9.mp4", "line\\nbreak.mp4", "ünïcödé 雪.mp4"} <= shown
    assert capsys.readouterr().out


def test_a_picture_under_a_films_name_is_no_numbered_series(run, tmp_path):
    for i in range(1, 4):
        (tmp_path / f"clip_{i:02d}.mp4").write_bytes(cv2.imencode(".jpg", NOISE)[1].tobytes())
    assert _count(tmp_path / "clip_01.mp4") == 1


def test_frames_join_those_of_a_strangers_folder(tmp_path):
    """And replace those of their names; what else lies there stays."""
    (tmp_path / "a.mp4").mkdir()
    for name in ("note.txt", "000001.png", "000007.png"):
        (tmp_path / "a.mp4" / name).write_text("old")
    with FrameFolder(tmp_path / "a.mp4") as folder:
        for i in range(3):
            file = folder.file(i)
            file.parent.mkdir(exist_ok=True)
            file.write_text("new")
    found = {f.name: f.read_text() for f in (tmp_path / "a.mp4").iterdir()}
    assert found == {"note.txt": "old", "000007.png": "old"} | {f"{i:06d}.png": "new" for i in range(3)}
    assert [f.name for f in tmp_path.iterdir()] == ["a.mp4"]
