"""Pictures of many requests through one network, as many at a time as have come."""

import queue
import threading
from concurrent.futures import Future
from dataclasses import dataclass

from e2net.predict.result import Prediction
from e2net.predict.segmenter import Failure, Segmenter
from e2net.structures import NotFiniteError

# So many pictures in a row that the network failed on are not the pictures' fault: a GPU that is lost stays lost.
FAILURES = 10


class FullError(Exception):
    """As many pictures wait as may."""


class PictureError(ValueError):
    """A file is no picture, or a broken one."""


@dataclass
class _Waiting:
    data: bytes
    result: Future[Prediction]


class Batcher:
    """A thread in which the network runs. Whatever has come meanwhile is its next batch; nothing waits for more.

    Attributes:
        batches, pictures: how many were given to the network.
        failures: in a row, of pictures that were none the worse.

    Args:
        model: which predicts.
        batch_size: pictures of a batch, at most.
        limit: pictures that may wait.
        threads: that read pictures; None: as :meth:`Segmenter.predict <e2net.predict.segmenter.Segmenter.predict>`.
    """

    def __init__(self, model: Segmenter, batch_size: int = 8, limit: int = 256, threads: int | None = None) -> None:
        self.model = model
        self.batches = self.pictures = self.failures = 0
        self._batch_size, self._threads = batch_size, threads
        self._queue: queue.Queue[_Waiting | None] = queue.Queue(limit)
        self._thread = threading.Thread(target=self._work, name="e2net-serve", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Pictures that wait."""
        return self._queue.qsize()

    @property
    def alive(self) -> bool:
        """Whether pictures that come are predicted, as far as those before them tell."""
        return self._thread.is_alive() and self.failures < FAILURES

    def submit(self, data: bytes) -> "Future[Prediction]":
        """The prediction for a picture's file, or what is wrong with it, when its turn has come.

        A future that is cancelled before costs nothing.

        Raises:
            FullError: too many wait.
        """
        waiting = _Waiting(data, Future())
        try:
            self._queue.put_nowait(waiting)
        except queue.Full:
            raise FullError from None
        return waiting.result

    def close(self) -> None:
        """Waits for what has come, and ends the thread."""
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        more = True
        while more:
            taken = [self._queue.get()]
            while len(taken) < self._batch_size and taken[-1] is not None:
                try:
                    taken.append(self._queue.get_nowait())
                except queue.Empty:
                    break
            more = taken[-1] is not None
            self._predict([one for one in taken if one is not None and one.result.set_running_or_notify_cancel()])

    def _predict(self, batch: list[_Waiting]) -> None:
        if not batch:
            return
        self.batches += 1
        self.pictures += len(batch)
        try:
            found = list(self.model.stream([one.data for one in batch], self._batch_size, threads=self._threads))
        except Exception as error:  # whatever it is, who waits is told, and the next one may be a better one
            if len(batch) == 1:
                self.failures += 1
                batch[0].result.set_exception(error)
            else:  # one picture's fault is not the others'
                self.pictures -= len(batch)
                for one in batch:
                    self._predict([one])
            return
        for one, result in zip(batch, found, strict=True):
            if isinstance(result, Failure):
                fault = _fault(result.error)
                self.failures += not isinstance(fault, PictureError)
                one.result.set_exception(fault)
            else:
                self.failures = 0
                one.result.set_result(result)


def _fault(error: Exception) -> Exception:
    """Whose fault it is that a picture has no map: its own, the model's, or this machine's, whose disk is full."""
    ours = isinstance(error, MemoryError | NotFiniteError) or (isinstance(error, OSError) and error.errno is not None)
    return error if ours else PictureError(str(error))
