"""What every loss is called with, and the weighted sum of terms that most of them are."""

from collections.abc import Callable, Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from e2net.losses.schedule import Weight, WeightSchedule
from e2net.structures import Output

# One value from a map (B, K, H, W), a decoder's and of the target's size, and its target.
Term = Callable[[Tensor, Tensor], Tensor]


class DenseLoss(nn.Module):
    """From a decoder's output and the targets to one number.

    Attributes:
        parts: of what a decoder gives (``final``, and its auxiliary maps by name) those that count at any time.
    """

    parts: set[str]

    def forward(self, output: Output, target: Tensor, progress: float = 1.0) -> dict[str, Tensor]:
        """Scalars by name: ``loss``, the weighted total, and each term un-weighted, such as ``final/dice``.

        Args:
            output: of a decoder.
            target: (B, 1, H, W), what the task's ``to_tensor`` gives.
            progress: the share of training that is done, in [0, 1]; for weights that change.
        """
        raise NotImplementedError


def part_weights(
    given: Mapping[str, Mapping[str, Weight]], terms: Iterable[str]
) -> dict[str, dict[str, WeightSchedule]]:
    """The weights of each part's terms, checked.

    Raises:
        ValueError: an unknown term, a negative weight, or no positive weight on the final map.
    """
    known = list(terms)
    for part, weights in given.items():
        for term in weights:
            if term not in known:
                raise ValueError(f"loss.{part} has the unknown term {term!r}; expected one of {', '.join(known)}")
    found = {
        part: {term: WeightSchedule(weight, f"loss.{part}.{term}") for term, weight in weights.items()}
        for part, weights in given.items()
    }
    if "final" not in counted(found):
        raise ValueError(
            "loss.final has no term with a positive weight, and nothing would train the final map; give one"
        )
    return found


def counted(weights: Mapping[str, Mapping[str, WeightSchedule]]) -> set[str]:
    """The parts that have a positive weight at any time."""
    return {part for part, terms in weights.items() if any(weight.peak for weight in terms.values())}


class TermLoss(DenseLoss):
    """Σ weight · term over a decoder's final, coarse and refined maps, the maps of one part averaged.

    Args:
        terms: by name; each is called with one map, float32 and of the target's size, and the target.
        final: {term: weight} on the final prediction; a weight is a number or changes in the course of training, see
            :class:`~e2net.losses.schedule.WeightSchedule`.
        coarse, refined: the same on E2Net's auxiliary maps; other decoders are trained without them.

    Raises:
        ValueError: see :func:`part_weights`.
    """

    def __init__(
        self,
        terms: Mapping[str, Term],
        final: Mapping[str, Weight],
        coarse: Mapping[str, Weight] | None = None,
        refined: Mapping[str, Weight] | None = None,
    ) -> None:
        super().__init__()
        self.terms = dict(terms)
        self.weights = part_weights({"final": final, "coarse": coarse or {}, "refined": refined or {}}, terms)
        self.parts = counted(self.weights)

    def forward(self, output: Output, target: Tensor, progress: float = 1.0) -> dict[str, Tensor]:
        values: dict[str, Tensor] = {}
        total = torch.zeros((), device=target.device)
        with torch.autocast(target.device.type, enabled=False):
            for part, maps in {"final": (output.prediction,), **output.auxiliary}.items():
                chosen = {term: weight for term, weight in self.weights.get(part, {}).items() if weight.peak}
                resized = [resize_like(one.float(), target) for one in maps] if chosen else []
                for term, weight in chosen.items():
                    value = torch.stack([self.terms[term](one, target) for one in resized]).mean()
                    values[f"{part}/{term}"] = value
                    total = total + weight(progress) * value
        return {"loss": total, **values}


def resize_like(prediction: Tensor, target: Tensor) -> Tensor:
    """A map (B, K, h, w) at the height and width of a target, bilinear."""
    if prediction.shape[-2:] == target.shape[-2:]:
        return prediction
    return F.interpolate(prediction, size=target.shape[-2:], mode="bilinear", align_corners=False)
