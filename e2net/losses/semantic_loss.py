"""The loss over classes: a weighted sum of terms, with smoothing and weights of the classes."""

from collections.abc import Mapping

from torch import Tensor

from e2net.losses.base import TermLoss
from e2net.losses.schedule import Weight
from e2net.losses.semantic import cross_entropy, dice, lovasz
from e2net.structures import IGNORED


class SemanticLoss(TermLoss):
    """Cross-entropy, Dice and Lovász over the pixels that are not ``IGNORED``; see :mod:`e2net.losses.semantic`.

    Args:
        final: {term: weight} on the final logits (B, K, H, W); terms are ``ce``, ``dice`` and ``lovasz``.
        coarse, refined: the same on E2Net's auxiliary maps; other decoders are trained without them.
        smoothing: of cross-entropy's targets, 0 to below 1.

    Raises:
        ValueError: an unknown term, a negative weight, or a smoothing out of its range.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        final: Mapping[str, Weight],
        coarse: Mapping[str, Weight] | None = None,
        refined: Mapping[str, Weight] | None = None,
        smoothing: float = 0.0,
    ) -> None:
        if not 0 <= smoothing < 1:
            raise ValueError(f"loss.smoothing: expected a share from 0 (off) to below 1, found {smoothing}")
        terms = {
            "ce": self._cross_entropy,
            "dice": lambda logits, labels: dice(logits, labels, IGNORED),
            "lovasz": lambda logits, labels: lovasz(logits, labels, IGNORED),
        }
        super().__init__(terms, final, coarse, refined)
        self.smoothing = smoothing
        self.register_buffer("class_weights", None, persistent=False)

    def weigh(self, weights: Tensor | None) -> None:
        """Has cross-entropy weigh each class by one of (K,) ``weights``; None: all alike."""
        self.class_weights = weights

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(logits, labels, IGNORED, self.class_weights, self.smoothing)
