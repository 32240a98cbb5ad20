"""The weighted sum of loss terms over a model's final, coarse and refined maps."""

import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from e2net.losses import functional
from e2net.losses.base import DenseLoss, counted, part_weights, resize_like
from e2net.losses.schedule import Weight
from e2net.structures import Output

TERMS: dict[str, Callable[..., Tensor]] = {
    "bce": functional.bce,
    "dice": functional.dice,
    "edge": functional.edge,
    "iou": functional.iou,
    "structure": functional.structure,
    "focal": functional.focal,
    "tversky": functional.tversky,
    "ual": functional.ual,
}


class Criterion(DenseLoss):
    """Σ weight · term, for each of the maps that a decoder gives.

    A weight is a number, or changes in the course of training: ``[[0, 0.5], [0.3, 0.7]]`` in steps,
    ``{ramp: cosine, from: 0.0, to: 1.0}`` steadily; see :class:`~e2net.losses.schedule.WeightSchedule`.

    Args:
        final: {term: weight} on the final logits; terms are the functions of :mod:`e2net.losses.functional`.
        coarse: the same on the coarse logits (LFSM).
        refined: the same on the refined logits (CFZM), averaged over the levels.
        params: {term: {parameter: value}} where a term is not to have its function's defaults, for all maps.

    A decoder without coarse or refined maps is trained with the other parts alone.

    Attributes:
        parts: which of ``final``, ``coarse`` and ``refined`` have a positive weight at any time.

    Raises:
        ValueError: an unknown term or parameter, a negative value, or no positive weight on the final map.
    """

    def __init__(
        self,
        final: Mapping[str, Weight],
        coarse: Mapping[str, Weight] | None = None,
        refined: Mapping[str, Weight] | None = None,
        params: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        super().__init__()
        params = params or {}
        for term in params:
            if term not in TERMS:
                raise ValueError(f"loss.params has the unknown term {term!r}; expected one of {', '.join(TERMS)}")
        self.weights = part_weights({"final": final, "coarse": coarse or {}, "refined": refined or {}}, TERMS)
        self.parts = counted(self.weights)
        self.terms = {
            term: partial(function, **_checked(term, function, params.get(term, {})))
            for term, function in TERMS.items()
        }

    def forward(self, output: Output, mask: Tensor, progress: float = 1.0) -> dict[str, Tensor]:
        maps = [("final", output.prediction), *((part, x) for part, maps in output.auxiliary.items() for x in maps)]
        used = [(part, x) for part, x in maps if part in self.parts]
        parts = [part for part, _ in used]
        values: dict[str, Tensor] = {}
        total = mask.new_zeros(())
        with torch.autocast(mask.device.type, enabled=False):
            resized = [resize_like(x.float(), mask) for _, x in used]
            for term, function in self.terms.items():
                # One call for all maps that have this term: what depends on the mask alone is computed once. A weight
                # that is 0 only for now is computed too, so that its curve has no gap.
                chosen = [i for i, part in enumerate(parts) if self._peak(part, term)]
                if not chosen:
                    continue
                per_map = function(torch.cat([resized[i] for i in chosen], dim=1), mask).mean(0)
                for part in dict.fromkeys(parts[i] for i in chosen):
                    value = per_map[[k for k, i in enumerate(chosen) if parts[i] == part]].mean()
                    values[f"{part}/{term}"] = value
                    total = total + self.weights[part][term](progress) * value
        return {"loss": total, **values}

    def _peak(self, part: str, term: str) -> float:
        schedule = self.weights[part].get(term)
        return 0.0 if schedule is None else schedule.peak


def _checked(term: str, function: Callable[..., Tensor], params: Mapping[str, float]) -> Mapping[str, float]:
    """``params`` if ``function`` has them all, beside logits and mask, and none is negative."""
    known = list(inspect.signature(function).parameters)[2:]
    for name, value in params.items():
        if name not in known:
            expected = f"expected one of {', '.join(known)}" if known else "it has none"
            raise ValueError(f"loss.params.{term} has the unknown parameter {name!r}; {expected}")
        if not 0 <= value < math.inf:
            raise ValueError(f"loss.params.{term}.{name} must be at least 0, found {value}")
    return params
