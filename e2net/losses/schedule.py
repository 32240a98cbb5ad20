"""Weights of loss terms that change in the course of training."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

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
            * a ramp ``{ramp: cosine, from: 0.0, to: 1.0}``, ``linear`` or ``cosine``, over the whole of training,
              or with ``until: 0.3`` over its first 30 %.
        name: of the setting, for errors.

    Attributes:
        peak: the largest weight that it takes.

    Raises:
        ValueError: anything else, a negative weight, steps that don't rise from 0 within [0, 1), or an ``until`` that
            is not above 0 and at most 1.
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
            self._steps = [(0.0, weight["from"]), (1.0, weight["to"])]
        elif isinstance(weight, Sequence) and not isinstance(weight, str):
            if not weight or any(isinstance(step, str | float | int) or len(step) != 2 for step in weight):
                raise ValueError(f"{name} must be pairs like [[0, 0.5], [0.3, 0.7]], found {weight}")
            self._steps = [(start, value) for start, value in weight]
            starts = [start for start, _ in self._steps]
            if starts[0] != 0 or starts[-1] >= 1 or any(a >= b for a, b in pairwise(starts)):
                raise ValueError(
                    f"{name} must have steps that rise from 0 and stay below 1, as shares of training; found {starts}"
                )
        else:
            self._steps = [(0.0, weight)]
        for _, value in self._steps:
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ValueError(f"{name} must be at least 0, found {value}")
        self.peak = max(value for _, value in self._steps)

    def __call__(self, progress: float) -> float:
        """The weight at ``progress``, in [0, 1]."""
        if self._ramp is not None:
            (_, first), (_, last) = self._steps
            return first + (last - first) * self._ramp(min(progress / self._until, 1.0))
        return [value for start, value in self._steps if start <= progress][-1]
