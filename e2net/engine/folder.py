"""The folder of a run: a name of its own, one process at a time, and files that all belong to one state of the run.

Imports nothing heavy: ``train.py`` and ``eval.py`` name their folders by it before torch is loaded.
"""

import contextlib
import csv
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from e2net.files import copy_atomically, write_atomically
from e2net.lock import lock

LOCK = ".lock"
CONFIG, ENVIRONMENT, METRICS = "config.yaml", "environment.json", "metrics.csv"
CHECKPOINTS = "checkpoints"
BEST, LAST = "best.ckpt", "last.ckpt"
TEST_SCORES = "test_scores"


def new_folder(path: str) -> str:
    """Makes a folder that nobody else has, and returns its path: ``path``, or with a number behind it.

    Making it is what reserves it: of several processes that start in one second each gets its own.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        folder = Path(path if number == 1 else f"{path}_{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return str(folder)


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
    folder.mkdir(parents=True, exist_ok=True)
    held: contextlib.AbstractContextManager = contextlib.nullcontext()
    try:
        held = lock(folder / LOCK)
    except BlockingIOError as error:
        raise ValueError(
            f"expected a folder that no other run or evaluation writes to, found one at work in {folder}; give another"
        ) from error
    except OSError as error:
        print(f"note: {error}; let no other run or evaluation write to {folder}", file=sys.stderr)
    with held:
        (folder / LOCK).touch()  # when the last one started
        yield


def check_unused(folder: Path, resumed: Path | None) -> None:
    """Refuses a folder that holds another run than the one that is resumed.

    Args:
        folder: where a run is to write.
        resumed: the checkpoint that it goes on from, or None.

    Raises:
        ValueError: the folder has checkpoints or scores that would be overwritten.
    """
    if resumed is not None and resumed.resolve().parent == (folder / CHECKPOINTS).resolve():
        return
    results = (f"{CHECKPOINTS}/{BEST}", f"{CHECKPOINTS}/{LAST}", f"{TEST_SCORES}.json")
    found = [name for name in results if (folder / name).is_file()]
    if found:
        raise ValueError(
            f"expected a new folder for this run, found an earlier run's {' and '.join(found)} in {folder}; continue "
            f"that one by resume={folder}, or give another folder"
        )


def carry_over(checkpoint: Path, folder: Path, epoch: int, step: int) -> None:
    """Brings a run's history into the folder where it goes on: best and last checkpoint, and rows of ``metrics.csv``.

    Rows of epochs that will be run again are left out.

    Args:
        checkpoint: the one that is resumed from.
        folder: where the run goes on; may be its own.
        epoch: the last one that is finished in the checkpoint, from 0.
        step: how many optimiser steps have been taken in it.
    """
    target = folder / CHECKPOINTS
    target.mkdir(parents=True, exist_ok=True)
    # The best one too: the rest of the run may not get better. The last one: there may be no rest.
    for old, new in ((checkpoint.parent / BEST, target / BEST), (checkpoint, target / LAST)):
        if old.is_file() and old.resolve() != new.resolve():
            copy_atomically(old, new)
    rows = checkpoint.parent.parent / METRICS
    if rows.is_file():
        write_atomically(folder / METRICS, _rows_until(rows, epoch, step))


def _rows_until(file: Path, epoch: int, step: int) -> str:
    with file.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        kept = [row for row in reader if _is_before(row, epoch, step)]
        text = io.StringIO()
        writer = csv.DictWriter(text, reader.fieldnames or [])
        writer.writeheader()
        writer.writerows(kept)
    return text.getvalue()


def _is_before(row: dict[str, str], epoch: int, step: int) -> bool:
    """Whether a row is of a finished epoch; those of learning rates name a step alone."""
    if row.get("epoch"):
        return int(float(row["epoch"])) <= epoch
    return bool(row.get("step")) and int(float(row["step"])) < step
