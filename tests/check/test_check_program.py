"""``python -m e2net.check``: what it prints and writes, its exit status, and names that are meant to do harm."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT
from made import cut, make, mask, picture, read
from PIL import Image

from e2net.check import check_data
from e2net.check.__main__ import main
from e2net.check.page import page
from e2net.check.report import as_json
from e2net.datasets import FolderData

sys.path.append(str(ROOT / "tests" / "compare"))
from test_compare_page import _Elements

EVIL = "\"'><script>alert(1)<img src=x onerror=y>&lt;{{ 7 * 7 }}{% x %}[red]`|_"


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return make(tmp_path_factory.mktemp("clean"))


@pytest.fixture
def root(clean, tmp_path):
    shutil.copytree(clean, tmp_path / "data")
    return tmp_path / "data"


def _run(root, tmp_path, *more):
    return main(["data=folder", f"data.root={root}", "data.val=['v*']", f"output={tmp_path / 'out'}", *more])


def _report(tmp_path):
    return json.loads((tmp_path / "out" / "check.json").read_text(encoding="utf-8"))


def test_a_clean_set(root, tmp_path, capsys):
    assert _run(root, tmp_path) == 0
    assert capsys.readouterr().out.splitlines() == [
        "18 pairs in 3 sets: 0 errors, 0 warnings, 0 notes",
        f"page: {tmp_path / 'out' / 'check.html'}",
    ]
    report = _report(tmp_path)
    assert report["findings"] == [] and report["task"] == "camouflage"
    assert report["sets"] == [
        {"name": name, "role": name, "pairs": count} for name, count in (("train", 8), ("val", 4), ("test", 6))
    ]
    assert "Nothing is wrong" in (tmp_path / "out" / "check.html").read_text(encoding="utf-8")


def test_the_exit_status_tells_errors_from_warnings(root, tmp_path, capsys):
    values = Image.open(mask(root, "t1"))
    Image.new("L", values.size).save(mask(root, "t1"))
    assert _run(root, tmp_path) == 0
    assert _run(root, tmp_path, "strict=true") == 1
    cut(picture(root, "x1"))
    for kind in (picture, mask):
        shutil.copy(kind(root, "t0"), kind(root, "v0"))
    assert _run(root, tmp_path) == 1
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80 or str(tmp_path) in max(out.splitlines(), key=len)
    assert "18 pairs in 3 sets: 2 errors, 1 warning, 0 notes" in out
    assert "same picture across sets: train/Image/t0.png and train/Image/v0.png" in out
    kinds = {one["kind"]: one["pairs"] for one in _report(tmp_path)["kinds"]}
    assert kinds["same picture across sets"] == {"train": 1, "val": 1, "test": 0}
    assert kinds["unreadable picture"] == {"train": 0, "val": 0, "test": 1}


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("images=-1", "expected 0 to 1000"),
        ("threads=0", "expected 1 to 256"),
        ("strict=perhaps", "strict=perhaps: expected bool"),
        ("frog", "expected key=value"),
        ("sizze=3", "sizze"),
        ("data.rood=x", "rood"),
        ("task=nope", "nope"),
        ("run_dir=x", "leave it out"),
        ("data.val_fraction=2", "val_fraction"),
        ("data.test=[test,a/test]", "more than one set named test"),
        ("task=semantic", "the classes are not known"),
    ],
)
def test_wrong_arguments_are_one_line(root, tmp_path, capsys, argument, words):
    try:
        status = _run(root, tmp_path, argument)
    except SystemExit as stopped:
        status = stopped.code
    error = capsys.readouterr().err.strip().splitlines()
    assert status == 2 and len(error) == 1 and error[0].startswith("error: ") and words in error[0]
    assert not (tmp_path / "out").exists()


def test_data_that_is_not_there_is_a_wrong_argument(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        _run(tmp_path / "nowhere", tmp_path)
    assert stopped.value.code == 2
    assert "no folder" in capsys.readouterr().err


def test_a_strangers_report_is_not_replaced(root, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "check.json").write_text("mine")
    with pytest.raises(SystemExit) as stopped:
        _run(root, tmp_path)
    assert stopped.value.code == 2 and "not written by e2net" in capsys.readouterr().err
    assert (tmp_path / "out" / "check.json").read_text() == "mine"
    (tmp_path / "out" / "check.json").rename(tmp_path / "out" / "notes.txt")
    assert _run(root, tmp_path) == _run(root, tmp_path) == 0
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def _named(root, name):
    """One of each: a fault of a picture, of a target, and a pair across sets, all in files of such a name."""
    for old, new in (
        ("t1", f"1{name}"),
        ("x1", f"1{name}"),
        ("x2", f"2{name}"),
        ("t3", f"3{name}"),
        ("t2", f"s{name}"),
    ):
        for path in (picture(root, old), mask(root, old)):
            path.rename(path.with_name(f"{new}{path.suffix}"))
    train, test = root / "train", root / "test"
    shutil.copy(train / "Image" / f"1{name}.png", test / "Image" / f"1{name}.png")
    shutil.copy(train / "GT" / f"1{name}.png", test / "GT" / f"1{name}.png")
    cut(test / "Image" / f"2{name}.png")
    Image.fromarray(read(train / "Image" / f"3{name}.png")).save(train / "GT" / f"3{name}.png")
    (train / "GT" / f"s{name}.png").unlink()


def test_names_add_no_element_to_the_page(root, clean, tmp_path):
    shutil.copytree(clean, tmp_path / "plain")
    evil = EVIL.replace("/", "")
    _named(root, evil)
    _named(tmp_path / "plain", "plain")
    pages = [page(check_data(FolderData(str(one), 32, val=["v*"]))) for one in (root, tmp_path / "plain")]
    found, plain = map(_Elements, pages)
    assert found.elements == plain.elements
    kinds = {name for name, _ in found.elements}
    assert {"article", "img", "table"} <= kinds
    joined = "\n".join(found.texts)
    for file in ("Image/1", "Image/2", "GT/3", "Image/s"):
        assert f"{file}{evil}.png" in joined
    assert all(not attribute.startswith("on") for _, attributes in found.elements for attribute in attributes)


def test_the_page_is_of_no_machine_and_fetches_nothing(root):
    cut(picture(root, "t1"))
    text = page(check_data(FolderData(str(root), 32, val=["v*"])))
    assert str(root) not in text and "http" not in text.replace("http-equiv", "")
    assert "default-src 'none'" in text and "prefers-color-scheme: dark" in text
    assert text == page(check_data(FolderData(str(root), 32, val=["v*"])))


def test_no_pictures_are_drawn_where_none_are_asked_for(root):
    Image.new("L", Image.open(mask(root, "t1")).size).save(mask(root, "t1"))
    found = check_data(FolderData(str(root), 32, val=["v*"]))
    assert page(found, images=1).count("<img") == 2 and page(found, images=0).count("<img") == 0
    assert "And 1 more, in check.json" in page(found, images=0)


def test_names_that_are_not_utf_8(root):
    """They are written so that Python reads them back as it had them."""
    name = os.fsdecode(b"\xff\xe9t")
    _named(root, name)
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    output = root.parent / "out"
    command = [sys.executable, "-m", "e2net.check", "data=folder", f"data.root={root}", "data.val=['v*']"]
    command.append(f"output={output}")
    done = subprocess.run(command, check=False, cwd=ROOT, env=environment, capture_output=True, timeout=120)
    assert done.returncode == 1 and b"Traceback" not in done.stderr, done.stderr[-2000:]
    report = json.loads((output / "check.json").read_text(encoding="utf-8"))
    files = {place["file"] for one in report["findings"] for place in one["places"]}
    assert f"train/Image/1{name}.png" in files and (root / f"train/Image/1{name}.png").is_file()
    assert "\\udcff" in (output / "check.html").read_text(encoding="utf-8")


def test_json_has_all_that_was_found(root):
    for number in range(5):
        cut(picture(root, f"x{number}"))
    report = json.loads(as_json(check_data(FolderData(str(root), 32, val=["v*"]))))
    assert [one["places"][0]["file"] for one in report["findings"]] == [f"test/Image/x{n}.png" for n in range(5)]
    assert report["counts"] == {"error": 5, "warning": 0, "note": 0}
    assert report["kinds"][0]["meaning"]
