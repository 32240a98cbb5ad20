"""Which pictures a setting such as ``input=...`` means. Imports nothing heavy."""

import glob
import os
from pathlib import Path

from e2net.trees import PICTURES, other_kind, walk


def find_pictures(text: str, key: str = "input") -> list[Path]:
    """The pictures of a file, of a folder with all below it, or of a pattern; hidden files are left out.

    Args:
        text: path or pattern (``*``, ``?``, ``[...]``, ``**``); a path that exists is no pattern.
        key: the setting, for the messages.

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
    if faults:
        file, fault = next(iter(faults.items()))
        raise ValueError(f"{key}: {file}: {fault}")
    if not found:
        raise ValueError(f"{key}={text}: expected pictures ({', '.join(PICTURES)}), found {len(files)} other files")
    return found
