"""A trained model for people who have pictures: ``load`` a run, ``predict`` on files or arrays."""

import os
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from e2net.datasets import Resize
from e2net.evaluation.inference import Pictures, Predictor, check_finite, predictor_of
from e2net.evaluation.test import choose_precision
from e2net.model import DenseModel
from e2net.pictures import FAULTS, Picture, check_many, decode, is_picture, take
from e2net.predict.result import Prediction
from e2net.predict.settings import AUTO, LARGEST, THRESHOLD, check_value
from e2net.runs.about import ABOUT
from e2net.runs.checkpoint import KEY, find_checkpoint, model_of, read_checkpoint, trained_with
from e2net.speed import AUTOCAST, choose_device
from e2net.structures import NotFiniteError

# Pixels of pictures in a batch, read ahead of it, or waiting to be written: a single larger one is taken alone.
HELD_PIXELS = 1 << 25
# How many batches later a picture of a rare shape no longer waits for others of its shape: until it is predicted,
# the results behind it are kept.
_WAITING = 4


@dataclass(frozen=True)
class Failure:
    """A picture that could not be read, or whose result is none.

    Attributes:
        source: its file, None for an array.
        error: why.
    """

    source: Path | None
    error: Exception


@dataclass
class Timing:
    """Where the time of a stream of pictures went, in seconds.

    Attributes:
        pictures: predicted so far.
        decode: spent reading and resizing, summed over threads, beside the network.
        waited: by the network for pictures to be read.
        network: from a batch of pictures to maps at their own sizes.
    """

    pictures: int = 0
    decode: float = 0.0
    waited: float = 0.0
    network: float = 0.0


@dataclass
class _Loaded:
    """One picture, read and resized in ``seconds``; ``inputs`` (H, W, 3) uint8 goes into the network."""

    index: int
    source: Path | None
    image: NDArray[np.uint8]
    inputs: NDArray[np.uint8]
    seconds: float

    @property
    def pixels(self) -> int:
        """How many there are, of the picture or of the network's input."""
        return max(_pixels(self.image), _pixels(self.inputs))


class _Results(Iterator[Prediction]):
    """Predictions one by one, to whichever thread asks; a generator alone would refuse a second one."""

    def __init__(self, results: Generator[Prediction, None, None]) -> None:
        self._results = results
        self._lock = threading.Lock()

    def __next__(self) -> Prediction:
        with self._lock:
            return next(self._results)

    def close(self) -> None:
        """Ends the threads that read ahead."""
        with self._lock:
            self._results.close()


class Segmenter:
    """A model with all that lies between a picture and its map. Threads may share one.

    Args:
        model: the network; moved to ``device`` and set to eval mode.
        size: of the network's input in pixels, a side or (height, width).
        device: where it runs.
        predictor: mirror images, scales and windows; None: in one pass.
        precision: ``auto``, ``32-true``, ``bf16-mixed`` or ``16-mixed``, as in training.
        threshold: the probability above which a pixel belongs to the object, where the task has objects.

    Attributes:
        checkpoint: the file that it was loaded from; None of a model that was made otherwise.
        content: what that says of the model and its training, plain values.

    Raises:
        ValueError: the size does not suit the encoder, the device or precision is not to be had, or the task has no
            threshold.
    """

    checkpoint: Path | None = None
    content: dict[str, Any]

    def __init__(
        self,
        model: DenseModel,
        size: int | Sequence[int],
        device: str = "auto",
        predictor: Predictor | None = None,
        precision: str = "auto",
        threshold: float = THRESHOLD,
    ) -> None:
        for key, value in (("size", size), ("device", device), ("precision", precision), ("threshold", threshold)):
            check_value(key, value)
        if threshold == AUTO:
            raise ValueError(f"threshold={AUTO}: only load knows a checkpoint's; give a number here")
        if threshold != THRESHOLD and not model.task.objects:
            raise ValueError(
                f"threshold={threshold:g}: task={model.task.name} has no objects to tell from a background; leave "
                "it out"
            )
        sides = _pair(size)
        model.encoder.check_size(*sides)
        self.predictor = predictor or Predictor()
        self.predictor.check(1, model.task)
        if self.predictor.window is not None:
            model.encoder.check_size(*self.predictor.window)
        if max(self.predictor.scales) * max(sides) > LARGEST:
            raise ValueError(f"scales={list(self.predictor.scales)}: expected at most {LARGEST} pixels a side of size")
        self.device = choose_device(device)
        self.precision = choose_precision(precision, self.device.type)
        if self.precision not in AUTOCAST:
            raise ValueError(f"precision={precision}: expected auto or one of {', '.join(AUTOCAST)}")
        self.model = model.to(self.device).eval()
        self.size = sides
        self.threshold = float(threshold)

    def save_pretrained(self, folder: str | os.PathLike[str], encoder_weights: bool = True) -> None:
        """Writes the model as a folder that :func:`load` reads: weights, config and a model card.

        Args:
            folder: made if need be. Files in it that e2net did not write are never replaced.
            encoder_weights: with those of a frozen encoder, so that nobody needs its files; else the folder is small,
                and to load it takes the encoder's own files.

        Raises:
            ValueError: this model was not loaded from a checkpoint; or see :func:`~e2net.hub.save_model`.
            OSError: the disk is full, or the folder cannot be written.
        """
        from e2net.hub import save_model  # noqa: PLC0415 - seldom needed

        save_model(self.model, self._source(), self.content, folder, encoder_weights)

    def push_to_hub(self, name: str, encoder_weights: bool = True, private: bool = False) -> str:
        """Puts what :meth:`save_pretrained` writes onto the Hugging Face Hub, for ``load(name)`` anywhere.

        Args:
            name: such as ``user/name``; made if need be. You must be logged in (``hf auth login``).
            encoder_weights: see :meth:`save_pretrained`. Mind the encoder's licence, which the card names.
            private: of a repository that is made: not for everybody.

        Returns:
            The address of what was written.

        Raises:
            ValueError: see :meth:`save_pretrained`.
            OSError: the Hub refuses it, or cannot be reached.
        """
        from e2net.hub import push_model  # noqa: PLC0415

        return push_model(self.model, self._source(), self.content, name, encoder_weights, private)

    def _source(self) -> Path:
        if self.checkpoint is None:
            raise ValueError("expected a model of e2net.load, which knows its config, found one made otherwise")
        return self.checkpoint

    @overload  # text and arrays are iterable too
    def predict(  # type: ignore[overload-overlap]
        self, images: Picture, batch_size: int = ..., keep_aspect: bool = ..., threads: int | None = ...
    ) -> Prediction: ...

    @overload
    def predict(
        self, images: Iterable[Picture], batch_size: int = ..., keep_aspect: bool = ..., threads: int | None = ...
    ) -> Iterator[Prediction]: ...

    def predict(
        self,
        images: Picture | Iterable[Picture],
        batch_size: int = 8,
        keep_aspect: bool = False,
        threads: int | None = None,
    ) -> Prediction | Iterator[Prediction]:
        """Predicts one picture, or any number of them.

        Many are read by threads ahead of the network and handed out in order, one by one, so that no more than a few
        batches are in memory: ``for result in model.predict(paths): result.save(...)``.

        Args:
            images: one picture, or an iterable of them. A picture is a path; an array of uint8, (h, w, 3) RGB, (h, w)
                or (h, w, 1) grey or (h, w, 4) RGBA; a tensor (3, h, w), (1, h, w) or (4, h, w), uint8 or floats in
                [0, 1]; a PIL image of any mode; or the bytes of a picture's file. Alpha is dropped, and EXIF rotation
                honoured where there is one. An array of four dimensions is several pictures.
            batch_size: pictures for each step of the network.
            keep_aspect: resize the longer side to the model's size and keep the proportions, instead of stretching
                every picture to the one size of training.
            threads: that read; None takes one less than the cores, 8 at most.

        Returns:
            A prediction for one picture, an iterator over predictions for many, which several threads may share.

        Raises:
            ValueError: a file is broken or no picture; an array has another shape; a number is out of its range.
            TypeError: this is neither a picture nor an iterable; or one of many, when its turn comes, is no picture.
            OSError: a file is missing or cannot be read.
        """
        _check_options(batch_size, keep_aspect, threads)
        if is_picture(images):
            (result,) = self._raising(self.stream([images], 1, keep_aspect, 1))  # type: ignore[list-item]
            return result
        return _Results(self._raising(self.stream(images, batch_size, keep_aspect, threads)))  # type: ignore[arg-type]

    @staticmethod
    def _raising(results: Iterator[Prediction | Failure]) -> Generator[Prediction, None, None]:
        for result in results:
            if isinstance(result, Failure):
                raise result.error
            yield result

    def stream(
        self,
        images: Iterable[Picture],
        batch_size: int = 8,
        keep_aspect: bool = False,
        threads: int | None = None,
        timing: Timing | None = None,
    ) -> Iterator[Prediction | Failure]:
        """As ``predict`` for many, but a picture that cannot be read is a result, and the others follow.

        Args:
            images, batch_size, keep_aspect, threads: see ``predict``.
            timing: is brought up to date with each batch.
        """
        _check_options(batch_size, keep_aspect, threads)
        check_many(images)
        timing = Timing() if timing is None else timing
        return self._stream(images, batch_size, keep_aspect, threads or default_threads(), timing)

    def _stream(
        self, images: Iterable[Picture], batch_size: int, keep_aspect: bool, threads: int, timing: Timing
    ) -> Iterator[Prediction | Failure]:
        done: dict[int, Prediction | Failure] = {}
        due = 0
        loaded = self._load(images, keep_aspect, threads, batch_size + threads, timing)
        try:
            for batch in _batches(loaded, batch_size):
                if isinstance(batch, tuple):
                    done[batch[0]] = batch[1]
                else:
                    start = time.perf_counter()
                    done.update(zip((item.index for item in batch), self._run(batch), strict=True))
                    timing.network += time.perf_counter() - start
                    timing.pictures += len(batch)
                while due in done:
                    yield done.pop(due)
                    due += 1
        finally:
            loaded.close()

    def _load(
        self, images: Iterable[Picture], keep_aspect: bool, threads: int, ahead: int, timing: Timing
    ) -> Generator[_Loaded | tuple[int, Failure], None, None]:
        """Reads in threads, at most ``ahead`` pictures in advance, fewer of large ones, in order."""
        pool = ThreadPoolExecutor(threads, "e2net-read")
        queue: deque[tuple[int, Path | None, Future[_Loaded]]] = deque()
        source = enumerate(images)
        largest: int | None = None  # so far; before the first is read it may be of any size
        try:
            more = True
            while more or queue:
                while more and len(queue) < (1 if largest is None else max(1, min(ahead, HELD_PIXELS // largest))):
                    start = time.perf_counter()
                    found = next(source, None)
                    timing.waited += time.perf_counter() - start
                    more = found is not None
                    if found is not None:
                        index, picture = found
                        source_file = Path(picture) if isinstance(picture, str | os.PathLike) else None
                        queue.append((index, source_file, self._start(pool, index, picture, keep_aspect)))
                if not queue:
                    break
                index, file, future = queue.popleft()
                start = time.perf_counter()
                error = future.exception()
                timing.waited += time.perf_counter() - start
                if error is None:
                    item = future.result()
                    largest = max(largest or 1, item.pixels)
                    timing.decode += item.seconds
                    yield item
                elif isinstance(error, FAULTS):
                    yield index, Failure(file, error)
                else:
                    raise error
        finally:
            pool.shutdown(cancel_futures=True)

    def _start(self, pool: ThreadPoolExecutor, index: int, picture: Picture, keep_aspect: bool) -> Future[_Loaded]:
        try:
            taken = take(picture)
        except FAULTS as error:
            failed: Future[_Loaded] = Future()
            failed.set_exception(error)
            return failed
        return pool.submit(self._read, index, taken, keep_aspect)

    def _read(self, index: int, picture: Path | bytes | NDArray[np.uint8], keep_aspect: bool) -> _Loaded:
        start = time.perf_counter()
        source = picture if isinstance(picture, Path) else None
        image = decode(picture)
        size = self._input_size(image.shape[0], image.shape[1]) if keep_aspect else self.size
        return _Loaded(index, source, image, Resize(size).image(image), time.perf_counter() - start)

    def _input_size(self, height: int, width: int) -> tuple[int, int]:
        """The size nearest to a picture's proportions: the longer side as the model's, both legal for the encoder."""
        multiple = self.model.encoder.size_multiple
        scale = max(self.size) / max(height, width)
        return (
            max(multiple, round(height * scale / multiple) * multiple),
            max(multiple, round(width * scale / multiple) * multiple),
        )

    @torch.inference_mode()
    def _run(self, batch: list[_Loaded]) -> list[Prediction | Failure]:
        inputs = torch.from_numpy(np.stack([item.inputs for item in batch])).to(self.device)
        for item in batch:
            item.inputs = item.inputs[:0].copy()
        inputs = inputs.permute(0, 3, 1, 2).contiguous()
        activated = self.activated(inputs, lambda index: batch[index].image)
        del inputs
        return [self._result(item, one) for item, one in zip(batch, activated, strict=True)]

    def _result(self, item: _Loaded, activated: Tensor) -> Prediction | Failure:
        """Of one picture; (C, H, W) that are not all finite are none."""
        try:
            check_finite(activated[None], [str(item.source or f"picture {item.index}")])
        except NotFiniteError as error:
            return Failure(item.source, error)
        task = self.model.task
        return Prediction(item.image, task, task.soft(activated, item.image.shape[:2]), self.threshold, item.source)

    def activated(self, image: Tensor, pictures: Pictures | None = None) -> Tensor:
        """The task's activated prediction (B, C, H, W), float32, for uint8 RGB images (B, 3, H, W) at a legal size.

        Args:
            image: the batch.
            pictures: what it was resized from, see :class:`~e2net.evaluation.inference.Predictor`.
        """
        dtype = AUTOCAST[self.precision]
        with nullcontext() if dtype is None else torch.autocast(self.device.type, dtype):
            return self.predictor(self.model, image, pictures)


def load(
    path: str | os.PathLike[str],
    device: str = "auto",
    encoder_path: str | os.PathLike[str] | None = None,
    flip: bool | None = None,
    size: int | Sequence[int] | None = None,
    scales: Sequence[float] | None = None,
    window: int | Sequence[int] | None = None,
    precision: str = "auto",
    threshold: float | Literal["auto"] = THRESHOLD,
    sharpen: float | None = None,
    zoom: float | None = None,
) -> Segmenter:
    """A trained model, ready to predict.

    Args:
        path: a run folder (its best checkpoint), a checkpoint file, a folder of :meth:`Segmenter.save_pretrained`, or
            the name of such a one on the Hugging Face Hub, ``user/name`` or ``user/name@revision``.
        device: ``auto`` takes a GPU if there is one; else a name that torch knows, such as ``cpu`` or ``cuda:1``.
        encoder_path: where the pretrained encoder lies now, if it has moved since training.
        flip: average the maps of image and mirror image; None does as the run did in its test.
        size: of the network's input in pixels, a side or (height, width); None takes that of training.
        scales: average the maps at these factors on the size; None does as the run did in its test.
        window: look at windows of this size one by one, for a ``size`` much larger than that of training; see
            :class:`~e2net.evaluation.inference.Predictor`.
        precision: ``auto`` takes bf16 on a GPU that has it, fp16 on one that has not, fp32 on a CPU.
        threshold: the probability above which a pixel belongs to the object, where the task has objects; ``auto`` takes
            that of the greatest F on the run's validation part, as it was validated: with its size, flip and scales.
        sharpen: the averaged maps' log-odds times this; None does as the run did in its test.
        zoom: a second look at what was found, see :class:`~e2net.evaluation.inference.Predictor`; None does as the run
            did in its test.

    Raises:
        FileNotFoundError: no checkpoint there, or the encoder's files are missing.
        ValueError: no checkpoint of e2net, another encoder than in training, or an argument that does not suit it.
    """
    options = {"device": device, "flip": flip, "size": size, "scales": scales, "window": window, "zoom": zoom}
    for key, value in (options | {"precision": precision, "threshold": threshold, "sharpen": sharpen}).items():
        check_value(key, value)
    moved = None if encoder_path is None else os.fspath(encoder_path)
    file = find_checkpoint(os.fspath(path))
    content = read_checkpoint(file)
    config = content[KEY]["config"]
    model = model_of(content, file, moved)
    predictor = predictor_of(
        config,
        flip=flip,
        # NumPy's numbers are taken too.
        scales=None if scales is None else [float(scale) for scale in scales],
        window=None if window is None else _pair(window),
        zoom=None if zoom is None else float(zoom),
        sharpen=None if sharpen is None else float(sharpen),
    )
    size = trained_with(config, "size") if size is None else size
    first = THRESHOLD if isinstance(threshold, str) else float(threshold)
    segmenter = Segmenter(model, size, device, predictor, precision, first)
    # Nothing else: a training leaves tensors in many places, of its optimiser, of an average and what not.
    segmenter.checkpoint, segmenter.content = file, {k: v for k, v in content.items() if k in (KEY, ABOUT)}
    if threshold == AUTO:
        segmenter.threshold = stored_threshold(segmenter)
    return segmenter


def stored_threshold(segmenter: Segmenter) -> float:
    """The threshold that the checkpoint of a loaded model holds.

    Raises:
        ValueError: there is none.
    """
    entry, file, task = segmenter.content[KEY], segmenter.checkpoint, segmenter.model.task
    if not task.objects:
        raise ValueError(f"threshold={AUTO}: {file} is of task={task.name}, which has no objects; leave it out")
    threshold = entry["threshold"]
    if threshold is None:
        raise ValueError(
            f"threshold={AUTO}: expected a checkpoint of a validation, with its best threshold, found none in {file}: "
            "give a number (eval.py ckpt=... prints the best one of a test set), or train with data.val_fraction"
        )
    if not isinstance(threshold, float) or not 0 < threshold < 1:
        raise ValueError(f"{file}: expected its threshold between 0 and 1, both excluded, found {threshold}")
    return threshold


def default_threads() -> int:
    """One less than the usable cores, from 1 to 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, max(1, cores - 1))


def _pixels(image: NDArray[np.uint8]) -> int:
    return image.shape[0] * image.shape[1]


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    height, width = size if isinstance(size, Sequence) else (size, size)
    return int(height), int(width)


def _check_options(batch_size: int, keep_aspect: bool, threads: int | None) -> None:
    for key, value in (("batch_size", batch_size), ("keep_aspect", keep_aspect), ("threads", threads)):
        check_value(key, value)


def _batches(
    items: Iterable[_Loaded | tuple[int, Failure]], batch_size: int
) -> Iterator[list[_Loaded] | tuple[int, Failure]]:
    """Groups pictures of one input size, fewer large ones; failures pass at once. With one size the order is kept."""
    groups: dict[tuple[int, ...], list[_Loaded]] = {}  # in the order of their first pictures
    for item in items:
        if isinstance(item, tuple):
            yield item
            continue
        shape = item.inputs.shape
        groups.setdefault(shape, []).append(item)
        oldest = next(iter(groups))
        held = sum(one.pixels for group in groups.values() for one in group)
        if len(groups[shape]) == batch_size:
            yield groups.pop(shape)
        elif item.index - groups[oldest][0].index >= _WAITING * batch_size or held + item.pixels > HELD_PIXELS:
            yield groups.pop(oldest)
    yield from groups.values()
