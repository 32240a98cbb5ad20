"""Files that are there whole or not at all."""

import contextlib
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file whole or not at all, under another name first; folders are made.

    A byte of a file name that is no UTF-8 becomes an escape in a text, see ``e2net.formats.printable``.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content)


def copy_atomically(old: Path, new: Path) -> None:
    """Copies a file whole or not at all."""
    with replacing(new) as temporary:
        shutil.copyfile(old, temporary)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name in the same folder for a new file or folder, which becomes ``path`` in the end, or is gone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)
        raise


def is_part(path: Path) -> bool:
    """Whether a name is one that ``replacing`` gives; a process that was killed meanwhile leaves it behind."""
    return re.fullmatch(r"\.[0-9a-f]{32}\.part", path.name) is not None
