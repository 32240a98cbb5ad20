"""The weighted sum of loss terms over a model's final, coarse and refined maps."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from e2net.losses import functional
from e2net.structures import SegOutput

TERMS = {
    "bce": functional.bce,
    "dice": functional.dice,
    "edge": functional.edge,
    "iou": functional.iou,
    "structure": functional.structure,
}


class Criterion(nn.Module):
    """Σ weight · term, for each of the maps that a decoder gives.

    Args:
        final: {term: weight} on the final logits; terms are the functions of :mod:`e2net.losses.functional`.
        coarse: the same on the coarse logits (LFSM).
        refined: the same on the refined logits (CFZM), averaged over the levels.

    A decoder without coarse or refined maps is trained with the other parts alone.

    Raises:
        ValueError: an unknown term, a negative weight, or no positive weight on the final map.
    """

    def __init__(
        self,
        final: Mapping[str, float],
        coarse: Mapping[str, float] | None = None,
        refined: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.weights = {"final": dict(final), "coarse": dict(coarse or {}), "refined": dict(refined or {})}
        for part, weights in self.weights.items():
            for term, weight in weights.items():
                if term not in TERMS:
                    raise ValueError(f"loss.{part} has the unknown term {term!r}; expected one of {', '.join(TERMS)}")
                if weight < 0:
                    raise ValueError(f"loss.{part}.{term} must be at least 0, found {weight}")
        if not any(self.weights["final"].values()):
            raise ValueError("loss.final has no term with a positive weight; nothing would train the final map")

    def forward(self, output: SegOutput, mask: Tensor) -> dict[str, Tensor]:
        """Scalars by name: ``loss``, the weighted total, and each term un-weighted, such as ``final/dice``.

        Args:
            output: a decoder's logits, at any sizes; they are resampled to the mask's.
            mask: (B, 1, H, W) float, 0 or 1.
        """
        parts = ["final"] + ["coarse"] * (output.coarse is not None) + ["refined"] * len(output.refined)
        maps = [output.logits, *([] if output.coarse is None else [output.coarse]), *output.refined]
        values: dict[str, Tensor] = {}
        total = mask.new_zeros(())
        with torch.autocast(mask.device.type, enabled=False):
            resized = [_resize(x.float(), mask) for x in maps]
            for term, function in TERMS.items():
                # One call for all maps that have this term: what depends on the mask alone is computed once.
                chosen = [i for i, part in enumerate(parts) if self.weights[part].get(term)]
                if not chosen:
                    continue
                per_map = function(torch.cat([resized[i] for i in chosen], dim=1), mask).mean(0)
                for part in dict.fromkeys(parts[i] for i in chosen):
                    value = per_map[[k for k, i in enumerate(chosen) if parts[i] == part]].mean()
                    values[f"{part}/{term}"] = value
                    total = total + self.weights[part][term] * value
        return {"loss": total, **values}


def _resize(logits: Tensor, mask: Tensor) -> Tensor:
    if logits.shape[-2:] == mask.shape[-2:]:
        return logits
    return F.interpolate(logits, size=mask.shape[-2:], mode="bilinear", align_corners=False)
