"""Masks that follow a film: the first frame's objects in all others, frame by frame, from features alone."""

import re
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from e2net.features.extract import Extractor, Features
from e2net.features.propagation import labels_of, propagate, shares_of
from e2net.formats import read_labels
from e2net.metrics.tracking import ObjectTrack, contour_accuracy, region_similarity, score_object
from e2net.pictures import Picture

# More than that are grey levels of a soft mask rather than objects.
_MOST_OBJECTS = 64


class Tracker:
    """Takes a film's features frame by frame; holds the first frame and the last ``context`` ones, however long it is.

    Attributes:
        objects: their numbers, as the mask has them, ascending.

    Args:
        mask: (H, W) of a whole-number type or bool, 0 the background, one number an object; of the first frame.
        context: how many of the last frames vote beside the first one.
        radius, top, temperature: see :func:`e2net.features.propagation.propagate`.
        stretch: see :func:`e2net.features.propagation.labels_of`.
        device: where to compute.

    Raises:
        ValueError: a mask that shows no object, too many of them, or is no mask; or a context below 0.
    """

    def __init__(
        self,
        mask: NDArray[np.integer] | NDArray[np.bool_],
        context: int = 7,
        radius: float | None = 12,
        top: int = 5,
        temperature: float = 0.2,
        stretch: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        labels = check_objects(mask)
        self.objects = objects_of(labels)
        if context < 0:
            raise ValueError(f"context={context}: expected at least 0 frames beside the first")
        # Each pixel's place in [background, *objects].
        self._mask = torch.from_numpy(np.searchsorted(np.array([0, *self.objects]), labels)).to(device)
        self._numbers = np.array([0, *self.objects], np.uint16)
        self._options = {"radius": radius, "top": top, "temperature": temperature}
        self._stretch, self._device = stretch, device
        self._first: tuple[torch.Tensor, torch.Tensor] | None = None
        self._last: deque[tuple[torch.Tensor, torch.Tensor]] = deque(maxlen=context)

    def step(self, features: Features) -> NDArray[np.uint16]:
        """The mask (H, W) uint16 of the next frame at the frame's own size; of the first one the mask that was given.

        Raises:
            ValueError: the first frame has another size than the mask, or a frame another one than the first.
        """
        patches = torch.from_numpy(features.patches).to(self._device)
        if features.size != tuple(self._mask.shape):
            what = "the mask's" if self._first is None else "the first frame's"
            raise ValueError(
                f"frame {features.name}: expected {what} size {tuple(self._mask.shape)}, found {features.size}"
            )
        if self._first is None:
            self._first = patches, shares_of(self._mask, len(self.objects), (patches.shape[0], patches.shape[1]))
            found = self._mask
        else:
            frames, labels = zip(self._first, *self._last, strict=True)
            shares = propagate(patches, frames, labels, **self._options)  # type: ignore[arg-type]
            self._last.append((patches, shares))
            found = labels_of(shares, features.size, self._stretch)
        return self._numbers[found.cpu().numpy()]


def track(
    extractor: Extractor,
    frames: Iterable[Picture],
    mask: NDArray[np.integer] | NDArray[np.bool_],
    context: int = 7,
    radius: float | None = 12,
    top: int = 5,
    temperature: float = 0.2,
    stretch: bool = True,
    batch_size: int = 4,
) -> Iterator[NDArray[np.uint16]]:
    """A mask (H, W) uint16 for each frame, in order, the first one's own first; frames are read as they are needed.

    Args:
        extractor: whose features are compared.
        frames: files, arrays (H, W, 3) uint8 or Pillow's pictures, all of one size.
        mask, context, radius, top, temperature, stretch: see :class:`Tracker`.
        batch_size: frames for each step of the network.

    Raises:
        ValueError: see :class:`Tracker` and its ``step``.
    """
    tracker = Tracker(mask, context, radius, top, temperature, stretch, extractor.device)
    return map(tracker.step, extractor(frames, batch_size))


def read_objects(path: Path) -> NDArray[np.uint16]:
    """A mask (h, w) uint16 of one or several objects from a file: a number each, 0 the background.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no label map, or has too many numbers for objects.
    """
    try:
        return check_objects(read_labels(path), allow_none=True)
    except ValueError as error:
        said = str(error)
        raise ValueError(said if said.startswith(str(path)) else f"{path}: {said}") from None


def objects_of(mask: NDArray[np.integer] | NDArray[np.bool_]) -> list[int]:
    """The numbers in a mask (H, W) but 0, ascending."""
    return [int(number) for number in np.unique(mask) if number]


def check_objects(mask: NDArray[np.integer] | NDArray[np.bool_], allow_none: bool = False) -> NDArray[np.uint16]:
    """A mask (H, W) as uint16.

    Raises:
        ValueError: another shape or type, no object, or more numbers than are plausible.
    """
    if mask.ndim != 2 or mask.size == 0 or mask.dtype.kind not in "bui":
        raise ValueError(f"expected a mask (H, W) of whole numbers or bool, found {mask.dtype} of shape {mask.shape}")
    numbers = np.unique(mask)
    if numbers[0] < 0 or numbers[-1] > 65535:
        raise ValueError(f"expected objects' numbers from 0 to 65535, found {numbers[0]} to {numbers[-1]}")
    count = np.count_nonzero(numbers)
    if count == 0 and not allow_none:
        raise ValueError("expected a mask with an object in it, found 0 everywhere")
    if count > _MOST_OBJECTS:
        raise ValueError(
            f"expected a number for each object, at most {_MOST_OBJECTS}, found {count} values: a soft mask? Make it "
            "0 and 255"
        )
    return mask.astype(np.uint16)


class Scoring:
    """J and F of a film's objects, frame by frame; the first and the last frame do not count, as in DAVIS.

    Args:
        objects: their numbers.
    """

    def __init__(self, objects: list[int]) -> None:
        self.objects = objects
        self._values: list[list[tuple[float, float]]] = []

    def add(self, found: NDArray[np.uint16], truth: NDArray[np.uint16]) -> None:
        """Compares the next frame's masks, (H, W) each.

        Raises:
            ValueError: of different sizes.
        """
        pairs = [(found == number, truth == number) for number in self.objects]
        self._values.append([(region_similarity(*pair), contour_accuracy(*pair)) for pair in pairs])

    def result(self) -> dict[int, ObjectTrack]:
        """The scores of each object, by its number.

        Raises:
            ValueError: fewer than three frames.
        """
        counted = self._values[1:-1]
        if not counted:
            raise ValueError(
                f"expected at least three frames to score (the first and the last do not count), found "
                f"{len(self._values)}"
            )
        return {
            number: score_object([one[i][0] for one in counted], [one[i][1] for one in counted])
            for i, number in enumerate(self.objects)
        }


def in_order(files: Iterable[Path]) -> list[Path]:
    """Frames by the numbers in their names: 2.jpg before 10.jpg."""

    def key(file: Path) -> list[tuple[int, str]]:
        parts = re.split(r"(\d+)", file.name)
        return [(int(part), "") if i % 2 else (-1, part) for i, part in enumerate(parts)]

    return sorted(files, key=key)
