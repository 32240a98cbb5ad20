"""Files that are there whole or not at all."""

import contextlib
import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file whole or not at all, under another name first; folders are made.

    A byte of a file name that is no UTF-8 becomes an escape in a text, see ``e2net.formats.printable``.
    """
    with naming(path), replacing(path) as temporary:
        temporary.write_bytes(content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content)


def copy_atomically(old: Path, new: Path) -> None:
    """Copies a file whole or not at all."""
    with naming(new), replacing(new) as temporary:
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


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of writing name the file that was written, and a library's own that an OSError caused is that OSError."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise OSError(cause.errno, cause.strerror or str(cause), str(path)) from error


def no_space(error: OSError) -> str | None:
    """What to tell where an error says that a disk, a quota or a file's largest size is full; None: it does not."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return None
    return f"no space left for {error.filename or 'a file'} ({os.strerror(error.errno)})"


def is_part(path: Path) -> bool:
    """Whether a name is one that ``replacing`` gives; a process that was killed meanwhile leaves it behind."""
    return re.fullmatch(r"\.[0-9a-f]{32}\.part", path.name) is not None
