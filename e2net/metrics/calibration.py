"""How far a map's values are probabilities, and the threshold at which its decisions are best.

All of it follows from how often each of the 256 levels of the maps occurs on background and on foreground, so that it
costs a scoring nothing. The levels are those of the maps as files, at the masks' sizes, before any stretch: the
probability times 255, rounded. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, define reliability
diagram and expected calibration error.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from e2net.metrics.functional import f_of

# Of equal width; each has 16 of the 256 levels.
BINS = 16
_LEVELS = np.arange(256) / 255


class Reliability(NamedTuple):
    """The reliability curve, a value a bin of the probability; every pixel of every image counts alike.

    Attributes:
        pixels: (BINS,) int64, how many there are.
        probability: (BINS,) float64, their mean; NaN where there are none, here and below.
        frequency: (BINS,) float64, the share of them that is foreground.
    """

    pixels: NDArray[np.int64]
    probability: NDArray[np.float64]
    frequency: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Calibration:
    """What the levels of a set's maps say about their probabilities.

    Args:
        levels: (n, 2, 256) whole numbers, pixels of each level of each image, of background and foreground; n at
            least 1.
    """

    levels: NDArray[np.integer]

    @cached_property
    def reliability(self) -> Reliability:
        """The curve over all pixels."""
        pooled = self.levels.sum(0, dtype=np.int64)
        both = pooled.sum(0)
        pixels, summed, foreground = (values.reshape(BINS, -1).sum(1) for values in (both, both * _LEVELS, pooled[1]))
        with np.errstate(invalid="ignore"):
            return Reliability(pixels, summed / pixels, foreground / pixels)

    @cached_property
    def error(self) -> float:
        """Expected calibration error: the mean over pixels of |probability - frequency| of their bins, in [0, 1]."""
        pixels, probability, frequency = self.reliability
        return float(np.nansum(pixels * np.abs(probability - frequency)) / pixels.sum())

    @cached_property
    def f(self) -> NDArray[np.float64]:
        """(256,) F-measure (β² 0.3) of the decisions "level >= t", t = 0..255: the mean over images.

        Scored maps are stretched first by default, these are not: a threshold is for maps as they are.
        """
        at_least = self.levels[..., ::-1].cumsum(-1, dtype=np.int64)[..., ::-1].astype(np.float64)
        false, true = at_least[:, 0], at_least[:, 1]
        recall = true / np.maximum(true[:, :1], 1)
        curve: NDArray[np.float64] = f_of(true / np.maximum(true + false, 1), recall).mean(0)
        return curve

    @property
    def _best(self) -> int:
        return 1 + int(self.f[1:].argmax())  # to call everything an object is no decision

    @property
    def threshold(self) -> float:
        """The probability above which a pixel is best called an object: that of the greatest F, in (0, 1).

        Half a level below the best one: where the level is rounded to it.
        """
        return (self._best - 0.5) / 255

    @property
    def best_f(self) -> float:
        """F at the threshold."""
        return float(self.f[self._best])
