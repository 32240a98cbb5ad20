"""Pictures of a page, as data URIs."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

SIDES = (320, 256, 208, 160, 128, 96)  # of a picture's longer side: the first at which all fit into _BYTES
_BYTES = 3_500_000
_QUALITY = 82


@dataclass(frozen=True)
class Picture:
    """An encoded picture."""

    uri: str
    width: int
    height: int


def shrunk(values: NDArray[Any], side: int) -> NDArray[Any]:
    """A picture (h, w, 3) uint8 RGB with its longer side at most ``side``."""
    height, width = values.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return values
    return cv2.resize(
        values, (max(1, round(width * scale)), max(1, round(height * scale))), interpolation=cv2.INTER_AREA
    )


def encode_all(rows: Sequence[Sequence[NDArray[Any]]], sides: Sequence[int] = SIDES) -> list[tuple[Picture, ...]]:
    """Rows of pictures (h, w, 3) uint8 RGB, all together small enough for one page.

    Args:
        rows: of pictures.
        sides: at most so long is the longer side of each; the first at which all fit.
    """
    for side in sides:
        pictures = [tuple(_encode(shrunk(values, side)) for values in row) for row in rows]
        if sum(len(p.uri) for row in pictures for p in row) <= _BYTES:
            break
    return pictures


def _encode(small: NDArray[Any]) -> Picture:
    grey = np.ptp(small, axis=2).max() == 0  # a smaller file as such
    coded = small[..., 0] if grey else small[..., ::-1]
    done, data = cv2.imencode(".jpg", np.ascontiguousarray(coded), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    if not done:
        raise ValueError("OpenCV could not encode a picture as JPEG")
    uri = "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()
    return Picture(uri, small.shape[1], small.shape[0])
