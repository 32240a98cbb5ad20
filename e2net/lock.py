"""Locks between processes, on any system: a lock is an open file, and ends with it or with the process."""

import ctypes
import os
import sys
from pathlib import Path
from typing import BinaryIO


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
    handle = file.open("ab")
    try:
        _lock(handle.fileno(), shared)
    except BaseException:
        handle.close()
        raise
    return handle


if sys.platform == "win32":
    import msvcrt

    class _Overlapped(ctypes.Structure):
        """Windows' OVERLAPPED: where in the file, all zero."""

        _fields_ = (
            ("internal", ctypes.c_void_p),
            ("internal_high", ctypes.c_void_p),
            ("offset", ctypes.c_ulong),
            ("offset_high", ctypes.c_ulong),
            ("event", ctypes.c_void_p),
        )

    def _lock(descriptor: int, shared: bool) -> None:
        at_once, exclusive = 1, 2
        handle = ctypes.c_void_p(msvcrt.get_osfhandle(descriptor))
        kernel = ctypes.WinDLL("kernel32", use_last_error=True)
        place = _Overlapped()
        if not kernel.LockFileEx(handle, at_once | (0 if shared else exclusive), 0, 1, 0, ctypes.byref(place)):
            code = ctypes.get_last_error()
            if code in (32, 33):  # sharing and lock violation
                raise BlockingIOError(code, "locked by another process")
            raise OSError(code, os.strerror(code))
else:
    import fcntl

    def _lock(descriptor: int, shared: bool) -> None:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
