"""All scores of one image at once: the unit of work to hand to a pool of threads or processes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from e2net.metrics.context import camouflage_degree, context_of
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
from e2net.metrics.protocol import MaskProtocol

DEFAULT_SCORES = ("S", "Fmax", "Fmean", "Fadp", "wF", "Emax", "Emean", "Eadp", "MAE")
"""What tables of the field report."""

EXTRA_SCORES = ("FmaxPR", "IoU", "Dice", "BER", "P", "R", "bMAE", "bwF", "C", "wC")
"""What can be asked for beside them."""

ALL_SCORES = (*DEFAULT_SCORES, *EXTRA_SCORES)
"""Every name that ``score_map`` and ``MapScores`` know.

S, MAE: structure measure, mean absolute error. Fmax, Fmean, Fadp and Emax, Emean, Eadp: F (beta² 0.3) and E
over 256 thresholds and at the adaptive one. FmaxPR: F of averaged precision and recall, the other definition
of a data set's maximum (for one image it is Fmax). wF: weighted F (beta² 1). IoU, Dice, BER, P, R: of the decision
at 0.5; P and R are precision and recall. bMAE, bwF: MAE and weighted F within 15 px of the contour, NaN for masks
without one. C: context measure. wC: the same weighted by the degree of camouflage, which takes the image, and far more
time than all others together.
"""

IMAGE_SCORES = ("wC",)
"""Those that cannot do without the image."""

OwnScores = Mapping[str, Callable[[NDArray[np.float64], NDArray[np.bool_]], float]]
"""Further scores of a task of one's own, by name: of a prepared map (h, w) float64 in [0, 1] and a mask (h, w) bool."""

CURVES = ("F", "E", "precision", "recall")
"""Names of the 256-point curves, in the order in which they are stored."""


@dataclass(frozen=True)
class ImageScores:
    """Scores of one image. Plain Python and NumPy, so that it can be pickled.

    Attributes:
        values: score name to value; fractions, never percent.
        curves: (4, 256) float64, rows as in ``CURVES``, columns the thresholds 0..255.
        levels: (2, 256) int32, pixels of each 8-bit level before any stretch, of background and foreground.
    """

    values: dict[str, float]
    curves: NDArray[np.float64] = field(repr=False)
    levels: NDArray[np.int32] = field(repr=False)


def check_scores(scores: Sequence[str], own: Iterable[str] = ()) -> tuple[str, ...]:
    """Reject unknown and repeated score names.

    Args:
        scores: the names.
        own: which are known beside ``ALL_SCORES``.

    Raises:
        ValueError: naming the culprits and what is known.
    """
    if isinstance(scores, str):
        raise ValueError(f"scores: expected a sequence of names, found {scores!r}")
    known = tuple(dict.fromkeys((*ALL_SCORES, *own)))
    unknown = [s for s in scores if s not in known]
    if unknown or not scores or len(set(scores)) != len(scores):
        raise ValueError(f"scores: expected distinct names out of {known}, found {tuple(scores)}")
    return tuple(scores)


def score_map(
    map: Tensor | NDArray[np.generic],
    mask: Tensor | NDArray[np.bool_],
    *,
    protocol: MaskProtocol | None = None,
    geometry: MaskGeometry | None = None,
    scores: Sequence[str] = DEFAULT_SCORES,
    image: Tensor | NDArray[np.uint8] | None = None,
    own: OwnScores | None = None,
) -> ImageScores:
    """Score one map under a protocol. Holds no state and can run in any thread or process.

    Args:
        map: (h, w) uint8 levels, or floating-point probabilities in [0, 1], of the mask's size.
        mask: (h, w) bool.
        protocol: by default 8-bit and stretched, as published tables.
        geometry: of this mask; saves the distance transform when the same mask comes again.
        scores: which of ``ALL_SCORES`` and ``own`` to compute.
        image: (h, w, 3) uint8, RGB, at the mask's size; only the ``IMAGE_SCORES`` look at it.
        own: further scores, by name.

    Raises:
        TypeError: if map, mask or image have the wrong type.
        ValueError: if they don't fit each other, the map leaves [0, 1], a score is unknown, or one needs the image and
            there is none.
    """
    pairs = [(map, protocol or MaskProtocol())]
    return score_maps_of(pairs, mask, geometry=geometry, scores=scores, image=image, own=own)[0]


def score_maps_of(
    maps: Sequence[tuple[Tensor | NDArray[np.generic], MaskProtocol]],
    mask: Tensor | NDArray[np.bool_],
    *,
    geometry: MaskGeometry | None = None,
    scores: Sequence[str] = DEFAULT_SCORES,
    image: Tensor | NDArray[np.uint8] | None = None,
    own: OwnScores | None = None,
) -> list[ImageScores]:
    """As ``score_map``, for several maps of one mask, each with its protocol: what they share is found once."""
    own = own or {}
    scores = check_scores(scores, own)
    degree = None
    if set(scores) & set(IMAGE_SCORES):
        if image is None:
            raise ValueError(f"{', '.join(IMAGE_SCORES)}: expected the image of the mask, found none; pass image=...")
        degree = camouflage_degree(image, mask)
    if geometry is None:
        geometry = MaskGeometry(mask)
        mask = geometry.mask  # is checked, and need not be again
    return [_score(*pair(map, mask, protocol, geometry), scores, degree, own) for map, protocol in maps]


def _score(
    prepared: Prepared,
    geometry: MaskGeometry,
    scores: tuple[str, ...],
    degree: NDArray[np.float64] | None,
    own: OwnScores,
) -> ImageScores:
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
        "IoU": overlap.iou,
        "Dice": overlap.dice,
        "BER": overlap.ber,
        "P": overlap.precision,
        "R": overlap.recall,
    }
    if "wF" in scores:
        found["wF"] = weighted_f_of(prepared, geometry)
    if "bMAE" in scores or "bwF" in scores:
        found["bMAE"], found["bwF"] = boundary_of(prepared, geometry)
    if "C" in scores:
        found["C"] = context_of(prepared, geometry)
    if "wC" in scores:
        found["wC"] = context_of(prepared, geometry, degree)
    for name in own.keys() & set(scores):
        found[name] = float(own[name](prepared.values(), geometry.mask))
    curves = np.stack((f, e, precision, recall))
    return ImageScores({name: found[name] for name in scores}, curves, s.levels.astype(np.int32))
