"""Weights of loss terms that change in the course of training."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from e2net.progress import Steps

Weight = float | Sequence[Sequence[float]] | Mapping[str, Any]

RAMPS: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: progress,
    "cosine": lambda progress: (1 - math.cos(math.pi * progress)) / 2,
}


class WeightSchedule:
    """The weight of one term as a function of the progress of training, 0 at its start and 1 at its end.

    Args:
        weight: one of

            * a number: the weight throughout;
            * steps ``[[0, 0.5], [0.3, 0.7], [0.6, 1.0]]``: pairs of (progress, weight), each weight from there on.
              Epochs 30 and 60 of 100 are 0.3 and 0.6, so that a shorter run keeps the shape;
            * a ramp ``{ramp: cosine, from: 0.0, to: 1.0}``, ``linear`` or ``cosine``, over the whole of training, or with
              ``until: 0.3`` over its first 30 %.
        name: of the setting, for errors.

    Attributes:
        peak: the largest weight that it takes.

    Raises:
        ValueError: anything else, a negative weight, steps that don't rise from 0 within [0, 1), or an ``until`` that is
            not above 0 and at most 1.
    """

    def __init__(self, weight: Weight, name: str = "weight") -> None:
        self._ramp: Callable[[float], float] | None = None
        self._until = 1.0
        if isinstance(weight, Mapping):
            if set(weight) - {"until"} != {"ramp", "from", "to"} or str(weight["ramp"]) not in RAMPS:
                raise ValueError(
                    f"{name} must be like {{ramp: cosine, from: 0.0, to: 1.0}} with a ramp of {', '.join(RAMPS)}, "
                    f"found {dict(weight)}"
                )
            self._ramp = RAMPS[weight["ramp"]]
            until = weight.get("until", 1.0)
            if isinstance(until, bool) or not isinstance(until, int | float) or not 0 < until <= 1:
                raise ValueError(f"{name}.until must be a share of training above 0, at most 1, found {until}")
            self._until = float(until)
            values = self._ends = [_checked(weight[key], name) for key in ("from", "to")]
        else:
            pairs: Any = weight if isinstance(weight, Sequence) and not isinstance(weight, str) else [(0, weight)]
            self._steps = Steps(name, pairs, partial(_checked, name=name))
            values = self._steps.values
        self.peak = max(values)

    def __call__(self, progress: float) -> float:
        """The weight at ``progress``, in [0, 1]."""
        if self._ramp is not None:
            first, last = self._ends
            return first + (last - first) * self._ramp(min(progress / self._until, 1.0))
        return self._steps(progress)


def _checked(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{name} must be at least 0, found {value}")
    return value
