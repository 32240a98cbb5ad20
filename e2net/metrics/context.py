"""Context measure: does the map fit the mask's surroundings, and how well is the object camouflaged there.

Wang et al., "Context-measure: contextualizing metric for camouflage", arXiv 2512.07076. C_beta there is
``context_measure`` without an image, C_beta^omega with one.
"""

import math

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from e2net.metrics.functional import AS_IS, EPS, Prepared, pair
from e2net.metrics.geometry import MaskGeometry, as_mask, to_numpy
from e2net.metrics.protocol import MaskProtocol

Float64 = NDArray[np.float64]

# Patches of 7 x 7 pixels every 3 pixels; the surroundings reach 20 / 2 pixels beyond the object.
_PATCH, _STEP, _SURROUNDINGS = 7, 3, 20
# Distances are formed for so many pairs of patches at a time.
_PAIRS = 1 << 22

_RGB_TO_XYZ = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
_D65 = np.array([0.95047, 1.0, 1.08883])


def context_measure(
    map: Tensor | NDArray[np.generic],
    mask: Tensor | NDArray[np.bool_],
    image: Tensor | NDArray[np.uint8] | None = None,
    *,
    beta2: float | None = None,
    alpha: float = 6.0,
    protocol: MaskProtocol = AS_IS,
    geometry: MaskGeometry | None = None,
) -> Tensor:
    """Context measure; with the image, the variant weighted by the degree of camouflage.

    Runs on the CPU. With an image most of the time goes into ``camouflage_degree``.

    Args:
        map: (h, w) uint8, or floating point in [0, 1].
        mask: (h, w) bool. An empty mask scores 0.
        image: (h, w, 3) uint8, RGB, at the mask's size, or None.
        beta2: weight of forward inference (precision) against reverse deduction (recall); by default 1, and 1.2
            with an image.
        alpha: extent of the Gaussian context in pixels, shared between the axes like the mask's own extent.
        protocol: applied to the map first; by default its values are taken as they are.
        geometry: of this mask, if it is at hand.

    Returns:
        () float64, from 0 up; a perfect map scores about 1. Equals PySODMetrics' ``ContextMeasure`` and
        ``CamouflageContextMeasure``, except for masks whose pixels all lie on one slanted line. Their covariance has
        no inverse; its off-diagonal part is left out then.

    Raises:
        TypeError: if map, mask or image have the wrong type.
        ValueError: if they don't fit each other, the map leaves [0, 1], or a weight is not positive.
    """
    check_weights(beta2, alpha)
    prepared, geometry = pair(map, mask, protocol, geometry)
    degree = None if image is None else camouflage_degree(image, geometry.mask)
    return torch.tensor(context_of(prepared, geometry, degree, beta2, alpha), dtype=torch.float64)


def check_weights(beta2: float | None, alpha: float) -> None:
    """Refuse weights of the context measure that are not positive.

    Raises:
        ValueError: if one of them is not; None stands for a default.
    """
    if (beta2 is not None and not beta2 > 0) or not alpha > 0:
        raise ValueError(f"beta2, alpha: expected positive numbers, found {beta2}, {alpha}")


def context_of(
    prepared: Prepared,
    geometry: MaskGeometry,
    degree: Float64 | None = None,
    beta2: float | None = None,
    alpha: float = 6.0,
) -> float:
    """As ``context_measure``, for a map already prepared, a mask already described and a degree already found.

    Args:
        prepared: the map.
        geometry: of its mask.
        degree: (h, w) from ``camouflage_degree``; None for the variant without an image.
        beta2: see ``context_measure``.
        alpha: see ``context_measure``.
    """
    if beta2 is None:
        beta2 = 1.0 if degree is None else 1.2
    weight = 0.0 if degree is None else degree
    values = prepared.values()
    inside = geometry.mask.astype(np.float64)
    kernel = _context_kernel(geometry.mask, alpha)

    # Forward inference: how likely the context makes each predicted pixel. Single precision as in the reference.
    relevance = cv2.filter2D(inside.astype(np.float32), cv2.CV_32F, kernel)
    forward = float(np.sum((values > 0) * relevance * values) / (values.sum() + EPS))
    # Reverse deduction: how far the prediction around each object pixel accounts for it.
    accounted = 1 - np.exp(-cv2.filter2D(values, -1, kernel))
    reverse = float(np.sum(math.e / (math.e - 1) * inside * accounted * (inside + weight)))
    reverse /= float(inside.sum() + np.sum(weight) + EPS)
    return (1 + beta2) * forward * reverse / (beta2 * forward + reverse + EPS)


def _context_kernel(mask: NDArray[np.bool_], alpha: float) -> Float64:
    """Normalised Gaussian with the mask's covariance, scaled so that the variances sum to ``alpha``²."""
    points = np.argwhere(mask)
    if len(points) <= 1:
        covariance, reach = np.diag([0.25, 0.25]), (1, 1)
    else:
        covariance = np.cov(points, rowvar=False)
        for axis in (0, 1):  # a line along an axis
            covariance[axis, axis] = covariance[axis, axis] or EPS
        total = covariance[0, 0] + covariance[1, 1]
        deviation = alpha * np.sqrt(np.diag(covariance)) / np.sqrt(total)
        reach = (round(3 * deviation[0]), round(3 * deviation[1]))
        covariance = alpha**2 * covariance / total
        if 1 - covariance[0, 1] ** 2 / (covariance[0, 0] * covariance[1, 1]) < 1e-12:
            covariance = np.diag(np.diag(covariance))
    inverse = np.linalg.inv(covariance)
    steps = np.moveaxis(np.mgrid[-reach[0] : reach[0] + 1, -reach[1] : reach[1] + 1], 0, -1)
    kernel = np.exp(-0.5 * np.einsum("...i,ij,...j->...", steps, inverse, steps))
    return kernel / kernel.sum()


def camouflage_degree(
    image: Tensor | NDArray[np.uint8],
    mask: Tensor | NDArray[np.bool_],
    *,
    gamma: float = 8.0,
    spatial_weight: float = 20.0,
) -> Float64:
    """How well each object pixel can be rebuilt from patches of the immediate surroundings.

    Depends on image and mask only. Colours are compared by CIEDE2000.

    Args:
        image: (h, w, 3) uint8, RGB.
        mask: (h, w) bool.
        gamma: sharpness of the exponential that maps similarity to degree.
        spatial_weight: weight of a patch's position against its colours in the search for the nearest.

    Returns:
        (h, w) float64 in [0, 1], 0 outside the object and everywhere if either side is too small for a patch.

    Raises:
        TypeError: if the image is not uint8 or the mask not bool.
        ValueError: if the image is not (h, w, 3) of the mask's size.
    """
    inside = as_mask(mask)
    rgb = to_numpy(image, "image") if isinstance(image, Tensor) else np.asarray(image)
    if rgb.dtype != np.uint8:
        raise TypeError(f"image: expected uint8, found {rgb.dtype}")
    if rgb.shape != (*inside.shape, 3):
        raise ValueError(f"image: expected RGB of shape {(*inside.shape, 3)}, found {rgb.shape}")
    rgb = np.ascontiguousarray(rgb)
    object8 = inside.view(np.uint8)
    grown = np.asarray(cv2.dilate(object8, np.ones((_SURROUNDINGS, _SURROUNDINGS), np.uint8)), dtype=np.uint8)
    around8 = grown - object8

    lab = np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB), dtype=np.uint8)
    object_at, object_patches = _patches(lab, object8)
    around_at, around_patches = _patches(lab, around8)
    degree = np.zeros(inside.shape)
    if len(object_at) == 0 or len(around_at) == 0:
        return degree

    everywhere = np.concatenate((around_at, object_at)).astype(np.float64)
    deviation = everywhere.std(axis=0)
    everywhere = spatial_weight * (everywhere - everywhere.mean(axis=0)) / np.where(deviation == 0, 1, deviation)
    nearest = _nearest(
        np.hstack((around_patches, everywhere[: len(around_at)])).astype(np.float32),
        np.hstack((object_patches, everywhere[len(around_at) :])).astype(np.float32),
    )

    h, w = inside.shape
    total, count = np.zeros((h, w, 3), dtype=np.int64), np.zeros((h, w)) + EPS
    surroundings = rgb * around8[..., None]
    limit = np.array([h - _PATCH, w - _PATCH])  # patches reach into the padding, which is cut off
    targets, sources = np.minimum(object_at, limit), np.minimum(around_at[nearest], limit)
    for (y, x), (v, u) in zip(targets.tolist(), sources.tolist(), strict=True):
        total[y : y + _PATCH, x : x + _PATCH] += surroundings[v : v + _PATCH, u : u + _PATCH]
        count[y : y + _PATCH, x : x + _PATCH] += 1
    rebuilt = np.round(total[inside] / count[inside][:, None]).astype(np.uint8)

    similarity = 1 - np.clip(_ciede2000(_lab(rebuilt), _lab(rgb[inside])) / 100, 0, 1)
    degree[inside] = np.expm1(gamma * similarity) / np.expm1(gamma)
    return degree


def _patches(lab: NDArray[np.uint8], mask: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Upper left corners (n, 2) and colours (n, 147) of the patches of a regular grid that lie inside the mask."""
    h, w = mask.shape
    below, right = -(h - _PATCH) % _STEP, -(w - _PATCH) % _STEP
    padded = np.pad(mask, ((0, below), (0, right)))
    if min(padded.shape) < _PATCH or min(h, w) < _PATCH:
        return np.zeros((0, 2), dtype=np.int64), np.zeros((0, 3 * _PATCH**2), dtype=np.uint8)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (_PATCH, _PATCH))[::_STEP, ::_STEP]
    at = np.argwhere(windows.all(axis=(2, 3)))
    colours = np.pad(lab, ((0, below), (0, right), (0, 0)), mode="reflect")
    views = np.lib.stride_tricks.sliding_window_view(colours, (_PATCH, _PATCH, 3))[::_STEP, ::_STEP, 0]
    return at * _STEP, views[at[:, 0], at[:, 1]].reshape(len(at), 3 * _PATCH**2)


def _nearest(candidates: NDArray[np.float32], queries: NDArray[np.float32]) -> NDArray[np.int64]:
    """Index of the Euclidean nearest candidate to each query, the first of equals."""
    wide = candidates.astype(np.float64)
    half_norm = 0.5 * np.einsum("ij,ij->i", wide, wide)
    found = np.empty(len(queries), dtype=np.int64)
    step = max(1, _PAIRS // len(candidates))
    for first in range(0, len(queries), step):
        block = queries[first : first + step].astype(np.float64)
        found[first : first + step] = np.argmin(half_norm - block @ wide.T, axis=1)
    return found


def _lab(rgb: NDArray[np.uint8]) -> Float64:
    """(n, 3) sRGB of 8 bits to CIE L*a*b* under D65."""
    c = rgb / 255.0
    linear = np.where(c > 0.04045, ((c + 0.055) / 1.055) ** 2.4, c / 12.92)
    t = linear @ _RGB_TO_XYZ.T / _D65
    x, y, z = np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116).T
    return np.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), axis=-1)


def _ciede2000(lab1: Float64, lab2: Float64) -> Float64:
    """(n,) colour differences, parametric weights 1 (Sharma, Wu, Dalal, Color Res. Appl. 2005)."""
    (l1, a1, b1), (l2, a2, b2) = lab1.T, lab2.T

    def saturation(chroma: Float64) -> Float64:
        return np.sqrt(chroma**7 / (chroma**7 + 25.0**7))

    stretch = 1.5 - 0.5 * saturation((np.hypot(a1, b1) + np.hypot(a2, b2)) / 2)
    c1, c2 = np.hypot(a1 * stretch, b1), np.hypot(a2 * stretch, b2)
    h1, h2 = (np.arctan2(b, a * stretch) % (2 * np.pi) for a, b in ((a1, b1), (a2, b2)))
    grey = c1 * c2 == 0

    turn = h2 - h1
    wrapped = np.abs(turn) > np.pi
    difference = np.where(grey, 0.0, np.where(wrapped, turn - np.sign(turn) * 2 * np.pi, turn))
    total = h1 + h2
    middle = np.where(wrapped & ~grey, total + np.where(total < 2 * np.pi, 2, -2) * np.pi, total)
    # With a grey partner the hue of the other one counts in full.
    hue = np.where(grey, total, middle / 2)

    lightness, chroma = (l1 + l2) / 2, (c1 + c2) / 2
    degrees = np.deg2rad
    t = (
        1
        - 0.17 * np.cos(hue - degrees(30))
        + 0.24 * np.cos(2 * hue)
        + 0.32 * np.cos(3 * hue + degrees(6))
        - 0.20 * np.cos(4 * hue - degrees(63))
    )
    off = (lightness - 50) ** 2
    lighter = (l2 - l1) / (1 + 0.015 * off / np.sqrt(20 + off))
    stronger = (c2 - c1) / (1 + 0.045 * chroma)
    turned = 2 * np.sqrt(c1 * c2) * np.sin(difference / 2) / (1 + 0.015 * chroma * t)
    rotation = degrees(30) * np.exp(-(((np.rad2deg(hue) - 275) / 25) ** 2))
    cross = -np.sin(2 * rotation) * 2 * saturation(chroma) * stronger * turned
    return np.sqrt(np.maximum(lighter * lighter + stronger * stronger + turned * turned + cross, 0))
