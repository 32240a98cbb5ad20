"""Files that are there whole or not at all."""

import contextlib
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file whole or not at all, under another name first; folders are made.

    A byte of a file name that is no UTF-8 becomes an escape in a text, see ``e2net.datasets.io.printable``.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content)


def copy_atomically(old: Path, new: Path) -> None:
    """Copies a file whole or not at all."""
    with replacing(new) as temporary:
        shutil.copyfile(old, temporary)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name in the same folder, which becomes ``path`` in the end, or is gone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
