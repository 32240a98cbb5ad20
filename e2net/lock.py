"""Locks between processes: a lock is an open file, and ends with it or with the process, whatever ends that."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import portalocker


def lock(file: Path, shared: bool = False) -> BinaryIO:
    """Locks a file, which is made where it is not there; what it holds stays as it is.

    Args:
        file: its folder must be there.
        shared: others may hold a shared lock as well, but no exclusive one.

    Returns:
        The open file; closing it gives the lock back. A child that inherits its descriptor holds the lock as well.

    Raises:
        BlockingIOError: another process, or another open file of this one, holds the lock.
        OSError: the file cannot be opened, or this file system has no locks.
    """
    kind = portalocker.LockFlags.SHARED if shared else portalocker.LockFlags.EXCLUSIVE
    handle = file.open("ab")
    try:
        portalocker.lock(handle, kind | portalocker.LockFlags.NON_BLOCKING)
    except portalocker.AlreadyLocked as error:
        handle.close()
        raise BlockingIOError(f"{file} is locked by another process; wait for its end") from error
    except portalocker.LockException as error:
        handle.close()
        raise OSError(f"{file} cannot be locked ({error})") from error
    return handle


@contextlib.contextmanager
def alone(file: Path, others: str, taken: str) -> Iterator[BinaryIO | None]:
    """Keeps others out of a lock file's folder, which is made; where its file system has no locks, a note asks for it.

    Args:
        file: the lock.
        others: what would do harm there, for the note.
        taken: the error where one of them is at work.

    Yields:
        The open file, None where there are no locks.

    Raises:
        ValueError: another process holds the lock; nothing in the folder has been changed.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    held: BinaryIO | None = None
    try:
        held = lock(file)
    except BlockingIOError as error:
        raise ValueError(taken) from error
    except OSError as error:
        print(f"note: {error}; let no other {others} write to {file.parent}", file=sys.stderr)
    with held or contextlib.nullcontext():
        yield held
