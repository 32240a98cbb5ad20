"""Folders as people have them: strange names, links, pipes, twins; whatever they hold, every file is accounted for."""
# ruff: noqa: F401, F811

import io
import json
import os
import socket
import sys
import tempfile
from dataclasses import fields
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_predict import PAIRS, _file_names, _film, _predict, _read, run

from e2net.evaluation import inference
from e2net.predict import segmenter
from e2net.predict.__main__ import main
from e2net.predict.inputs import find_inputs, shown
from e2net.predict.settings import PredictSettings
from e2net.trees import FILMS, PICTURES, distinct, other_kind

PICTURE = cv2.imencode(".png", cv2.resize(PAIRS.read(0)[0], (40, 30)))[1].tobytes()


def _names(folder, output="out"):
    return [(i.relative.as_posix(), i.name.as_posix(), i.fault) for i in find_inputs(str(folder), folder / output)]


def _put(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(PICTURE)


def test_links_to_folders_are_followed_and_never_in_circles(tmp_path):
    _put(tmp_path, "in/a.jpg", "in/deep/b.jpg", "elsewhere/c.jpg", "elsewhere/d/e.jpg")
    for link, target in (("in/aa", "elsewhere"), ("in/deep/up", "in"), ("elsewhere/d/back", "elsewhere")):
        (tmp_path / link).symlink_to(tmp_path / target)
    (tmp_path / "in" / "self").symlink_to("self")
    (tmp_path / "in" / "Deep again").symlink_to("deep")
    (tmp_path / "in" / "link.jpg").symlink_to(tmp_path / "elsewhere" / "c.jpg")
    expected = ["a.jpg", "aa/c.jpg", "aa/d/e.jpg", "deep/b.jpg", "link.jpg"]
    assert [n for n, _, _ in _names(tmp_path / "in")] == expected
    pattern = find_inputs(f"{tmp_path}/in/**/*.jpg", tmp_path / "out")
    assert [i.relative.as_posix() for i in pattern] == expected


def test_what_is_no_file_is_listed_and_does_not_hang(run, tmp_path, capsys):
    folder = tmp_path / "in"
    _put(folder, "a.png")
    os.mkfifo(folder / "pipe.jpg")
    os.mkfifo(folder / "pipe.mp4")
    (folder / "nothing.png").symlink_to("nowhere")
    (folder / "circle.png").symlink_to("circle.png")
    (folder / "zeros.png").symlink_to("/dev/zero")
    (folder / "folder.jpg").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(folder)  # the path of a socket must be short
        server.bind("socket.jpg")
        os.chdir(here)
        assert _predict(run, folder, tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "6 of 7 files failed:" in error
    for name, what in (("pipe.jpg", "a pipe"), ("pipe.mp4", "a pipe"), ("socket.jpg", "a socket")):
        assert f"{folder}/{name}: expected a file, found {what}" in error
    assert "nothing.png: expected a file, found a link to nothing" in error and "zeros.png: expected" in error
    assert _file_names(tmp_path / "out") == ["maps/a.png", "overlays/a.jpg"]
    for name in ("pipe.jpg", "pipe.mp4"):
        with pytest.raises(SystemExit):
            _predict(run, folder / name, tmp_path / "out")
        assert f"{name}: expected a file, found a pipe" in capsys.readouterr().err


def test_a_folder_that_cannot_be_listed_is_a_failure(tmp_path, monkeypatch):
    _put(tmp_path, "in/a.jpg", "in/locked/b.jpg")
    real = os.scandir

    def scandir(path):
        if str(path).endswith(locked):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    locked = "locked"
    assert _names(tmp_path / "in") == [
        ("a.jpg", "a", None),
        ("locked", "locked", "this folder cannot be listed (Permission denied)"),
    ]
    locked = "in"
    with pytest.raises(PermissionError):
        _names(tmp_path / "in")


@pytest.mark.parametrize(
    "files, names",
    [
        (["dir.jpg", "dir.png/a.jpg"], ["dir.jpg", "dir.png/a"]),  # maps/dir.png would be file and folder
        (["dir.png", "dir.jpg/a.jpg"], ["dir.jpg/a", "dir.png"]),
        (["a.avi", "a.mp4/000000.jpg"], ["a.avi", "a.mp4/000000"]),
        (["a.jpg", "a.png", "a.jpg.bmp"], ["a.jpg", "a.jpg.bmp", "a.png"]),
        (["a.jpg", "a.jpg.png/b.jpg", "a.png/b.jpg"], ["a.jpg~2", "a.jpg.png/b", "a.png/b"]),
        (["A.jpg", "a.jpg"], ["A.jpg", "a.jpg~2"]),
        (["x/a.jpg", "X/A.JPG", "x/a.Jpg"], ["X/A.JPG", "x/a.Jpg~2", "x/a.jpg~3"]),
    ],
)
def test_no_two_results_have_one_name(tmp_path, files, names):
    _put(tmp_path / "in", *files)
    assert [name for _, name, _ in _names(tmp_path / "in")] == names


def test_results_that_would_reach_an_input_through_a_link_are_refused(run, tmp_path, capsys):
    _put(tmp_path, "photos/a.png", "photos/sub/b.png")
    (tmp_path / "out" / "maps").mkdir(parents=True)
    (tmp_path / "out" / "maps" / "sub").symlink_to(tmp_path / "photos")
    assert _predict(run, tmp_path / "photos", tmp_path / "out") == 2
    assert "photos/a.png is an input and lies where results are written" in capsys.readouterr().err


def test_objects_of_somebody_else_stay(run, tmp_path, capsys):
    _put(tmp_path, "in/a.png")
    theirs = tmp_path / "out" / "objects.json"
    theirs.parent.mkdir()
    for content in ('{"info": {"year": 2014}}', ""):
        theirs.write_text(content)
        assert _predict(run, tmp_path / "in", tmp_path / "out") == 0
        with pytest.raises(SystemExit):
            _predict(run, tmp_path / "in", tmp_path / "out", "rle=true")
        assert "its objects.json was not written by e2net" in capsys.readouterr().err
        assert theirs.read_text() == content
    theirs.unlink()
    assert _predict(run, tmp_path / "in", tmp_path / "out", "rle=true") == 0
    assert _predict(run, tmp_path / "in", tmp_path / "out", "rle=true", "min_area=9") == 0
    assert json.loads(theirs.read_text())["info"]["min_area"] == 9
    assert _predict(run, tmp_path / "in", tmp_path / "out") == 0 and not theirs.exists()  # of other maps than these
    theirs.mkdir()
    assert _predict(run, tmp_path / "in", tmp_path / "out") == 0 and theirs.is_dir()


def test_shown_is_printable_utf8():
    assert shown(Path(os.fsdecode(b"caf\xe9\n\x1b[31m/\xc3\xa4"))) == "caf\\xe9\\n\\x1b[31m/ä"
    assert other_kind(Path("/nowhere")) is None and other_kind(Path("/dev/null")) == "a device"


PARTS = st.sampled_from(
    [
        b"a",
        b"b",
        b"dir",
        b"caf\xe9",
        b"\xff\xfe",
        "雪 ü".encode(),
        b"100%d",
        b"x:y",
        b"new\nline",
        b"-q",
        b" ",
        b"~",
        b"*[a]",
    ]
)
EXTENSIONS = st.sampled_from([b".jpg", b".JPG", b".png", b".bmp", b".tif", b".webp", b".mp4", b".avi", b".txt", b""])
CONTENTS = [
    "picture",
    "picture",
    "picture",
    "jpeg",
    "tiff",
    "empty",
    "cut",
    "text",
    "film",
    "pipe",
    "link",
    "broken link",
    "folder",
]
FILES = st.lists(
    st.tuples(st.lists(st.builds(bytes.__add__, PARTS, EXTENSIONS), min_size=1, max_size=3), st.sampled_from(CONTENTS)),
    min_size=1,
    max_size=9,
)


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    path = tmp_path_factory.mktemp("film") / "f.mp4"
    _film(path, 2, (16, 24))
    return path.read_bytes()


def _make(root, files, film):
    image = np.asarray(cv2.imdecode(np.frombuffer(PICTURE, np.uint8), cv2.IMREAD_COLOR))
    data = {
        "picture": PICTURE,
        "jpeg": cv2.imencode(".jpg", image)[1].tobytes(),
        "tiff": cv2.imencode(".tif", image.astype(np.float32))[1].tobytes(),
        "empty": b"",
        "cut": PICTURE[: len(PICTURE) // 2],
        "text": b"no picture",
        "film": film,
    }
    for parts, content in files:
        path = root / os.fsdecode(b"/".join(parts))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            continue  # a file stands where this one's folder would be
        if os.path.lexists(path):
            continue
        if content == "pipe":
            os.mkfifo(path)
        elif content == "folder":
            path.mkdir()
        elif content == "link":
            path.symlink_to(root)
        elif content == "broken link":
            path.symlink_to("nowhere")
        else:
            path.write_bytes(data[content])


def _contents(folder):
    """Everything below a folder but ``out``: the bytes of files, targets of links, kinds of the rest."""
    found = {}
    for place, folders, names in os.walk(folder):
        if Path(place) == folder:
            folders[:] = [f for f in folders if f != "out"]
        for name in (*folders, *names):
            path = Path(place) / name
            kind = os.readlink(path) if path.is_symlink() else other_kind(path)  # noqa: PTH115
            found[path] = (
                kind,
                path.read_bytes() if kind is None else None,
                path.lstat().st_mtime_ns if kind is None else 0,
            )
    return found


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(files=FILES, outside=st.booleans())
def test_whatever_a_folder_holds_all_of_it_is_written_or_listed(run, film, capsys, files, outside):
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "in"
        root.mkdir()
        _make(root, files, film)
        _put(root, "zz.png")  # with one broken file alone the command says so at once
        output = Path(name) / "out" if outside else root / "out"
        stranger = output / "maps" / "stranger.txt"
        stranger.parent.mkdir(parents=True)
        stranger.write_text("stay")
        before = _contents(root)
        status = _predict(run, root, output, "rle=true", "cutouts=true", "batch_size=3")
        error = capsys.readouterr().err
        assert _contents(root) == before and stranger.read_text() == "stay"
        expected = [p for p in before if p.suffix.lower() in PICTURES + FILMS and not p.is_dir()]
        expected = [p for p in expected if not any(part.startswith(".") for part in p.relative_to(root).parts)]
        items = find_inputs(str(root), output)
        assert sorted(os.fsencode(i.source) for i in items) == sorted(map(os.fsencode, expected))
        document = json.loads((output / "objects.json").read_bytes().decode())
        predicted = {i["file_name"] for i in document["images"]}
        for item in items:
            listed = f"  {shown(item.source)}" in error
            extension = ".mp4" if item.film else ".png"
            written = (output / "maps" / item.name.with_name(item.name.name + extension)).is_file()
            assert listed != written == (shown(item.relative) in predicted), item
        assert status == (1 if "failed:" in error else 0)
        assert len(predicted) == len([i for i in items if f"  {shown(i.source)}" not in error])


def _observe(output):
    return {n: (output / n).read_bytes() for n in _file_names(output)}


@pytest.fixture
def photos(tmp_path):
    for i in range(3):
        file = tmp_path / "photos" / f"{i}.png"
        file.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(file), PAIRS.read(i)[0][..., ::-1])
    return tmp_path / "photos"


def test_a_result_that_is_not_finite_is_one_failure(run, photos, tmp_path, monkeypatch, capsys):
    real = segmenter.Segmenter.activated

    def broken(model, images, *more):
        found = real(model, images, *more)
        found[1] = torch.nan
        return found

    monkeypatch.setattr(segmenter.Segmenter, "activated", broken)
    assert _predict(run, photos, tmp_path / "out") == 1
    assert sorted(file.name for file in (tmp_path / "out" / "maps").iterdir()) == ["0.png", "2.png"]
    told = capsys.readouterr().err
    assert "1.png" in told and "expected finite results" in told


def test_what_nothing_would_read_is_refused(run, photos, tmp_path, capsys):
    with pytest.raises(SystemExit):
        _predict(run, photos, tmp_path / "out", "min_area=9")
    assert "min_area=9: expected rle=true beside it" in capsys.readouterr().err


# What each setting is changed to, beside what; the rest is told in the test.
CHANGES = {
    "overlays": ("false", ()),
    "cutouts": ("true", ()),
    "rle": ("true", ()),
    "min_area": ("50", ("rle=true", "threshold=0.02")),
    "threshold": ("0.05", ()),
    "size": ("96", ()),
    "keep_aspect": ("true", ()),
    "flip": ("true", ()),
    "scales": ("[0.75,1]", ()),
    "window": ("64", ("size=96",)),
    "sharpen": ("2", ()),
    "zoom": ("1", ()),
    "precision": ("bf16-mixed", ()),
    "input": ("{photos}/0.png", ()),
}


@pytest.mark.parametrize("key", [f.name for f in fields(PredictSettings)])
def test_every_setting_changes_something(run, photos, tmp_path, monkeypatch, capsys, key):
    if key == "zoom":  # this model finds the whole picture, where there is nothing to look at again
        monkeypatch.setattr(inference, "found_box", lambda certainty, zoom: (0, 32, 0, 32))
    if key in CHANGES:
        value, beside = CHANGES[key]
        arguments = {"ckpt": run, "input": photos, "device": "cpu"} | dict(a.split("=") for a in beside)
        for output, change in (("plain", {}), ("changed", {key: value.format(photos=photos)})):
            both = arguments | change | {"output": tmp_path / output}
            assert main([f"{k}={v}" for k, v in both.items()]) == 0
        assert _observe(tmp_path / "plain") != _observe(tmp_path / "changed")
    elif key in ("ckpt", "encoder_path", "device"):
        with pytest.raises(SystemExit) as stop:
            main([f"{k}={v}" for k, v in ({"ckpt": run, "input": photos, "output": tmp_path, key: "nowhere"}).items()])
        assert stop.value.code == 2 and ("nowhere" if key != "encoder_path" else key) in capsys.readouterr().err
    elif key == "output":
        assert _predict(run, photos, tmp_path / "elsewhere") == 0 and (tmp_path / "elsewhere" / "maps").is_dir()
    elif key == "batch_size":
        seen, real = [], segmenter.Segmenter.activated
        monkeypatch.setattr(
            segmenter.Segmenter, "activated", lambda s, x, *more: seen.append(len(x)) or real(s, x, *more)
        )
        assert _predict(run, photos, tmp_path / "out", "batch_size=2") == 0 and seen == [2, 1]
    else:
        assert key == "threads"
        seen, pool = [], segmenter.ThreadPoolExecutor
        monkeypatch.setattr(segmenter, "ThreadPoolExecutor", lambda n, name: seen.append(n) or pool(n, name))
        assert _predict(run, photos, tmp_path / "out", "threads=3") == 0 and seen == [3]


HOSTILE = [
    "nan",
    ".nan",
    ".inf",
    "-1",
    "-.5",
    "1e400",
    "10000000000000000000000",
    "[]",
    "{}",
    "[1,2,3]",
    "[null]",
    "''",
    "~",
    "null",
]
# What of these is a value after all.
ALLOWED = {
    "size": {"~", "null"},
    "flip": {"~", "null"},
    "scales": {"~", "null", "[1,2,3]"},
    "window": {"~", "null"},
    "sharpen": {"~", "null"},
    "zoom": {"~", "null"},
    "threads": {"~", "null"},
    "encoder_path": {"null"},
    "output": set(HOSTILE),  # any text is a name
    "input": {"~"},  # the home
}


@pytest.mark.parametrize("key", [f.name for f in fields(PredictSettings)])
def test_hostile_values_are_answered_on_one_line(run, photos, tmp_path, monkeypatch, capsys, key):
    monkeypatch.chdir(tmp_path)
    for value in HOSTILE:
        if value in ALLOWED.get(key, ()):
            continue
        given = {"ckpt": run, "input": photos, "output": tmp_path / "out", "device": "cpu"} | {key: value}
        status: object
        try:
            status = main([f"{k}={v}" for k, v in given.items()])
        except SystemExit as stop:
            status = stop.code
        error = capsys.readouterr().err
        assert status == 2 and error.startswith("error: ") and error.count("\n") == 1, (key, value, error)
        assert not (tmp_path / "out").exists()


def test_memory_that_does_not_suffice_is_said_on_one_line(run, photos, tmp_path, monkeypatch, capsys):
    def full(self, image, pictures):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: not enough memory: you tried ...")

    monkeypatch.setattr(segmenter.Segmenter, "activated", full)
    assert _predict(run, photos, tmp_path / "out") == 2
    assert capsys.readouterr().err.strip().endswith("error: the memory does not suffice; try batch_size=4")


def test_names_are_printed_whatever_the_terminal(run, tmp_path, monkeypatch):
    folder = tmp_path / os.fsdecode(b"\xe9 \xc3\xa9")
    _put(folder, os.fsdecode(b"\xff.png"), "雪.png")
    (folder / "ü.png").write_bytes(b"")
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), "ascii"))
    assert _predict(run, folder, folder / "out", "rle=true") == 1
    out, err = (stream.buffer.getvalue() for stream in (sys.stdout, sys.stderr) if stream.flush() is None)
    assert rb"\xe9" in out and rb"\xfc.png" in err
    names = [i["file_name"] for i in json.loads((folder / "out" / "objects.json").read_bytes())["images"]]
    assert sorted(names) == ["\\xff.png", "雪.png"]


@given(st.lists(st.sampled_from(["a", "A", "a~2", "a~3", "a~3~4", "b", ""]), max_size=8))
def test_names_are_each_there_once(names):
    """Also where a name looks like a numbered one."""
    found = distinct(names)
    assert len({one.casefold() for one in found}) == len(found) == len(names)
    for k, (name, one) in enumerate(zip(names, found, strict=True)):
        taken = {before.casefold() for before in found[:k]}
        assert one == name if name.casefold() not in taken else one.startswith(f"{name}~")
