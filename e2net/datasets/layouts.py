"""Published layouts of label maps, and a validation set that has a folder of its own."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from e2net.datasets.datamodule import FolderData, listed
from e2net.datasets.pairs import FolderPairs, Source, find_doubts, find_strays, pair_files
from e2net.datasets.transforms import Augment
from e2net.formats import Stray
from e2net.tasks.base import Task

Layout = Literal["folders", "ade20k", "voc"]


class Joined:
    """Two sources as one: the second follows the first, its names led by the name of its part.

    Args:
        first, second: the sources.
        name: of the second part.
    """

    def __init__(self, first: Source, second: Source, name: str) -> None:
        self._parts, self._name = (first, second), name

    def _at(self, index: int) -> tuple[Source, int]:
        first, second = self._parts
        return (first, index) if index < len(first) else (second, index - len(first))

    def __len__(self) -> int:
        """How many pairs there are."""
        return sum(map(len, self._parts))

    def name(self, index: int) -> str:
        """Of pair `index`."""
        source, place = self._at(index)
        return source.name(place) if source is self._parts[0] else f"{self._name}_{source.name(place)}"

    def files(self, index: int) -> tuple[Path, Path] | None:
        """Image and target of pair `index`; None where there are no files."""
        return pair_files(*self._at(index))

    @property
    def strays(self) -> list[Stray]:
        """Of both, see :class:`FolderPairs`."""
        return [stray for part in self._parts for stray in find_strays(part)]

    @property
    def doubts(self) -> dict[str, list[str]]:
        """Of both, see :class:`FolderPairs`."""
        first, second = (find_doubts(part) for part in self._parts)
        return {kind: [*first.get(kind, []), *second.get(kind, [])] for kind in {**first, **second}}

    def read(self, index: int, at_least: tuple[int, int] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Pair `index`, see :class:`Source`."""
        source, place = self._at(index)
        return source.read(place, at_least)

    def identity(self) -> Any:
        """That of both."""
        return [part.identity() for part in self._parts]

    def check(self) -> None:
        """Verify both, see :class:`Source`."""
        for part in self._parts:
            part.check()


class SemanticData(FolderData):
    """Pictures and label maps in parts, of which one may be for validation.

    Args:
        root: folder that holds all of them.
        size: see `DenseData`, as are all arguments not listed here.
        layout: ``folders``: PART/Image and PART/GT or PART/labels; ``ade20k``: images/PART and annotations/PART;
            ``voc``: JPEGImages and SegmentationClass, of which ImageSets/Segmentation/PART.txt lists the stems.
        train: the part to train on.
        val: the part to validate on; None: `val_fraction` of the training part is held out.
        test: the parts to test on, or a mapping of names to parts.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        root: str,
        size: int | Sequence[int],
        layout: Layout = "folders",
        train: str = "train",
        val: str | None = None,
        test: str | Sequence[str] | Mapping[str, str] = ("test",),
        batch_size: int = 8,
        num_workers: int | None = None,
        val_fraction: float = 0.1,
        augment: Augment | None = None,
        seed: int = 0,
        task: Task | None = None,
    ) -> None:
        if layout not in get_args(Layout):
            raise ValueError(f"data.layout={layout}: expected one of {', '.join(get_args(Layout))}")
        self.layout, self.part = layout, val
        fraction = val_fraction if val is None else 0.0
        super().__init__(root, size, train, test, "", None, batch_size, num_workers, fraction, augment, seed, task)

    @property
    def validated(self) -> bool:
        """See the base class."""
        return self.part is not None or super().validated

    def _held_out(self, stems: Sequence[str]) -> list[bool]:
        if self.part is None:
            return super()._held_out(stems)
        trained = len(self._pairs(self.train))
        return [position >= trained for position in range(len(stems))]

    def train_source(self) -> Source:
        """See the base class."""
        pairs = self._pairs(self.train)
        return pairs if self.part is None else Joined(pairs, self._pairs(self.part), Path(self.part).name)

    def test_source(self, name: str) -> Source:
        """See the base class."""
        if self._test_paths is None:
            return super().test_source(name)
        return self._pairs(self._test_paths[name])

    def test_root(self, name: str) -> Path | None:
        """See the base class; None too where a set has no folder of its own."""
        return super().test_root(name) if self.layout == "folders" else None

    def _pairs(self, part: str) -> FolderPairs:
        if self.layout == "folders":
            return FolderPairs(self.root / part, self.task, strict=self.strict)
        if self.layout == "ade20k":
            folders = f"images/{part}", f"annotations/{part}"
            return FolderPairs(self.root, self.task, folders, strict=self.strict)
        stems = listed(self.root / "ImageSets" / "Segmentation" / f"{part}.txt")
        return FolderPairs(self.root, self.task, ("JPEGImages", "SegmentationClass"), stems, self.strict)
