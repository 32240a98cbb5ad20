"""Sheets of pictures, drawn with OpenCV."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

# Height of every panel of a picture, in pixels.
PANEL = 160
GREEN = (60, 220, 90)
RED = (235, 60, 60)
# Of a tint; its outline is opaque.
_OPACITY = 0.4


def panel_size(shape: Sequence[int]) -> tuple[int, int]:
    """(width, height) of a picture of ``shape`` (h, w) in a panel."""
    return max(1, round(PANEL * shape[1] / shape[0])), PANEL


def as_rgb(picture: np.ndarray) -> NDArray[np.uint8]:
    """A picture (h, w), uint8 grey or bool, or (h, w, 3) uint8 RGB, as the latter."""
    picture = picture.astype(np.uint8) * 255 if picture.dtype == np.bool_ else picture
    return cv2.cvtColor(picture, cv2.COLOR_GRAY2RGB) if picture.ndim == 2 else picture  # type: ignore[return-value]


def tinted(image: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int] = GREEN) -> NDArray[np.uint8]:
    """An image (h, w, 3) uint8 RGB with the objects of a mask (h, w) bool tinted and outlined."""
    flat = np.full_like(image, colour)
    shade = cv2.addWeighted(image, 1 - _OPACITY, flat, _OPACITY, 0)
    picture = np.where(mask[..., None], shade, image)
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    thickness = max(1, round(max(mask.shape) / 300))
    cv2.drawContours(picture, outlines, -1, colour, thickness, cv2.LINE_AA)
    return picture


def contact_sheet(rows: Sequence[np.ndarray], columns: int = 2) -> np.ndarray:
    """Pictures of equal height in a grid, on white, 4 pixels apart. (H, W, 3) uint8 in and out."""
    gap = 4
    width = max(row.shape[1] for row in rows)
    cells = [
        cv2.copyMakeBorder(r, 0, gap, 0, width - r.shape[1] + gap, cv2.BORDER_CONSTANT, value=(255,) * 3) for r in rows
    ]
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % columns)
    lines = [cv2.hconcat(cells[i : i + columns]) for i in range(0, len(cells), columns)]
    return cv2.vconcat(lines)
