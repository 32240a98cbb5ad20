"""Sheets of pictures, drawn with OpenCV."""

from collections.abc import Sequence

import cv2
import numpy as np

# Height of every panel of a picture, in pixels.
PANEL = 160
GREEN = (60, 220, 90)
RED = (235, 60, 60)


def panel_size(shape: Sequence[int]) -> tuple[int, int]:
    """(width, height) of a picture of ``shape`` (h, w) in a panel."""
    return max(1, round(PANEL * shape[1] / shape[0])), PANEL


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
