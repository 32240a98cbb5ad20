"""Maps of patches at the size of their picture."""

import cv2
import numpy as np
from numpy.typing import NDArray

Map = NDArray[np.float32]


def enlarged(values: Map, size: tuple[int, int]) -> Map:
    """(h, w) of patches to (H, W) pixels, bilinearly, corners not aligned as in a decoder."""
    return cv2.resize(values, size[::-1], interpolation=cv2.INTER_LINEAR)  # type: ignore[return-value]


def guided(picture: NDArray[np.uint8], values: Map, radius: int, eps: float = 1e-4) -> Map:
    """The guided filter: in each window the values become a linear function of the picture's colours.

    Edges of the result are edges of the picture. Source: He, Sun, Tang, "Guided image filtering", 2010, with a guide of
    three channels.

    Args:
        picture: (H, W, 3) uint8.
        values: (H, W) float32 in [0, 1].
        radius: of the square windows, in pixels.
        eps: what a window's colours must vary by to count as an edge, as a variance of colours in [0, 1].

    Returns:
        (H, W) float32, clipped to [0, 1].
    """
    guide = picture.astype(np.float32) / 255
    mean_guide, mean_values = _box(guide, radius), _box(values, radius)
    covariance = _box(guide * values[..., None], radius) - mean_guide * mean_values[..., None]
    outer = guide[..., :, None] * guide[..., None, :]
    second = _box(outer.reshape(*values.shape, 9), radius).reshape(outer.shape)
    variance = second - mean_guide[..., :, None] * mean_guide[..., None, :] + eps * np.eye(3, dtype=np.float32)
    slope = np.linalg.solve(variance.astype(np.float64), covariance[..., None])[..., 0].astype(np.float32)
    offset = mean_values - (slope * mean_guide).sum(-1)
    found = (_box(slope, radius) * guide).sum(-1) + _box(offset, radius)
    return np.clip(found, 0, 1).astype(np.float32)  # type: ignore[no-any-return]


def sharpened(picture: NDArray[np.uint8], values: Map, patch: int) -> Map:
    """A map (H, W) of probabilities whose edges follow the picture's, to about one patch (pixels) away."""
    return guided(picture, values, max(1, patch))


def median(values: Map) -> Map:
    """The median of 3 x 3 patches, (h, w): single patches that differ from all around them go."""
    return cv2.medianBlur(values, 3)  # type: ignore[return-value]


def _box(values: NDArray[np.float32], radius: int) -> NDArray[np.float32]:
    """Means over windows, cut off at the picture's edge, of each channel; any number of channels."""
    kernel = (2 * radius + 1, 2 * radius + 1)
    total = cv2.boxFilter(values, -1, kernel, normalize=False, borderType=cv2.BORDER_CONSTANT)
    count = cv2.boxFilter(
        np.ones(values.shape[:2], np.float32), -1, kernel, normalize=False, borderType=cv2.BORDER_CONSTANT
    )
    return total / count.reshape(*count.shape, *(1,) * (values.ndim - 2))  # type: ignore[no-any-return]
