"""The command: what it prints and returns for a run, for wrong settings, for a full disk and for a sweep."""

import signal
import time

import pytest
from apart import Program
from small import PROCEDURAL, SMALL


def _run(*overrides, cwd):
    return Program("e2net.adapt", *overrides, cwd=cwd).finish()


def test_a_run_says_where_things_are(tmp_path):
    status, out, err = _run(*PROCEDURAL, *SMALL, "output=mine", "run_dir=run", cwd=tmp_path)
    assert status == 0, err
    for words in ("probe/S", "before", "after", "curves: run/probe.png", "encoder: mine"):
        assert words in out
    assert (tmp_path / "mine" / "config.json").is_file()
    # The folder is the program's own and is there: it may be written again, but not into the same run folder.
    status, _, err = _run(*PROCEDURAL, *SMALL, "output=mine", "run_dir=run", cwd=tmp_path)
    assert status == 2 and "expected a new folder for this run" in err and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.root=nowhere", "encoder=tiny"], "data.root=nowhere: expected a folder"),
        (["data=procedural", "encoder=tiny", "decoder=dpt"], "decoder: python -m e2net.adapt does not use it"),
        (
            ["data=procedural", "encoder=tiny", "data.augment.flip=0"],
            "data.augment.flip: python -m e2net.adapt does not",
        ),
        (["data=procedural", "encoder=local", "encoder.path=nowhere"], "encoder folder nowhere does not exist"),
        ([], "config: data.root has no value; give it as data.root="),
    ],
)
def test_wrong_settings_are_one_line(tmp_path, overrides, words):
    status, out, err = _run(*overrides, cwd=tmp_path)
    lines = [line for line in err.strip().splitlines() if line]
    assert status == 2 and len(lines) == 1 and words in lines[0], err
    assert not out and not any((tmp_path / "runs").iterdir())


def test_nothing_but_broken_files(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"no picture")
    status, _, err = _run("data.root=photos", "encoder=tiny", cwd=tmp_path)
    assert status == 2 and "none of 1 pictures and films can be read" in err


def test_somebody_elses_folder_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    status, _, err = _run(*PROCEDURAL, *SMALL, "output=mine", cwd=tmp_path)
    assert status == 2 and "config.json is there and was not written by e2net" in err
    assert (tmp_path / "mine" / "config.json").read_text() == "{}"


def test_sigterm_saves_and_the_run_goes_on(tmp_path):
    long = [*PROCEDURAL, *SMALL, "trainer.max_steps=2000", "watch.every=2000"]
    program, metrics = Program("e2net.adapt", *long, "run_dir=run", cwd=tmp_path), tmp_path / "run" / "metrics.csv"
    while program.status is None and not (metrics.is_file() and metrics.read_bytes().count(b"\n") > 5):
        time.sleep(0.05)
    program.send(signal.SIGTERM)
    status, _, err = program.finish()
    assert status == 130 and "interrupted; continue with resume=run" in err, err
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()
