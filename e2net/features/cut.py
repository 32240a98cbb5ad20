"""The foreground of one picture from its features alone."""

from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

Cut = Literal["spectral", "pca"]
_WEAK = 1e-5  # the weight of unlike patches: the graph stays in one piece
_FEW = 200  # patches up to which all eigenvectors are found
_STEPS = 200


def spectral(patches: NDArray[Any], threshold: float = 0.0) -> NDArray[np.float32]:
    """The normalised cut of the graph of patches.

    Patches whose cosine is above the threshold are joined by 1, all others by nearly nothing; the second smallest
    eigenvector of (D - W) y = λ D y divides them. Source: TokenCut (Wang et al., 2022), after Shi and Malik, 2000; but
    the patches' mean is taken off first, as in some encoders all patches of a picture are alike.

    Args:
        patches: (h, w, D).
        threshold: of the cosine.

    Returns:
        (h, w) float32, the eigenvector less its mean, its sign as it comes (see :func:`oriented`).
    """
    rows = torch.as_tensor(np.ascontiguousarray(patches)).float().flatten(0, 1)
    unit = normalize(rows - rows.mean(0), dim=1)
    weights = ((unit @ unit.T) > threshold).double().clamp_min(_WEAK)
    root = weights.sum(1).sqrt()
    # D^-1/2 W D^-1/2 has the eigenvalues 1 - λ and, for λ = 0, the eigenvector D^1/2 1, which is taken out.
    first = root / root.norm()
    matrix = weights / root[:, None] / root - torch.outer(first, first)
    if len(rows) < _FEW:
        _, vectors = torch.linalg.eigh(matrix)
        second = vectors[:, -1]
    else:  # some 10 times as fast
        start = torch.randn(len(rows), 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        _, found = torch.lobpcg(matrix, X=start, largest=True, niter=_STEPS, tol=1e-6)
        second = found[:, 0]
    values = second / root
    return (values - values.mean()).reshape(patches.shape[:2]).float().numpy()


def principal(patches: NDArray[Any]) -> NDArray[np.float32]:
    """Patches (h, w, D) on their first principal component, (h, w) float32, its sign as it comes."""
    rows = torch.as_tensor(np.ascontiguousarray(patches)).float().flatten(0, 1)
    rows = rows - rows.mean(0)
    _, vectors = torch.linalg.eigh((rows.T @ rows).double())
    return (rows @ vectors[:, -1].float()).reshape(patches.shape[:2]).numpy()


def oriented(values: NDArray[np.float32], side: Literal["border", "seed"] = "border") -> NDArray[np.float32]:
    """The same, its sign such that what is above 0 is the object.

    Args:
        values: (h, w), about 0.
        side: ``border``: the side that has the smaller share of the picture's rim; ``seed``: the side that has the
            largest absolute value, as TokenCut has it.
    """
    if side == "seed":
        return values if values.flat[np.abs(values).argmax()] > 0 else -values
    rim = np.concatenate([values[0], values[-1], values[1:-1, 0], values[1:-1, -1]])
    inside = (values > 0).mean()
    # The side whose share of the rim is the smaller, against its share of the picture.
    return values if (rim > 0).mean() <= inside else -values


def largest_part(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """What is above 0 and does not hang together (by edges) with the largest value is put to the other side of 0."""
    count, parts = cv2.connectedComponents((values > 0).astype(np.uint8), connectivity=4)
    if count <= 2:
        return values
    kept = parts == parts.flat[values.argmax()]
    return np.where((values > 0) & ~kept, -np.abs(values), values)


def as_probability(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The sigmoid of values (h, w) in units of half of their spread: 0 becomes 0.5."""
    spread = float(np.sqrt(np.square(values).mean()))
    return (1 / (1 + np.exp(-2 * values / max(spread, 1e-12)))).astype(np.float32)


def foreground_of(
    patches: NDArray[Any], method: Cut = "pca", threshold: float = 0.0, largest: bool = True
) -> NDArray[np.float32]:
    """The foreground of one picture.

    Args:
        patches: (h, w, D).
        method: ``pca`` or ``spectral``.
        threshold: of ``spectral``.
        largest: keep the connected part alone that holds the strongest patch.

    Returns:
        (h, w) float32, how likely each patch is foreground; above 0.5 is the mask.
    """
    values = oriented(spectral(patches, threshold) if method == "spectral" else principal(patches))
    return as_probability(largest_part(values) if largest else values)
