"""A run that ends at any moment: what its folder then holds is of one state, and the run goes on from there.

Every file that a run writes comes into its place by ``Path.replace``, but for rows that are added to metrics.csv and
events for TensorBoard. So a run is ended before and behind each of these, by an exception and by SIGKILL.
"""

import errno
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml
from apart import start
from conftest import mostly_slow
from tiny import rows_of, tiny_job

from e2net.compare.runs import read_run
from e2net.runs.checkpoint import read_checkpoint
from e2net.runs.folder import owned
from e2net.runs.provenance import config_hash, file_hash
from e2net.runs.resume import check_same_run
from e2net.training import train

# Files that a run of two epochs puts into place, at most.
MOST = 26
# Lightning logs it behind the epoch's last checkpoint; a run that is killed in between lacks that one row.
MEAN = "train/mean_loss"
HOW = ("full disk", "killed before", "killed behind")


def small_job(folder, *overrides):
    """The fewer tensors, the sooner are they written."""
    return tiny_job(folder, "decoder=linear", *overrides)


def end_at(patch, moment, how):
    """From now on the write of this number, counted from 0, does not succeed, or is the last thing that happens."""
    done, replace = [], Path.replace

    def replaced(self, target):
        done.append(target)
        if len(done) - 1 < moment:
            return replace(self, target)
        if how == "full disk":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        if how == "killed behind":
            replace(self, target)
        os.kill(os.getpid(), signal.SIGKILL)

    patch.setattr(Path, "replace", replaced)


def in_child(work):
    """Does some work in a process of its own, and returns the signal that ended it; None: it came to an end."""

    def told():
        try:
            work()
        except OSError as error:
            os._exit(0 if error.errno == errno.ENOSPC else 3)
        except BaseException:
            os._exit(3)

    process = start(told)
    process.join()
    assert process.exitcode <= 0
    return -process.exitcode or None


def assert_consistent(folder):
    """All that is there can be read, and belongs together."""
    config = None
    if (folder / "config.yaml").is_file():
        config = yaml.safe_load((folder / "config.yaml").read_text())
    for file in folder.rglob("*.json"):
        json.loads(file.read_text())
    for file in (folder / "checkpoints").glob("*.ckpt"):
        content = read_checkpoint(file)
        assert config is not None
        check_same_run(content["e2net"]["config"], config)
    if (folder / "metrics.csv").is_file():
        rows = rows_of(folder)
        losses = [row["step"] for row in rows if "train/loss" in row]
        assert len(losses) == len(set(losses))
    if (folder / "test_scores.json").is_file():
        document = json.loads((folder / "test_scores.json").read_text())
        assert document["config_sha256"] == config_hash(config)
        assert document["checkpoint_sha256"] == file_hash(folder / "checkpoints" / Path(document["checkpoint"]).name)
        read_run(folder)


def assert_same_result(folder, expected):
    assert read_run(folder).document["scores"] == read_run(expected).document["scores"]
    found, wanted = ([row for row in rows_of(place) if MEAN not in row] for place in (folder, expected))
    assert found == wanted
    assert all(row in rows_of(expected) for row in rows_of(folder))
    for name in ("best.ckpt", "last.ckpt"):
        one, other = (read_checkpoint(place / "checkpoints" / name) for place in (folder, expected))
        assert one["epoch"] == other["epoch"]
        assert all(torch.equal(value, other["state_dict"][key]) for key, value in one["state_dict"].items())
    assert not [p for p in folder.rglob("*.part")]


@pytest.fixture(scope="module", autouse=True)
def no_drawing():
    """Of curves, which takes as long as all the rest."""
    with pytest.MonkeyPatch.context() as patch:
        for figure in ("curve_figure", "calibration_figure"):
            patch.setattr(f"e2net.evaluation.report.{figure}", lambda curves: b"a picture")
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Runs of one and of two epochs that nothing has interrupted; how many files the latter puts into place."""
    folder = tmp_path_factory.mktemp("whole")
    train(small_job(folder / "one", "trainer.max_epochs=1"))
    with pytest.MonkeyPatch.context() as patch:
        written, replace = [], Path.replace
        patch.setattr(Path, "replace", lambda self, target: (written.append(target.name), replace(self, target))[1])
        train(small_job(folder / "two"))
    return folder, written


def ended(folder, moment, how, *overrides):
    """Ends a run at one of its writes; False if it has none of that number."""
    with pytest.MonkeyPatch.context() as patch:
        if how == "full disk":
            job = small_job(folder, *overrides)
            end_at(patch, moment, how)
            try:
                train(job)
            except OSError as error:
                assert error.errno == errno.ENOSPC
                return True
            return False

        def work():
            end_at(pytest.MonkeyPatch(), moment, how)
            train(small_job(folder, *overrides))

        return in_child(work) == signal.SIGKILL


def goes_on(folder, *overrides):
    """The same command again, with resume= where there is what to resume from."""
    there = [p for p in (folder / "checkpoints").glob("*.ckpt")]
    train(small_job(folder, *overrides, *([f"resume={folder}"] if there else [])))


def test_a_run_writes_what_is_tried_below(whole):
    _, written = whole
    for name in (".e2net.json", "config.yaml", "environment.json", "metrics.csv", "val.png", "best.ckpt", "last.ckpt"):
        assert name in written
    assert written[-1] == "test_scores.json" and len(written) <= MOST


@pytest.mark.parametrize("moment", mostly_slow(range(MOST), quick=range(0, MOST, 4)))
def test_ended_while_it_trains(whole, tmp_path, moment):
    folder, written = whole
    if moment >= len(written):
        pytest.skip(f"a run writes {len(written)} files")
    how = HOW[moment % 3]
    assert ended(tmp_path, moment, how)
    assert_consistent(tmp_path)
    if written[moment] != "test_scores.json" or how != "killed behind":
        assert not (tmp_path / "test_scores.json").exists()
    goes_on(tmp_path)
    assert_consistent(tmp_path)
    assert_same_result(tmp_path, folder / "two")


@pytest.mark.parametrize("moment, how", mostly_slow([(i, HOW[(i + 1) % 3]) for i in range(4)], quick=(0, 3)))
def test_ended_while_a_finished_run_is_extended(whole, tmp_path, moment, how):
    """Its old scores are gone before it is another run."""
    shutil.copytree(whole[0] / "one", tmp_path / "run")
    folder = tmp_path / "run"
    assert ended(folder, moment, how, f"resume={folder}")
    assert_consistent(folder)
    # The first file says which names are e2net's; until then the run is as it was.
    assert (folder / "test_scores.json").exists() == (moment == 0)
    goes_on(folder)
    assert_consistent(folder)
    assert yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["max_epochs"] == 2


@pytest.mark.parametrize("moment, how", mostly_slow([(i, HOW[(i + 1) % 3]) for i in range(5)], quick=(0, 4)))
def test_ended_while_a_run_moves_into_a_new_folder(whole, tmp_path, moment, how):
    source = whole[0] / "one"
    assert ended(tmp_path / "new", moment, how, f"resume={source}")
    assert_consistent(tmp_path / "new")
    again = [] if (tmp_path / "new" / "checkpoints" / "last.ckpt").is_file() else [f"resume={source}"]
    train(small_job(tmp_path / "new", *(again or [f"resume={tmp_path}/new"])))
    assert_consistent(tmp_path / "new")
    assert [row["step"] for row in rows_of(tmp_path / "new") if "train/loss" in row] == ["0", "1", "2", "3"]
    assert read_run(source)


def test_kills_leave_no_lock_and_no_reader_of_data_behind(tmp_path):
    """A process that reads data lives on for seconds; the folder must be free at once."""

    def work():
        job = small_job(tmp_path, "data.num_workers=1")
        with owned(tmp_path), pytest.MonkeyPatch.context() as patch:
            end_at(patch, 8, "killed before")
            train(job)

    assert in_child(work) == signal.SIGKILL
    with owned(tmp_path):
        goes_on(tmp_path, "data.num_workers=1")
