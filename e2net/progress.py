"""Values that change in steps in the course of training."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Steps(Generic[T]):
    """A value for each share of training, each from its start to that of the next.

    Shares and not epochs, so that a shorter training keeps the shape.

    Args:
        name: of the setting, for errors.
        pairs: of (progress, value), such as ``[[0, 0.5], [0.6, 1.0]]``: 0.6 is after 60 % of all steps.
        read: checks a value and gives it as it is kept.

    Attributes:
        values: all that ever occur, in order.

    Raises:
        ValueError: no such pairs, or starts that don't rise from 0 within [0, 1).
    """

    def __init__(self, name: str, pairs: Sequence[Any], read: Callable[[Any], T]) -> None:
        whole = all(isinstance(pair, Sequence) and not isinstance(pair, str) and len(pair) == 2 for pair in pairs)
        starts = [pair[0] for pair in pairs] if whole else []
        if not starts or not all(isinstance(start, int | float) for start in starts):
            raise ValueError(f"{name} must be pairs of progress and value like [[0, ...], [0.6, ...]], found {pairs}")
        if starts[0] != 0 or not starts[-1] < 1 or any(not a < b for a, b in pairwise(starts)):
            raise ValueError(
                f"{name} must have steps that rise from 0 and stay below 1, as shares of training; found {starts}"
            )
        self._starts = [float(start) for start in starts]
        self.values: list[T] = [read(value) for _, value in pairs]

    def __call__(self, progress: float) -> T:
        """The value at ``progress``, in [0, 1]."""
        return [value for start, value in zip(self._starts, self.values, strict=True) if start <= progress][-1]
