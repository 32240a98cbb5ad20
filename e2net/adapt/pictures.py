"""Pictures without targets, from anywhere: a folder tree, a list of files, films, or the training part of a set."""

import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from e2net.adapt.crops import CropBatch, CropMix, Crops, MultiCrop, collate_crops
from e2net.datasets.datamodule import DenseData, EpochSampler, loader_settings, reading_processes
from e2net.datasets.pairs import Source, pair_files, read_pair
from e2net.files import naming
from e2net.film import FilmReader
from e2net.formats import encoded, printable, read_image, some, verify_image
from e2net.tasks.base import Task
from e2net.trees import FILMS, PICTURES, other_kind, walk

log = logging.getLogger(__name__)

Size = tuple[int, int]  # (height, width) in pixels

_BAR_FROM = 500  # files; fewer are looked at before a progress bar is worth its line
_TRIES = 100  # pictures in a row that cannot be read are no accident
_QUALITY = 95  # of a film's frames, as JPEG
_ORIENTATION, _BY_COLUMNS = 0x0112, (5, 6, 7, 8)  # the EXIF tag, and its values for a picture that is stored so
# How whole files end, within the last so many bytes.
_ENDS, _TAIL = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}, 1024
# What a single picture may be at fault for.
_FAULTS = (ValueError, OSError)
_ROOTS = "a folder, a .txt of paths, a film or a picture"
_EXPECTED = f"pictures ({', '.join(PICTURES)}) or films ({', '.join(FILMS)})"


class _Images(Protocol):
    """Where pictures come from, by position."""

    names: list[str]

    def size(self, index: int) -> Size | None:
        """(h, w) of a picture, if that is known without reading it."""
        ...

    def read(self, index: int, reduce: int = 1) -> np.ndarray:
        """A picture (h, w, 3) uint8, RGB; a JPEG's sides divided by 1, 2, 4 or 8."""
        ...


class _Files:
    """Files of pictures."""

    def __init__(self, paths: Sequence[Path], names: Sequence[str], sizes: Sequence[Size] | None = None) -> None:
        self.paths, self.names = [os.fspath(path) for path in paths], list(names)
        self.sizes = None if sizes is None else np.array(sizes, np.int32).reshape(-1, 2)

    def size(self, index: int) -> Size | None:
        return None if self.sizes is None else (int(self.sizes[index, 0]), int(self.sizes[index, 1]))

    def read(self, index: int, reduce: int = 1) -> np.ndarray:
        return read_image(self.paths[index], reduce)


class _Made:
    """Images of pairs that are no files, such as generated ones."""

    def __init__(self, source: Source, part: Sequence[int], task: Task) -> None:
        self._source, self._part, self._task = source, list(part), task
        self.names = [source.name(index) for index in part]

    def size(self, index: int) -> Size | None:
        return None

    def read(self, index: int, reduce: int = 1) -> np.ndarray:
        return read_pair(self._source, self._part[index], task=self._task)[0]


class Pictures:
    """Pictures by position, in an order that depends on their paths alone.

    Args:
        root: a folder, of which all pictures and films below it are taken, links followed and what is hidden left out;
            a text file (.txt) of paths, one a line, relative to its folder, each taken once; a film; or a picture.
        every: of films, each n-th frame is taken. They are decoded once, by :meth:`check`, and lie as JPEGs in a
            temporary folder as long as this object is there.
        batch_size: pictures a step and process; a config may also have ``auto``, the most that fit.
        num_workers: processes that read; None: one less than the usable CPU cores, 8 at most.
        seed: for the order and the crops.

    Attributes:
        broken: pictures and films that are left out, and why: those that :meth:`check` finds, then those that are met.

    Raises:
        FileNotFoundError: there is nothing at the root.
        ValueError: there is no picture and no film, or an argument is out of its range.
    """

    def __init__(
        self,
        root: str | Path,
        every: int = 1,
        batch_size: int = 8,
        num_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        if not isinstance(every, int) or every < 1:
            raise ValueError(f"expected data.every as a whole number of 1 or more, found {every}")
        self.every = every
        self._prepare(str(root), batch_size, num_workers, seed)
        self._found: list[tuple[Path, str]] = _find(Path(root).expanduser(), self.broken)

    def _prepare(self, where: str, batch_size: int, num_workers: int | None, seed: int) -> None:
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"expected batch_size of at least 1, found {batch_size}")
        if seed < 0:
            raise ValueError(f"expected a seed of 0 or more, found {seed}")
        self.batch_size, self.num_workers, self.seed = batch_size, reading_processes(num_workers), seed
        self.broken: dict[str, str] = {}
        self._where = where
        self._images: _Images | None = None
        self._frames: tempfile.TemporaryDirectory[str] | None = None
        self._first = (0, 0)

    @classmethod
    def of(cls, data: DenseData) -> "Pictures":
        """The images that a data set would train on, with its batch size, workers and seed.

        Args:
            data: of any task; neither its targets nor the images held out for validation are used.
        """
        pictures = cls.__new__(cls)
        pictures.every = 1
        pictures._prepare("the training part of data", data.batch_size, data.num_workers, data.seed)
        source, part = data.source("train"), data.split()[0]
        files = [pair_files(source, index) for index in part]
        pictures._found = [(pair[0], source.name(i)) for pair, i in zip(files, part, strict=True) if pair is not None]
        if len(pictures._found) < len(part):
            pictures._images = _Made(source, part, data.task)
        return pictures

    @property
    def images(self) -> _Images:
        """What is left after :meth:`check`, which is called if it was not."""
        self.check()
        assert self._images is not None
        return self._images

    def __len__(self) -> int:
        """How many pictures there are, without those that :meth:`check` leaves out."""
        return len(self.images.names)

    def name(self, index: int) -> str:
        """Of a picture, for people: its path below the root, and the frame if it is one of a film."""
        return self.images.names[index]

    def read(self, index: int) -> np.ndarray:
        """A picture (h, w, 3) uint8, RGB.

        Raises:
            OSError: its file cannot be read.
            ValueError: it cannot be decoded.
        """
        return self.images.read(index)

    def check(self) -> None:
        """Decodes films, and looks at the beginning and the end of every file, once; what is broken is left out.

        Damage in the middle of a file shows when it is decoded: see :meth:`loader`.

        Raises:
            OSError: the frames of a film cannot be written, as the disk is full.
            ValueError: none is left.
        """
        if self._images is not None:
            return
        files = list(self._pictures())
        with ThreadPoolExecutor() as pool:
            looked = pool.map(_look, [path for path, _ in files])
            few = len(files) <= _BAR_FROM
            bar = tqdm(looked, total=len(files), desc=f"checking {self._where}", disable=few or None)
            found = list(bar)
        whole = [
            (path, name, size) for (path, name), size in zip(files, found, strict=True) if not isinstance(size, str)
        ]
        self.broken |= {name: size for (_, name), size in zip(files, found, strict=True) if isinstance(size, str)}
        if not whole:
            first = next(iter(self.broken.values()), "no frame")
            raise ValueError(f"{self._where}: none of {len(self.broken)} pictures and films can be read. {first}")
        paths, names, sizes = zip(*whole, strict=True)
        self._images = _Files(paths, names, sizes)

    def _pictures(self) -> Iterator[tuple[Path, str]]:
        """All pictures with their names; those of films are decoded now."""
        for number, (path, name) in enumerate(self._found):
            if path.suffix.lower() not in FILMS:
                yield path, name
                continue
            if self._frames is None:
                self._frames = tempfile.TemporaryDirectory(prefix="e2net-frames-")
            yield from self._decode(path, name, Path(self._frames.name) / f"{number}")

    def _decode(self, film: Path, name: str, folder: Path) -> Iterator[tuple[Path, str]]:
        folder.mkdir()
        kept = 0
        try:
            reader = FilmReader(film)
            for number, frame in enumerate(reader.frames()):
                if number % self.every:
                    continue
                file = folder / f"{number:06d}.jpg"
                with naming(file):
                    file.write_bytes(encoded(frame, ".jpg", _QUALITY))
                kept += 1
                yield file, f"{name} frame {number}"
            reader.check_end()
        except ValueError as error:
            self.broken[name] = f"{error} ({kept} frames are used)" if kept else str(error)

    def warnings(self, crops: MultiCrop | CropMix) -> list[str]:
        """What to say before training, a line each: what is left out, and crops that are larger than pictures.

        Sizes of generated pictures are not known before they are made, and are not looked at.

        Args:
            crops: that will be made.
        """
        lines, images = [], self.images
        if self.broken:
            first = next(iter(self.broken.values()))
            lines.append(
                f"{len(self.broken)} broken files of {self._where} are left out: {some(list(self.broken))}."
                f" The first: {printable(first)}"
            )
        if isinstance(images, _Files) and images.sizes is not None:
            shorter = images.sizes.min(axis=1)
            for kind, side in _sides(crops):
                small = [images.names[index] for index in np.flatnonzero(shorter < side)]
                if small:
                    lines.append(
                        f"{kind} crops of {side} pixels are larger than {len(small)} of {len(shorter)} pictures"
                        f" ({some(small)}), which are enlarged"
                    )
        return lines

    def begin_at(self, epoch: int, batches: int) -> None:
        """Where a resumed run goes on: the epoch, from 0, and how many of its batches it does without."""
        self._first = (epoch, batches)

    def note(self, broken: Iterable[tuple[str, str]]) -> None:
        """Says once of each picture that it was left out; :meth:`loader` does so with what it meets."""
        for name, reason in broken:
            if name not in self.broken:
                self.broken[name] = reason
                log.warning("left out, the %d. broken one: %s", len(self.broken), printable(f"{name}: {reason}"))

    def loader(self, crops: MultiCrop | CropMix) -> DataLoader[CropBatch]:
        """Batches of crops in random order; a last, smaller batch is dropped unless it is the only one.

        What is drawn depends on seed, epoch and position alone, neither on workers nor on what was read before. In the
        place of a picture that cannot be read is the next one that can; :meth:`note` says so.

        Args:
            crops: to be made of each picture; of several sizes, those of a batch have one.

        Raises:
            ValueError: no picture can be read any more; when its batches are asked for.
        """
        mix = crops if isinstance(crops, CropMix) else CropMix([crops])
        dataset = CropSet(self.images, mix, self.seed)
        epoch, batches = self._first
        sampler: Any = BatchSampler(dataset, self.seed, self.batch_size, epoch, batches * self.batch_size)
        return _Loader(
            self,
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            drop_last=len(sampler) > self.batch_size,
            collate_fn=_collate,
            **loader_settings(self.num_workers, self.seed, keep_workers=True),
        )


class Cropped(NamedTuple):
    """One picture's crops, and name and reason of each that could not be read before it."""

    crops: Crops
    broken: tuple[tuple[str, str], ...]


class BatchSampler(EpochSampler):
    """The same, in (epoch, position, batch) triples that also tell which batch of the epoch a sample is of."""

    def __init__(self, dataset: Dataset[Any], seed: int, batch_size: int, epoch: int = 0, skip: int = 0) -> None:
        super().__init__(dataset, seed, batch_size, epoch, skip)
        self._batch_size = batch_size

    def __iter__(self) -> Iterator[tuple[int, int, int]]:  # type: ignore[override]
        """This process's share of the epoch's order."""
        keys = list(super().__iter__())
        left_out = self.num_samples - len(keys)
        return iter([(*key, (left_out + place) // self._batch_size) for place, key in enumerate(keys)])


class CropSet(Dataset[Cropped]):
    """The crops of each picture.

    Args:
        images: where they come from.
        crops: to be made.
        seed: for them.
    """

    def __init__(self, images: _Images, crops: CropMix, seed: int) -> None:
        self._images, self._crops, self._seed = images, crops, seed

    def __len__(self) -> int:
        """How many pictures there are."""
        return len(self._images.names)

    def __getitem__(self, key: tuple[int, int, int]) -> Cropped:
        """The crops of (epoch, position, batch of the epoch)."""
        epoch, position, batch = key
        crops = self._crops.of_batch(self._seed, epoch, batch)
        broken: list[tuple[str, str]] = []
        for further in range(min(_TRIES, len(self))):
            index = (position + further) % len(self)
            rng = np.random.default_rng([self._seed, epoch, position])
            try:
                return Cropped(self._make(index, crops, rng), tuple(broken))
            except _FAULTS as error:
                broken.append((self._images.names[index], str(error)))
        raise ValueError(
            f"none of {len(broken)} pictures in a row can be read any more; is their folder still there? "
            f"See {broken[0][1]}"
        )

    def _make(self, index: int, crops: MultiCrop, rng: np.random.Generator) -> Crops:
        size = self._images.size(index)
        if size is None:
            return crops(self._images.read(index), rng)
        plan = crops.plan(rng, *size)
        reduce = crops.reduction(plan)
        image = self._images.read(index, reduce)
        # A file's header is not always what is read: it may turn the picture after its pixels, or be a new one by now.
        if image.shape[:2] not in (size, (-(-size[0] // reduce), -(-size[1] // reduce))):
            return crops(self._images.read(index), rng)
        return crops.cut(image, plan, size)


class _Loader(DataLoader[CropBatch]):
    """A loader that tells its pictures, in the main process, what a worker has met."""

    def __init__(self, pictures: Pictures, dataset: CropSet, **settings: Any) -> None:
        super().__init__(dataset, **settings)  # type: ignore[arg-type]
        self._pictures = pictures

    def __iter__(self) -> Iterator[CropBatch]:  # type: ignore[override]
        for batch in super().__iter__():
            self._pictures.note(batch.broken)
            yield batch


def _sides(crops: MultiCrop | CropMix) -> list[tuple[str, int]]:
    """Kinds and sides of all crops that are made, each once."""
    found: dict[tuple[str, int], None] = {}
    for one in crops.sizes if isinstance(crops, CropMix) else (crops,):
        sides = {"global": one.global_size, "local": one.local_size if one.locals else 0, "gram": one.gram_size or 0}
        found |= dict.fromkeys(sides.items())
    return sorted(found, key=lambda pair: ("global", "local", "gram").index(pair[0]))


def _collate(samples: Sequence[Cropped]) -> CropBatch:
    return collate_crops([one.crops for one in samples], [pair for one in samples for pair in one.broken])


def _find(root: Path, broken: dict[str, str]) -> list[tuple[Path, str]]:
    """Files of pictures and films with their names; what is none, though it is named so, goes to ``broken``."""
    shown = printable(str(root))
    if root.is_dir():
        faults: dict[Path, str] = {}
        files = sorted(path for path in walk(root, faults) if path.suffix.lower() in PICTURES + FILMS)
        broken |= {printable(str(path.relative_to(root))): fault for path, fault in faults.items()}
        names = [printable(str(path.relative_to(root))) for path in files]
    elif root.suffix.lower() == ".txt" and root.is_file():
        lines = root.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
        listed = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
        files, names = [root.parent / line for line in listed], [printable(line) for line in listed]
    elif root.suffix.lower() in PICTURES + FILMS and root.exists():
        files, names = [root], [printable(root.name)]
    elif root.exists():
        raise ValueError(
            f"data.root={shown}: expected a folder, a .txt of paths, a film or a picture, found another file"
        )
    else:
        raise FileNotFoundError(
            f"data.root={shown}: expected a folder, a .txt of paths, a film or a picture, found nothing"
        )
    if not files:
        raise ValueError(f"data.root={shown}: expected {_EXPECTED}, found none")
    found = []
    for file, name in zip(files, names, strict=True):
        kind = other_kind(file) or (None if file.exists() else "nothing there")
        if kind is None:
            found.append((file, name))
        else:
            broken[name] = f"expected a file, found {kind}"
    return found


def _look(path: Path) -> Size | str:
    """(h, w) of a picture's file, or what is wrong with it; decoded only where its end looks cut."""
    try:
        with path.open("rb") as file, Image.open(file) as picture:
            width, height = picture.size
            # For tags that come after the pixels Pillow would decode all of a PNG.
            early = picture.format != "PNG" or "exif" in picture.info
            turned = early and picture.getexif().get(_ORIENTATION, 1) in _BY_COLUMNS
            end = _ENDS.get(str(picture.format))
            file.seek(max(0, path.stat().st_size - _TAIL))
            if end is not None and end in file.read():
                return (width, height) if turned else (height, width)
    except Exception:
        pass
    try:
        return verify_image(path)
    except _FAULTS as error:
        return str(error)
