"""Films in and out, by OpenCV: frames in order, the mean frame rate kept, no sound."""

import contextlib
import math
import os
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import cv2
import numpy as np
from numpy.typing import NDArray

from e2net.files import part_of
from e2net.trees import other_kind

# Where a file does not say its own.
FALLBACK_RATE = 25.0
# What every build of OpenCV can write: MPEG-4, and VP8, which is slower, for browsers.
_CODECS = {".mp4": "mp4v", ".webm": "VP80"}
# The largest side and number of a rate's fraction that they know.
_LARGEST, _FINEST = 8191, 65535
# Frames that are decoded before they are asked for.
_AHEAD = 16
# Without asking the others: what FFmpeg cannot open, OpenCV would try as a numbered series of pictures.
_BACKEND = cv2.CAP_FFMPEG if cv2.CAP_FFMPEG in cv2.videoio_registry.getBackends() else cv2.CAP_ANY


@contextlib.contextmanager
def _named(path: Path) -> Iterator[str]:
    """A name for OpenCV: absolute, since FFmpeg takes ``http:x.mp4`` for an address, and UTF-8, or it would crash."""
    name = os.path.abspath(path)  # noqa: PTH100 - leaves links as they are
    try:
        name.encode()
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory(prefix="e2net-") as folder:
            link = Path(folder) / "folder"
            link.symlink_to(os.path.dirname(name))  # noqa: PTH120
            if path.name.isascii():
                yield str(link / path.name)
                return
            file = Path(folder) / f"film{path.suffix if path.suffix.isascii() else ''}"
            file.symlink_to(name)
            yield str(file)
    else:
        yield name


class FilmReader:
    """The frames of a film, decoded in a thread of their own.

    Attributes:
        rate: frames a second.
        announced: how many frames the file says it has; 0 where it does not say.
        count: how many of them ``frames`` has given so far.
        seconds: spent decoding so far, beside the caller's work.

    Raises:
        ValueError: this is no file, cannot be opened, or has no first frame.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if (other := other_kind(path)) is not None:
            raise ValueError(f"{path}: expected a film, found {other}")
        with _named(path) as name:
            self._capture = cv2.VideoCapture(name, _BACKEND)
        done, first = self._capture.read() if self._capture.isOpened() else (False, None)
        if not done or first is None:
            self._capture.release()
            raise ValueError(
                f"{path}: expected a film that OpenCV can decode, found no frame in it. Convert it to mp4."
            )
        self._first = first
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        # Some files' clock ticks are taken for a rate.
        self.rate = rate if math.isfinite(rate) and 0 < rate <= 1000 else FALLBACK_RATE
        announced = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.announced = int(announced) if math.isfinite(announced) and 0 < announced < 2**31 else 0
        self.count = 0
        self.seconds = 0.0

    def frames(self) -> Iterator[NDArray[np.uint8]]:
        """All frames from the first to the last that can be decoded, (h, w, 3) uint8 RGB; once only."""
        pool = ThreadPoolExecutor(1, "e2net-film")  # one thread: the frames stay in order
        queue: deque[Future[NDArray[np.uint8] | None]] = deque(pool.submit(self._next) for _ in range(_AHEAD))
        try:
            frame: NDArray[np.uint8] | None = cv2.cvtColor(self._first, cv2.COLOR_BGR2RGB)  # type: ignore[assignment]
            while frame is not None:
                self.count += 1
                yield frame
                frame = queue.popleft().result()
                queue.append(pool.submit(self._next))
        finally:
            pool.shutdown(cancel_futures=True)
            self._capture.release()

    def check_end(self) -> None:
        """To be called after the last frame.

        Raises:
            ValueError: a tenth or more of the announced frames have not come.
        """
        # Some formats only estimate their number of frames, so a few less are no error.
        if self.count < 0.9 * self.announced:
            raise ValueError(
                f"{self.path}: expected {self.announced} frames, found {self.count}: the rest is damaged, copy it again"
            )

    def _next(self) -> NDArray[np.uint8] | None:
        start = time.perf_counter()
        done, frame = self._capture.read()
        picture = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB) if done else None
        self.seconds += time.perf_counter() - start
        return picture  # type: ignore[return-value]


class FilmWriter:
    """Writes a film; under its name only when all of it is written and can be read again.

    As a context: an exception inside of it leaves no file, and what an earlier job left under the name stays.

    Args:
        path: where to; folders are made. Ends in .mp4 (MPEG-4) or .webm (VP8, which browsers play).
        rate: frames a second.

    Raises:
        OSError: the file cannot be written, or this OpenCV cannot encode.
    """

    def __init__(self, path: Path, rate: float) -> None:
        self.path = path
        self.rate = rate
        self.count = 0
        self._temporary = part_of(path).with_suffix(f".part{path.suffix}")
        self._writer: cv2.VideoWriter | None = None
        self._size: tuple[int, int] | None = None
        self._whole = False

    def write(self, frame: np.ndarray) -> None:
        """Appends a frame, (h, w, 3) uint8 RGB, all of one size.

        The codec knows even sides only; an odd one is continued by a copy of its last row or column.
        """
        height, width = frame.shape[:2]
        if self._writer is None:
            self._writer = self._open(height + height % 2, width + width % 2)
            self._size = (height, width)
        if (height, width) != self._size:
            raise ValueError(
                f"{self.path}: expected frames of {self._size}, found {(height, width)}: a film that changes its size; "
                "cut it there"
            )
        if height % 2 or width % 2:
            frame = cv2.copyMakeBorder(frame, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        self.count += 1

    def finish(self) -> None:
        """Ends the film and reads it: OpenCV says nothing of frames that a full disk has not taken.

        Raises:
            OSError: not all of its frames are there.
        """
        if self._writer is None:
            return
        self._writer.release()
        found = _count_frames(self._temporary)
        if found != self.count:
            raise OSError(
                f"{self.path}: expected a film of {self.count} frames, found {found} on the disk: is it full, or a "
                "quota reached? Make room there"
            )
        self._whole = True

    def _open(self, height: int, width: int) -> cv2.VideoWriter:
        if max(height, width) > _LARGEST:
            raise ValueError(
                f"{self.path}: expected frames of at most {_LARGEST} pixels a side, found {(height, width)}"
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _named(self._temporary) as name:
            codec = _CODECS[self.path.suffix]
            code = cv2.VideoWriter.fourcc(*codec)
            writer = cv2.VideoWriter(name, _BACKEND, code, _writable(self.rate), (width, height))
        if not writer.isOpened():
            raise OSError(
                f"{self.path}: OpenCV cannot write a {codec} film of {width}x{height} pixels; make room on the disk"
            )
        return writer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and not self._whole:
                self.finish()
        finally:
            if self._writer is not None:
                self._writer.release()
            if kind is None and self._whole:
                self._temporary.replace(self.path)
            else:
                self._temporary.unlink(missing_ok=True)


class FrameFolder:
    """A folder of files, one a frame; under its name only when all are written.

    As a context: an exception inside of it leaves nothing, and what an earlier job left under the name stays. Where a
    folder of that name exists already, the frames replace those of their names in it.

    Args:
        path: where to; folders are made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._temporary = part_of(path)
        self._files: list[Path] = []

    def file(self, frame: int | str) -> Path:
        """Where to write a frame's picture: under its number, or a name without extension."""
        self._files.append(self._temporary / (f"{frame:06d}.png" if isinstance(frame, int) else f"{frame}.png"))
        return self._files[-1]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._files:
                if not os.path.lexists(self.path):
                    self._temporary.rename(self.path)
                    return
                for file in self._files:
                    file.replace(self.path / file.name)
        finally:
            for file in self._files:
                file.unlink(missing_ok=True)
            if self._temporary.is_dir():
                self._temporary.rmdir()


def _writable(rate: float) -> float:
    """The rate as a fraction that the codec knows: OpenCV makes one of it with up to three decimals."""
    decimals = next((d for d in (3, 2, 1) if round(rate * 10**d) <= _FINEST), 0)
    return max(10.0**-decimals, round(rate, decimals))


def _count_frames(path: Path) -> int:
    """How many frames of a film can be decoded; 0 where it cannot be opened."""
    if not path.exists() or not path.stat().st_size:
        return 0
    with _named(path) as name:
        capture = cv2.VideoCapture(name, _BACKEND)
    found = 0
    while capture.isOpened() and capture.grab():
        found += 1
    capture.release()
    return found
