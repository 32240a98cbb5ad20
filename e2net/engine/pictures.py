"""Pictures of results, drawn with OpenCV: panels and sheets of them."""

from collections.abc import Sequence

import cv2
import numpy as np

# Height of every panel of a picture, in pixels.
PANEL = 160
GREEN = (60, 220, 90)
RED = (235, 60, 60)


def panel(image: np.ndarray, mask: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Image, mask, prediction and overlay side by side.

    In the overlay what is predicted is green, and what the mask has outside the prediction red.

    Args:
        image: (H, W, 3) uint8, RGB.
        mask: (h, w) bool.
        prediction: (h, w) uint8.

    Returns:
        (PANEL, w', 3) uint8, RGB.
    """
    height, width = mask.shape
    size = (max(1, round(PANEL * width / height)), PANEL)
    picture = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    truth = cv2.resize(mask.astype(np.uint8) * 255, size, interpolation=cv2.INTER_NEAREST)
    predicted = cv2.resize(prediction, size, interpolation=cv2.INTER_LINEAR)
    found = predicted > 127
    overlay = picture.copy()
    for where, colour in ((found, GREEN), ((truth > 127) & ~found, RED)):
        overlay[where] = (0.5 * overlay[where] + 0.5 * np.array(colour)).astype(np.uint8)
    grey = [cv2.cvtColor(x, cv2.COLOR_GRAY2RGB) for x in (truth, predicted)]
    return cv2.hconcat([picture, *grey, overlay])


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
