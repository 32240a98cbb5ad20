"""Which pictures a setting such as ``input=...`` means, and which of them cannot be read. Imports nothing heavy."""

import glob
import os
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from e2net.trees import PICTURES, other_kind, walk

T = TypeVar("T")


class Failures:
    """Files that cannot be read: a verb does its work on the others, as ``predict`` does, and says so at its end."""

    def __init__(self) -> None:
        self._lines: dict[Path, str] = {}

    def add(self, file: Path, error: object) -> None:
        """Takes one file and why."""
        reason = " ".join(str(error).split())
        self._lines[file] = reason if str(file) in reason else f"{file}: {reason}"

    def readable(self, files: Iterable[Path]) -> list[Path]:
        """The pictures that can be decoded, in their order; the others are noted.

        Raises:
            ValueError: that leaves none.
        """
        from e2net.formats import verify_image  # noqa: PLC0415 - OpenCV

        return self.some(self.without_fault(files, verify_image, lambda file: file))

    def without_fault(self, items: Iterable[T], check: Callable[[T], object], file_of: Callable[[T], Path]) -> list[T]:
        """The items of which a check raises nothing, in their order; the files of the others are noted."""

        def fault(item: T) -> Exception | None:
            try:
                check(item)
            except (ValueError, OSError, MemoryError) as error:
                return error
            return None

        listed = list(items)
        with ThreadPoolExecutor() as pool:
            faults = list(pool.map(fault, listed))
        for item, error in zip(listed, faults, strict=True):
            if error is not None:
                self.add(file_of(item), error)
        return [item for item, error in zip(listed, faults, strict=True) if error is None]

    def some(self, kept: list[T]) -> list[T]:
        """The same; a ValueError that tells the first failure where all have failed."""
        if not kept:
            raise ValueError(next(iter(self._lines.values())))
        return kept

    def report(self) -> int:
        """Prints a line for each file on stderr; returns the exit status, 1 where there is one, else 0."""
        from e2net.formats import printable  # noqa: PLC0415 - OpenCV

        if self._lines:
            print(f"{len(self._lines)} files cannot be read and were left out:", file=sys.stderr)
        for line in self._lines.values():
            print(f"  {printable(line)}", file=sys.stderr)
        return 1 if self._lines else 0


def find_pictures(text: str, key: str = "input", failures: Failures | None = None) -> list[Path]:
    """The pictures of a file, of a folder with all below it, or of a pattern; hidden files are left out.

    Args:
        text: path or pattern (``*``, ``?``, ``[...]``, ``**``); a path that exists is no pattern.
        key: the setting, for the messages.
        failures: takes what has a picture's name and is none, or a folder that cannot be listed; None: an error.

    Returns:
        At least one, sorted by path.

    Raises:
        FileNotFoundError: no such file, or no match.
        ValueError: nothing there is a picture, or something is not readable.
    """
    path = Path(text).expanduser()
    faults: dict[Path, str] = {}
    if path.is_dir():
        files = list(walk(path, faults))
    elif os.path.lexists(path):
        files = [path]
    elif glob.has_magic(text):
        files = [Path(one) for one in glob.glob(str(path), recursive=True)]  # noqa: PTH207 - Path.glob wants a base
    else:
        raise FileNotFoundError(f"{key}={text}: expected a file, a folder or a pattern, found nothing there")
    found = sorted(file for file in files if file.suffix.lower() in PICTURES)
    faults |= {file: f"expected a file, found {kind}" for file in found if (kind := other_kind(file)) is not None}
    if failures is not None:
        for file, fault in faults.items():
            failures.add(file, fault)
        found = [file for file in found if file not in faults]
    elif faults:
        file, fault = next(iter(faults.items()))
        raise ValueError(f"{key}: {file}: {fault}")
    if not found:
        raise ValueError(f"{key}={text}: expected pictures ({', '.join(PICTURES)}), found {len(files)} other files")
    return found
