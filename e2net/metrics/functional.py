"""Scores of one map against one mask, as pure functions.

Every function takes a map (h, w) and a boolean mask (h, w) and returns float64 tensors on the CPU. A map is
either uint8, read as k / 255, or floating point in [0, 1]; it is scored as it is. For the stretch and the
rounding that published tables imply see ``MaskProtocol``.

All scores but the weighted F-measure, the boundary scores and the context measures depend on the map only
through a few counts and moments, held by ``MapStatistics``. Computing these once and passing them on makes
further scores nearly free::

    statistics = map_statistics(map, mask, protocol=MaskProtocol())
    s = s_measure(map, mask, statistics=statistics)
    f = f_measure(map, mask, statistics=statistics)

An 8-bit map needs one histogram per quadrant of the image and class of the mask. Other maps, on any device,
are reduced with tensor operations.

The numbers equal PySODMetrics 1.6 to rounding. Deliberate differences: the S-measure is defined where a
quadrant is empty (see ``s_measure``), and the E-measure of a one-pixel image is not divided by zero
(see ``e_measure``).
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from e2net.metrics.geometry import GAUSSIAN_SIGMA, GAUSSIAN_SIZE, MaskGeometry
from e2net.metrics.protocol import MaskProtocol
from e2net.structures import plain

# Added to denominators wherever the reference implementations add it.
EPS = float(np.spacing(1))

AS_IS = MaskProtocol(quantise=False, normalize="as_is")
"""Score the map's values themselves."""

# OpenCV returns histograms as float32, which counts exactly only so far.
_EXACT_COUNT = 1 << 24
_LEVELS = np.arange(256)
# Pixels taken at a time where a full-size float64 temporary would leave the cache.
_BLOCK = 1 << 16

Float64 = NDArray[np.float64]


class FScores(NamedTuple):
    """F-measures of one map.

    Attributes:
        max: () greatest value of ``curve``.
        mean: () mean of ``curve``.
        adaptive: () F at twice the map's mean value.
        curve: (256,) F of the decision "level >= t" for t = 0..255.
        precision: (256,) precision of the same decisions; 0 where nothing is predicted.
        recall: (256,) recall of the same decisions; 0 where the mask is empty.
    """

    max: Tensor
    mean: Tensor
    adaptive: Tensor
    curve: Tensor
    precision: Tensor
    recall: Tensor


class EScores(NamedTuple):
    """E-measures of one map.

    Attributes:
        max: () greatest value of ``curve``.
        mean: () mean of ``curve``.
        adaptive: () E at twice the map's mean value.
        curve: (256,) E of the decision "level >= t" for t = 0..255.
    """

    max: Tensor
    mean: Tensor
    adaptive: Tensor
    curve: Tensor


class BoundaryScores(NamedTuple):
    """Scores within 15 px of the mask's contour; NaN where the mask has no contour.

    Attributes:
        mae: () mean absolute error in the band.
        weighted_f: () weighted F-measure counted over the band's pixels.
    """

    mae: Tensor
    weighted_f: Tensor


class _Cells(NamedTuple):
    """Moments of the map over the cells (quadrant, class), class 0 being background.

    Attributes:
        pixels: (4, 2) number of them.
        mean: (4, 2) mean of the map; 0 in empty cells.
        spread: (4, 2) sum of squared deviations from that mean.
    """

    pixels: Float64
    mean: Float64
    spread: Float64


@dataclass(frozen=True)
class MapStatistics:
    """All that the threshold and structure scores need to know of one map.

    Attributes:
        shape: (h, w) in pixels.
        cells: moments per quadrant of the mask's centroid and class.
        flat: (4,) SSIM of quadrants in which both map and mask are constant, NaN for all others.
        curve: (2, 256) int64, pixels whose level is at least t, for background and foreground.
        adaptive: (background, foreground) pixels at or above twice the map's mean.
        confident: (background, foreground) pixels above 0.5.
        absolute_error: sum of ``|map - mask|`` over all pixels.
        levels: (2, 256) int64, pixels of each 8-bit level before any stretch, of background and foreground.
    """

    shape: tuple[int, int]
    cells: _Cells
    flat: Float64
    curve: NDArray[np.int64]
    adaptive: tuple[int, int]
    confident: tuple[int, int]
    absolute_error: float
    levels: NDArray[np.int64]

    @property
    def size(self) -> int:
        """Number of pixels."""
        return self.shape[0] * self.shape[1]

    @property
    def foreground(self) -> int:
        """Number of foreground pixels of the mask."""
        return int(self.curve[1, 0])


@dataclass(frozen=True)
class Prepared:
    """A map on its way to the scores: 8-bit levels with the value of each, or dense values.

    Attributes:
        levels: (h, w) uint8, C-contiguous, or None.
        table: (256,) float64, value of each level in [0, 1]; empty for a dense map.
        dense: (h, w) floating point in [0, 1], or None.
        unstretched: the same before any stretch, or None.
    """

    levels: NDArray[np.uint8] | None
    table: Float64
    dense: Tensor | None
    unstretched: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """(h, w) in pixels."""
        if self.levels is not None:
            return self.levels.shape
        assert self.dense is not None
        return tuple(self.dense.shape)

    def values(self, rows: slice = slice(None), columns: slice = slice(None)) -> Float64:
        """The map's values as (rows, columns) float64 on the CPU."""
        if self.levels is not None:
            return np.asarray(cv2.LUT(np.ascontiguousarray(self.levels[rows, columns]), self.table))
        assert self.dense is not None
        return np.ascontiguousarray(self.dense[rows, columns].detach().cpu().to(torch.float64).numpy())

    def decision(self) -> NDArray[np.bool_]:
        """(h, w) bool, where the map is above 0.5."""
        if self.levels is not None:
            return np.asarray(cv2.LUT(self.levels, (self.table > 0.5).view(np.uint8))).view(np.bool_)
        assert self.dense is not None
        return (self.dense > 0.5).cpu().numpy()


def as_map(map: Tensor | NDArray[np.generic]) -> Tensor:
    """View a map as a tensor of one of the types that are scored, without copying where possible.

    Args:
        map: uint8, or floating point of any width and byte order; tensor or array, of any strides.

    Returns:
        uint8, or float16, bfloat16, float32 or float64, of the map's shape and device, without gradient.

    Raises:
        TypeError: if the type is another, or the tensor not dense.
    """
    if isinstance(map, Tensor):
        dense = map.layout == torch.strided and not map.is_quantized
        if not dense or not (map.dtype == torch.uint8 or map.is_floating_point()):
            raise TypeError(_WRONG_MAP.format(map.dtype if dense else f"{map.dtype}, {map.layout}"))
        map = map.detach()
        return map.float() if map.is_floating_point() and map.itemsize == 1 else map  # float8 has no arithmetic
    array = np.asarray(map)
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise TypeError(_WRONG_MAP.format(array.dtype))
    if array.dtype.itemsize > 8:  # long double, which torch does not know
        array = array.astype(np.float64)
    # torch takes neither foreign byte order nor negative strides, and warns of memory that must not be written to
    return torch.from_numpy(plain(array.astype(array.dtype.newbyteorder("="), copy=False)))


_WRONG_MAP = (
    "map: expected uint8 levels or a floating-point tensor of probabilities, found {}; scale to 0..255 as uint8, or"
    " divide by the type's range"
)


def prepare(map: Tensor | NDArray[np.generic], protocol: MaskProtocol = AS_IS) -> Prepared:
    """Apply a protocol to a map of the mask's size, keeping 8-bit maps 8-bit.

    Args:
        map: (h, w) uint8, or floating point in [0, 1]; tensor or array.
        protocol: what to do to it.

    Raises:
        TypeError: if the type is neither.
        ValueError: if it is not one map, or leaves [0, 1].
    """
    tensor = protocol.levels(as_map(map))
    if tensor.dtype != torch.uint8:
        return Prepared(None, np.empty(0), protocol.apply(tensor), tensor)
    levels = np.ascontiguousarray(tensor.detach().cpu().numpy())
    table = np.arange(256, dtype=np.float64) / 255
    if protocol.normalize == "minmax":
        low, high, _, _ = cv2.minMaxLoc(levels)
        if high > low:
            table = (table - table[int(low)]) / (table[int(high)] - table[int(low)])
            # Levels that don't occur must not leave [0, 1]: they are truncated to 8 bits below.
            table = table.clip(0.0, 1.0)
    return Prepared(levels, table, None)


def map_statistics(
    map: Tensor | NDArray[np.generic],
    mask: Tensor | NDArray[np.bool_],
    *,
    protocol: MaskProtocol = AS_IS,
    geometry: MaskGeometry | None = None,
) -> MapStatistics:
    """Reduce a map to what the scores need, in one pass.

    Args:
        map: (h, w) uint8, or floating point in [0, 1], any device.
        mask: (h, w) bool.
        protocol: applied to the map first; by default its values are taken as they are.
        geometry: of this mask, if it is at hand.

    Raises:
        TypeError: if map or mask have the wrong type.
        ValueError: if they differ in size, aren't single maps, or the map leaves [0, 1].
    """
    prepared, geometry = pair(map, mask, protocol, geometry)
    return statistics_of(prepared, geometry)


def statistics_of(prepared: Prepared, geometry: MaskGeometry) -> MapStatistics:
    """As ``map_statistics``, for a map already prepared and a mask already described."""
    if prepared.levels is not None:
        return _histogram_statistics(prepared.levels, prepared.table, geometry)
    assert prepared.dense is not None and prepared.unstretched is not None
    return _dense_statistics(prepared.dense, prepared.unstretched, geometry)


def pair(
    map: Tensor | NDArray[np.generic],
    mask: Tensor | NDArray[np.bool_],
    protocol: MaskProtocol,
    geometry: MaskGeometry | None,
) -> tuple[Prepared, MaskGeometry]:
    """Check a map and a mask against each other and bring both into the form that the ``*_of`` functions
    take.

    Raises:
        TypeError, ValueError: as ``map_statistics``.
    """
    if geometry is None:
        geometry = MaskGeometry(mask)
    else:
        geometry.check_mask(mask)
    prepared = prepare(map, protocol)
    geometry.check(prepared.shape)
    return prepared, geometry


def _statistics(
    map: Tensor, mask: Tensor, statistics: MapStatistics | None, geometry: MaskGeometry | None
) -> MapStatistics:
    if statistics is None:
        return map_statistics(map, mask, geometry=geometry)
    shapes = tuple(np.shape(map)), tuple(np.shape(mask))
    if shapes != (statistics.shape, statistics.shape):
        raise ValueError(
            f"statistics belong to another map: expected shape {statistics.shape}, found {shapes[0]}, mask {shapes[1]}"
        )
    return statistics


def _count_levels(levels: NDArray[np.uint8], mask: NDArray[np.uint8] | None = None) -> NDArray[np.int64]:
    """(256,) exact histogram of an image, optionally of its pixels where ``mask`` is non-zero."""
    total = np.zeros(256, dtype=np.int64)
    h, w = levels.shape
    if h == 0 or w == 0:
        return total
    step = max(1, _EXACT_COUNT // w)
    for top in range(0, h, step):
        part = None if mask is None else mask[top : top + step]
        total += cv2.calcHist([levels[top : top + step]], [0], part, [256], [0, 256]).ravel().astype(np.int64)
    return total


def _histogram_statistics(levels: NDArray[np.uint8], table: Float64, geometry: MaskGeometry) -> MapStatistics:
    mask = geometry.mask.view(np.uint8)
    top, bottom, left, right = geometry.box
    counts = np.zeros((4, 2, 256), dtype=np.int64)
    for i, (rows, columns) in enumerate(geometry.quadrants):
        everything = _count_levels(levels[rows, columns])
        # The masked histogram is the slower kind; foreground exists only inside the mask's box.
        window = (
            slice(max(rows.start, top), min(rows.stop, bottom)),
            slice(max(columns.start, left), min(columns.stop, right)),
        )
        counts[i, 1] = _count_levels(levels[window], mask[window])
        counts[i, 0] = everything - counts[i, 1]

    size = levels.size
    number = counts.sum(axis=2)
    total = counts @ table
    mean = total / np.maximum(number, 1)
    spread = (counts * (table - mean[..., None]) ** 2).sum(axis=2)
    by_class = counts.sum(axis=0)

    quantised = (table * 255).astype(np.uint8)
    if np.array_equal(quantised, _LEVELS):
        requantised = by_class
    else:
        requantised = np.zeros((2, 256), dtype=np.int64)
        for c in (0, 1):
            requantised[c] = np.bincount(quantised, weights=by_class[c], minlength=256)
    curve = requantised[:, ::-1].cumsum(axis=1)[:, ::-1]

    occurring = by_class.sum(axis=0) > 0
    threshold = 2 * float((by_class @ table).sum()) / size
    if np.abs(table[occurring] - threshold).min() < 1e-9 and threshold > 0:
        # Twice the mean falls on a level, so rounding decides on which side its pixels fall. Sum in NumPy's
        # order over the full map to decide as the reference does.
        threshold = 2 * float(cv2.LUT(levels, table).mean())
    chosen = table >= min(threshold, 1.0)
    adaptive = by_class[:, chosen].sum(axis=1)
    confident = by_class[:, table > 0.5].sum(axis=1)

    flat = np.full(4, np.nan)
    for i in np.flatnonzero((number == 0).any(axis=1)):
        seen = np.flatnonzero(counts[i].any(axis=0))
        if seen.size == 1:
            flat[i] = _flat_ssim(float(table[seen[0]]), geometry, i)

    return MapStatistics(
        shape=geometry.shape,
        cells=_Cells(number.astype(np.float64), mean, spread),
        flat=flat,
        curve=curve,
        adaptive=(int(adaptive[0]), int(adaptive[1])),
        confident=(int(confident[0]), int(confident[1])),
        absolute_error=float(by_class[0] @ table + by_class[1] @ (1 - table)),
        levels=by_class,
    )


def _dense_statistics(values: Tensor, unstretched: Tensor, geometry: MaskGeometry) -> MapStatistics:
    device = values.device
    mask = torch.from_numpy(geometry.mask).to(device)
    # The truncation to 8 bits happens in the map's own precision, as NumPy would do it.
    quantised = (values * 255).to(torch.uint8).to(torch.int64) + 256 * mask
    wide = values.to(torch.float64)

    number = np.zeros((4, 2))
    mean = np.zeros((4, 2))
    spread = np.zeros((4, 2))
    flat = np.full(4, np.nan)
    for i, quadrant in enumerate(geometry.quadrants):
        part, inside = wide[quadrant], mask[quadrant]
        if part.numel() == 0:
            continue
        for c, cell in enumerate((part[~inside], part[inside])):
            number[i, c] = cell.numel()
            if cell.numel():
                centre = cell.mean()
                mean[i, c] = float(centre)
                spread[i, c] = float(((cell - centre) ** 2).sum())
        low, high = torch.aminmax(part)
        if low == high and 0 in number[i]:
            flat[i] = _flat_ssim(float(low), geometry, i)

    counts = torch.bincount(quantised.ravel(), minlength=512).reshape(2, 256)
    curve = counts.flip(1).cumsum(1).flip(1).cpu().numpy()
    rounded = (unstretched.float() * 255).round().to(torch.int64) + 256 * mask
    levels = torch.bincount(rounded.ravel(), minlength=512).reshape(2, 256).cpu().numpy()

    threshold = 2 * float(wide.mean())
    if threshold > 0 and float((wide - threshold).abs().min()) < 1e-9:
        threshold = 2 * float(wide.cpu().numpy().mean())  # see _histogram_statistics
    chosen = wide >= min(threshold, 1.0)
    confident = wide > 0.5
    return MapStatistics(
        shape=geometry.shape,
        cells=_Cells(number, mean, spread),
        flat=flat,
        curve=curve,
        adaptive=(int((chosen & ~mask).sum()), int((chosen & mask).sum())),
        confident=(int((confident & ~mask).sum()), int((confident & mask).sum())),
        absolute_error=float((wide - mask.to(wide.dtype)).abs().sum()),
        levels=levels,
    )


def _flat_ssim(value: float, geometry: MaskGeometry, quadrant: int) -> float:
    """SSIM of a quadrant in which both map and mask are constant.

    In exact arithmetic both variances vanish and the score is 1. The reference compares the computed
    variance with zero, so a mean that rounds turns the score into 0. That happens to constant maps only; as
    published numbers have it, the variance is computed here over the same memory layout.
    """
    rows, columns = geometry.quadrants[quadrant]
    part = np.full(geometry.shape, value)[rows, columns]
    spread = float(np.sum((part - np.mean(part)) ** 2))
    x = float(np.mean(part))
    y = 1.0 if geometry.foreground_by_quadrant[quadrant] else 0.0
    sigma = spread / (part.size - 1 + EPS)
    return 1.0 if (x * x + y * y) * sigma == 0 else 0.0


def s_measure(
    map: Tensor,
    mask: Tensor,
    *,
    alpha: float = 0.5,
    geometry: MaskGeometry | None = None,
    statistics: MapStatistics | None = None,
) -> Tensor:
    """Structure measure: agreement in objects and in the regions around the mask's centroid.

    Fan et al., "Structure-measure: a new way to evaluate foreground maps", ICCV 2017:
    S = alpha * S_object + (1 - alpha) * S_region, of their sections on the region-aware and the object-aware structural
    similarity.

    S_region weighs the SSIM of four quadrants by their area. When the centroid rounds to the last row or
    column, two or three quadrants are empty; they have weight 0 and contribute 0 here. PySODMetrics returns
    NaN there (0 / 0 in an empty mean), and so the mean over a whole data set becomes NaN.

    Args:
        map: (h, w) uint8, or floating point in [0, 1].
        mask: (h, w) bool. If it is empty the score is 1 - mean(map), if it is full mean(map).
        alpha: weight of the object part, in [0, 1].
        geometry: of this mask, if it is at hand.
        statistics: of this pair, if at hand; then ``map`` and ``mask`` serve only to check the size.

    Returns:
        () float64 in [0, 1].

    Raises:
        TypeError: if map or mask have the wrong type.
        ValueError: if they don't fit each other, the map leaves [0, 1], or ``alpha`` does.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha: expected a weight in [0, 1], found {alpha}")
    return _scalar(s_from(_statistics(map, mask, statistics, geometry), alpha))


def s_from(s: MapStatistics, alpha: float = 0.5) -> float:
    """S-measure as a plain float; see ``s_measure``."""
    count, mean, spread = s.cells
    per_class = count.sum(axis=0)
    class_mean = (count * mean).sum(axis=0) / np.maximum(per_class, 1)
    if s.foreground == 0:
        return float(1 - class_mean[0])
    if s.foreground == s.size:
        return float(class_mean[1])

    class_spread = (spread + count * (mean - class_mean) ** 2).sum(axis=0)
    share = s.foreground / s.size
    objects = share * _object_score(class_mean[1], class_spread[1], per_class[1])
    objects += (1 - share) * _object_score(1 - class_mean[0], class_spread[0], per_class[0])

    regions = 0.0
    # Plain floats: NumPy's overhead on single numbers would be a tenth of the whole.
    for n, m, v, score in zip(count.tolist(), mean.tolist(), spread.tolist(), s.flat.tolist(), strict=True):
        if sum(n):
            regions += (_ssim(n, m, v) if math.isnan(score) else score) * sum(n) / s.size
    return max(0.0, float(alpha * objects + (1 - alpha) * regions))


def _object_score(mean: float, spread: float, count: float) -> float:
    deviation = np.sqrt(spread / (count - 1)) if count > 1 else 0.0
    return float(2 * mean / (mean * mean + 1 + deviation + EPS))


def _ssim(count: list[float], mean: list[float], spread: list[float]) -> float:
    """SSIM without its stabilising constants, from the moments of background and foreground."""
    n = count[0] + count[1]
    y = count[1] / n
    x = (count[0] * mean[0] + count[1] * mean[1]) / n
    variance_x = sum(v + c * (m - x) ** 2 for c, m, v in zip(count, mean, spread, strict=True)) / (n - 1 + EPS)
    variance_y = n * y * (1 - y) / (n - 1 + EPS)
    covariance = count[0] * count[1] / n * (mean[1] - mean[0]) / (n - 1 + EPS)
    numerator = 4 * x * y * covariance
    denominator = (x * x + y * y) * (variance_x + variance_y)
    if numerator != 0:
        return numerator / (denominator + EPS)
    return 1.0 if denominator == 0 else 0.0


def e_measure(
    map: Tensor,
    mask: Tensor,
    *,
    geometry: MaskGeometry | None = None,
    statistics: MapStatistics | None = None,
) -> EScores:
    """Enhanced-alignment measure over 256 thresholds and at the adaptive one.

    Fan et al., "Enhanced-alignment measure for binary foreground map evaluation", IJCAI 2018. With a and b the
    deviations of decision and mask from their means, the alignment is 2ab / (a² + b²), and E the mean of
    (alignment + 1)² / 4. A decision and the mask take four combinations of values, so the alignment matrix has four
    distinct entries and need not be formed.

    The definition divides by h*w - 1, so a perfect map scores slightly above 1. A one-pixel image is divided
    by 1; PySODMetrics divides by the machine epsilon there.

    For a data set, "max" and "mean" are taken on the mean of the images' curves, see ``MapScores``.

    Args:
        map: (h, w) uint8, or floating point in [0, 1].
        mask: (h, w) bool.
        geometry: of this mask, if it is at hand.
        statistics: of this pair, if at hand; then ``map`` and ``mask`` serve only to check the size.

    Raises:
        TypeError: if map or mask have the wrong type.
        ValueError: if they don't fit each other, or the map leaves [0, 1].
    """
    curve, adaptive = e_from(_statistics(map, mask, statistics, geometry))
    return EScores(_scalar(curve.max()), _scalar(curve.mean()), _scalar(adaptive), torch.from_numpy(curve))


def e_from(s: MapStatistics) -> tuple[Float64, float]:
    """(256,) E-measure curve and adaptive E-measure; see ``e_measure``."""
    false, true = (np.append(s.curve[c], s.adaptive[c]).astype(np.float64) for c in (0, 1))
    chosen = false + true
    size, foreground = s.size, s.foreground
    if foreground == 0:
        total = size - chosen
    elif foreground == size:
        total = chosen
    else:
        mean_map, mean_mask = chosen / size, foreground / size
        total = np.zeros_like(chosen)
        missed = foreground - true
        for number, a, b in (
            (true, 1 - mean_map, 1 - mean_mask),
            (false, 1 - mean_map, -mean_mask),
            (missed, -mean_map, 1 - mean_mask),
            (size - chosen - missed, -mean_map, -mean_mask),
        ):
            alignment = 2 * a * b / (a * a + b * b + EPS)
            total += number * (alignment + 1) ** 2 / 4
    total = total / max(size - 1, 1)
    return total[:256], float(total[256])


def f_measure(
    map: Tensor,
    mask: Tensor,
    *,
    beta2: float = 0.3,
    geometry: MaskGeometry | None = None,
    statistics: MapStatistics | None = None,
) -> FScores:
    """F-measure, precision and recall over 256 thresholds, and F at the adaptive threshold.

    Achanta et al., "Frequency-tuned salient region detection", CVPR 2009: F = (1 + beta²) P R / (beta² P +
    R), 0 where both vanish. The map is truncated to 8 bits for the curves, not for the adaptive threshold.

    Two definitions of a data set's "max F" are in use. PySODMetrics, and ``MapScores`` here, average the
    curves of F and take the maximum; the MATLAB toolbox averages precision and recall and takes the maximum
    of the F of those (``MapScores.compute_curves`` gives what is needed for it). The second is the greater
    as a rule.

    Args:
        map: (h, w) uint8, or floating point in [0, 1].
        mask: (h, w) bool.
        beta2: beta², the weight of precision's reciprocal; 0.3 in the field.
        geometry: of this mask, if it is at hand.
        statistics: of this pair, if at hand; then ``map`` and ``mask`` serve only to check the size.

    Raises:
        TypeError: if map or mask have the wrong type.
        ValueError: if they don't fit each other, the map leaves [0, 1], or ``beta2`` is not positive.
    """
    _check_beta2(beta2)
    curve, precision, recall, adaptive = f_from(_statistics(map, mask, statistics, geometry), beta2)
    return FScores(
        _scalar(curve.max()),
        _scalar(curve.mean()),
        _scalar(adaptive),
        *(torch.from_numpy(x) for x in (curve, precision, recall)),
    )


def f_from(s: MapStatistics, beta2: float = 0.3) -> tuple[Float64, Float64, Float64, float]:
    """(256,) F, precision and recall, and the adaptive F; see ``f_measure``."""
    false, true = (np.append(s.curve[c], s.adaptive[c]).astype(np.float64) for c in (0, 1))
    precision = true / np.maximum(true + false, 1)
    recall = true / max(s.foreground, 1)
    f = f_of(precision, recall, beta2)
    return f[:256], precision[:256], recall[:256], float(f[256])


def f_of(precision: Float64, recall: Float64, beta2: float = 0.3) -> Float64:
    """F of precision and recall, elementwise, in [0, 1]; 0 where both are 0."""
    below = beta2 * precision + recall
    return (1 + beta2) * precision * recall / np.where(below == 0, 1, below)


def precision_recall(
    map: Tensor,
    mask: Tensor,
    *,
    geometry: MaskGeometry | None = None,
    statistics: MapStatistics | None = None,
) -> tuple[Tensor, Tensor]:
    """Precision and recall of the decisions "level >= t".

    Args:
        map: (h, w) uint8, or floating point in [0, 1].
        mask: (h, w) bool.
        geometry: of this mask, if it is at hand.
        statistics: of this pair, if at hand; then ``map`` and ``mask`` serve only to check the size.

    Returns:
        Two (256,) float64 tensors in [0, 1], for t = 0..255.

    Raises:
        TypeError, ValueError: as ``f_measure``.
    """
    result = f_measure(map, mask, geometry=geometry, statistics=statistics)
    return result.precision, result.recall


def mae(
    map: Tensor,
    mask: Tensor,
    *,
    geometry: MaskGeometry | None = None,
    statistics: MapStatistics | None = None,
) -> Tensor:
    """Mean absolute error between map and mask (Perazzi et al., "Saliency filters", CVPR 2012).

    Args:
        map: (h, w) uint8, or floating point in [0, 1].
        mask: (h, w) bool.
        geometry: of this mask, if it is at hand.
        statistics: of this pair, if at hand; then ``map`` and ``mask`` serve only to check the size.

    Returns:
        () float64 in [0, 1].

    Raises:
        TypeError: if map or mask have the wrong type.
        ValueError: if they don't fit each other, or the map leaves [0, 1].
    """
    s = _statistics(map, mask, statistics, geometry)
    return _scalar(s.absolute_error / s.size)


def iou(
    map: Tensor,
    mask: Tensor,
    *,
    geometry: MaskGeometry | None = None,
    statistics: MapStatistics | None = None,
) -> Tensor:
    """Intersection over union (Jaccard index) of the mask and the decision "map > 0.5".

    Args:
        map: (h, w) uint8, or floating point in [0, 1].
        mask: (h, w) bool.
        geometry: of this mask, if it is at hand.
        statistics: of this pair, if at hand; then ``map`` and ``mask`` serve only to check the size.

    Returns:
        () float64 in [0, 1]; 0 if both are empty, as PySODMetrics has it.

    Raises:
        TypeError: if map or mask have the wrong type.
        ValueError: if they don't fit each other, or the map leaves [0, 1].
    """
    return _scalar(overlap_from(_statistics(map, mask, statistics, geometry)).iou)


def dice(
    map: Tensor,
    mask: Tensor,
    *,
    geometry: MaskGeometry | None = None,
    statistics: MapStatistics | None = None,
) -> Tensor:
    """Dice coefficient (F1) of the mask and the decision "map > 0.5".

    Args:
        map: (h, w) uint8, or floating point in [0, 1].
        mask: (h, w) bool.
        geometry: of this mask, if it is at hand.
        statistics: of this pair, if at hand; then ``map`` and ``mask`` serve only to check the size.

    Returns:
        () float64 in [0, 1]; 0 if both are empty, as PySODMetrics has it.

    Raises:
        TypeError: if map or mask have the wrong type.
        ValueError: if they don't fit each other, or the map leaves [0, 1].
    """
    return _scalar(overlap_from(_statistics(map, mask, statistics, geometry)).dice)


def ber(
    map: Tensor,
    mask: Tensor,
    *,
    geometry: MaskGeometry | None = None,
    statistics: MapStatistics | None = None,
) -> Tensor:
    """Balanced error rate of the decision "map > 0.5": 1 - (true positive rate + true negative rate) / 2.

    Args:
        map: (h, w) uint8, or floating point in [0, 1].
        mask: (h, w) bool.
        geometry: of this mask, if it is at hand.
        statistics: of this pair, if at hand; then ``map`` and ``mask`` serve only to check the size.

    Returns:
        () float64, a fraction in [0, 1], lower being better. The rate of an absent class counts as 0, as
        PySODMetrics has it, so a perfect map of an empty mask has 0.5.

    Raises:
        TypeError: if map or mask have the wrong type.
        ValueError: if they don't fit each other, or the map leaves [0, 1].
    """
    return _scalar(overlap_from(_statistics(map, mask, statistics, geometry)).ber)


class Overlap(NamedTuple):
    """Scores of the decision "map > 0.5", fractions; 0 where their denominator is.

    Attributes:
        iou: intersection over union.
        dice: F1.
        ber: balanced error rate.
        precision: part of what was chosen that is foreground.
        recall: part of the foreground that was chosen.
    """

    iou: float
    dice: float
    ber: float
    precision: float
    recall: float


def overlap_from(s: MapStatistics) -> Overlap:
    """Scores of the decision at 0.5."""
    false, true = s.confident
    missed = s.foreground - true
    background = s.size - s.foreground
    found = true / max(s.foreground, 1)
    rejected = (background - false) / max(background, 1)
    return Overlap(
        iou=true / max(true + false + missed, 1),
        dice=2 * true / max(2 * true + false + missed, 1),
        ber=1 - 0.5 * (found + rejected),
        precision=true / max(true + false, 1),
        recall=found,
    )


def weighted_f_measure(
    map: Tensor, mask: Tensor, *, beta2: float = 1.0, geometry: MaskGeometry | None = None
) -> Tensor:
    """F-measure that tolerates errors near the contour and weighs false alarms by their distance.

    Margolin et al., "How to evaluate foreground maps?", CVPR 2014: errors E become min(E, EA) B. EA is E smoothed by a
    Gaussian of 7 x 7 px and σ 5 after every background pixel has taken over the error of the foreground pixel nearest
    to it, and replaces E on the foreground only; B is 1 there and 2 - 0.5**(d / 5) at d pixels from it. So the toolbox
    of the paper has it. Runs on the CPU whatever the map's device, as the distance transform does; the part that
    depends on the mask alone is kept in ``geometry``.

    Args:
        map: (h, w) uint8, or floating point in [0, 1].
        mask: (h, w) bool. If it is empty the score is 0.
        beta2: beta², the weight of precision; 1 in the field.
        geometry: of this mask; passing the same object again saves the distance transform.

    Returns:
        () float64 in [0, 1].

    Raises:
        TypeError: if map or mask have the wrong type.
        ValueError: if they don't fit each other, the map leaves [0, 1], or ``beta2`` is not positive.
    """
    _check_beta2(beta2)
    prepared, geometry = pair(map, mask, AS_IS, geometry)
    return _scalar(weighted_f_of(prepared, geometry, beta2))


def weighted_f_of(prepared: Prepared, geometry: MaskGeometry, beta2: float = 1.0) -> float:
    """As ``weighted_f_measure``, for a map already prepared and a mask already described."""
    count = geometry.foreground
    if count == 0:
        return 0.0
    inside = geometry.mask[geometry.window]
    # cv2.mean of a masked image avoids gathering the foreground into an array of its own.
    mean_error = cv2.mean(_foreground_error(prepared, geometry), inside.view(np.uint8))[0]
    return _weighted_f(count, mean_error, _false_alarms(prepared, geometry), beta2)


def _weighted_f(count: int, mean_error: float, false_alarms: float, beta2: float) -> float:
    hits = count * (1 - mean_error)
    recall = 1 - mean_error
    precision = hits / (hits + false_alarms + EPS)
    return float((1 + beta2) * recall * precision / (recall + beta2 * precision + EPS))


def _foreground_error(prepared: Prepared, geometry: MaskGeometry) -> Float64:
    """Error of the foreground pixels, lowered where their neighbourhood does better, over
    ``geometry.window``.

    Values at background pixels are meaningless.
    """
    rows, columns = geometry.window
    if prepared.levels is not None:
        error = cv2.LUT(np.ascontiguousarray(prepared.levels[rows, columns]), 1 - prepared.table)
    else:
        error = 1 - prepared.values(rows, columns)
    # A background pixel takes over the error of the foreground pixel nearest to it. Only those within the
    # Gaussian's reach of the foreground matter.
    rim, nearest = geometry.rim
    flat = error.reshape(-1)
    flat[rim] = flat[nearest]
    kernel = cv2.getGaussianKernel(GAUSSIAN_SIZE, GAUSSIAN_SIGMA, cv2.CV_64F)
    border = cv2.BORDER_CONSTANT | cv2.BORDER_ISOLATED
    smooth = np.asarray(cv2.sepFilter2D(error, cv2.CV_64F, kernel, kernel, borderType=border))
    return np.minimum(error, smooth, out=smooth)


def _false_alarms(prepared: Prepared, geometry: MaskGeometry) -> float:
    """Sum over the background of the map's values times the pixels' importance."""
    h, w = geometry.shape
    step = max(1, _BLOCK // w)
    total = 0.0
    for top in range(0, h, step):
        rows = slice(top, top + step)
        total += float(np.dot(prepared.values(rows).ravel(), geometry.importance(rows).ravel()))
    return total


def boundary_scores(
    map: Tensor, mask: Tensor, *, beta2: float = 1.0, geometry: MaskGeometry | None = None
) -> BoundaryScores:
    """Mean absolute error and weighted F-measure of the pixels within 15 px of the mask's contour.

    The band holds the pixels whose nearest pixel of the other class is at most 15 px away (Euclidean,
    between pixel centres). The weighted F-measure is that of ``weighted_f_measure`` with all its sums
    restricted to the band. There is no published reference; the figures are for comparing models with each
    other.

    Args:
        map: (h, w) uint8, or floating point in [0, 1].
        mask: (h, w) bool. Without a contour (empty or full) both scores are NaN.
        beta2: beta², the weight of precision.
        geometry: of this mask, if it is at hand.

    Raises:
        TypeError: if map or mask have the wrong type.
        ValueError: if they don't fit each other, the map leaves [0, 1], or ``beta2`` is not positive.
    """
    _check_beta2(beta2)
    prepared, geometry = pair(map, mask, AS_IS, geometry)
    error, weighted = boundary_of(prepared, geometry, beta2)
    return BoundaryScores(_scalar(error), _scalar(weighted))


def boundary_of(prepared: Prepared, geometry: MaskGeometry, beta2: float = 1.0) -> tuple[float, float]:
    """As ``boundary_scores``, for a map already prepared and a mask already described."""
    band = geometry.band
    number = int(np.count_nonzero(band))
    if number == 0:
        return float("nan"), float("nan")
    inside, outside = band & geometry.mask, band & ~geometry.mask
    values = prepared.values()
    absolute = float(values[outside].sum() + (1 - values[inside]).sum()) / number

    window = geometry.window
    mean_error = float(_foreground_error(prepared, geometry)[inside[window]].mean())
    false_alarms = float((values[outside] * geometry.importance()[outside]).sum())
    return absolute, _weighted_f(int(np.count_nonzero(inside)), mean_error, false_alarms, beta2)


def _check_beta2(beta2: float) -> None:
    if not beta2 > 0:
        raise ValueError(f"beta2: expected a positive weight (beta squared), found {beta2}")


def _scalar(value: float | np.floating) -> Tensor:
    return torch.tensor(float(value), dtype=torch.float64)
