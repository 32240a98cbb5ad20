"""Scores of one depth map against its target, in metres.

As published for NYU-v2 and KITTI (Eigen et al. 2014 and the code of BTS, AdaBins and DINOv2): each score is taken over
the valid pixels of an image, and a set's score is the mean over images, those without a valid pixel left out. (A root
of the mean over all pixels of a set would be another RMSE.)
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from e2net.metrics.geometry import to_numpy
from e2net.metrics.protocol import ResultProtocol

Depth = Tensor | NDArray[np.floating[Any]]

HIGHER_IS_BETTER = {
    **dict.fromkeys(("AbsRel", "RMSE", "RMSElog", "log10", "SILog"), False),
    **dict.fromkeys(("d1", "d2", "d3"), True),
}
"""The scores in the order of tables, and their direction.

Of prediction p and target t: AbsRel: mean of |p - t| / t. RMSE: in metres. RMSElog: of natural logarithms. log10: mean
|log10 p - log10 t|. SILog: 100 times the standard deviation of ln p - ln t, as tables have it. d1, d2, d3: share of
pixels whose ratio, the greater over the smaller, is below 1.25, 1.25² and 1.25³.
"""


@dataclass(frozen=True)
class DepthProtocol(ResultProtocol):
    """What of a depth map is scored, and how.

    Attributes:
        minimum, maximum: metres; targets outside count nowhere, predictions outside are moved there.
        median_scaling: multiply each prediction by the target's median over its own first.
        eigen_crop: score within :func:`eigen_crop` only, as NYU-v2 is.

    Raises:
        ValueError: an empty range.
    """

    minimum: float = 0.001
    maximum: float = 10.0
    median_scaling: bool = False
    eigen_crop: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.minimum < self.maximum:
            raise ValueError(
                f"protocol: expected 0 < minimum < maximum in metres, found {self.minimum} and {self.maximum}"
            )

    def describe(self) -> dict[str, Any]:
        """Plain values for a score file."""
        return asdict(self)


def score_depth(depth: Depth, target: Depth, protocol: DepthProtocol) -> dict[str, float]:
    """:func:`depth_scores` under a protocol."""
    return depth_scores(
        depth,
        target,
        protocol.minimum,
        protocol.maximum,
        median_scaling=protocol.median_scaling,
        crop=protocol.eigen_crop,
    )


def depth_scores(
    depth: Depth,
    target: Depth,
    minimum: float = 0.001,
    maximum: float = 10.0,
    *,
    median_scaling: bool = False,
    crop: bool = False,
) -> dict[str, float]:
    """Scores of one image, by the names of ``HIGHER_IS_BETTER``.

    Args:
        depth: (h, w) metres, floating point; taken to be within [minimum, maximum], nearer and farther ones moved
            there.
        target: (h, w) metres, floating point. Valid where it is within [minimum, maximum]; NaN and 0 are not.
        minimum: in metres, above 0.
        maximum: in metres.
        median_scaling: multiply the prediction first by the target's median over its own, for methods that know depth
            up to a factor (Zhou et al. 2017). Such scores are not comparable with others: name it beside them.
        crop: score within ``eigen_crop`` only.

    Returns:
        Floats, all NaN where no pixel is valid.

    Raises:
        TypeError: no floating point, such as millimetres as they are in a file.
        ValueError: sizes that don't fit, an empty range, a NaN in the prediction, or one without a scale.
    """
    if not 0 < minimum < maximum:
        raise ValueError(f"expected 0 < minimum < maximum in metres, found {minimum} and {maximum}")
    predicted, truth = _as_depth(depth, "depth"), _as_depth(target, "target")
    if predicted.shape != truth.shape:
        raise ValueError(f"expected a depth map of the target's size {truth.shape}, found {predicted.shape}")
    if crop:
        inside = eigen_crop(*truth.shape)
        predicted, truth = predicted[inside], truth[inside]
    valid = (truth >= minimum) & (truth <= maximum)
    if not valid.any():
        return dict.fromkeys(HIGHER_IS_BETTER, float("nan"))
    p, t = predicted[valid].astype(np.float64), truth[valid].astype(np.float64)
    if np.isnan(p).any():
        # Not a NaN score: that image would be left out of the mean, in favour of the method.
        raise ValueError(f"depth: expected metres, found NaN at {np.isnan(p).sum()} of {p.size} valid pixels")
    if median_scaling:
        p = p * _scale(p, t)
    return _scores(p.clip(minimum, maximum), t)


def eigen_crop(height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns that NYU-v2 is scored in: 45 to 470 and 41 to 600 of 480x640 pixels (Eigen et al. 2014).

    Kinect has no depth along the border. Published only for 480x640; other sizes take the same shares, rounded.
    """
    rows = slice(round(45 / 480 * height), round(471 / 480 * height))
    return rows, slice(round(41 / 640 * width), round(601 / 640 * width))


def _scores(p: NDArray[np.float64], t: NDArray[np.float64]) -> dict[str, float]:
    """Of predictions (n,) and targets (n,), all above 0."""
    log_ratio = np.log(p) - np.log(t)
    ratio = np.maximum(p / t, t / p)
    found = {
        "AbsRel": np.mean(np.abs(p - t) / t),
        "RMSE": np.sqrt(np.mean(np.square(p - t))),
        "RMSElog": np.sqrt(np.mean(np.square(log_ratio))),
        "log10": np.mean(np.abs(log_ratio)) / np.log(10),
        "SILog": 100 * np.std(log_ratio),
        "d1": np.mean(ratio < 1.25),
        "d2": np.mean(ratio < 1.25**2),
        "d3": np.mean(ratio < 1.25**3),
    }
    return {name: float(found[name]) for name in HIGHER_IS_BETTER}


def _scale(p: NDArray[np.float64], t: NDArray[np.float64]) -> float:
    median = float(np.median(p))
    if not 0 < median < np.inf:
        raise ValueError(f"depth: expected a median above 0 to scale by, found {median}; leave median scaling off")
    return float(np.median(t)) / median


def _as_depth(depth: Depth, what: str) -> NDArray[np.floating[Any]]:
    if isinstance(depth, Tensor) and depth.is_floating_point():
        depth = depth.double()  # NumPy has no bfloat16
    array = to_numpy(depth, what) if isinstance(depth, Tensor) else np.asarray(depth)
    if not np.issubdtype(array.dtype, np.floating):
        raise TypeError(f"{what}: expected metres in floating point, found {array.dtype}; divide by the file's scale")
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"{what}: expected one non-empty depth map (h, w), found shape {array.shape}")
    return array
