"""What a model says about one picture, in the forms that people use."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from e2net.evaluation.report import write_atomically
from e2net.formats import write_map
from e2net.predict.rle import find_objects

Kind = Literal["map", "overlay", "cutout"]
COLOUR = (60, 220, 90)
# Of the tint; the outline is opaque.
OPACITY = 0.4


@dataclass(frozen=True)
class Prediction:
    """A picture and the probability of each of its pixels to belong to the object.

    Attributes:
        image: (h, w, 3) uint8, RGB, turned as EXIF says.
        prob: (h, w) float32 in [0, 1].
        threshold: above it a pixel belongs to the object.
        source: the picture's file, if it came from one.
    """

    image: NDArray[np.uint8]
    prob: NDArray[np.float32]
    threshold: float = 0.5
    source: Path | None = None

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """(h, w) bool, True on the object."""
        return self.prob > self.threshold

    @cached_property
    def map(self) -> NDArray[np.uint8]:
        """(h, w) uint8, the probability times 255, rounded half to even: as evaluation writes and scores it."""
        return np.rint(self.prob * np.float32(255)).astype(np.uint8)

    def overlay(self, colour: tuple[int, int, int] = COLOUR) -> NDArray[np.uint8]:
        """The picture with the object tinted and outlined, (h, w, 3) uint8 RGB."""
        flat = np.full_like(self.image, colour)
        tinted = cv2.addWeighted(self.image, 1 - OPACITY, flat, OPACITY, 0)
        picture = np.where(self.mask[..., None], tinted, self.image)
        outlines, _ = cv2.findContours(self.mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        thickness = max(1, round(max(self.mask.shape) / 300))
        cv2.drawContours(picture, outlines, -1, colour, thickness, cv2.LINE_AA)
        return picture

    def cutout(self) -> NDArray[np.uint8]:
        """The picture with the map as its alpha, (h, w, 4) uint8 RGBA; black where it is fully transparent."""
        return np.dstack([np.where(self.map[..., None] > 0, self.image, 0), self.map])

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
            write_map(path, self.map)
            return
        picture = self.overlay()[..., ::-1] if kind == "overlay" else cv2.cvtColor(self.cutout(), cv2.COLOR_RGBA2BGRA)
        done, data = cv2.imencode(path.suffix.lower(), picture)
        if not done:
            raise ValueError(f"{path}: OpenCV could not encode a picture of shape {picture.shape} as {path.suffix}")
        write_atomically(path, data.tobytes())
