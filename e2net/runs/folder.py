"""The folder of a run: a name of its own, one process at a time, and files that all belong to one state of the run.

Imports nothing heavy: ``train.py`` and ``eval.py`` name their folders by it before torch is loaded.
"""

import contextlib
import csv
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from e2net.files import copy_atomically, is_part, replacing, write_atomically
from e2net.lock import alone

LOCK = ".lock"
CONFIG, ENVIRONMENT, METRICS = "config.yaml", "environment.json", "metrics.csv"
CHECKPOINTS, SAMPLES = "checkpoints", "samples"
BEST, LAST = "best.ckpt", "last.ckpt"
TEST_SCORES = "test_scores"

# The locks that this process holds.
_locks: set[BinaryIO] = set()


def new_folder(path: str | Path) -> Path:
    """Makes a folder that nobody else has, and returns its path: ``path``, or with a number behind it.

    Making it is what reserves it: of several processes that start in one second each gets its own.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        folder = path if number == 1 else path.with_name(f"{path.name}_{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder


def is_first_process() -> bool:
    """Whether this is no further process of a run on several devices, which shares the folder of the first one."""
    return all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


@contextlib.contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Keeps other runs and evaluations out of a folder; where its file system has no locks, a note asks for it.

    Raises:
        ValueError: another process is at work there; nothing in the folder has been changed.
    """
    if not is_first_process():
        yield
        return
    taken = f"expected a folder that no other run or evaluation writes to, found one at work in {folder}; give another"
    with alone(folder / LOCK, "run or evaluation", taken) as held:
        if held is not None:
            _locks.add(held)
        try:
            (folder / LOCK).touch()  # when the last one started
            yield
        finally:
            if held is not None:
                _locks.discard(held)


def _let_go() -> None:
    """In a forked child: one that reads data lives on for seconds after this process was killed."""
    for held in _locks:
        held.close()
    _locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def check_unused(folder: Path, resumed: Path | None) -> None:
    """Refuses a folder that holds another run than the one that is resumed.

    Args:
        folder: where a run is to write.
        resumed: the checkpoint that it goes on from, or None.

    Raises:
        ValueError: the folder has checkpoints or scores that would be overwritten.
    """
    # Not by its best checkpoint, beside a last one: the epochs since then would be lost.
    names = (LAST,) if (folder / CHECKPOINTS / LAST).is_file() else (BEST,)
    if resumed is not None and resumed.resolve() in [(folder / CHECKPOINTS / name).resolve() for name in names]:
        return
    results = (f"{CHECKPOINTS}/{BEST}", f"{CHECKPOINTS}/{LAST}", f"{TEST_SCORES}.json")
    found = [name for name in results if (folder / name).is_file()]
    if found:
        raise ValueError(
            f"expected a new folder for this run, found an earlier run's {' and '.join(found)} in {folder}; continue "
            f"that one by resume={folder}, or give another folder"
        )


def carry_over(checkpoint: Path, folder: Path, step: int, validated: bool) -> None:
    """Brings a run's history into the folder where it goes on: rows of ``metrics.csv``, best and last checkpoint.

    Rows of steps that will be run again are left out. In a new folder the checkpoints come last, and both at once:
    where they are, all else is.

    Args:
        checkpoint: the one that is resumed from.
        folder: where the run goes on; may be its own.
        step: how many optimiser steps have been taken in it.
        validated: whether the run has a best checkpoint.
    """
    of_a_run = checkpoint.parent.name == CHECKPOINTS
    rows = checkpoint.parent.parent / METRICS
    if of_a_run and rows.is_file():
        write_atomically(folder / METRICS, _rows_until(rows, step))
    target = folder / CHECKPOINTS
    if checkpoint.parent.resolve() == target.resolve():
        if not (target / LAST).is_file():  # it ended between its first two files, and goes on from the best one
            copy_atomically(checkpoint, target / LAST)
        return
    target.mkdir(parents=True, exist_ok=True)
    target.rmdir()
    with replacing(target) as temporary:
        temporary.mkdir()
        # The best one too: the rest of the run may not get better. The last one: there may be no rest.
        shutil.copyfile(checkpoint, temporary / LAST)
        if validated and of_a_run and (checkpoint.parent / BEST).is_file():
            shutil.copyfile(checkpoint.parent / BEST, temporary / BEST)


def remove_parts(folder: Path) -> None:
    """Removes what writing files whole leaves behind in a run folder where the process was killed meanwhile."""
    for place in (folder, folder / CHECKPOINTS, folder / SAMPLES):
        for part in place.glob(".*.part") if place.is_dir() else ():
            if is_part(part):
                shutil.rmtree(part) if part.is_dir() else part.unlink()


def _rows_until(file: Path, step: int) -> str:
    with file.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        kept = [row for row in reader if _is_before(row, step)]
    text = io.StringIO()
    writer = csv.DictWriter(text, reader.fieldnames or [])
    writer.writeheader()
    writer.writerows(kept)
    return text.getvalue()


def _is_before(row: dict[str, str], step: int) -> bool:
    """Whether a row was logged before so many optimiser steps had been taken; those of an epoch name its last one."""
    return bool(row.get("step")) and int(float(row["step"])) < step
