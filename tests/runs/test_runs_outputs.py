"""A stranger's files in folders of results: refused before anything is written, never replaced, never removed."""

import contextlib
import json
import random
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT
from hydra import compose, initialize_config_dir

from e2net.compare.comparison import FILES, compare
from e2net.evaluation import evaluate, prepare_evaluation
from e2net.evaluation.predictions import evaluation_files
from e2net.runs import inherit, resolve
from e2net.runs.outputs import MARKER, check_free, claim

sys.path.append(str(Path(__file__).parent.parent / "compare"))
from fake import fake_run

NAMES = [n.replace("*", "x") for n in (*FILES, *evaluation_files(maps=True))] + [MARKER, "mine.txt", "notes", "sweep"]


def _snapshot(root):
    return {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def _strangers(root, draw):
    """Random files and folders, most of them called as results are."""
    for _ in range(draw.randint(0, 3)):
        path = root.joinpath(*draw.choices(NAMES, k=draw.randint(1, 2)))
        with contextlib.suppress(OSError):  # a file is where a folder should be, or the other way round
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(draw.choice(["", "mine", "{}", '{"format": 2}', '{"patterns": ["report.md"]}', "[]"]))
    return _snapshot(root)


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("maps")
    for name in ("maps/test", "data/test/GT"):
        for i in range(3):
            file = folder / name / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(file), np.eye(24, dtype=np.uint8) * 255)
    return folder


def _evaluate(maps, output, *more):
    given = [f"predictions={maps}/maps", f"data.root={maps}/data", f"output={output}", "num_workers=0", *more]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = resolve(inherit(compose("eval", given), given))
    return evaluate(prepare_evaluation(config))


def _compare(runs, output):
    return compare(runs, output, images=0, cost=False, resamples=100)


@pytest.mark.parametrize("seed", range(12))
def test_random_trees_of_a_stranger(maps, tmp_path, seed):
    """Each program runs twice, in its own and in the other's folder; what was there is there, byte by byte."""
    draw = random.Random(seed)
    runs = [fake_run(tmp_path / f"run{i}", width=i + 1) for i in range(2)]
    output = tmp_path / "out"
    output.mkdir()
    before = _strangers(output, draw)
    done = set()
    for _ in range(2):
        for name, program in (("compare", _compare), ("eval", _evaluate)):
            was = _snapshot(output)
            try:
                program(runs if name == "compare" else maps, output)
            except ValueError as error:
                assert "was not written by e2net; move it away" in str(error)
                assert _snapshot(output) == was, "refused, and yet something was written"
                assert name not in done
            else:
                done.add(name)
            assert {k: _snapshot(output).get(k) for k in before} == before
    top = {k.parts[0] for k in before}
    assert ("compare" in done) == top.isdisjoint({*FILES, MARKER})


def test_a_second_run_replaces_the_first(maps, tmp_path):
    runs = [fake_run(tmp_path / f"run{i}", width=i + 1) for i in range(2)]
    for _ in range(2):
        assert _evaluate(maps, tmp_path / "out")["test"]["S"] > 0
        _compare(runs, tmp_path / "out")
    (maps / "maps" / "test" / "2.png").rename(maps / "gone.png")
    try:
        for _ in range(2):
            with pytest.raises(ValueError, match=r"1 of 3 maps are missing"):
                _evaluate(maps, tmp_path / "missing")
    finally:
        (maps / "gone.png").rename(maps / "maps" / "test" / "2.png")
    assert _evaluate(maps, tmp_path / "missing")["test"]["S"] > 0


def test_folders_of_earlier_versions_are_known_by_their_documents(tmp_path):
    (tmp_path / "curves.png").touch()
    with pytest.raises(ValueError, match=r"output=.*: curves.png is there"):
        check_free("output", tmp_path, evaluation_files(maps=True))
    (tmp_path / "scores.json").write_text(json.dumps({"e2net": "0.1", "scores": {}}))
    check_free("output", tmp_path, evaluation_files(maps=True))
    claim(tmp_path, ["scores.json"])
    with pytest.raises(ValueError, match=r"curves.png"):
        check_free("output", tmp_path, evaluation_files(maps=True))
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "samples").mkdir()
    with pytest.raises(ValueError, match="samples"):
        check_free("output", run, evaluation_files(maps=True))
    (run / "environment.json").write_text(json.dumps({"packages": {"e2net": "0.1"}}))
    check_free("output", run, evaluation_files(maps=True))


def test_what_an_earlier_run_noted_is_removed_and_nothing_else(tmp_path):
    output, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    patterns = ("maps", "*.json", "link")

    def write(names):
        for name in names:
            (output / name).parent.mkdir(parents=True, exist_ok=True)
            (output / name).write_text(name)

    first = ["maps/a.png", "maps/sub/b.png", "maps/sub/c.png", "scores.json", "link/d.png"]
    claim(output, patterns, first)
    write([*first, "maps/mine.png", "notes/e.png"])
    claim(output, ["notes"], ["notes/e.png"])  # of another program: its own stays when the first one comes again
    elsewhere.mkdir()
    (output / "link").rename(elsewhere / "link")
    (output / "link").symlink_to(elsewhere / "link")  # moved away by the user: not ours to remove through a link
    (output / "maps" / "a.png").unlink()
    claim(output, patterns, ["maps/a.png", "maps/sub/c.png"])
    left = {p.relative_to(output).as_posix() for p in output.rglob("*") if p.is_file()}
    assert left == {"maps/sub/c.png", "maps/mine.png", "notes/e.png", MARKER}
    assert (elsewhere / "link" / "d.png").is_file()
    claim(output, patterns, [])
    assert not (output / "maps" / "sub").exists() and (output / "maps" / "mine.png").is_file()
    claim(output, patterns)  # by a program that notes nothing
    assert (output / "notes" / "e.png").is_file()


@pytest.mark.parametrize("name", ["../mine.txt", "maps/../../mine.txt", "{root}/mine.txt"])
def test_a_marker_that_somebody_wrote_removes_nothing_outside(tmp_path, name):
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "out" / "maps").mkdir(parents=True)
    noted = {"format": 1, "patterns": ["*"], "files": [name.format(root=tmp_path), 3, ""]}
    (tmp_path / "out" / MARKER).write_text(json.dumps(noted))
    claim(tmp_path / "out", ["*"], [])
    assert (tmp_path / "mine.txt").is_file() and (tmp_path / "out" / "maps").is_dir()
