"""All scores of one image at once: the unit of work to hand to a pool of threads or processes."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from e2net.metrics.functional import (
    Prepared,
    boundary_of,
    e_from,
    f_from,
    overlap_from,
    pair,
    s_from,
    statistics_of,
    weighted_f_of,
)
from e2net.metrics.geometry import MaskGeometry
from e2net.metrics.protocol import Protocol

DEFAULT_SCORES = ("S", "Fmax", "Fmean", "Fadp", "wF", "Emax", "Emean", "Eadp", "MAE")
"""What tables of the field report."""

ALL_SCORES = (*DEFAULT_SCORES, "FmaxPR", "IoU", "Dice", "BER", "bMAE", "bwF")
"""Every name that ``score_map`` and ``MapScores`` know.

S, MAE: structure measure, mean absolute error. Fmax, Fmean, Fadp and Emax, Emean, Eadp: F (beta² 0.3) and E
over 256 thresholds and at the adaptive one. FmaxPR: F of averaged precision and recall, the other definition
of a data set's maximum (for one image it is Fmax). wF: weighted F (beta² 1). IoU, Dice, BER: of the decision
at 0.5. bMAE, bwF: MAE and weighted F within 15 px of the contour, NaN for masks without one.
"""

CURVES = ("F", "E", "precision", "recall")
"""Names of the 256-point curves, in the order in which they are stored."""


@dataclass(frozen=True)
class ImageScores:
    """Scores of one image. Plain Python and NumPy, so that it can be pickled.

    Attributes:
        values: score name to value; fractions, never percent.
        curves: (4, 256) float64, rows as in ``CURVES``, columns the thresholds 0..255.
    """

    values: dict[str, float]
    curves: NDArray[np.float64] = field(repr=False)


def check_scores(scores: Sequence[str]) -> tuple[str, ...]:
    """Reject unknown and repeated score names.

    Raises:
        ValueError: naming the culprits and what is known.
    """
    if isinstance(scores, str):
        raise ValueError(f"scores: expected a sequence of names, got {scores!r}")
    unknown = [s for s in scores if s not in ALL_SCORES]
    if unknown or not scores or len(set(scores)) != len(scores):
        raise ValueError(f"scores: expected distinct names out of {ALL_SCORES}, got {tuple(scores)}")
    return tuple(scores)


def score_map(
    map: Tensor | NDArray[np.generic],
    mask: Tensor | NDArray[np.bool_],
    *,
    protocol: Protocol | None = None,
    geometry: MaskGeometry | None = None,
    scores: Sequence[str] = DEFAULT_SCORES,
) -> ImageScores:
    """Score one map under a protocol. Holds no state and can run in any thread or process.

    Args:
        map: (h, w) uint8 levels, or floating-point probabilities in [0, 1], of the mask's size.
        mask: (h, w) bool.
        protocol: by default 8-bit and stretched, as published tables.
        geometry: of this mask; saves the distance transform when the same mask comes again.
        scores: which of ``ALL_SCORES`` to compute.

    Raises:
        TypeError: if map or mask have the wrong type.
        ValueError: if they don't fit each other, the map leaves [0, 1], or a score is unknown.
    """
    scores = check_scores(scores)
    prepared, geometry = pair(map, mask, protocol or Protocol(), geometry)
    return _score(prepared, geometry, scores)


def _score(prepared: Prepared, geometry: MaskGeometry, scores: tuple[str, ...]) -> ImageScores:
    s = statistics_of(prepared, geometry)
    f, precision, recall, f_adaptive = f_from(s)
    e, e_adaptive = e_from(s)
    overlap = overlap_from(s)
    found = {
        "S": s_from(s),
        "Fmax": float(f.max()),
        "Fmean": float(f.mean()),
        "Fadp": f_adaptive,
        "FmaxPR": float(f.max()),
        "Emax": float(e.max()),
        "Emean": float(e.mean()),
        "Eadp": e_adaptive,
        "MAE": s.absolute_error / s.size,
        "IoU": overlap[0],
        "Dice": overlap[1],
        "BER": overlap[2],
    }
    if "wF" in scores:
        found["wF"] = weighted_f_of(prepared, geometry)
    if "bMAE" in scores or "bwF" in scores:
        found["bMAE"], found["bwF"] = boundary_of(prepared, geometry)
    return ImageScores({name: found[name] for name in scores}, np.stack((f, e, precision, recall)))
