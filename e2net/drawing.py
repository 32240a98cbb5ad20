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
_INK = (30, 30, 30)


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


def class_colours(count: int) -> list[list[int]]:
    """Colours (red, green, blue) of so many classes that are far apart, the palette of VOC less its black."""
    # Bit i of a channel is bit 3 (7 - i) + channel of the label, so that neighbours differ most.
    return [
        [sum((label >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(8)) for channel in range(3)]
        for label in range(1, count + 1)
    ]


def painted(labels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Labels (h, w) in their colours (K + 1, 3), those from K on in the last; (h, w, 3) uint8 RGB."""
    painted: np.ndarray = colours[np.minimum(labels, len(colours) - 1)]
    return painted


def legend(entries: Sequence[tuple[str, Sequence[int]]], height: int) -> np.ndarray:
    """Names and their colours one below the other, in as many columns as it takes: (height, w, 3) uint8 RGB."""
    line, scale = 13, 0.35
    rows = max(1, height // line)
    columns = [entries[i : i + rows] for i in range(0, len(entries), rows)]
    drawn = []
    for column in columns or [[]]:
        names = [_ascii(name) for name, _ in column]
        wide = max((cv2.getTextSize(n, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)[0][0] for n in names), default=0)
        strip = np.full((height, wide + 20, 3), 255, np.uint8)
        for row, (name, (_, colour)) in enumerate(zip(names, column, strict=True)):
            top = row * line
            cv2.rectangle(strip, (4, top + 2), (13, top + 11), tuple(map(int, colour)), -1)
            cv2.putText(strip, name, (17, top + 10), cv2.FONT_HERSHEY_SIMPLEX, scale, _INK, 1, cv2.LINE_AA)
        drawn.append(strip)
    return cv2.hconcat(drawn)


def confusion_picture(matrix: np.ndarray, names: Sequence[str]) -> bytes:
    """A confusion matrix (K, K) as a PNG: rows are the target's classes, darkness the share of a row's pixels.

    Up to 40 classes the shares stand in it too, in percent.
    """
    total = matrix.sum(1, keepdims=True)
    share = np.divide(matrix, total, out=np.zeros(matrix.shape), where=total > 0)
    few = len(names) <= 40
    cell = 28 if few else 8
    scale = 0.35 if few else 0.2
    labels = [_ascii(name) for name in names]
    margin = 14 + max(cv2.getTextSize(n, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)[0][0] for n in labels)
    level = np.rint(255 * (1 - 0.85 * share)).astype(np.uint8)
    shades = np.stack([level, level, np.maximum(level, np.rint(255 - 90 * share).astype(np.uint8))], axis=-1)
    squares = np.kron(shades, np.ones((cell, cell, 1), np.uint8))
    side = np.full((squares.shape[0], margin, 3), 255, np.uint8)
    for k, name in enumerate(labels):
        at = (4, k * cell + cell // 2 + 4)
        cv2.putText(side, name, at, cv2.FONT_HERSHEY_SIMPLEX, scale, _INK, 1, cv2.LINE_AA)
    # The columns' names are those of the rows, each turned to run upwards.
    strips = [side[k * cell : (k + 1) * cell] for k in range(len(labels))]
    top = cv2.hconcat([np.ascontiguousarray(np.rot90(strip)) for strip in strips])
    if few:
        for row, column in np.argwhere(share >= 0.005).tolist():
            text = f"{100 * share[row, column]:.0f}"
            width = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)[0][0]
            at = (column * cell + (cell - width) // 2, row * cell + cell // 2 + 4)
            ink = (255, 255, 255) if share[row, column] > 0.5 else _INK
            cv2.putText(squares, text, at, cv2.FONT_HERSHEY_SIMPLEX, scale, ink, 1, cv2.LINE_AA)
    corner = np.full((margin, margin, 3), 255, np.uint8)
    picture = cv2.vconcat([cv2.hconcat([corner, top]), cv2.hconcat([side, squares])])
    done, data = cv2.imencode(".png", picture[..., ::-1])
    if not done:
        raise ValueError("OpenCV could not encode the confusion matrix as PNG")
    return bytes(data.tobytes())


def _ascii(text: str) -> str:
    return text.encode("ascii", "replace").decode()  # OpenCV's font has no other letters
