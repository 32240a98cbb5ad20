"""Images and targets in two folders, paired by file stem, and the protocol that every source follows."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from e2net.formats import EXTENSIONS, Stray, find_by_stem, read_image, some, verify_image
from e2net.structures import plain
from e2net.tasks.base import Task
from e2net.tasks.camouflage import Camouflage

IMAGE_FOLDERS = ("Image", "Imgs", "Images", "img")

_BAR_FROM = 500  # files; fewer are checked before a progress bar is worth its line


class Source(Protocol):
    """Pairs of image and target, by position."""

    def __len__(self) -> int:
        """How many pairs there are."""
        ...

    def name(self, index: int) -> str:
        """The stem of pair `index`, unique within the source."""
        ...

    def read(self, index: int, at_least: tuple[int, int] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Pair `index`: image (h, w, 3) uint8 RGB and target (h, w), such as a mask (h, w) bool, of the same size.

        Where `at_least` (h, w) is given, the image alone may come reduced by a whole factor, as long as it keeps that
        size.
        """
        ...

    def identity(self) -> Any:
        """What tells this source's pixels from another's, for JSON; changes when a file does."""
        ...

    def check(self) -> None:
        """Verify every pair now, so that training does not stop at one of them an hour later.

        Raises:
            ValueError: something is wrong with some of the pairs; one line says what, where and the remedy.
        """
        ...


def read_pair(
    source: Source, index: int, at_least: tuple[int, int] | None = None, task: Task | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """A source's pair in the one form that all other code relies on.

    Args:
        source: of any kind.
        index: which of its pairs.
        at_least: see :meth:`Source.read`.
        task: what its targets mean; None: camouflage.

    Returns:
        Image (h, w, 3) uint8 RGB, C-contiguous, and target (h, w) in the task's canonical form.

    Raises:
        TypeError: the source gives arrays of other types or shapes.
    """
    image, target = (np.asarray(part) for part in source.read(index, at_least))
    found = f"{type(source).__name__}.read({index})"
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise TypeError(f"{found}: expected an image (h, w, 3) uint8, found {image.shape} {image.dtype}")
    try:
        return plain(image), (task or Camouflage()).canonical(target)
    except TypeError as error:
        raise TypeError(f"{found}: {error}") from error


def pair_files(source: Source, index: int) -> tuple[Path, Path] | None:
    """Image and target of pair `index` as files; None where a source has none, or does not say."""
    files = getattr(source, "files", None)
    return None if files is None else files(index)


def find_strays(source: Source) -> list[Stray]:
    """Files beside the pairs of a source that should be in pairs; only where it was told to keep them."""
    return list(getattr(source, "strays", ()))


def find_doubts(source: Source) -> dict[str, list[str]]:
    """Of the targets that a source's ``check`` has read, what is suspect: kind, and names of the pairs."""
    return dict(getattr(source, "doubts", {}))


def _find_folder(root: Path, names: tuple[str, ...], what: str) -> Path:
    wanted = [name.lower() for name in names]
    inside = sorted(path.name for path in root.iterdir() if path.is_dir())
    matches = [name for name in inside if name.lower() in wanted]
    if not matches:
        files = sum(path.is_file() for path in root.iterdir())
        there = f"the folders {some(inside, 6)}" if inside else f"no folders and {files} files"
        raise FileNotFoundError(
            f"{root}: no folder of {what} ({' or '.join(names)}), found {there}; see data/README.md"
        )
    if len(matches) > 1:
        raise ValueError(f"{root}: expected one folder of {what}, found {' and '.join(matches)}. Keep one of them.")
    return root / matches[0]


def _check_root(root: Path, folders: tuple[str, ...]) -> None:
    if root.is_dir():
        return
    parent = root.parent
    if parent.is_dir():
        there = sorted(path.name for path in parent.iterdir() if path.is_dir())
        seen = f"{parent} holds " + (f"the folders {some(there, 6)}" if there else "no folders")
    else:
        seen = f"{parent} is missing as well"
    raise FileNotFoundError(
        f"no folder {root} ({seen}). It should hold {IMAGE_FOLDERS[0]}/ and {folders[0]}/;"
        " see data/README.md for the layout and where data sets come from."
    )


def _check_any(folder: Path, found: dict[str, Path], allowed: Sequence[str] = EXTENSIONS) -> None:
    if not found:
        others = sorted(path.name for path in folder.iterdir())
        extensions, seen = ", ".join(allowed), some(others) if others else "nothing"
        raise ValueError(f"{folder}: no file ends in {extensions}; found {seen}; see data/README.md")


def _chosen(folder: Path, found: dict[str, Path], stems: Sequence[str], strays: list[Stray] | None) -> dict[str, Path]:
    missing = [stem for stem in stems if stem not in found]
    if strays is not None and stems:
        strays += [Stray(folder / stem, "no file", "listed, but not there") for stem in missing]
        return {stem: found[stem] for stem in stems if stem in found}
    if missing or not stems:
        raise ValueError(
            f"{folder}: expected a file of each of the {len(stems)} stems listed, found none of {len(missing)}"
            f" ({some(missing)})"
        )
    return {stem: found[stem] for stem in stems}


class FolderPairs:
    """Images and targets in two folders under one root, paired by stem.

    The images lie in ``Image``, ``Imgs``, ``Images`` or ``img``, masks in ``GT``, ``Mask`` or ``Masks``, other targets
    where their task says (in any case). Folders and stems are checked at once; `check` reads the files as well.

    Args:
        root: the folder that holds both folders.
        task: what the targets mean; None: camouflage.
        folders: of images and of targets under root, where they have other names.
        stems: of the pairs; others that lie there too are left out. None: all.
        strict: what is in no pair is an error. False: it is kept in ``strays``, for who looks for such faults.

    Attributes:
        strays: files in no pair; empty where ``strict``.
        doubts: what ``check`` has found suspect about targets: kind, and names of the pairs.

    Raises:
        FileNotFoundError: the root or one of the two folders is missing.
        ValueError: no image at all, an image without target or a target without image, or a stem used twice.
    """

    def __init__(
        self,
        root: str | Path,
        task: Task | None = None,
        folders: tuple[str, str] | None = None,
        stems: Sequence[str] | None = None,
        strict: bool = True,
    ) -> None:
        self.root, self.task = Path(root), task or Camouflage()
        self.strays: list[Stray] = []
        self.doubts: dict[str, list[str]] = {}
        strays = None if strict else self.strays
        what = self.task.target_name
        _check_root(self.root, self.task.target_folders if folders is None else folders[1:])
        if folders is None:
            image_folder = _find_folder(self.root, IMAGE_FOLDERS, "images")
            mask_folder = _find_folder(self.root, self.task.target_folders, f"{what}s")
        else:
            image_folder, mask_folder = (self.root / folder for folder in folders)
        images = find_by_stem(image_folder, strays=strays)
        masks = find_by_stem(mask_folder, self.task.extensions, strays)
        _check_any(image_folder, images)
        _check_any(mask_folder, masks, self.task.extensions)
        if stems is not None:
            images = _chosen(image_folder, images, stems, strays)
            masks = _chosen(mask_folder, masks, stems, strays)
        no_mask = [path for stem, path in images.items() if stem not in masks]
        no_image = [path for stem, path in masks.items() if stem not in images]
        self.strays += [Stray(path, "no target", f"a picture without {what}") for path in no_mask]
        self.strays += [Stray(path, "no picture", f"a {what} without picture") for path in no_image]
        if strict and self.strays:
            parts = []
            if no_mask:
                names = some([path.name for path in no_mask])
                parts.append(f"{len(no_mask)} of {len(images)} images without {what} ({names})")
            if no_image:
                names = some([path.name for path in no_image])
                parts.append(f"{len(no_image)} of {len(masks)} {what}s without image ({names})")
            raise ValueError(
                f"{self.root}: {', '.join(parts)}. Image and {what} must have the same stem: add or"
                f" remove files in {image_folder.name}/ and {mask_folder.name}/ until they match."
            )
        self._names = [stem for stem in images if stem in masks]
        self._pairs = [(images[stem], masks[stem]) for stem in self._names]

    def __len__(self) -> int:
        """How many pairs there are."""
        return len(self._names)

    def name(self, index: int) -> str:
        """The stem of pair `index`; pairs are sorted by it."""
        return self._names[index]

    def files(self, index: int) -> tuple[Path, Path]:
        """Image and target of pair `index`."""
        return self._pairs[index]

    def read(self, index: int, at_least: tuple[int, int] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Read pair `index`.

        Args:
            index: which.
            at_least: (h, w) in pixels that suffice for the image: a larger JPEG is decoded at 1/2, 1/4 or 1/8 of its
                size, which is faster. The target keeps its size. None: both keep theirs.

        Returns:
            Image (h, w, 3) uint8 RGB and target (h, w).

        Raises:
            ValueError: a file cannot be decoded, is no such target, or the two sizes differ.
        """
        image_path, mask_path = self._pairs[index]
        mask = self.task.read_target(mask_path)
        height, width = mask.shape[:2]
        spare = 1.0 if at_least is None else min(height / at_least[0], width / at_least[1])
        factor = next(factor for factor in (8, 4, 2, 1) if factor <= max(1.0, spare))
        image = read_image(image_path, factor)
        if image.shape[:2] not in ((height, width), (-(-height // factor), -(-width // factor))):
            raise ValueError(size_fault(self.task, image_path, verify_image(image_path), mask_path, mask.shape))
        return image, mask

    def identity(self) -> list[Any]:
        """Name, size and time of change of every file."""
        files = [(path, path.stat()) for pair in self._pairs for path in pair]
        return [[path.name, state.st_size, state.st_mtime_ns] for path, state in files]

    def check(self) -> None:
        """Decode every file once, in threads, and compare the sizes.

        Shows a progress bar where there are more than 500 files.

        Raises:
            ValueError: files that are unreadable, truncated or no such targets, or targets of another size than
                their image; the line names up to three and the count.
        """
        with ThreadPoolExecutor() as pool:
            results = pool.map(partial(_fault, self.task), self._pairs)
            files = 2 * len(self)
            bar = tqdm(results, total=len(self), desc=f"checking {self.root}", disable=files <= _BAR_FROM or None)
            found = list(bar)
        faults = [fault for fault, _, _ in found if fault]
        if faults:
            more = f" And {len(faults) - 3} more." if len(faults) > 3 else ""
            first = " ".join(faults[:3])
            raise ValueError(f"{self.root}: {len(faults)} of {len(self)} pairs cannot be used. {first}{more}")
        self.doubts = {}
        for name, (_, _, kinds) in zip(self._names, found, strict=True):
            for kind in kinds:
                self.doubts.setdefault(kind, []).append(name)
        if not any(speaks for _, speaks, _ in found):
            what = self.task.target_name
            names = some([mask.name for _, mask in self._pairs])
            raise ValueError(
                f"{self.root}: none of its {len(self)} {what}s has a pixel that counts ({names}). {self.task.silence}"
            )


class PartOf:
    """Some pairs of a source, as a source.

    Args:
        source: the whole.
        indices: which of its pairs, in which order.
    """

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        self._source, self._indices = source, list(indices)

    def __len__(self) -> int:
        """How many pairs there are."""
        return len(self._indices)

    def name(self, index: int) -> str:
        """The stem of pair `index`."""
        return self._source.name(self._indices[index])

    def files(self, index: int) -> tuple[Path, Path] | None:
        """Image and target of pair `index`; None where the source has no files."""
        return pair_files(self._source, self._indices[index])

    def read(self, index: int, at_least: tuple[int, int] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Pair `index`, see :class:`Source`."""
        return self._source.read(self._indices[index], at_least)

    def identity(self) -> Any:
        """That of the whole source, and which of it."""
        return [self._source.identity(), self._indices]

    def check(self) -> None:
        """Verify the whole source, see :class:`Source`."""
        self._source.check()


class FolderTargets:
    """The targets of one set, with its images only where they are at hand: what results are scored against.

    The folders are those of `FolderPairs`, but that of the images may be missing, and so may some images.

    Args:
        root: the folder that holds both folders.
        task: what the targets mean; None: camouflage.

    Raises:
        FileNotFoundError: the root or the folder of targets is missing.
        ValueError: no target at all, or a stem used twice.
    """

    def __init__(self, root: str | Path, task: Task | None = None) -> None:
        self.root, self.task = Path(root), task or Camouflage()
        _check_root(self.root, self.task.target_folders)
        folder = _find_folder(self.root, self.task.target_folders, f"{self.task.target_name}s")
        self._targets = find_by_stem(folder, self.task.extensions)
        _check_any(folder, self._targets, self.task.extensions)
        self._names = list(self._targets)
        try:
            self._images = find_by_stem(_find_folder(self.root, IMAGE_FOLDERS, "images"))
        except (FileNotFoundError, ValueError):
            self._images = {}

    def __len__(self) -> int:
        """How many targets there are."""
        return len(self._names)

    def name(self, index: int) -> str:
        """The stem of target `index`; targets are sorted by it."""
        return self._names[index]

    def target(self, index: int) -> np.ndarray:
        """Target `index`, (h, w) in canonical form; a ValueError names a file that is none."""
        return self.task.canonical(self.task.read_target(self._targets[self._names[index]]))

    def image(self, index: int) -> np.ndarray | None:
        """The image of target `index`, (h, w, 3) uint8 RGB, or None where there is none."""
        path = self._images.get(self._names[index])
        return None if path is None else read_image(path)


def size_fault(
    task: Task, image_path: Path, image_size: tuple[int, ...], mask_path: Path, mask_size: tuple[int, ...]
) -> str:
    """In words, that image and target, (h, w) pixels, have different sizes."""
    return (
        f"{mask_path}: the {task.target_name} has {mask_size[1]}x{mask_size[0]} pixels, its image {image_path.name}"
        f" {image_size[1]}x{image_size[0]}; export the {task.target_name} at the size of the image."
    )


def _fault(task: Task, pair: tuple[Path, Path]) -> tuple[str | None, bool, list[str]]:
    """What is wrong with a pair, if anything; whether its target says anything; and what is suspect about that."""
    image_path, mask_path = pair
    try:
        image_size = verify_image(image_path)
        target = task.read_target(mask_path)
    except (ValueError, OSError) as error:
        return str(error), False, []
    if image_size != target.shape[:2]:
        return size_fault(task, image_path, image_size, mask_path, target.shape[:2]), False, []
    return None, task.says_anything(target), [one.kind for one in task.suspect(target) if one.severity != "note"]
