"""From a list of files to maps, overlays, cut-outs and objects on disk; reading, network and writing at once."""

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import cv2
from tqdm import tqdm

from e2net.arguments import check_folder
from e2net.evaluation.report import write_atomically
from e2net.film import FilmReader, FilmWriter, FrameFolder
from e2net.formats import read_image
from e2net.predict.inputs import CUTOUTS, MAPS, OVERLAYS, Item, shown
from e2net.predict.objects import HEAD, OBJECTS, ObjectsFile
from e2net.predict.result import Kind, Prediction
from e2net.predict.segmenter import HELD_PIXELS, Failure, Picture, Segmenter, Timing, default_threads, load
from e2net.predict.settings import PredictSettings
from e2net.runs.checkpoint import find_checkpoint
from e2net.runs.outputs import claim, is_claimed

# The folder and the extension of each kind of result.
_PLACES: dict[Kind, tuple[str, str]] = {
    "map": (MAPS, ".png"),
    "overlay": (OVERLAYS, ".jpg"),
    "cutout": (CUTOUTS, ".png"),
}
# What e2net's marker in a folder of results says of it.
_RESULTS = (MAPS, OVERLAYS, CUTOUTS, OBJECTS)
# What a single file may be at fault for; anything else stops the job.
_FAULTS = (ValueError, OSError, MemoryError, cv2.error)


@dataclass(frozen=True)
class _Written:
    """What became of one picture: its entries in ``objects.json`` and the seconds that a thread spent on it."""

    picture: dict[str, Any]
    objects: list[dict[str, Any]]
    seconds: float


class _Writing:
    """Threads that write results while the network goes on, at most a few results behind it.

    Args:
        threads: with one, results are written in the order in which they come.
        done: gets each item with what its call returned or raised, in order, in the caller's thread.
    """

    def __init__(self, threads: int, done: Callable[[Item, Future[_Written]], None]) -> None:
        self._pool = ThreadPoolExecutor(threads, "e2net-write")
        self._queue: deque[tuple[Item, Future[_Written], int]] = deque()
        self._pixels = 0
        self._limit = 2 * threads + 2
        self._done = done
        self.waited = 0.0

    def submit(self, item: Item, work: Callable[[], _Written], pixels: int) -> None:
        """Queues one result of so many pixels, waiting while too many are."""
        self._queue.append((item, self._pool.submit(work), pixels))
        self._pixels += pixels
        while self._queue and (self._is_full() or self._queue[0][1].done()):
            self._take()

    def _is_full(self) -> bool:
        return len(self._queue) > self._limit or (len(self._queue) > 1 and self._pixels > HELD_PIXELS)

    def _take(self) -> None:
        item, future, pixels = self._queue.popleft()
        self._pixels -= pixels
        start = time.perf_counter()
        future.exception()  # waits
        self.waited += time.perf_counter() - start
        self._done(item, future)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            while kind is None and self._queue:
                self._take()
        finally:
            self._pool.shutdown(cancel_futures=True)


class Job:
    """One prediction job, checked and with its model loaded.

    Attributes:
        failures: a line for each file that could not be read or written, so far.

    Args:
        settings: all of them.
        items: what to predict, at least one.

    Raises:
        ValueError, OSError: the only picture or film is broken, the checkpoint cannot be used, or the output's
            objects.json is not e2net's.
    """

    def __init__(self, settings: PredictSettings, items: list[Item]) -> None:
        self.settings = settings
        self.items = items
        self.failures: list[str] = []
        self._output = Path(settings.output).expanduser()
        self._kinds: list[Kind] = ["map"]
        self._kinds += ["overlay"] if settings.overlays else []
        self._kinds += ["cutout"] if settings.cutouts else []
        check_folder("output", self._output)
        if settings.rle and not _is_ours(self._output / OBJECTS):
            raise ValueError(
                f"output={self._output}: its {OBJECTS} was not written by e2net and would be replaced; choose another"
            )
        if not is_claimed(self._output, _RESULTS):
            self._check_free()
        checkpoint = find_checkpoint(settings.ckpt)
        if len(items) == 1:  # among many a broken one is reported at the end
            _try(items[0])
        self.model: Segmenter = load(
            checkpoint,
            settings.device,
            settings.encoder_path,
            settings.flip,
            settings.size,
            settings.scales,
            settings.window,
            settings.precision,
            settings.threshold,
            settings.sharpen,
            settings.zoom,
        )
        task = self.model.model.task
        if not task.objects:
            for key, asked in (
                ("cutouts=true", settings.cutouts),
                ("rle=true", settings.rle),
                ("min_area", settings.min_area > 1),
            ):
                if asked:
                    raise ValueError(f"{key}: {checkpoint} is of task={task.name}, which has no objects; leave it out")
        if settings.min_area > 1 and not settings.rle:
            raise ValueError(
                f"min_area={settings.min_area}: expected rle=true beside it, which writes {OBJECTS}; leave it out"
            )
        self._objects = ObjectsFile(checkpoint, self.model.threshold, settings.min_area)
        self._threads = settings.threads or default_threads()
        self._timing = Timing()
        self._frames: list[_Written] = []  # of the film at hand
        self._write_seconds = 0.0
        self._write_waited = 0.0

    def _check_free(self) -> None:
        """Raises ValueError if a result would replace a file of somebody else's, in a folder that is not e2net's."""
        for item in self.items:
            for kind in self._kinds:
                place, extension = _PLACES[kind]
                file = _file(self._output / place / item.name, ".mp4" if item.film else extension)
                frames = sorted(file.glob("[0-9]" * 6 + ".png")) if item.film and kind == "cutout" else []
                if frames or (os.path.lexists(file) and not file.is_dir()):
                    raise ValueError(
                        f"output={self._output}: {shown(frames[0] if frames else file)} is there and was not written "
                        "by e2net, or by a version without markers; move it away, or give another folder"
                    )

    def run(self) -> None:
        """Predicts and writes everything, then prints the speed, and on stderr what failed."""
        claim(self._output, _RESULTS)
        if _is_ours(self._output / OBJECTS):  # of an earlier job; this one's is written last
            (self._output / OBJECTS).unlink(missing_ok=True)
        pictures = [item for item in self.items if not item.film and item.fault is None]
        start = time.perf_counter()
        with tqdm(total=len(pictures), unit=" images", disable=None) as self._bar:
            for item in self.items:
                if item.fault is not None:
                    self._fail(item, ValueError(item.fault))
            self._predict_pictures(pictures)
            for item in self.items:
                if item.film and item.fault is None:
                    self._predict_film(item)
        if self.settings.rle:
            self._write_objects()
        self._report(time.perf_counter() - start)

    def _stream(self, images: Iterable[Picture]) -> Iterator[Prediction | Failure]:
        options = self.settings
        return self.model.stream(images, options.batch_size, options.keep_aspect, self._threads, self._timing)

    def _predict_pictures(self, items: list[Item]) -> None:
        with _Writing(self._threads, self._done) as writing:
            for item, result in zip(items, self._stream(item.source for item in items), strict=True):
                if isinstance(result, Failure):
                    self._fail(item, result.error)
                else:
                    writing.submit(item, partial(self._write_picture, item, result), result.pixels)
        self._write_waited += writing.waited

    def _write_picture(self, item: Item, result: Prediction) -> _Written:
        start = time.perf_counter()
        for kind in self._kinds:
            folder, extension = _PLACES[kind]
            result.save(_file(self._output / folder / item.name, extension), kind)
        return self._entries(result, {"file_name": shown(item.relative)}, start)

    def _predict_film(self, item: Item) -> None:
        self._frames = []
        try:
            reader = FilmReader(item.source)
            self._bar.total += reader.announced
            with ExitStack() as stack:
                films: dict[Kind, FilmWriter] = {
                    kind: stack.enter_context(
                        FilmWriter(_file(self._output / _PLACES[kind][0] / item.name, ".mp4"), reader.rate)
                    )
                    for kind in self._kinds
                    if kind != "cutout"  # a film has no alpha
                }
                # With the extension, so that no folder of pictures has the same name.
                cutouts = stack.enter_context(FrameFolder(self._output / CUTOUTS / _file(item.name, ".mp4")))
                # One thread, for the order.
                with _Writing(1, self._done) as writing:
                    for frame, result in enumerate(self._stream(reader.frames())):
                        if isinstance(result, Failure):
                            raise result.error
                        work = partial(self._write_frame, item, frame, result, films, cutouts)
                        writing.submit(item, work, result.pixels)
                self._write_waited += writing.waited
                for film in films.values():  # all of them before the first gets its name
                    film.finish()
            for written in self._frames:
                self._record(written)
            self._timing.decode += reader.seconds
            reader.check_end()
        except _FAULTS as error:
            self._fail(item, error)

    def _write_frame(
        self, item: Item, frame: int, result: Prediction, films: dict[Kind, FilmWriter], cutouts: FrameFolder
    ) -> _Written:
        start = time.perf_counter()
        films["map"].write(result.shown())
        if "overlay" in films:
            films["overlay"].write(result.overlay())
        if "cutout" in self._kinds:
            result.save(cutouts.file(frame), "cutout")
        return self._entries(result, {"file_name": shown(item.relative), "frame": frame}, start)

    def _entries(self, result: Prediction, picture: dict[str, Any], start: float) -> _Written:
        height, width = result.image.shape[:2]
        objects = result.objects(self.settings.min_area) if self.settings.rle else []
        return _Written({**picture, "height": height, "width": width}, objects, time.perf_counter() - start)

    def _done(self, item: Item, future: Future[_Written]) -> None:
        error = future.exception()
        if isinstance(error, _FAULTS) and not item.film:  # a film has failed as a whole, see _predict_film
            self._fail(item, error)
            return
        written = future.result()
        self._bar.update()
        self._write_seconds += written.seconds
        if item.film:
            self._frames.append(written)  # until all of the film is written
        else:
            self._record(written)

    def _record(self, written: _Written) -> None:
        if self.settings.rle:
            self._objects.add(written.picture, written.objects)

    def _fail(self, item: Item, error: BaseException) -> None:
        name = shown(item.source)
        reason = " ".join((str(error) or type(error).__name__).replace(str(item.source), name).split())
        self.failures.append(reason if name in reason else f"{name}: {reason}")
        if not item.film:
            self._bar.update()

    def _write_objects(self) -> None:
        try:
            write_atomically(self._output / OBJECTS, self._objects.text())
        except OSError as error:
            self.failures.append(f"{OBJECTS}: {error}")

    def _report(self, seconds: float) -> None:
        timing = self._timing
        waited = f"waited for reading {timing.waited:.1f} s and for writing {self._write_waited:.1f} s"
        beside = f"beside it, reading {timing.decode:.1f} s and writing {self._write_seconds:.1f} s"
        speed = f"{timing.pictures} images in {seconds:.1f} s, {timing.pictures / seconds:.1f} images/s"
        print(f"{speed}: network {timing.network:.1f} s, {waited} ({beside})")
        print(f"results: {shown(self._output)}")
        if self.failures:
            print(f"{len(self.failures)} of {len(self.items)} files failed:", file=sys.stderr)
            for line in self.failures:
                print(f"  {line}", file=sys.stderr)


def _is_ours(objects: Path) -> bool:
    """Whether a file may be replaced: one of e2net's, or none."""
    if not os.path.lexists(objects):
        return True
    if not objects.is_file():
        return False
    with objects.open("rb") as file:
        return file.read(len(HEAD)) == HEAD


def _try(item: Item) -> None:
    """Raises ValueError or OSError if a file cannot be predicted."""
    if item.fault is not None:
        raise ValueError(f"{shown(item.source)}: {item.fault}")
    _ = FilmReader(item.source) if item.film else read_image(item.source)


def _file(name: Path, extension: str) -> Path:
    # Not with_suffix, which would take "frog.2" for a name with a suffix.
    return name.with_name(name.name + extension)
