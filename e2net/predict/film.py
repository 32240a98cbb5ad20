"""Films in and out, by OpenCV: frames in order, the frame rate kept, no sound."""

import math
import time
import uuid
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import cv2
import numpy as np
from numpy.typing import NDArray

# Where a file does not say its own.
FALLBACK_RATE = 25.0
# MPEG-4, which every build of OpenCV can write.
_CODEC = "mp4v"
# Frames that are decoded before they are asked for.
_AHEAD = 16


class FilmReader:
    """The frames of a film, decoded in a thread of their own.

    Attributes:
        rate: frames a second.
        announced: how many frames the file says it has; 0 where it does not say.
        count: how many of them ``frames`` has given so far.
        seconds: spent decoding so far, beside the caller's work.

    Raises:
        ValueError: the file cannot be opened, or has no first frame.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._capture = cv2.VideoCapture(str(path))
        done, first = self._capture.read() if self._capture.isOpened() else (False, None)
        if not done or first is None:
            self._capture.release()
            raise ValueError(
                f"{path}: expected a film that OpenCV can decode, found no frame in it. Convert it to mp4."
            )
        self._first = first
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = rate if math.isfinite(rate) and rate > 0 else FALLBACK_RATE
        self.announced = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))
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
    """Writes an MPEG-4 film; under its name only when all of it is written.

    As a context: an exception inside of it leaves no file.

    Args:
        path: where to, ends in .mp4; folders are made.
        rate: frames a second.

    Raises:
        OSError: the file cannot be written, or this OpenCV cannot encode.
    """

    def __init__(self, path: Path, rate: float) -> None:
        self.path = path
        self.rate = rate
        self._temporary = path.with_name(f".{uuid.uuid4().hex}.part.mp4")
        self._writer: cv2.VideoWriter | None = None
        self._size: tuple[int, int] | None = None

    def write(self, frame: np.ndarray) -> None:
        """Appends a frame, (h, w, 3) uint8 RGB, all of one size.

        The codec knows even sides only; an odd one is continued by a copy of its last row or column.
        """
        height, width = frame.shape[:2]
        if self._writer is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            even = (width + width % 2, height + height % 2)
            code = cv2.VideoWriter.fourcc(*_CODEC)
            self._writer = cv2.VideoWriter(str(self._temporary), code, self.rate, even)
            self._size = (height, width)
            if not self._writer.isOpened():
                raise OSError(f"{self.path}: OpenCV cannot write {_CODEC} films of {even[0]}x{even[1]} pixels there")
        if (height, width) != self._size:
            raise ValueError(f"{self.path}: expected frames of {self._size}, found {(height, width)}")
        if height % 2 or width % 2:
            frame = cv2.copyMakeBorder(frame, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.release()
        if kind is None and self._writer is not None:
            self._temporary.replace(self.path)
        else:
            self._temporary.unlink(missing_ok=True)
