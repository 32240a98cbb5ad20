"""How a prediction becomes the map that is scored.

The same network gets different scores depending on steps that papers rarely state: whether the map went
through an 8-bit PNG, whether the scorer stretched it to its own minimum and maximum, whether it was
thresholded first. A ``MaskProtocol`` names these choices, so that they can be fixed once and written next to the
scores.
"""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

Normalize = Literal["minmax", "as_is"]


def check_probability(prob: Tensor, what: str = "prob") -> None:
    """Reject anything but one finite floating-point map with values in [0, 1].

    Args:
        prob: candidate map, (h, w).
        what: how the message names it.

    Raises:
        TypeError: if ``prob`` is not a floating-point tensor.
        ValueError: if it is not two-dimensional, is empty, or leaves [0, 1] (NaN included).
    """
    if not isinstance(prob, Tensor) or not prob.is_floating_point():
        found = prob.dtype if isinstance(prob, Tensor) else type(prob).__name__
        raise TypeError(f"{what}: expected a floating-point tensor of probabilities, found {found}")
    if prob.ndim != 2 or prob.numel() == 0:
        raise ValueError(
            f"{what}: expected one non-empty map (h, w), found shape {tuple(prob.shape)}; score one at a time"
        )
    low, high = (float(x) for x in torch.aminmax(prob.detach()))
    if not (low >= 0.0 and high <= 1.0):
        raise ValueError(
            f"{what}: expected values in [0, 1], found [{low:g}, {high:g}]; pass logits through a sigmoid first"
        )


def to_map(prob: Tensor, size: tuple[int, int]) -> Tensor:
    """Turn a probability map into the 8-bit map that would be saved as a PNG.

    Resizes bilinearly (``align_corners=False``, no antialiasing), multiplies by 255 and rounds half to even.

    Args:
        prob: (H, W) floating point in [0, 1], any device.
        size: (h, w) in pixels, the mask's own size.

    Returns:
        (h, w) uint8 on the same device.

    Raises:
        TypeError: if ``prob`` is not floating point.
        ValueError: if ``prob`` is not one map in [0, 1], or if ``size`` is not two positive integers.
    """
    check_probability(prob)
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size: expected (h, w) with both at least 1 pixel, found {tuple(size)}")
    prob = _resize(prob, size)
    return (prob * 255).round_().clamp_(0, 255).to(torch.uint8)  # of a large picture there is one copy at a time


def _resize(prob: Tensor, size: tuple[int, int]) -> Tensor:
    # Half precision has a step of 1/256 near one, coarser than the 1/255 asked for below.
    if prob.dtype in (torch.float16, torch.bfloat16):
        prob = prob.float()
    if tuple(prob.shape) == tuple(size):
        return prob
    return F.interpolate(prob[None, None], size=tuple(size), mode="bilinear", align_corners=False)[0, 0]


class ResultProtocol:
    """How a result is prepared before it is scored; each kind of task has its own."""

    def describe(self) -> dict[str, Any]:
        """Plain values for a score file."""
        raise NotImplementedError


@dataclass(frozen=True)
class MaskProtocol(ResultProtocol):
    """What happens to a prediction before it is scored.

    The order is fixed: resize, threshold (if asked), quantise (if asked), stretch (if asked).

    Attributes:
        quantise: round the map to the 256 levels of a PNG. Published tables score saved PNG files.
        normalize: "minmax" stretches each map so that its own minimum becomes 0 and its maximum 1, as
            PySODMetrics does by default and hence most published tables; a constant map stays as it is.
            "as_is" scores the values themselves.
        binarise: replace the map by its decision at 0.5 first. Scores of binary and of soft maps are not
            comparable.
    """

    quantise: bool = True
    normalize: Normalize = "minmax"
    binarise: bool = False

    resize: ClassVar[str] = "bilinear, align_corners=False, no antialiasing, to the mask's own size"

    def __post_init__(self) -> None:
        for name in ("quantise", "binarise"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise ValueError(f"protocol.{name}: expected True or False, found {value!r}")
        names = get_args(Normalize)
        if self.normalize not in names:
            raise ValueError(f"protocol.normalize: expected one of {names}, found {self.normalize!r}")

    def describe(self) -> dict[str, Any]:
        """Plain values for a score file: the fields, the resize rule and the thresholds' definition."""
        return {
            **asdict(self),
            "resize": self.resize,
            "curve": "256 thresholds, mean over images, then max or mean",
        }

    def resize_map(self, prob: Tensor, size: tuple[int, int]) -> Tensor:
        """Bring a probability map to the mask's size, as 8-bit levels if the protocol quantises.

        Args:
            prob: (H, W) floating point in [0, 1].
            size: (h, w) in pixels.

        Returns:
            (h, w): uint8 when ``quantise``, else floating point in [0, 1].

        Raises:
            TypeError, ValueError: as ``to_map``.
        """
        if self.quantise and not self.binarise:
            return to_map(prob, size)
        check_probability(prob)
        prob = _resize(prob, size).clamp(0, 1)
        if self.binarise:
            prob = (prob > 0.5).to(prob.dtype)
        return (prob * 255).round().to(torch.uint8) if self.quantise else prob

    def levels(self, map: Tensor) -> Tensor:
        """Apply the threshold and the rounding, but not the stretch.

        Args:
            map: (h, w), uint8 levels or floating-point probabilities in [0, 1].

        Returns:
            (h, w): uint8 wherever 8 bits suffice (8-bit input, or ``quantise``), else floating point.

        Raises:
            TypeError: if the type is neither.
            ValueError: if it is not one map, or leaves [0, 1].
        """
        if isinstance(map, Tensor) and map.dtype == torch.uint8:
            if map.ndim != 2 or map.numel() == 0:
                raise ValueError(f"map: expected one non-empty map (h, w), found shape {tuple(map.shape)}")
            return (map > 127).to(torch.uint8) * 255 if self.binarise else map
        check_probability(map, "map")
        return self.resize_map(map, (map.shape[0], map.shape[1]))

    def apply(self, map: Tensor) -> Tensor:
        """Turn a prediction of the mask's size into the values that the metrics take.

        Args:
            map: (h, w), uint8 levels (0 to 255) or floating-point probabilities in [0, 1].

        Returns:
            (h, w) in [0, 1]: float64 for 8-bit maps, else the input's own floating-point type.

        Raises:
            TypeError, ValueError: as ``levels``.
        """
        values = self.levels(map)
        if values.dtype == torch.uint8:
            values = values.to(torch.float64) / 255
        if self.normalize == "minmax":
            low, high = torch.aminmax(values)
            if high > low:
                values = (values - low) / (high - low)
        return values
