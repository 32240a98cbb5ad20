"""What a model says about one picture, in the forms that people use; what these are, the task knows."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from e2net.drawing import GREEN, as_rgb, tinted
from e2net.files import write_atomically
from e2net.formats import encoded
from e2net.predict.rle import find_objects
from e2net.tasks.base import Task

Kind = Literal["map", "overlay", "cutout"]


@dataclass(frozen=True)
class Prediction:
    """A picture and what a model says about it. Of objects, where the task has such, there are further forms.

    Attributes:
        image: (h, w, 3) uint8, RGB, turned as EXIF says.
        task: what the result means.
        result: what the task's ``soft`` gave.
        threshold: where the task has objects, above it a pixel belongs to one.
        source: the picture's file, if it came from one.
    """

    image: NDArray[np.uint8]
    task: Task
    result: Any
    threshold: float = 0.5
    source: Path | None = None

    @property
    def pixels(self) -> int:
        """How many the picture has."""
        return self.image.shape[0] * self.image.shape[1]

    @property
    def prob(self) -> NDArray[np.float32]:
        """(h, w) in [0, 1], how certain each pixel is of an object.

        Raises:
            ValueError: the task knows no objects, here as in all that follows from them.
        """
        if not self.task.objects:
            raise ValueError(
                f"task={self.task.name} has no objects, so neither prob nor mask, cutout or objects: see map"
            )
        return self.result.numpy()

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """(h, w) bool, True on the object."""
        return self.prob > self.threshold

    @cached_property
    def map(self) -> NDArray[Any]:
        """(h, w) or (h, w, C), the result as in a file, as evaluation writes it.

        With objects uint8, the probability times 255, rounded half to even.
        """
        return self.task.to_file(self.result)

    def shown(self) -> NDArray[np.uint8]:
        """The map as a picture, (h, w, 3) uint8 RGB."""
        return as_rgb(self.task.shown(self.map))

    def overlay(self, colour: tuple[int, int, int] = GREEN) -> NDArray[np.uint8]:
        """The picture with the result drawn over it, (h, w, 3) uint8 RGB; ``colour`` is that of objects."""
        return tinted(self.image, self.mask, colour) if self.task.objects else self.task.overlay(self.image, self.map)

    def _repr_png_(self) -> bytes:
        """The overlay, as which a notebook shows a prediction."""
        return encoded(self.overlay())

    def cutout(self) -> NDArray[np.uint8]:
        """The picture with the map as its alpha, (h, w, 4) uint8 RGBA; black where it is fully transparent.

        The map is shifted so that the threshold becomes one half, as if objects were rarer or more common by its odds:
        what is of the object is more than half opaque, edges stay soft.
        """
        prob, odds = self.prob, (1 - self.threshold) / self.threshold
        alpha = self.map if odds == 1 else self.task.to_file(torch.from_numpy(odds * prob / (odds * prob + 1 - prob)))
        return np.dstack([np.where(alpha[..., None] > 0, self.image, 0), alpha])

    def objects(self, min_area: int = 1) -> list[dict[str, Any]]:
        """The connected objects as COCO annotations with a score; see :func:`~e2net.predict.rle.find_objects`."""
        return find_objects(self.mask, self.prob, min_area)

    def save(self, path: str | os.PathLike[str], kind: Kind = "map") -> None:
        """Writes one file, whole or not at all; folders are made.

        Args:
            path: where to. A map or a cut-out must end in .png, an overlay in .jpg or .png.
            kind: which form.

        Raises:
            ValueError: another kind or extension, or the file is the picture itself.
            OSError: the file cannot be written.
        """
        path = Path(path)
        if kind not in get_args(Kind):
            raise ValueError(f"expected kind as one of {', '.join(get_args(Kind))}, found {kind!r}")
        allowed = (".png", ".jpg", ".jpeg") if kind == "overlay" else (".png",)
        if path.suffix.lower() not in allowed:
            raise ValueError(f"{path}: expected a name of {kind} that ends in {' or '.join(allowed)}")
        if self.source is not None and path.exists() and path.samefile(self.source):
            raise ValueError(f"{path} is the picture itself; choose another name")
        if kind == "map":
            self.task.write(path, self.map)
            return
        picture = self.overlay() if kind == "overlay" else self.cutout()
        write_atomically(path, encoded(picture, path.suffix.lower()))
