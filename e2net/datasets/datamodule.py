"""Which pairs are for training, validation and test, and how they become batches. Needs no Lightning."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple, cast

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from e2net import processes
from e2net.datasets.cached import CachedEvalSet, CachedTrainSet, FeatureStore, ViewSet
from e2net.datasets.corruptions import corrupt, drawn_for
from e2net.datasets.pairs import FolderPairs, PartOf, Source, find_doubts, pair_files, read_pair
from e2net.datasets.procedural import SURROUNDINGS, ProceduralPairs
from e2net.datasets.repeats import same_files
from e2net.datasets.transforms import Augment, Resize, Size
from e2net.files import read_yaml
from e2net.formats import printable, some
from e2net.structures import Batch, Encoded, Images, Sample
from e2net.tasks.base import Task
from e2net.tasks.camouflage import Camouflage

# A test set that is no folder: the images held out of the training set.
VALIDATION = "validation"
# In a data folder: the names of classes, where its targets are label maps.
CLASSES = "classes.yaml"

_STAGES = (None, "fit", "validate", "test", "predict")


def in_validation(stem: str, fraction: float) -> bool:
    """Whether a training image is held out for validation.

    Depends on the stem alone (a SHA-256 of it), so the split is the same on every machine, in every run and
    for every seed, and stays as it is for the old images when new ones are added.

    Args:
        stem: the image's stem.
        fraction: of the images to hold out, 0 to below 1, on average.
    """
    digest = hashlib.sha256(stem.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def collate(samples: list[Sample]) -> Batch:
    """Stack samples of one size; native targets, of any sizes, stay a list (empty in training)."""
    # torch.stack starts as many threads as there are cores: on a busy machine, 100 ms for a copy of 2 MB
    return Batch(
        image=_stacked([sample.image for sample in samples]),
        target=torch.from_numpy(np.stack([sample.target.numpy() for sample in samples])),
        native_targets=[sample.native_target for sample in samples if sample.native_target is not None],
        names=[sample.name for sample in samples],
        positions=[sample.position for sample in samples],
    )


def _stacked(images: list[Images]) -> Images:
    first = images[0]
    if isinstance(first, Encoded):
        levels = zip(*(image.maps for image in cast(list[Encoded], images)), strict=True)
        maps = tuple(torch.stack(level) for level in levels)
        pixels = [image.pixels for image in cast(list[Encoded], images) if image.pixels is not None]
        return first._replace(maps=maps, pixels=torch.stack(pixels) if pixels else None)
    return torch.from_numpy(np.stack([image.numpy() for image in cast(list[Tensor], images)]))


def _sample(
    task: Task, pair: tuple[np.ndarray, np.ndarray], native_target: np.ndarray | None, name: str, position: int
) -> Sample:
    image, target = pair
    return Sample(
        image=torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
        target=task.to_tensor(target),
        native_target=native_target,
        name=name,
        position=position,
    )


class EvalSet(Dataset[Sample]):
    """Pairs resized for the network, with their targets at native size.

    Args:
        source: where pairs come from.
        indices: which of them, in which order.
        size: (H, W) in pixels.
        task: what the targets mean; None: camouflage.
    """

    def __init__(self, source: Source, indices: Sequence[int], size: Size, task: Task | None = None) -> None:
        self.source, self.indices, self.task = source, list(indices), task or Camouflage()
        self.resize = Resize(size, self.task)

    def __len__(self) -> int:
        """How many pairs there are."""
        return len(self.indices)

    def __getitem__(self, position: int) -> Sample:
        """The sample at a position, the same every time."""
        index = self.indices[position]
        image, native_target = read_pair(self.source, index, task=self.task)
        resized = self.resize(image, native_target)
        return _sample(self.task, resized, native_target, self.source.name(index), index)


class Copies(NamedTuple):
    """One image's corrupted copies, as ``CorruptedSet`` yields them.

    Attributes:
        image: (N, 3, H, W) uint8, RGB, a copy for each condition.
        native_target: (h, w) array at the file's own size.
        name: file stem.
        position: index within its set.
    """

    image: Tensor
    native_target: np.ndarray
    name: str
    position: int


class CorruptedSet(Dataset[Copies]):
    """Images of which each is read once, corrupted at its own size in several ways, and resized for the network.

    A copy depends on the image, its name and the condition alone, see :mod:`e2net.datasets.corruptions`.

    Args:
        source: where pairs come from.
        size: (H, W) in pixels.
        conditions: kinds and strengths of corruptions, in the order of the copies.
        task: what the targets mean.
    """

    def __init__(self, source: Source, size: Size, conditions: Sequence[tuple[str, int]], task: Task) -> None:
        self.source, self.conditions, self.task = source, list(conditions), task
        self.resize = Resize(size, task)

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.source)

    def __getitem__(self, position: int) -> Copies:
        """All copies of one image."""
        image, native_target = read_pair(self.source, position, task=self.task)
        name = self.source.name(position)
        copies = [
            self.resize.image(corrupt(image, kind, strength, drawn_for(name, kind, strength)))
            for kind, strength in self.conditions
        ]
        stacked = np.ascontiguousarray(np.stack(copies).transpose(0, 3, 1, 2))
        return Copies(torch.from_numpy(stacked), native_target, name, position)


def _as_it_is(item: Copies) -> Copies:
    return item


class TrainSet(Dataset[Sample]):
    """Pairs augmented for training, without native targets.

    What is drawn depends on seed, epoch and position and on nothing else: neither on the number of workers or
    processes nor on what was read before, so a resumed run sees what the uninterrupted one would have seen.

    Args:
        source: where pairs come from.
        indices: which of them.
        size: (H, W) in pixels.
        augment: None only resizes.
        seed: for the augmentation.
        task: what the targets mean; None: camouflage.
    """

    def __init__(
        self,
        source: Source,
        indices: Sequence[int],
        size: Size,
        augment: Augment | None,
        seed: int,
        task: Task | None = None,
    ) -> None:
        self.source, self.indices, self.size = source, list(indices), size
        self.augment, self.seed, self.task = augment, seed, task or Camouflage()

    def __len__(self) -> int:
        """How many pairs there are."""
        return len(self.indices)

    def __getitem__(self, key: tuple[int, int] | int) -> Sample:
        """The sample of (epoch, position); a position alone, as from a foreign sampler, means epoch 0."""
        epoch, position = key if isinstance(key, tuple) else (0, key)
        index = self.indices[position]
        if self.augment is None:
            pair = Resize(self.size, self.task)(*read_pair(self.source, index, task=self.task))
        else:
            image, target = read_pair(self.source, index, self.augment.needs(self.size), self.task)
            rng = np.random.default_rng([self.seed, epoch, position])
            pair = self.augment(image, target, self.size, rng, self.task)
        return _sample(self.task, pair, None, self.source.name(index), index)


class EpochSampler(DistributedSampler[tuple[int, int]]):
    """A new order for every epoch, in (epoch, position) pairs that tell the data set which epoch it is.

    Persistent workers keep the data set they were started with, so an epoch set on the data set would never
    reach them; with the index it does. Lightning calls `set_epoch`; in a plain loop every pass is the next
    epoch. It is a DistributedSampler so that Lightning does not replace it.

    Processes are dealt the order one image each in turn: what they have at one step is together what one process has
    at that step with their images at once, the last, smaller batch left out alike. Only where there is less than one
    such batch does each have its share of that, some images then twice.

    Args:
        dataset: what to sample.
        seed: for the order.
        batch_size: images per step and process.
        epoch: the first one.
        skip: so many of its samples are left out, in each process: a run goes on where it had seen them.
    """

    def __init__(self, dataset: Dataset[Any], seed: int, batch_size: int = 1, epoch: int = 0, skip: int = 0) -> None:
        world, rank = processes.count(), processes.rank()
        full = len(dataset) >= world * batch_size  # type: ignore[arg-type]
        super().__init__(dataset, num_replicas=world, rank=rank, shuffle=True, seed=seed, drop_last=full)
        self.epoch = epoch
        self._begun = (epoch, skip)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """This process's share of the epoch's order."""
        epoch, self.epoch = self.epoch, self.epoch + 1
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.dataset))  # type: ignore[arg-type]
        # processes must take equally many steps, so the order wraps around where it is too short for one
        share = np.resize(order, self.total_size)[self.rank :: self.num_replicas]
        first, skip = self._begun
        return iter([(epoch, int(position)) for position in share[skip if epoch == first else 0 :]])


def _single_thread_opencv(_worker: int = 0) -> None:
    """Turn off OpenCV's own threads: the workers are the parallelism, the images are small.

    Called before workers are forked, not only in them: a forked process inherits OpenCV's thread pool without
    its threads, and there even this call now and then waits for them for ever (seen with OpenCV 4.14).
    """
    if cv2.getNumThreads() != 1:
        cv2.setNumThreads(1)


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def reading_processes(given: int | None = None) -> int:
    """How many processes read: as many as are given; None: one less than the usable CPU cores, 8 at most.

    Raises:
        ValueError: a negative number is given.
    """
    if given is not None and given < 0:
        raise ValueError(f"expected num_workers of 0 or more, or null (by CPU cores), found {given}")
    return min(8, max(1, _cpus() - 1)) if given is None else given


def loader_settings(num_workers: int, seed: int, keep_workers: bool) -> dict[str, Any]:
    """Arguments of every DataLoader here; OpenCV has one thread from now on.

    Args:
        num_workers: processes that read.
        seed: of what the loader itself draws.
        keep_workers: whether they outlive an epoch.
    """
    _single_thread_opencv()
    return {
        "num_workers": num_workers,
        "worker_init_fn": _single_thread_opencv,  # for workers that are not forked
        "persistent_workers": keep_workers and num_workers > 0,
        "pin_memory": torch.cuda.is_available(),
        # its own: a loader draws a number when it starts, which would move on the generator that dropout uses,
        # by how much depending on how often loaders were started
        "generator": torch.Generator().manual_seed(seed),
    }


class _Cache(NamedTuple):
    store: FeatureStore
    views: int
    first_val: int
    mirrored: bool


class DenseData:
    """Training, validation and test pairs as batches.

    Validation images are held out of the training set; a test set is never used to choose anything. A
    subclass says where pairs come from: `test_names`, `train_source` and `test_source`.

    Args:
        size: of the network's input, pixels: a number (square) or [H, W].
        batch_size: images per step and process, in training and evaluation; a config may also have ``auto``, the most
            that fit.
        num_workers: processes that read images, for each loader; 0 reads in the main process, None takes one
            less than the usable CPU cores, 8 at most.
        val_fraction: of the training images, held out for validation, 0 to below 1; 0 means no validation.
        augment: None only resizes.
        seed: for order and augmentation; the split does not depend on it.
        task: what the targets mean, see :class:`~e2net.tasks.base.Task`; None: camouflage.

    Attributes:
        test_names: of the test sets.
        strict: files in no pair are an error; set it to False, before anything is listed, to look for such faults.

    Raises:
        ValueError: an argument is out of its range.
    """

    test_names: list[str]
    strict = True

    def __init__(
        self,
        size: int | Sequence[int],
        batch_size: int = 8,
        num_workers: int | None = None,
        val_fraction: float = 0.1,
        augment: Augment | None = None,
        seed: int = 0,
        task: Task | None = None,
    ) -> None:
        sides = (size, size) if isinstance(size, int) else tuple(size)
        if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
            raise ValueError(f"expected size as a positive number of pixels or [H, W], found {size}")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"expected batch_size of at least 1 (or auto, which train.py knows), found {batch_size}")
        self.num_workers = reading_processes(num_workers)
        if not 0 <= val_fraction < 1:
            raise ValueError(f"expected val_fraction from 0 (no validation) to below 1, found {val_fraction}")
        if seed < 0:
            raise ValueError(f"expected a seed of 0 or more, found {seed}")
        self.size: Size = (sides[0], sides[1])
        self.batch_size, self.val_fraction = batch_size, val_fraction
        self.augment, self.seed, self.task = augment, seed, task or Camouflage()
        self._first = (0, 0)
        self._sources: dict[tuple[str, str], Source] = {}
        self._checked: set[tuple[str, str]] = set()
        self._cache: _Cache | None = None

    @classmethod
    def about(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """What such data say of their targets, such as {"classes": [...]}; see :meth:`~e2net.tasks.Task.resolve`.

        Args:
            settings: the ``data`` group of a resolved config.
        """
        return {}

    def train_source(self) -> Source:
        """The pairs that training and validation share."""
        raise NotImplementedError

    def test_source(self, name: str) -> Source:
        """The pairs of one test set.

        Args:
            name: one of `test_names`.
        """
        raise NotImplementedError

    def source(self, kind: str, name: str = "") -> Source:
        """The pairs of ``train``, validation included, or of one ``test`` set; listed once."""
        if (kind, name) not in self._sources:
            self._sources[kind, name] = self.train_source() if kind == "train" else self.test_source(name)
        return self._sources[kind, name]

    def _needed(self, stage: str | None) -> list[tuple[str, str]]:
        if stage not in _STAGES:
            raise ValueError(f"expected a stage out of {', '.join(map(str, _STAGES))}, found {stage!r}")
        tests = [("test", name) for name in self.test_names]
        if stage in ("test", "predict") and not tests:
            raise ValueError("no test sets are named: name at least one with data.test=[NAME].")
        train = [("train", "")] if stage in (None, "fit", "validate") else []
        return train + (tests if stage in (None, "test", "predict") else [])

    @property
    def validated(self) -> bool:
        """Whether training images are held out for validation."""
        return self.val_fraction > 0

    def _held_out(self, stems: Sequence[str]) -> list[bool]:
        """For each stem of the training set whether it is for validation."""
        held_out = [in_validation(stem, self.val_fraction) for stem in stems]
        for part, missing in (("training", all(held_out)), ("validation", self.validated and not any(held_out))):
            if missing:
                raise ValueError(
                    f"val_fraction={self.val_fraction} of {len(stems)} training images leaves none for"
                    f" {part}: change data.val_fraction (0: train without validation) or add images."
                )
        return held_out

    def split(self) -> tuple[list[int], list[int]]:
        """Which pairs of the training set are to train on, and which for validation.

        Raises:
            ValueError: one of the two would be empty.
        """
        source = self.source("train")
        held_out = self._held_out([source.name(index) for index in range(len(source))])
        train = [index for index, held in enumerate(held_out) if not held]
        return train, [index for index, held in enumerate(held_out) if held]

    def check(self, stage: str | None = None) -> None:
        """Read everything a stage needs once, before any time goes into training; done once per set.

        Args:
            stage: "fit", "validate", "test" or "predict", or None for everything. Only fit and validate need
                the training set, only test and predict the test sets.

        Raises:
            FileNotFoundError: a folder is missing.
            ValueError: something about the files is wrong, or the split leaves a part empty.
        """
        self.setup(stage)
        for key in self._needed(stage):
            if key not in self._checked:
                self.source(*key).check()
                self._checked.add(key)

    def warnings(self) -> list[str]:
        """What is suspect, after :meth:`check`, as far as it is cheap to see; ``python -m e2net.check`` sees more.

        Targets that have been read, and picture files that are in more than one of training, validation and test set,
        byte by byte.

        Returns:
            A line each; none of it is an error.
        """
        lines = []
        for kind, name in self._needed(None):
            source = self.source(kind, name)
            where = f"test set {name}" if name else "the training set"
            for doubt, names in find_doubts(source).items():
                what = f"{len(names)} of {len(source)} {self.task.target_name}s of {where}"
                lines.append(f"{what} are suspect ({doubt}): {some(names)}")
        files = self._image_files()
        for repeat in same_files({role: list(names) for role, names in files.items()}):
            places = " and ".join(f"{role} ({files[role][path]})" for role, path in repeat)
            lines.append(f"the same picture in {printable(places)}")
        return lines

    def _image_files(self) -> dict[str, dict[Path, str]]:
        """Picture files of each role, with the names of their pairs and test sets."""
        files: dict[str, dict[Path, str]] = {"training": {}, "validation": {}, "test": {}}
        train = self.source("train")
        learned, held_out = self.split()
        parts = [("training", train, "", learned), ("validation", train, "", held_out)]
        for name in self.test_names:
            if name != VALIDATION:
                source = self.source("test", name)
                parts.append(("test", source, f"{name}: ", list(range(len(source)))))
        for role, source, lead, part in parts:
            for index in part:
                pair = pair_files(source, index)
                if pair is not None:
                    files[role][pair[0]] = lead + source.name(index)
        return files

    def setup(self, stage: str | None = None) -> None:
        """List the files a stage needs and split them; for the arguments and errors, see `check`."""
        for key in self._needed(stage):
            self.source(*key)
        if stage not in ("test", "predict"):
            self.split()

    def begin_at(self, epoch: int, batches: int) -> None:
        """Where a resumed run goes on: the epoch, from 0, and how many of its batches it does without.

        Lightning says the epoch only after it has started the loader, whose workers read ahead.
        """
        self._first = (epoch, batches)

    def train_names(self) -> list[str]:
        """Stems of the training images, without those held out."""
        return [self.source("train").name(index) for index in self.split()[0]]

    def train_targets(self) -> Iterator[np.ndarray]:
        """The targets of the training images, without those held out, read one by one."""
        source = self.source("train")
        return (read_pair(source, index, task=self.task)[1] for index in self.split()[0])

    def val_names(self) -> list[str]:
        """Stems of the images held out for validation."""
        return [self.source("train").name(index) for index in self.split()[1]]

    def _loader(
        self, dataset: Dataset[Any], keep_workers: bool, num_workers: int | None = None, **kwargs: Any
    ) -> DataLoader[Any]:
        workers = self.num_workers if num_workers is None else num_workers
        common = {"batch_size": self.batch_size, "collate_fn": collate}
        return DataLoader(dataset, **{**loader_settings(workers, self.seed, keep_workers), **common, **kwargs})

    def train_dataloader(self) -> DataLoader[Sample]:
        """Batches in random order; a last, smaller batch is dropped unless it is the only one."""
        dataset: Dataset[Sample]
        # Cached records are mapped into memory: to pass them between processes would cost more than to read them.
        workers = None if self._cache is None else 0
        if self._cache is None:
            dataset = TrainSet(self.source("train"), self.split()[0], self.size, self.augment, self.seed, self.task)
        else:
            flip = self.augment.flip if self.augment is not None else 0.0
            dataset = CachedTrainSet(self._cache.store, self.train_names(), self._cache.views, flip, self.seed)
        epoch, batches = self._first
        # Of pairs, which DataLoader's types do not foresee.
        sampler: Any = EpochSampler(dataset, self.seed, self.batch_size, epoch, batches * self.batch_size)
        return self._loader(dataset, True, workers, sampler=sampler, drop_last=len(sampler) > self.batch_size)

    def val_dataloader(self) -> DataLoader[Sample] | list[DataLoader[Sample]]:
        """The held-out images, in the order of their stems; an empty list where there are none."""
        indices = self.split()[1]
        if not indices:
            return []
        dataset: Dataset[Sample] = EvalSet(self.source("train"), indices, self.size, self.task)
        if self._cache is not None:
            dataset = CachedEvalSet(dataset, self._cache.store, self._cache.first_val, self._cache.mirrored)
        return self._loader(dataset, True)

    def view_loader(self, views: int) -> DataLoader[Sample]:
        """Fixed views of the training images, in order, see :class:`~e2net.datasets.cached.ViewSet`."""
        dataset = ViewSet(self.source("train"), self.split()[0], self.size, self.augment, views, self.seed, self.task)
        return self._loader(dataset, False)

    def view_key(self, views: int) -> list[Any]:
        """What the pixels of :meth:`view_loader` and of the validation part depend on, for JSON."""
        drawn = [vars(self.augment), self.seed] if views > 1 and self.augment is not None else None
        return [self.task.key(), self.source("train").identity(), self.train_names(), self.val_names(), views, drawn]

    def read_features(self, store: FeatureStore, views: int, first_val: int, mirrored: bool) -> None:
        """From now on training and validation batches hold features from a store.

        Args:
            store: the training views first, then the validation part.
            views: of each training image.
            first_val: the first entry of the validation part.
            mirrored: whether it has a second entry for each mirror image.
        """
        self._cache = _Cache(store, views, first_val, mirrored)

    def test_dataloader(self) -> list[DataLoader[Sample]]:
        """One loader for each of `test_names`, in that order."""
        sources = [self.source("test", name) for name in self.test_names]
        return [self._loader(EvalSet(source, range(len(source)), self.size, self.task), False) for source in sources]

    def corrupted_dataloader(self, name: str, conditions: Sequence[tuple[str, int]]) -> DataLoader[Copies]:
        """All images of a test set, one after the other, each as its corrupted copies.

        Args:
            name: one of `test_names`.
            conditions: kinds and strengths, see :class:`CorruptedSet`.
        """
        dataset = CorruptedSet(self.source("test", name), self.size, conditions, self.task)
        # Copies are many: no worker reads ahead by more than one image.
        ahead = 1 if self.num_workers else None
        return self._loader(dataset, False, batch_size=None, collate_fn=_as_it_is, prefetch_factor=ahead)


class FolderData(DenseData):
    """Folders of images and targets on disk; for one's own data and for the published sets.

    Args:
        root: folder that the others are relative to.
        size: see `DenseData`, as are all arguments not listed here.
        train: folder of the training set under root, holding Image/ and GT/.
        test: test sets under root/test_folder: a list of folders, each known by the last part of its path, or
            a mapping of names to folders. The word "validation" alone: the images held out, where there are no others.
        test_folder: between root and the test sets; empty where they lie in root itself.
        val: stems to hold out for validation, in which * and ? stand for any; or a text file of stems, one a line,
            relative to root. None: `val_fraction` of them.

    Raises:
        FileNotFoundError: the file of stems is missing.
        ValueError: two test sets have one name, or an argument is out of its range.
    """

    def __init__(
        self,
        root: str,
        size: int | Sequence[int],
        train: str = "train",
        test: str | Sequence[str] | Mapping[str, str] = ("test",),
        test_folder: str = "",
        val: str | Sequence[str] | None = None,
        batch_size: int = 8,
        num_workers: int | None = None,
        val_fraction: float = 0.1,
        augment: Augment | None = None,
        seed: int = 0,
        task: Task | None = None,
    ) -> None:
        super().__init__(size, batch_size, num_workers, val_fraction, augment, seed, task)
        self.root, self.train, self.test_folder = Path(root), train, test_folder
        self.val = listed(self.root / val) if isinstance(val, str) else val
        self._test_paths: dict[str, str] | None = None
        if test == VALIDATION:
            if not self.validated:
                raise ValueError(
                    "data.test=validation: no images are held out; data.val_fraction=0.1 holds out a tenth"
                )
            self.test_names = [VALIDATION]
            return
        if isinstance(test, str):
            raise ValueError(
                f"expected test as a list of folders or the word {VALIDATION}, found the text {test!r}: write [{test}]"
            )
        pairs = test.items() if isinstance(test, Mapping) else [(Path(path).name, path) for path in test]
        check_set_names({name: path for name, path in pairs})
        self.test_names = [name for name, _ in pairs]
        twice = sorted({name for name in self.test_names if self.test_names.count(name) > 1})
        if twice:
            raise ValueError(
                f"test: more than one set named {some(twice)}. Remove one, or name them by a mapping,"
                " {NAME: FOLDER, OTHER: FOLDER}."
            )
        self._test_paths = dict(pairs)

    @classmethod
    def about(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """See the base class: names of classes from ``classes.yaml`` in the root, a list or with colours a mapping."""
        file = Path(settings.get("root", "")) / CLASSES
        if not file.is_file():
            return {}
        return {"classes": read_yaml(file)}

    @property
    def validated(self) -> bool:
        """See the base class."""
        return self.val is not None or super().validated

    def _held_out(self, stems: Sequence[str]) -> list[bool]:
        if self.val is None:
            return super()._held_out(stems)
        unmatched = [pattern for pattern in self.val if not any(_is_meant(stem, pattern) for stem in stems)]
        if unmatched or not self.val:
            raise ValueError(
                f"expected data.val as stems of {self.root / self.train}, such as {stems[0]}, found"
                f" {some(unmatched) if unmatched else 'none'}"
            )
        held_out = [any(_is_meant(stem, pattern) for pattern in self.val) for stem in stems]
        if all(held_out):
            raise ValueError(
                f"data.val={some(list(self.val))} holds out all {len(stems)} images: none is left to train; name fewer"
            )
        return held_out

    def train_source(self) -> Source:
        """See the base class."""
        return FolderPairs(self.root / self.train, self.task, strict=self.strict)

    def test_source(self, name: str) -> Source:
        """See the base class."""
        folder = self.test_root(name)
        if folder is None:
            return PartOf(self.source("train"), self.split()[1])
        return FolderPairs(folder, self.task, strict=self.strict)

    def test_root(self, name: str) -> Path | None:
        """The folder of one test set, which holds its folders of images and masks; None: the images held out.

        Args:
            name: one of `test_names`.
        """
        if self._test_paths is None:
            return None
        return self.root / self.test_folder / self._test_paths[name]


def _is_meant(stem: str, pattern: str) -> bool:
    """Whether a stem is the one that is named, brackets and all, or one of those that a pattern means."""
    return stem == pattern or fnmatchcase(stem, pattern)


def listed(file: Path) -> list[str]:
    """The stems in a text file, one a line."""
    if not file.is_file():
        raise FileNotFoundError(
            f"no file {file}: expected data.val as a list of stems, [{file.stem}], or a text file of them under"
            " data.root"
        )
    # Editors of Windows begin a file with a mark of its encoding.
    lines = file.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
    return [line.strip() for line in lines if line.strip()]


def check_set_names(paths: Mapping[str, Any]) -> None:
    """Makes sure that names of test sets are plain: they become log keys, and folders that results are written to.

    Args:
        paths: what each name stands for.

    Raises:
        ValueError: a name is no single part of a path, or cannot be printed.
    """
    names = {str(name).encode("utf-8", "replace").decode(): str(path) for name, path in paths.items()}
    odd = [path for name, path in names.items() if name in ("", ".", "..") or set("/\\") & set(name)]
    odd += [path for name, path in names.items() if not name.isprintable()]
    if odd:
        raise ValueError(f"test: {some(odd)} gives no plain name. Write a mapping, {{NAME: {some(odd[:1])}}}.")


class ProceduralData(DenseData):
    """Generated camouflage (`ProceduralPairs`): needs no files, for first runs, tests and demonstrations.

    Args:
        size: see `DenseData`, as are all arguments not listed here.
        n_train: images in training and validation together.
        n_test: images in each test set.
        difficulty: of the training images, 0 (obvious) to 1 (nearly invisible).
        sides: smallest and largest side of the images, pixels.
        test: names of test sets and the difficulty of each; None is one set, "procedural", as difficult as
            the training set.
        data_seed: for the images themselves; kept apart from `seed` so that runs of several seeds are scored
            on the same images.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        size: int | Sequence[int],
        n_train: int = 400,
        n_test: int = 100,
        difficulty: float = 0.5,
        sides: Sequence[int] = (96, 192),
        test: Mapping[str, float] | None = None,
        data_seed: int = 0,
        batch_size: int = 8,
        num_workers: int | None = None,
        val_fraction: float = 0.1,
        augment: Augment | None = None,
        seed: int = 0,
        task: Task | None = None,
    ) -> None:
        super().__init__(size, batch_size, num_workers, val_fraction, augment, seed, task)
        self._test = {"procedural": difficulty} if test is None else dict(test)
        check_set_names({name: name for name in self._test})
        self.test_names = list(self._test)
        low, high = sides
        kind = self.task.generated
        self._train = ProceduralPairs(n_train, data_seed, difficulty, "train", (low, high), kind)
        self._tests = {
            name: ProceduralPairs(n_test, data_seed, value, "test", (low, high), kind)
            for name, value in self._test.items()
        }

    @classmethod
    def about(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """See the base class: the surroundings, and the object."""
        return {"classes": [*SURROUNDINGS, "object"]}

    def train_source(self) -> Source:
        """See the base class."""
        return self._train

    def test_source(self, name: str) -> Source:
        """See the base class."""
        return self._tests[name]
