"""Locks between processes: a lock is an open file, and ends with it or with the process, whatever ends that."""

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
        raise BlockingIOError(f"{file} is locked by another process") from error
    except portalocker.LockException as error:
        handle.close()
        raise OSError(f"{file} cannot be locked ({error})") from error
    return handle
