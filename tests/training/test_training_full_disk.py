"""A disk that fills up: one line says so, the checkpoint that was there stays whole, and the run goes on from it.

The disk is played by the limit that an operating system sets to a file's size: writes really come to an end in the
middle of a file. Set by a forked process, as it is of a whole process.
"""

import errno
import os
import re

import lightning as L
import pytest
import torch
from apart import Program, start
from conftest import ROOT, mostly_slow
from tiny import TINY, tiny_job

from e2net.datasets.cached import FeatureStore
from e2net.files import no_space, write_atomically
from e2net.runs.checkpoint import read_checkpoint
from e2net.runs.launch import full_disk_told
from e2net.training import train

resource = pytest.importorskip("resource", reason="limits of a file's size are set by the module resource, of Unix")


def in_child(work, file):
    """What an OSError in a process of its own says, by way of a file; None where it came to its end."""

    def told():
        try:
            work()
        except OSError as error:
            limit(resource.RLIM_INFINITY)
            file.write_text(str(no_space(error)))
            os._exit(1)

    process = start(told)
    process.join(300)
    assert process.exitcode in (0, 1)
    return file.read_text() if process.exitcode else None


def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


class FillUp(L.Callback):
    """From an epoch on no file becomes larger than so many bytes."""

    def __init__(self, epoch, size):
        self.epoch, self.size = epoch, size

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == self.epoch:
            limit(self.size)


LONGER = ["trainer.max_epochs=3", "logger=csv"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The weights of a run that always had room."""
    folder = tmp_path_factory.mktemp("whole")
    train(tiny_job(folder, *LONGER))
    return read_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"]


@pytest.mark.parametrize("size", mostly_slow([0, 300_000, 1000, 100_000], quick=(0, 1)))
def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(size, whole, tmp_path):
    def work():
        job = tiny_job(tmp_path / "run", *LONGER)
        job.trainer.callbacks.append(FillUp(1, size))
        train(job)

    told = in_child(work, tmp_path.with_suffix(".said"))
    assert re.match(rf"no space left for {tmp_path}/run/\S+ \(File too large\)", told), told
    content = [read_checkpoint(tmp_path / "run" / "checkpoints" / name) for name in ("best.ckpt", "last.ckpt")]
    assert [one["epoch"] for one in content] == [0, 0]
    assert [p.name for p in (tmp_path / "run").rglob("*.part")] == []
    train(tiny_job(tmp_path / "run", *LONGER, f"resume={tmp_path}/run"))
    state = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["state_dict"]
    assert all(torch.equal(value, whole[key]) for key, value in state.items())


def test_a_feature_cache_that_does_not_fit_is_an_error_and_no_signal(tmp_path):
    """A file with a hole, mapped into memory, would be a bus error at the first write that finds no room."""

    def work():
        limit(10_000)
        FeatureStore(tmp_path, "key", 100, [(8, 4, 4)], (32, 32))

    assert re.match(rf"no space left for {tmp_path}/\w+/features.bin", in_child(work, tmp_path.with_suffix(".said")))
    assert list(tmp_path.iterdir()) == []
    store = FeatureStore(tmp_path, "key", 100, [(8, 4, 4)], (32, 32))
    blocks = sum(file.stat().st_blocks * 512 for file in store.folder.iterdir())
    assert blocks >= store.bytes, "room that is only promised"


@pytest.mark.parametrize("size", [0, 5])
def test_a_file_is_whole_or_not_there(size, tmp_path):
    file = tmp_path / "scores.json"
    write_atomically(file, "before")

    def work():
        limit(size)
        write_atomically(file, "after" * 1000)

    assert in_child(work, tmp_path.with_suffix(".said")) == f"no space left for {file} (File too large)"
    assert [p.name for p in tmp_path.iterdir()] == ["scores.json"] and file.read_text() == "before"


def test_train_says_it_in_one_line(tmp_path):
    limited = tmp_path / "limited.py"
    limited.write_text(f"""
import resource, runpy
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
runpy.run_path({str(ROOT / "train.py")!r}, run_name="__main__")
""")
    settings = [*TINY, f"hydra.run.dir={tmp_path}/run", "logger=csv", "num_samples=0"]
    status, _, error = Program(limited, *settings, cwd=tmp_path).finish()
    assert status == 1 and "Traceback" not in error, error[-3000:]
    assert re.search(
        r"^error: no space left for \S+best.ckpt \(File too large\); make room, then continue with resume=\S+run$",
        error.strip().splitlines()[-1],
    ), error[-2000:]


def test_other_errors_than_a_full_disk_keep_their_traceback(tmp_path, capsys):
    """And evaluation says the same line, with advice of its own."""
    with pytest.raises(FileNotFoundError), full_disk_told("make room"):
        (tmp_path / "nowhere").read_bytes()
    with pytest.raises(SystemExit) as stop, full_disk_told("make room, then evaluate again"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "maps/a.png")
    assert stop.value.code == 1
    line = "error: no space left for maps/a.png (No space left on device); make room, then evaluate again\n"
    assert capsys.readouterr().err.lstrip("\n") == line
