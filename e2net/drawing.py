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


def coloured(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Values (h, w) from ``low`` (yellow) to ``high`` (dark), beyond them as at the ends; (h, w, 3) uint8 RGB.

    What is not above 0 is black.
    """
    share = (high - np.clip(values, low, high)) / max(high - low, 1e-9)
    picture = cv2.applyColorMap(np.rint(share * 255).astype(np.uint8), cv2.COLORMAP_VIRIDIS)[..., ::-1].copy()
    picture[~(values > 0)] = 0
    return picture


def scale_bar(height: int, low: float, high: float, unit: str) -> np.ndarray:
    """The colours of ``coloured`` from ``high`` (above) to ``low``, with three numbers: (height, 72, 3) uint8 RGB."""
    bar = np.full((height, 72, 3), 255, np.uint8)
    margin = 8
    levels = np.linspace(high, low, height - 2 * margin)
    bar[margin : height - margin, 4:16] = coloured(np.maximum(levels, 1e-9)[:, None], low, high)
    for share, value in ((0, high), (0.5, (low + high) / 2), (1, low)):
        at = (20, round(margin + share * (height - 2 * margin)) + 4)
        cv2.putText(bar, f"{value:.2f} {unit}", at, cv2.FONT_HERSHEY_SIMPLEX, 0.35, (30, 30, 30), 1, cv2.LINE_AA)
    return bar
