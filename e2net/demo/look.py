"""From a file to what the page shows of it, without the page: predictions, pictures, films, objects, an archive."""

import dataclasses
import itertools
import secrets
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from e2net.demo.settings import DemoSettings, short_names
from e2net.features.extract import Extractor
from e2net.features.looks import components
from e2net.features.sheet import enlarged
from e2net.film import FilmReader, FilmWriter
from e2net.formats import encoded, printable
from e2net.page.pictures import shrunk
from e2net.pictures import FAULTS, decode
from e2net.predict.objects import ObjectsFile
from e2net.predict.result import Kind, Prediction
from e2net.predict.segmenter import Failure, Segmenter, load, stored_threshold
from e2net.predict.settings import AUTO, THRESHOLD
from e2net.speed import is_out_of_memory
from e2net.trees import FILMS, distinct

# The longer side of a picture on the page, of a frame of a film there, and of a small picture to choose by, in pixels.
SHOWN, FRAME, SMALL = 1280, 640, 256
# Objects that are listed, the largest ones; smaller ones than this share of the picture are not.
LISTED, SPECK = 12, 1 / 5000
_BATCH = 8

Picture = NDArray[np.uint8]
# Is told which of how many steps is done.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Limits:
    """What one file may be.

    Attributes:
        megapixels: of a picture.
        frames: of a film; those behind them are left out.
    """

    megapixels: int = 25
    frames: int = 150


@dataclass(frozen=True)
class Model:
    """A checkpoint on the page.

    Attributes:
        name: what it is called there.
        segmenter: of it.
        features: whether what its encoder sees is shown.
    """

    name: str
    segmenter: Segmenter
    features: bool = True

    @property
    def objects(self) -> bool:
        """Whether its task is one of objects, which have masks, cut-outs and scores."""
        return self.segmenter.model.task.objects

    def see(self, image: Picture) -> Picture:
        """The principal components of the encoder's features, as the network gets them: (h, w, 3), RGB, as shown."""
        encoder = self.segmenter.model.encoder
        size = self.segmenter.size
        last = list(encoder.blocks)[-1:]
        extractor = Extractor(
            encoder, min(size), last, norm=None, device=str(self.segmenter.device), precision=self.segmenter.precision
        )
        (found,) = extractor(cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA))
        (colours,) = components([found.patches], foreground=False)
        return enlarged(colours, shrunk(image, SHOWN), sharp=True)


def load_models(settings: DemoSettings) -> list[Model]:
    """The models that the settings name; errors as in :func:`e2net.load`."""
    options: dict[str, Any] = {"flip": settings.flip, "size": settings.size, "precision": settings.precision}
    found = []
    for place, name in zip(settings.checkpoints, short_names(settings.checkpoints), strict=True):
        segmenter = load(place, settings.device, settings.encoder_path, **options)
        found.append(Model(name, segmenter, settings.features))
    return found


def first_threshold(models: Sequence[Model], settings: DemoSettings) -> float | None:
    """Where the threshold stands at first; None where no model has objects.

    Raises:
        ValueError: a threshold is asked for where there are no objects, or ``auto`` of models that have different ones,
            or none.
    """
    having = [model for model in models if model.objects]
    if not having:
        if settings.threshold != THRESHOLD:
            raise ValueError(f"threshold={settings.threshold}: no checkpoint has objects; leave it out")
        return None
    if settings.threshold != AUTO:
        return float(settings.threshold)
    stored = {model.name: stored_threshold(model.segmenter) for model in having}
    if len(set(stored.values())) > 1:
        told = ", ".join(f"{name} {value:.3f}" for name, value in stored.items())
        raise ValueError(f"threshold={AUTO}: expected one for all checkpoints, found {told}; give a number")
    return next(iter(stored.values()))


@dataclass(frozen=True)
class Look:
    """What one file turned out to be.

    Attributes:
        name: of the file.
        predictions: a list for each model: of one, or of one for each frame.
        features: a picture for each model; None where it is not shown.
        small: to choose by.
        rate: frames a second of a film; None of a picture.
        notes: what there is to say about it.
    """

    name: str
    predictions: list[list[Prediction]]
    features: list[Picture | None]
    small: Picture
    rate: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Of memory."""
        # The pictures are the same for all models.
        pictures = sum(one.image.nbytes for one in self.predictions[0])
        results = sum(one.result.nbytes for many in self.predictions for one in many)
        return pictures + results + sum(one.nbytes for one in self.features if one is not None) + self.small.nbytes


def look(file: Path, models: Sequence[Model], limits: Limits, progress: Progress = lambda done, steps: None) -> Look:
    """Predicts one file by all models.

    Args:
        file: a picture or a film.
        models: at least one.
        limits: of the file.
        progress: is told how far it is.

    Raises:
        ValueError: it is neither, or broken, or larger than allowed, or than the memory; the message is a line that
            names it.
    """
    try:
        if file.suffix.lower() in FILMS:
            return _look_at_film(file, models, limits, progress)
        return _look_at_picture(file, models, limits, progress)
    except (*FAULTS, RuntimeError) as error:
        words = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, MemoryError | RuntimeError):
            if not is_out_of_memory(error):
                raise
            words = "the memory does not suffice for it here; give a smaller one"
        words = words.replace(str(file), file.name).removeprefix(f"{file.name}: ")
        raise ValueError(f"{printable(file.name)}: {words}") from error


def _look_at_picture(file: Path, models: Sequence[Model], limits: Limits, progress: Progress) -> Look:
    image = decode(file)
    height, width = image.shape[:2]
    if height * width > limits.megapixels * 1_000_000:
        raise ValueError(f"expected at most {limits.megapixels} million pixels, found {width} x {height}")
    predictions: list[list[Prediction]] = []
    features: list[Picture | None] = []
    for k, model in enumerate(models):
        progress(k, len(models))
        predictions.append([_of(image, model.segmenter.predict(image))])
        features.append(model.see(image) if model.features else None)
    return Look(file.name, predictions, features, shrunk(image, SMALL))


def _look_at_film(file: Path, models: Sequence[Model], limits: Limits, progress: Progress) -> Look:
    reader = FilmReader(file)
    frames: list[Picture] = []
    for frame in itertools.islice(reader.frames(), limits.frames + 1):
        small = shrunk(frame, FRAME)
        if frames and small.shape != frames[0].shape:
            raise ValueError("expected frames of one size, found a film that changes it; cut it there")
        frames.append(small)
    notes = []
    if len(frames) > limits.frames:
        frames.pop()
        of = f" of {reader.announced}" if reader.announced > limits.frames else ""
        notes.append(f"the first {limits.frames}{of} frames ({limits.frames / reader.rate:.1f} s) are shown")
    else:
        reader.check_end()
    if max(frame.shape[:2]) > FRAME:
        notes.append(f"scaled down to {FRAME} pixels a side")
    steps = len(models) * len(frames)
    predictions: list[list[Prediction]] = []
    for model in models:
        many: list[Prediction] = []
        for found in model.segmenter.stream(frames, _BATCH):
            if isinstance(found, Failure):
                raise found.error
            many.append(_of(frames[len(many)], found))
            progress(len(predictions) * len(frames) + len(many), steps)
        predictions.append(many)
    return Look(file.name, predictions, [None] * len(models), shrunk(frames[0], SMALL), reader.rate, tuple(notes))


def _of(image: Picture, found: Prediction) -> Prediction:
    """The same with a picture that others have too: a prediction has a copy of its own."""
    return dataclasses.replace(found, image=image)


class Kept:
    """Looks at files by keys that nobody can guess; the least recently used ones go when they need too much memory.

    Threads may share one.

    Args:
        limit: bytes of all of them together; the newest one stays in any case.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._looks: OrderedDict[str, Look] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, one: Look) -> str:
        """Keeps one, and returns its key."""
        key = secrets.token_urlsafe()
        with self._lock:
            self._looks[key] = one
            while len(self._looks) > 1 and sum(x.nbytes for x in self._looks.values()) > self._limit:
                self._looks.popitem(last=False)
        return key

    def get(self, key: str) -> Look | None:
        """What a key stands for; None if it has gone."""
        with self._lock:
            if key in self._looks:
                self._looks.move_to_end(key)
            return self._looks.get(key)

    def drop(self, keys: Iterable[str]) -> None:
        """Forgets some, whether they are there or not."""
        with self._lock:
            for key in keys:
                self._looks.pop(key, None)


def at(prediction: Prediction, threshold: float) -> Prediction:
    """The same with another threshold, where there are objects; the network has no part in it."""
    return dataclasses.replace(prediction, threshold=threshold) if prediction.task.objects else prediction


@dataclass(frozen=True)
class Objects:
    """The objects of a picture.

    Attributes:
        listed: the largest, as COCO annotations, largest first.
        more: how many there are beyond them, specks left out.
    """

    listed: list[dict[str, Any]] = field(default_factory=list)
    more: int = 0


def objects_of(prediction: Prediction) -> Objects:
    """The objects that are worth a line each."""
    found = prediction.objects(max(1, round(prediction.pixels * SPECK)))
    return Objects(found[:LISTED], max(0, len(found) - LISTED))


def overlay_of(prediction: Prediction, objects: Objects | None = None) -> Picture:
    """The overlay as shown, with the numbers of several objects in it."""
    picture = shrunk(prediction.overlay(), SHOWN)
    if objects is None or len(objects.listed) < 2:
        return picture
    scale = max(picture.shape) / max(prediction.image.shape)
    size = max(0.45, max(picture.shape) / 1200)
    for number, (x, y) in enumerate(places_of(prediction, objects), 1):
        (width, height), _ = cv2.getTextSize(str(number), cv2.FONT_HERSHEY_SIMPLEX, size, 1)
        at_most = picture.shape[1] - width, picture.shape[0] - 1
        place = (
            int(min(max(0, x * scale - width / 2), at_most[0])),
            int(min(max(height, y * scale + height / 2), at_most[1])),
        )
        for colour, thickness in (((0, 0, 0), 6), ((255, 255, 255), 2)):
            thick = max(1, round(thickness * size))
            cv2.putText(picture, str(number), place, cv2.FONT_HERSHEY_SIMPLEX, size, colour, thick, cv2.LINE_AA)
    return picture


def places_of(prediction: Prediction, objects: Objects) -> list[tuple[int, int]]:
    """Where each of the listed objects is thickest: x, y in pixels of the picture."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(prediction.mask.astype(np.uint8), connectivity=8)
    known = {tuple(row): label for label, row in enumerate(stats.tolist()) if label}
    found = []
    for one in objects.listed:
        left, top, width, height = one["bbox"]
        part = labels[top : top + height, left : left + width] == known[(*one["bbox"], one["area"])]
        inside = cv2.distanceTransform(np.pad(part.astype(np.uint8), 1), cv2.DIST_L2, 3)
        y, x = np.unravel_index(int(inside.argmax()), inside.shape)
        found.append((left + int(x) - 1, top + int(y) - 1))
    return found


def film_of(predictions: Sequence[Prediction], kind: Kind, rate: float, path: Path) -> Path:
    """Writes the overlays or maps of a film's frames as one that browsers play, and returns its path."""
    with FilmWriter(path, rate) as film:
        for one in predictions:
            film.write(one.overlay() if kind == "overlay" else one.shown())
    return path


def archive(looks: Sequence[Look], models: Sequence[Model], threshold: float, folder: Path) -> Path:
    """Everything at full size as one ZIP file, as ``e2net.predict`` writes it; a film as it is on the page.

    Args:
        looks: at files, at least one.
        models: that looked.
        threshold: of objects.
        folder: an empty one for the file.

    Returns:
        The file: in it a folder for each model if there are several; there ``maps``, ``overlays``, ``cutouts``,
        ``features`` and ``objects.json``.
    """
    file = folder / "e2net.zip"
    names = distinct(_safe(Path(one.name).stem) for one in looks)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as written:  # what is in it is compressed already
        for k, model in enumerate(models):
            top = f"{_safe(model.name)}/" if len(models) > 1 else ""
            entries = []
            for name, one in zip(names, looks, strict=True):
                found = [at(prediction, threshold) for prediction in one.predictions[k]]
                for part in _write(one, found, one.features[k], folder, name):
                    written.write(part, f"{top}{part.relative_to(folder)}")
                    part.unlink()
                if model.objects and one.rate is None:
                    entries.append((one.name, found[0]))
            if entries:
                written.writestr(f"{top}objects.json", _document(model, entries, threshold))
    return file


def _document(model: Model, entries: Sequence[tuple[str, Prediction]], threshold: float) -> str:
    """As ``e2net.predict`` writes it."""
    document = ObjectsFile(model.segmenter.checkpoint, threshold)
    for name, found in entries:
        height, width = found.image.shape[:2]
        document.add({"file_name": name, "height": height, "width": width}, found.objects())
    return document.text()


def _write(one: Look, found: list[Prediction], features: Picture | None, folder: Path, name: str) -> Iterable[Path]:
    if one.rate is not None:
        yield film_of(found, "map", one.rate, folder / "maps" / f"{name}.webm")
        yield film_of(found, "overlay", one.rate, folder / "overlays" / f"{name}.webm")
        return
    kinds: dict[Kind, str] = {"map": f"maps/{name}.png", "overlay": f"overlays/{name}.jpg"}
    if found[0].task.objects:
        kinds["cutout"] = f"cutouts/{name}.png"
    for kind, relative in kinds.items():
        found[0].save(folder / relative, kind)
        yield folder / relative
    if features is not None:
        path = folder / "features" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(features))
        yield path


def _safe(name: str) -> str:
    """A name as that of a file in any archive."""
    return "".join(c if c.isalnum() or c in " .-_()" else "_" for c in name).strip(" .") or "picture"
