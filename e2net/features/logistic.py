"""Logistic regression on features: of two classes by a sigmoid, of more by a softmax."""

from typing import NamedTuple

import torch
from torch import Tensor

_STEPS = 500


class Logistic(NamedTuple):
    """A fitted regression.

    Attributes:
        weight: (K, D) float32; K is 1 for two classes.
        bias: (K,) float32.
    """

    weight: Tensor
    bias: Tensor

    def probability(self, x: Tensor) -> Tensor:
        """(..., D) -> (...) of the second of two classes, or (..., K) of each of K."""
        logits = x @ self.weight.T + self.bias
        return logits[..., 0].sigmoid() if len(self.bias) == 1 else logits.softmax(-1)


def fit_logistic(x: Tensor, labels: Tensor, classes: int = 2, c: float = 1.0) -> Logistic:
    """Minimises |w|² / 2 + c Σ cross-entropy by L-BFGS, in float64; the bias is free.

    That is scikit-learn's ``LogisticRegression(C=c)``, whose C the published protocols give.

    Args:
        x: (n, D) features.
        labels: (n,) class of each, 0 to ``classes`` - 1.
        classes: how many there are.
        c: the weight of the data against the penalty, above 0.

    Raises:
        ValueError: a class has no row.
    """
    counts = torch.bincount(labels.long(), minlength=classes)
    if len(counts) > classes or (counts == 0).any():
        raise ValueError(f"expected rows of each of {classes} classes, found {counts.tolist()} rows of each")
    x, outputs = x.double(), 1 if classes == 2 else classes
    # Centred, so that the bias does not have to make up for the mean: the same minimum in fewer steps.
    centre = x.mean(0)
    x = x - centre
    weight = torch.zeros(outputs, x.shape[1], dtype=torch.float64, device=x.device, requires_grad=True)
    bias = torch.zeros(outputs, dtype=torch.float64, device=x.device, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weight, bias],
        max_iter=_STEPS,
        history_size=20,
        tolerance_grad=1e-7,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )
    cross_entropy = torch.nn.functional.cross_entropy
    with_logits = torch.nn.functional.binary_cross_entropy_with_logits

    def loss() -> Tensor:
        optimiser.zero_grad()
        logits = x @ weight.T + bias
        data = with_logits(logits[:, 0], labels.double()) if outputs == 1 else cross_entropy(logits, labels.long())
        # As a mean over the rows, so that the tolerances mean the same for any number of them.
        value = data + weight.square().sum() / (2 * c * len(x))
        value.backward()
        return value

    with torch.enable_grad():
        optimiser.step(loss)
    fitted = weight.detach()
    return Logistic(fitted.float(), (bias.detach() - fitted @ centre).float())
