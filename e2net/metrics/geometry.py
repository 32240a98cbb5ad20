"""Everything about a mask that a score needs and that no prediction can change.

The expensive part of the weighted F-measure is a distance transform of the mask. Validation meets the same
masks every epoch, so the result is worth keeping: make one ``MaskGeometry`` per mask and hand it to every
call, or let a ``GeometryCache`` hold them within a byte budget.
"""

from collections.abc import Callable, Hashable
from functools import cached_property
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from e2net.structures import canonical_mask

BOUNDARY_WIDTH = 15.0
"""Half-width in pixels of the band that the boundary scores look at."""

# Side of the Gaussian in the weighted F-measure, and how far it reaches.
GAUSSIAN_SIZE, GAUSSIAN_SIGMA = 7, 5.0
_REACH = GAUSSIAN_SIZE // 2

# Beyond 256 px the pixel weight 2 - 0.5**(d/5) differs from 2 by less than 4e-16, so a squared distance can
# be stored in 16 bits, saturated, at a quarter of the weight's own memory and without loss.
_FAR = 256
_FAR_SQUARED = np.iinfo(np.uint16).max
_IMPORTANCE = 2.0 - np.exp(np.log(0.5) / 5.0 * np.sqrt(np.arange(_FAR_SQUARED + 1, dtype=np.float64)))
_IMPORTANCE[0] = 0.0  # squared distance 0 means foreground, whose errors are summed elsewhere


# A background pixel that the Gaussian reaches has a foreground pixel at most (3, 3) away.
_RIM_SQUARED = 2 * _REACH * _REACH


def _steps_to_nearest() -> NDArray[np.int64]:
    """Where the nearest foreground pixel can be, given its squared distance.

    SciPy's feature transform, which the reference scores are built on, settles ties in favour of the leftmost column,
    then of the topmost row. Another choice changes the weighted F-measure in its third digit.

    Returns:
        (19, 8, 2) steps (dy, dx) by squared distance 0..18, in the order in which they win; the last is repeated
        where there are fewer than 8, and distances that don't occur have none but (0, 0).
    """
    reach = range(-_REACH - 1, _REACH + 2)
    table = np.zeros((_RIM_SQUARED + 1, 8, 2), dtype=np.int64)
    for squared in range(1, _RIM_SQUARED + 1):
        steps = [(dy, dx) for dx in reach for dy in reach if dy * dy + dx * dx == squared]
        if steps:
            table[squared] = steps + steps[-1:] * (8 - len(steps))
    return table


_STEPS = _steps_to_nearest()


def as_mask(mask: Tensor | NDArray[np.bool_]) -> NDArray[np.bool_]:
    """View a boolean mask as a NumPy array of the one form that the scores rely on, without copying where possible.

    Args:
        mask: (h, w) bool, tensor or array, of any strides, on any device.

    Returns:
        (h, w) bool, C-contiguous, its bytes 0 and 1, on the CPU.

    Raises:
        TypeError: if the type is not bool. A 0/1 or 0/255 integer mask is refused rather than guessed at: a
            comparison with 127 or 128 silently reads a 0/1 mask as empty.
        ValueError: if it is not one non-empty (h, w) mask.
    """
    array = to_numpy(mask, "mask") if isinstance(mask, Tensor) else np.asarray(mask)
    if array.dtype != np.bool_:
        raise TypeError(
            f"mask: expected bool, found {array.dtype}; threshold it where its coding is known "
            "(mask > 127 for 0/255 files, mask > 0 for 0/1 arrays)"
        )
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"mask: expected one non-empty mask (h, w), found shape {array.shape}")
    return canonical_mask(array)


def to_numpy(tensor: Tensor, what: str) -> NDArray[Any]:
    """A dense tensor of any device as an array.

    Raises:
        TypeError: it is sparse, or has another layout of its own.
    """
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise TypeError(f"{what}: expected a dense tensor, found {tensor.layout}, {tensor.dtype}")
    return tensor.detach().cpu().numpy()


def _squared_distance(mask: NDArray[np.bool_]) -> NDArray[np.uint16]:
    """(h, w) squared Euclidean distance to the nearest True, which must exist, in pixels², saturated at 65535."""
    h, w = mask.shape
    # The transform walks down columns. Rows whose length is a multiple of 1 KiB then share a few cache lines, and it
    # takes almost twice as long at 1024 pixels; a different row length avoids it.
    stride = w + 16 if w % 256 == 0 else w
    source = np.empty((h, stride), dtype=np.uint8)[:, :w]
    np.logical_not(mask, out=source.view(np.bool_))
    target = np.empty((h, stride), dtype=np.float32)[:, :w]
    # OpenCV's own transform takes three quarters of the time of Intel's, which it would call on a single thread. The
    # switch holds for the calling thread only.
    intel = cv2.ipp.useIPP()
    cv2.ipp.setUseIPP(False)
    try:
        distance = cv2.distanceTransform(source, cv2.DIST_L2, cv2.DIST_MASK_PRECISE, target)
    finally:
        cv2.ipp.setUseIPP(intel)
    # Exact up to float32's square root; squaring and rounding restores the integer.
    return np.asarray(cv2.multiply(distance, distance, dtype=cv2.CV_16U))


class MaskGeometry:
    """Quantities derived from one mask; each is computed on first use and kept.

    The mask is referred to, not copied: don't write to it afterwards. Instances can be pickled.

    Args:
        mask: (h, w) bool.

    Raises:
        TypeError, ValueError: as ``as_mask``.

    Attributes:
        mask: (h, w) bool.
    """

    def __init__(self, mask: Tensor | NDArray[np.bool_]) -> None:
        self.mask = as_mask(mask)

    @property
    def shape(self) -> tuple[int, int]:
        """(h, w) in pixels."""
        return self.mask.shape[0], self.mask.shape[1]

    def check(self, shape: tuple[int, ...]) -> None:
        """Refuse a map of another size.

        Raises:
            ValueError: if ``shape`` is not the mask's.
        """
        if tuple(shape) != self.shape:
            raise ValueError(
                f"map and mask differ in size: map {tuple(shape)}, mask {self.shape}; "
                "resize the map to the mask (e2net.metrics.to_map), never the mask"
            )

    def check_mask(self, mask: Tensor | NDArray[np.bool_]) -> None:
        """Refuse a mask that is evidently not the one this geometry describes.

        Raises:
            TypeError: if it is not bool.
            ValueError: if sizes or numbers of foreground pixels differ.
        """
        if mask is self.mask:
            return
        array = as_mask(mask)
        count = int(np.count_nonzero(array))
        if array.shape != self.shape or count != self.foreground:
            raise ValueError(
                f"geometry belongs to another mask: expected shape {self.shape} and {self.foreground} "
                f"foreground pixels, found {array.shape} and {count}"
            )

    @cached_property
    def foreground(self) -> int:
        """Number of foreground pixels."""
        return int(np.count_nonzero(self.mask))

    @property
    def _mask8(self) -> NDArray[np.uint8]:
        return self.mask.view(np.uint8)

    @cached_property
    def box(self) -> tuple[int, int, int, int]:
        """Bounding box of the foreground as (top, bottom, left, right), ends exclusive; all 0 without one."""
        x, y, w, h = cv2.boundingRect(self._mask8)
        return y, y + h, x, x + w

    @cached_property
    def split(self) -> tuple[int, int]:
        """(rows above, columns left of) the cut through the foreground's centroid, in pixels.

        The centroid's row and column belong to the upper and left parts, as in MATLAB, hence the added one.
        An empty mask is cut through the middle.
        """
        h, w = self.shape
        if self.foreground == 0:
            return int(np.round(h / 2)) + 1, int(np.round(w / 2)) + 1
        columns = cv2.reduce(self._mask8, 0, cv2.REDUCE_SUM, dtype=cv2.CV_32S).ravel().astype(np.int64)
        rows = cv2.reduce(self._mask8, 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S).ravel().astype(np.int64)
        cy = int(rows @ np.arange(h)) / self.foreground
        cx = int(columns @ np.arange(w)) / self.foreground
        return int(np.round(cy)) + 1, int(np.round(cx)) + 1

    @property
    def quadrants(self) -> tuple[tuple[slice, slice], ...]:
        """Row and column slices of the four parts: upper left, upper right, lower left, lower right."""
        (h, w), (cy, cx) = self.shape, self.split
        up, down, left, right = slice(0, cy), slice(cy, h), slice(0, cx), slice(cx, w)
        return (up, left), (up, right), (down, left), (down, right)

    @cached_property
    def foreground_by_quadrant(self) -> NDArray[np.int64]:
        """(4,) number of foreground pixels in each quadrant."""
        return np.array([np.count_nonzero(self.mask[q]) for q in self.quadrants], dtype=np.int64)

    @cached_property
    def squared_distance(self) -> NDArray[np.uint16]:
        """(h, w) squared Euclidean distance to the nearest foreground pixel, in pixels², at most 65535."""
        h, w = self.shape
        if self.foreground == 0:
            return np.full((h, w), _FAR_SQUARED, dtype=np.uint16)
        top, bottom, left, right = self.box
        rows = slice(max(0, top - _FAR), min(h, bottom + _FAR))
        columns = slice(max(0, left - _FAR), min(w, right + _FAR))
        near = _squared_distance(self.mask[rows, columns])
        if near.shape == (h, w):
            return near
        squared = np.full((h, w), _FAR_SQUARED, dtype=np.uint16)
        squared[rows, columns] = near
        return squared

    def importance(self, rows: slice = slice(None)) -> NDArray[np.float64]:
        """Weight of an error at each background pixel, between 1 and 2; 0 on the foreground.

        The pixel importance of Margolin et al., "How to evaluate foreground maps?", CVPR 2014: 2 - 0.5**(d /
        5) at d pixels from the foreground.

        Args:
            rows: which rows to look up; all by default.

        Returns:
            (rows, w) float64.
        """
        codes = self.squared_distance[rows]
        if _LUT16:
            return np.asarray(cv2.LUT(codes, _IMPORTANCE))
        return np.take(_IMPORTANCE, codes)

    @cached_property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the foreground's box, widened by the Gaussian's reach within the image."""
        (h, w), (top, bottom, left, right) = self.shape, self.box
        return (
            slice(max(0, top - _REACH), min(h, bottom + _REACH)),
            slice(max(0, left - _REACH), min(w, right + _REACH)),
        )

    @cached_property
    def rim(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Background pixels near the foreground, and the foreground pixel nearest to each.

        They include all that the Gaussian at a foreground pixel can see.

        Returns:
            Two (n,) arrays of flat indices into ``window``. Ties go to the leftmost column, then the topmost row.
        """
        squared = self.squared_distance[self.window]
        # Unsigned: the foreground's 0 wraps to 65535.
        rim = np.flatnonzero(squared - np.uint16(1) < _RIM_SQUARED)
        mask = self.mask[self.window].view(np.uint8)
        # A margin of background makes every step from inside legal.
        margin = _REACH + 1
        border = cv2.BORDER_CONSTANT | cv2.BORDER_ISOLATED
        padded = np.asarray(cv2.copyMakeBorder(mask, margin, margin, margin, margin, border, value=0))
        width, stride = mask.shape[1], padded.shape[1]
        steps = _STEPS[..., 0] * stride + _STEPS[..., 1]
        start = (rim // width + margin) * stride + rim % width + margin
        ring = squared.ravel()[rim]
        nearest = np.empty_like(rim)
        left = np.arange(rim.size)
        for choice in range(steps.shape[1]):
            there = start[left] + steps[ring[left], choice]
            hit = padded.ravel()[there] > 0
            found = left[hit]
            nearest[found] = (there[hit] // stride - margin) * width + there[hit] % stride - margin
            left = left[~hit]
            if left.size == 0:
                break
        assert left.size == 0, "a rim pixel whose squared distance leads to no foreground pixel"
        return rim.astype(np.int32), nearest.astype(np.int32)

    @cached_property
    def band(self) -> NDArray[np.bool_]:
        """(h, w) bool: pixels at most ``BOUNDARY_WIDTH`` from the nearest pixel of the other class.

        All False for a mask without a contour (empty or full).
        """
        if self.foreground in (0, self.mask.size):
            return np.zeros(self.shape, dtype=np.bool_)
        limit = int(BOUNDARY_WIDTH * BOUNDARY_WIDTH)
        inner = _squared_distance(~self.mask)
        return (self.squared_distance <= limit) & (inner <= limit)

    @property
    def nbytes(self) -> int:
        """Memory held at present, in bytes, the mask included."""
        held: list[Any] = [self.mask, *(v for v in self.__dict__.values() if v is not self.mask)]
        total = 0
        for value in held:
            for part in value if isinstance(value, tuple) else (value,):
                total += part.nbytes if isinstance(part, np.ndarray) else 0
        return total


def _lut16_works() -> bool:
    try:
        probe = cv2.LUT(np.array([[3]], dtype=np.uint16), _IMPORTANCE)
    except cv2.error:  # look-up tables for 16-bit images are recent
        return False
    return bool(probe[0, 0] == _IMPORTANCE[3])


_LUT16 = _lut16_works()


class GeometryCache:
    """Store of mask geometries within a memory budget.

    What came first stays. Validation goes through its masks in the same order again and again; there, to evict what
    was used longest ago would evict each mask just before its turn, and a budget a little too small would be of no use
    at all.

    Args:
        max_bytes: budget in bytes, exceeded by one geometry at most. A geometry with its distance map takes about 3
            bytes per pixel.

    Raises:
        ValueError: if the budget is negative.
    """

    def __init__(self, max_bytes: int = 1 << 30) -> None:
        if max_bytes < 0:
            raise ValueError(f"max_bytes: expected at least 0, found {max_bytes}")
        self.max_bytes = max_bytes
        self._items: dict[Hashable, MaskGeometry] = {}
        self._weighed = 0  # bytes of all items but the newest
        self._newest: Hashable | None = None

    def __len__(self) -> int:
        return len(self._items)

    @property
    def nbytes(self) -> int:
        """Memory held at present, in bytes."""
        return sum(item.nbytes for item in self._items.values())

    def get(self, key: Hashable, mask: Tensor | NDArray[np.bool_] | Callable[[], NDArray[np.bool_]]) -> MaskGeometry:
        """The geometry kept under ``key``, or a new one for ``mask``.

        Args:
            key: whatever identifies the mask, for instance (data set, name).
            mask: (h, w) bool, or a function that loads it, called only on a miss.

        Raises:
            ValueError: if the kept geometry belongs to another mask (when a mask is given).
        """
        found = self._items.get(key)
        if found is not None:
            if not callable(mask) and not np.array_equal(found.mask, as_mask(mask)):
                raise ValueError(f"geometry kept under {key!r} belongs to another mask; give every mask its own key")
            return found
        # A geometry grows when its parts are first used, which is after it was handed out: weigh the newest now.
        if self._newest is not None:
            size = self._items[self._newest].nbytes
            if self._weighed + size > self.max_bytes:
                del self._items[self._newest]
            else:
                self._weighed += size
        found = self._items[key] = MaskGeometry(mask() if callable(mask) else mask)
        self._newest = key
        return found

    def clear(self) -> None:
        """Forget all geometries."""
        self._items.clear()
        self._weighed, self._newest = 0, None
