"""Maps of patches as pictures beside the one that they are of, several encoders and levels in a row."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from e2net.features.looks import Map, sharpened

Picture = NDArray[np.uint8]
_TITLE = 22
_GAP = 4
_INK = (30, 30, 30)


def shaded(values: Map, low: float, high: float) -> NDArray[np.float32]:
    """Values (h, w) from ``low``, dark, to ``high``, yellow, as colours (h, w, 3) in [0, 1]."""
    share = ((values - low) / max(high - low, 1e-9)).clip(0, 1)
    found = cv2.applyColorMap(np.rint(share * 255).astype(np.uint8), cv2.COLORMAP_VIRIDIS)[..., ::-1]
    return found.astype(np.float32) / 255


def enlarged(colours: Map, picture: Picture, sharp: bool) -> Picture:
    """Colours (h, w, 3) in [0, 1] of patches at the picture's size, a square a patch, or sharpened by the picture."""
    height, width = picture.shape[:2]
    stride = max(1, height // colours.shape[0])
    if sharp:
        colours = sharpened(colours, picture, stride)
    else:
        colours = cv2.resize(colours, (width, height), interpolation=cv2.INTER_NEAREST)  # type: ignore[assignment]
    return np.rint(colours.clip(0, 1) * 255).astype(np.uint8)


def row(pictures: Sequence[tuple[str, Picture]], height: int) -> Picture:
    """Pictures of one height side by side, each with its title above it, on white."""
    cells = []
    for title, picture in pictures:
        width = max(1, round(picture.shape[1] * height / picture.shape[0]))
        small = picture.shape[0] > height
        cell = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if small else cv2.INTER_NEAREST)
        cell = cv2.copyMakeBorder(cell, _TITLE, _GAP, _GAP, _GAP, cv2.BORDER_CONSTANT, value=(255,) * 3)
        cv2.putText(
            cell, shortened(title, width), (_GAP, _TITLE - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.4, _INK, 1, cv2.LINE_AA
        )
        cells.append(cell)
    return cv2.hconcat(cells)  # type: ignore[return-value]


def shortened(title: str, width: int) -> str:
    """As much of a title as so many pixels hold: of an encoder and its map the end tells more, so the middle goes."""
    text = title.encode("ascii", "replace").decode()  # OpenCV's font has no other letters
    for kept in range(len(text), -1, -1):
        end = 2 * kept // 3
        found = text if kept == len(text) else text[: kept - end] + ".." + text[len(text) - end :]
        if cv2.getTextSize(found, cv2.FONT_HERSHEY_SIMPLEX, 0.4, 1)[0][0] <= width:
            return found
    return ""


def column(rows: Sequence[Picture]) -> Picture:
    """Rows below each other, on white."""
    width = max(one.shape[1] for one in rows)
    white = {"borderType": cv2.BORDER_CONSTANT, "value": (255,) * 3}
    return cv2.vconcat([cv2.copyMakeBorder(r, 0, 0, 0, width - r.shape[1], **white) for r in rows])  # type: ignore
