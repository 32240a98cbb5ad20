"""Folders of runs as real processes take them, and sweeps in which a job is bad."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from apart import Program
from conftest import ROOT
from hydra import compose, initialize_config_dir
from tiny import TINY

from e2net.runs.folder import owned
from e2net.runs.launch import OwnFolder

QUICK = [one for one in TINY if one != "decoder.width=16"]
QUICK += ["decoder=linear", "trainer.max_epochs=1", "num_samples=0"]


def start(program, *arguments, cwd):
    return Program(ROOT / program, *arguments, cwd=cwd)


def errors(text):
    return [line for line in text.splitlines() if line.startswith("error:")]


def snapshot(folder):
    return {
        p: (p.read_bytes(), p.stat().st_mtime_ns)
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != ".lock"
    }


@pytest.fixture(scope="module")
def loop(tmp_path_factory):
    """What a loop over seeds starts at once, with the default name of the folder: the place, and each one's end."""
    place = tmp_path_factory.mktemp("loop")
    started = [start("train.py", *QUICK, f"seed={seed}", cwd=place) for seed in range(4)]
    return place, [process.finish() for process in started]


def test_what_is_refused_leaves_no_folder_but_the_one_that_was_named(tmp_path):
    (tmp_path / "mine").mkdir()
    for program, wrong in (("eval.py", "ckpt=nowhere"), ("train.py", "data.n_train=-1")):
        key = "output" if program == "eval.py" else "run_dir"
        for more in ([], [f"hydra.run.dir={tmp_path / 'mine'}"], [f"{key}={tmp_path / 'mine'}"]):
            status, _, error = start(program, wrong, *more, cwd=tmp_path).finish()
            assert status and "error: " in error, error
            assert not list((tmp_path / "runs").glob("*")) and (tmp_path / "mine").is_dir()


def test_runs_of_one_second_have_a_folder_each(loop):
    place, ended = loop
    assert [status for status, _, _ in ended] == [0] * 4
    folders = [Path(out.rpartition("run folder: ")[2].strip()) for _, out, _ in ended]
    assert sorted(p.name for p in folders) == sorted(p.name for p in (place / "runs").iterdir())
    assert len(set(folders)) == 4
    scores = []
    for seed, folder in enumerate(folders):
        assert yaml.safe_load((folder / "config.yaml").read_text())["seed"] == seed
        document = json.loads((folder / "test_scores.json").read_text())
        assert Path(document["checkpoint"]).parent.parent == folder
        scores.append(document["scores"]["procedural"]["S"])
    assert len(set(scores)) == 4


@pytest.mark.parametrize("name, begin, key", [("eval", "run", "run"), ("train", "multirun", "sweep")])
def test_evaluations_and_sweeps_of_one_second_have_a_folder_each(tmp_path, monkeypatch, name, begin, key):
    monkeypatch.chdir(tmp_path)
    made = []
    for _ in range(3):
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            config = compose(name, return_hydra_config=True)
        getattr(OwnFolder(), f"on_{begin}_start")(config)
        made.append(config.hydra[key].dir)
    assert len(set(made)) == 3 and sorted(made) == sorted(str(p) for p in Path("runs").iterdir())


def test_a_folder_in_use_or_used_stays_as_it_is(loop):
    """Its log and the time of its files included, but for that of the lock."""
    run = Path(loop[1][0][1].rpartition("run folder: ")[2].strip())
    before = snapshot(run)
    with owned(run):
        status, _, error = start("train.py", *QUICK, f"hydra.run.dir={run}", cwd=loop[0]).finish()
        (line,) = errors(error)
        assert status == 2 and line.startswith("error: expected a folder that no other run or evaluation writes to")
    status, _, error = start("train.py", *QUICK, f"hydra.run.dir={run}", cwd=loop[0]).finish()
    assert status == 2 and len(errors(error)) == 1 and f"continue that one by resume={run}" in error
    assert snapshot(run) == before


def test_forked_children_do_not_hold_a_folder(tmp_path):
    """They are like those that read data, which live on for seconds after a kill."""
    code = "import os, sys, time; from pathlib import Path; from e2net.runs.folder import owned\n"
    code += "with owned(Path(sys.argv[1])): os.fork(); os.write(1, b'there\\n'); time.sleep(10)"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE)
    assert [process.stdout.readline() for _ in range(2)] == [b"there\n"] * 2  # both have started
    with pytest.raises(ValueError, match="no other run or evaluation"), owned(tmp_path):
        pass
    process.kill()
    process.wait()
    with owned(tmp_path):
        pass
    process.stdout.close()


def test_a_bad_job_does_not_end_the_sweep(tmp_path):
    options = ["optim.lr=-1,1e-3", "hydra.sweep.dir=sweep"]
    status, _, error = start("train.py", "-m", *QUICK, *options, cwd=tmp_path).finish()
    assert status == 1
    assert (tmp_path / "sweep" / "1" / "test_scores.json").is_file()
    (line,) = errors(error)
    end = error[error.index("1 of the sweep's jobs failed:") :]
    assert "job 0" in end and "optim.lr=-1" in end and line.removeprefix("error: ") in end


def test_a_bad_evaluation_does_not_end_the_sweep(loop, tmp_path):
    run = loop[1][0][1].rpartition("run folder: ")[2].strip()
    options = ["accelerator=cpu", "num_samples=0", "hydra.sweep.dir=sweep"]
    status, _, error = start("eval.py", "-m", f"ckpt=nothing,{run}", *options, cwd=tmp_path).finish()
    assert status == 1 and len(errors(error)) == 1 and "1 of the sweep's jobs failed" in error
    assert (tmp_path / "sweep" / "1" / "scores.json").is_file()


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"], ["--cfg", "hydra", "--resolve"], ["sede=1"]])
def test_what_runs_nothing_makes_no_folder(arguments, tmp_path):
    start("train.py", *arguments, cwd=tmp_path).finish()
    assert list(tmp_path.iterdir()) == []


def test_without_locks_there_is_a_note(tmp_path, monkeypatch, capsys):
    def refused(file):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("e2net.lock.lock", refused)
    with owned(tmp_path):
        assert "No locks available" in capsys.readouterr().err


def test_two_devices_are_one_run(tmp_path):
    """The process that the first one starts gets its folder, and is not refused it."""
    options = ["trainer.devices=2"]
    began = time.time()
    status, out, error = start("train.py", *QUICK, *options, cwd=tmp_path).finish()
    assert status == 0, error[-2000:]
    for said in ("task ", "device   cpu x 2,", "epoch 1/1: loss ", "next: python -m e2net.predict "):  # once
        assert sum(line.startswith(said) for line in out.splitlines()) == 1, out
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / "test_scores.json").stat().st_mtime > began
