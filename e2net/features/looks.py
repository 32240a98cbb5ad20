"""What patches look like: principal components as colours, cosine similarity, norms, and maps sharpened by the picture.

The principal components as in DINOv2 (arXiv:2304.07193, section 7.6) and DINOv3 (arXiv:2508.10104).
"""

from collections.abc import Iterable, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from e2net.features.extract import Extractor, Features
from e2net.pictures import Picture

Map = NDArray[np.float32]
# Of the guided filter: variance of the picture, in [0, 1]², below which it has no edge.
_FLAT = 1e-3


def pca(
    extractor: Extractor, pictures: Iterable[Picture] | Picture, foreground: bool = True, batch_size: int = 8
) -> list[Map]:
    """The patches of pictures as colours; one basis for all, so that alike patches have one colour everywhere.

    Args:
        extractor: which features; of the last of its blocks.
        pictures: see :class:`Extractor`.
        foreground: see :func:`components`.
        batch_size: pictures for each step of the network.

    Returns:
        A picture each: (h, w, 3) float32 in [0, 1], RGB, a pixel a patch.
    """
    return components([one.patches for one in extractor(pictures, batch_size)], foreground)


def similarity(
    extractor: Extractor,
    pictures: Iterable[Picture] | Picture,
    place: Sequence[int],
    batch_size: int = 8,
) -> list[Map]:
    """Cosine of every patch to a place in the first picture.

    Args:
        extractor: which features; of the last of its blocks.
        pictures: see :class:`Extractor`.
        place: x, y of a point, or left, top, right, bottom of a box, in pixels of the first picture as it came.
        batch_size: pictures for each step of the network.

    Returns:
        A map each: (h, w) float32 in [-1, 1].

    Raises:
        ValueError: the place is not in the picture.
    """
    return similarities(list(extractor(pictures, batch_size)), place)


def norms(extractor: Extractor, pictures: Iterable[Picture] | Picture, batch_size: int = 8) -> list[Map]:
    """The length of every patch's vector: (h, w) float32 for each picture.

    A few patches that are many times as long as the rest are what registers are there to prevent (arXiv:2309.16588).
    They show without the final norm, which makes all lengths alike: ``Extractor(..., norm=False)``.
    """
    return [lengths(one.patches) for one in extractor(pictures, batch_size)]


def lengths(patches: Map) -> Map:
    """(h, w, D) -> (h, w), Euclidean."""
    return np.linalg.norm(patches, axis=-1).astype(np.float32)


def components(patches: Sequence[Map], foreground: bool = True) -> list[Map]:
    """The first three principal components of the patches of pictures, in one basis, as colours.

    Each is whitened, and sigmoid(2x) makes it a channel. Signs are such that the result is always the same.

    Args:
        patches: (h, w, D) of each picture; sizes may differ.
        foreground: of the foreground alone, the rest black; see :func:`foregrounds`.

    Returns:
        (h, w, 3) float32 in [0, 1] for each picture.
    """
    rows = [one.reshape(-1, one.shape[-1]).astype(np.float64) for one in patches]
    masks = [one.ravel() for one in foregrounds(patches)] if foreground else [np.ones(len(one), bool) for one in rows]
    kept = np.concatenate([one[mask] for one, mask in zip(rows, masks, strict=True)])
    mean = kept.mean(0)
    basis, spread = _principal(kept - mean, 3)
    found = []
    for one, mask, whole in zip(rows, masks, patches, strict=True):
        white = (one - mean) @ basis / np.maximum(spread, 1e-12)
        colours = 1 / (1 + np.exp(-2 * white.clip(-30, 30)))
        found.append((colours * mask[:, None]).reshape(*whole.shape[:2], 3).astype(np.float32))
    return found


def foregrounds(patches: Sequence[Map]) -> list[NDArray[np.bool_]]:
    """Which patches are foreground by the first principal component of all: (h, w) bool for each picture.

    Otsu's threshold cuts the component in two; foreground is the part that is rarer on the pictures' borders. All is
    foreground where that part has less than four patches.
    """
    rows = np.concatenate([one.reshape(-1, one.shape[-1]) for one in patches]).astype(np.float64)
    mean = rows.mean(0)
    basis, _ = _principal(rows - mean, 1)
    maps = [((one - mean) @ basis)[..., 0] for one in patches]
    level = _otsu(np.concatenate([one.ravel() for one in maps]))
    masks = [one > level for one in maps]
    borders = np.concatenate([mask[_border(mask.shape)] for mask in masks])
    if borders.mean() > np.concatenate([mask.ravel() for mask in masks]).mean():
        masks = [~mask for mask in masks]
    if sum(int(mask.sum()) for mask in masks) < 4:
        return [np.ones_like(mask) for mask in masks]
    return masks


def similarities(features: Sequence[Features], place: Sequence[int]) -> list[Map]:
    """As :func:`similarity`, of features at hand."""
    chosen = patches_at(features[0], place)
    units = [_unit(one.patches) for one in features]
    query = _unit(units[0][chosen].mean(0))
    return [(one @ query).astype(np.float32) for one in units]


def patches_at(features: Features, place: Sequence[int]) -> NDArray[np.bool_]:
    """(h, w) bool: the patch of a point, or those whose centres lie in a box, at least the one of its middle.

    Args:
        features: of the picture.
        place: as in :func:`similarity`.

    Raises:
        ValueError: the place is not in the picture, or no place.
    """
    height, width = features.size
    if len(place) not in (2, 4):
        raise ValueError(f"expected x,y of a point or left,top,right,bottom of a box, found {len(place)} numbers")
    left, top, right, bottom = place if len(place) == 4 else (*place, *place)
    if not (0 <= left <= right < width and 0 <= top <= bottom < height):
        raise ValueError(
            f"expected a place within {features.name}, 0 to {width - 1} across and 0 to {height - 1} down, found "
            f"{','.join(map(str, place))}"
        )
    rows, columns = features.patches.shape[:2]
    across = (np.arange(columns) + 0.5) * width / columns - 0.5
    down = (np.arange(rows) + 0.5) * height / rows - 0.5
    inside = ((top <= down) & (down <= bottom))[:, None] & ((left <= across) & (across <= right))[None]
    middle = int(((top + bottom) / 2 + 0.5) * rows / height), int(((left + right) / 2 + 0.5) * columns / width)
    if len(place) == 2:
        inside[:] = False
    inside[middle] = True
    return inside


def sharpened(values: Map, picture: NDArray[np.uint8], stride: int) -> Map:
    """A map of patches at the picture's size, its edges where the picture has some.

    The guided filter (He, Sun & Tang 2013) with the picture's colours as its guide: in each window of a patch's width
    the map is a linear function of the colours. It has a closed form, knows no training and takes any encoder's maps;
    it moves edges by less than a patch and adds nothing that the picture does not have.

    Args:
        values: (h, w) or (h, w, C).
        picture: (H, W, 3) uint8.
        stride: pixels a patch.

    Returns:
        (H, W) or (H, W, C) float32, within the range of ``values``.
    """
    height, width = picture.shape[:2]
    large = cv2.resize(values.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    large = large.reshape(height, width, -1)
    guide = picture.astype(np.float32) / 255
    side = 2 * stride + 1

    def mean(of: NDArray[Any]) -> NDArray[np.float32]:
        return np.stack([cv2.blur(of[..., c], (side, side)) for c in range(of.shape[-1])], axis=-1)

    middle, level = mean(guide), mean(large)
    pairs = np.stack([mean(guide * guide[..., k : k + 1]) for k in range(3)], axis=2)
    covariance = pairs - middle[..., :, None] * middle[..., None, :] + _FLAT * np.eye(3, dtype=np.float32)
    mixed = np.stack([mean(large * guide[..., k : k + 1]) for k in range(3)], axis=2)
    slope = np.linalg.solve(covariance, mixed - middle[..., :, None] * level[..., None, :])
    offset = level - np.einsum("hwk,hwkc->hwc", middle, slope)
    slope = np.stack([mean(np.ascontiguousarray(slope[:, :, k])) for k in range(3)], axis=2)
    found = np.einsum("hwk,hwkc->hwc", guide, slope) + mean(offset)
    return found.clip(values.min(), values.max()).reshape(height, width, *values.shape[2:]).astype(np.float32)


def _unit(vectors: NDArray) -> NDArray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def _principal(centred: NDArray[np.float64], count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Directions (D, count) by falling spread, and the standard deviations along them."""
    values, vectors = np.linalg.eigh(centred.T @ centred / max(len(centred), 1))
    vectors = vectors[:, ::-1][:, :count]
    largest = np.abs(vectors).argmax(0)
    return vectors * np.sign(vectors[largest, np.arange(vectors.shape[1])]), np.sqrt(values[::-1][:count].clip(0))


def _otsu(values: NDArray[np.float64]) -> float:
    """The level that leaves the least variance within the two parts (Otsu 1979), exact over all levels."""
    ordered = np.sort(values)
    count = np.arange(1, len(ordered))
    below = ordered.cumsum()[:-1]
    between = count * (len(ordered) - count) * (below / count - (ordered.sum() - below) / (len(ordered) - count)) ** 2
    best = int(between.argmax()) if len(between) else 0
    return float((ordered[best] + ordered[min(best + 1, len(ordered) - 1)]) / 2)


def _border(shape: tuple[int, ...]) -> NDArray[np.bool_]:
    edge = np.ones(shape, bool)
    edge[1:-1, 1:-1] = False
    return edge
