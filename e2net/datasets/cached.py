"""Features of a frozen encoder kept on disk, and the data sets that read them instead of images."""

import contextlib
import copy
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from e2net.datasets.pairs import Source, read_pair
from e2net.datasets.transforms import Augment, Resize, Size
from e2net.files import naming, write_atomically
from e2net.lock import lock
from e2net.structures import Encoded, Sample
from e2net.tasks.base import Task
from e2net.tasks.camouflage import Camouflage

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}

# Tells these draws from the augmentation's and the random sizes'.
_STREAM = 2

# A store's files in the order in which they are removed: what says that records are there first, and what says that
# the folder is a store last.
_FILES = ("written.bin", "features.bin", "masks.bin", "key.json")


class FeatureStore:
    """One record of feature maps and target for each entry, in files of a fixed size that are mapped into memory.

    A store lies in a folder named by its key, a hash of everything that the features depend on. Opening one removes
    the stores of other keys beside it, unless another run is using them. An entry counts as written only after its
    values have been handed to the file system, so an interrupted run goes on where it stopped.

    Args:
        root: folder of all stores.
        key: what the features depend on; anything that JSON can hold.
        entries: number of records.
        shapes: (D_i, h_i, w_i) of F1..F4.
        size: (H, W) of the targets, pixels.
        dtype: ``float16`` or ``bfloat16``, two bytes a value.
        max_gb: refuse to write more than this, in 10⁹ bytes.
        task: what the targets mean; None: camouflage.

    Raises:
        ValueError: the store would be larger than ``max_gb`` or the disk's free space.
    """

    def __init__(
        self,
        root: Path,
        key: Any,
        entries: int,
        shapes: Sequence[Sequence[int]],
        size: Size,
        dtype: str = "float16",
        max_gb: float = 20.0,
        task: Task | None = None,
    ) -> None:
        self.shapes, self.size, self.dtype = [tuple(s) for s in shapes], size, DTYPES[dtype]
        self.task = task or Camouflage()
        values = sum(math.prod(s) for s in self.shapes)
        target_bytes = self.task.packed_bytes(size)
        self.bytes = entries * (2 * values + target_bytes + 1)
        text = json.dumps([key, entries, self.shapes, size, dtype], sort_keys=True)
        self.folder = root / _name(text.encode())
        self._lock = _open(self.folder)
        remove_unused(root)
        new = not (self.folder / "key.json").is_file()
        try:
            if new:
                self._check_space(max_gb)
                write_atomically(self.folder / "key.json", text)
            self._features = self._map("features.bin", np.int16, (entries, values))
            self._targets = self._map("masks.bin", np.uint8, (entries, target_bytes))
            self._written = self._map("written.bin", np.uint8, (entries,))
        except (OSError, ValueError):
            if new:
                _remove(self.folder, self._lock)
            raise

    def _check_space(self, max_gb: float) -> None:
        free = shutil.disk_usage(self.folder).free
        for limit, name in ((max_gb * 1e9, f"cache.max_gb={max_gb:g}"), (free, "what is free on the disk")):
            if self.bytes > limit:
                raise ValueError(
                    f"the feature cache would take {self.bytes / 1e9:.1f} GB, more than {name}; expected fewer "
                    "cache.views, a smaller size, or cache.views=0 (no cache)"
                )

    def _map(self, name: str, dtype: type, shape: tuple[int, ...]) -> np.memmap:
        file = self.folder / name
        size = np.dtype(dtype).itemsize * math.prod(shape)
        # To append creates the file but never empties it: another run of the same key may have just begun to write.
        with naming(file), file.open("ab") as handle:
            if hasattr(os, "posix_fallocate"):
                # Else a disk that is full by then would end the process without a word, at a write into mapped memory.
                os.posix_fallocate(handle.fileno(), 0, size)
            handle.truncate(size)
        return np.memmap(file, dtype, "r+", shape=shape)

    def close(self) -> None:
        """Lets another run remove the store. It lasts until the process ends otherwise."""
        self._lock.close()

    def missing(self) -> list[int]:
        """Entries that have not been written."""
        return np.flatnonzero(self._written == 0).tolist()

    def write(self, entries: Sequence[int], features: Sequence[Tensor], targets: Tensor) -> None:
        """Writes records: features F1..F4 (B, D_i, h_i, w_i), targets (B, 1, H, W).

        Raises:
            ValueError: a value is too large for the store's dtype.
        """
        flat = torch.cat([f.flatten(1) for f in features], dim=1).to(self.dtype)
        if not flat.isfinite().all():
            raise ValueError("a feature is too large for cache.dtype=float16, or no number: take cache.dtype=bfloat16")
        rows = list(entries)
        self._features[rows] = flat.cpu().view(torch.int16).numpy()
        self._targets[rows] = self.task.pack(targets)
        self._features.flush()
        self._targets.flush()
        self._written[rows] = 1

    def features(self, entry: int) -> list[Tensor]:
        """F1..F4 of one entry, each (D_i, h_i, w_i) in the store's dtype."""
        flat = torch.from_numpy(np.array(self._features[entry])).view(self.dtype)
        parts = flat.split([math.prod(s) for s in self.shapes])
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def target(self, entry: int) -> Tensor:
        """The target of one entry, (1, H, W)."""
        return self.task.unpack(self._targets[entry], self.size)


def remove_unused(root: Path) -> None:
    """Removes every store under ``root`` that no process has open; a folder that is none is left alone."""
    for folder in root.iterdir():
        if _is_store(folder):
            with contextlib.suppress(BlockingIOError):  # in use
                _remove(folder, lock(folder / "lock"))


def _name(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()[:16]


def _is_store(folder: Path) -> bool:
    """Whether a folder is named by the hash of its ``key.json``, as nothing but a store is."""
    file = folder / "key.json"
    if folder.is_symlink() or file.is_symlink() or not file.is_file():
        return False
    try:
        return folder.name == _name(file.read_bytes())
    except OSError:
        return False


def _remove(folder: Path, locked: BinaryIO) -> None:
    """Removes a store's own files, and its folder if that leaves it empty."""
    for name in _FILES:
        (folder / name).unlink(missing_ok=True)
    locked.close()  # Windows removes no file that is open
    (folder / "lock").unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _open(folder: Path) -> BinaryIO:
    """Makes the folder of a store and locks it against removal, after waiting for one that is under way."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            locked = lock(folder / "lock", shared=True)
            if _is_open(folder / "lock", locked):
                return locked
            locked.close()
        time.sleep(0.05)


def _is_open(file: Path, handle: BinaryIO) -> bool:
    """Whether a path still leads to an open file: it may have been removed since."""
    return file.exists() and os.path.samestat(file.stat(), os.fstat(handle.fileno()))


class ViewSet(Dataset[Sample]):
    """Fixed views of the training images, for the encoder to see once: view 0 is the whole image, the rest augmented.

    Args:
        source: where pairs come from.
        indices: which of them; entry ``i * views + v`` is view ``v`` of the i-th.
        size: (H, W) in pixels.
        augment: draws the views but the first; its flip is left to the reader of the features, who finds both.
        views: for each image; more than one needs ``augment``.
        seed: for the augmentation.
        task: what the targets mean; None: camouflage.
    """

    def __init__(
        self,
        source: Source,
        indices: Sequence[int],
        size: Size,
        augment: Augment | None,
        views: int,
        seed: int,
        task: Task | None = None,
    ) -> None:
        self.source, self.indices, self.size, self.views, self.seed = source, list(indices), size, views, seed
        self.task = task or Camouflage()
        self.augment = copy.copy(augment)
        if self.augment is not None:
            self.augment.flip = 0.0

    def __len__(self) -> int:
        """How many views there are."""
        return len(self.indices) * self.views

    def __getitem__(self, entry: int) -> Sample:
        """One view; ``position`` is its entry."""
        at, view = divmod(entry, self.views)
        image, target = read_pair(self.source, self.indices[at], task=self.task)
        if view == 0 or self.augment is None:
            image, target = Resize(self.size, self.task)(image, target)
        else:
            rng = np.random.default_rng([self.seed, view, at, _STREAM])
            image, target = self.augment(image, target, self.size, rng, self.task)
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        name = self.source.name(self.indices[at])
        return Sample(pixels, self.task.to_tensor(target), None, name, entry)


class CachedTrainSet(Dataset[Sample]):
    """Features and targets of training images: for each epoch one of an image's views, and perhaps its mirror image.

    As in :class:`~e2net.datasets.datamodule.TrainSet`, what is drawn depends on seed, epoch and position alone.

    Args:
        store: holds entry ``(position * views + view) * (1 + mirrored) + flipped``.
        names: stems of the training images.
        views: for each image.
        flip: probability of the mirror image; above 0 the store holds both.
        seed: for the draws.
    """

    def __init__(self, store: FeatureStore, names: Sequence[str], views: int, flip: float, seed: int) -> None:
        self.store, self.names, self.views, self.flip, self.seed = store, list(names), views, flip, seed

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.names)

    def __getitem__(self, key: tuple[int, int] | int) -> Sample:
        """The sample of (epoch, position), its image encoded in one view."""
        epoch, position = key if isinstance(key, tuple) else (0, key)
        rng = np.random.default_rng([self.seed, epoch, position, _STREAM])
        entry = position * self.views + int(rng.integers(self.views))
        if self.flip:
            entry = 2 * entry + int(rng.random() < self.flip)
        image = Encoded(tuple(f[None] for f in self.store.features(entry)), self.store.size)
        return Sample(image, self.store.target(entry), None, self.names[position], position)


class CachedEvalSet(Dataset[Sample]):
    """Samples with their images encoded, and the mirror images too where those are averaged.

    Args:
        dataset: the samples.
        store: their features.
        first: entry of the first sample; its mirror image's, if there is one, is next.
        mirrored: whether there is one.
    """

    def __init__(self, dataset: Dataset[Sample], store: FeatureStore, first: int, mirrored: bool) -> None:
        self.dataset, self.store, self.first, self.mirrored = dataset, store, first, mirrored

    def __len__(self) -> int:
        """How many samples there are."""
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, at: int) -> Sample:
        """The sample, its image encoded in one view or two."""
        count = 1 + self.mirrored
        records = [self.store.features(self.first + at * count + k) for k in range(count)]
        maps = tuple(torch.stack(level) for level in zip(*records, strict=True))
        sample = self.dataset[at]
        return sample._replace(image=Encoded(maps, self.store.size, pixels=cast(Tensor, sample.image)))
