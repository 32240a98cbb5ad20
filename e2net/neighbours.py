"""What the nearest of known features say of new ones: the k-NN evaluation of DINO (arXiv:2104.14294)."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

# (n, D) features -> (n, K).
Predictor = Callable[[Tensor], Tensor]
# Queries at a time.
_ROWS = 2048


def nearest(bank: Tensor, targets: Tensor, neighbours: int = 20, temperature: float = 0.07) -> Predictor:
    """The mean of what the nearest known features are, by cosine, each weighing exp(cosine / ``temperature``).

    Args:
        bank: (n, D), features that are known, of any length.
        targets: (n, K), what they are: shares of classes, or any other values.
        neighbours: how many vote; fewer where fewer are known.
        temperature: of the weights.
    """
    known = normalize(bank.float(), dim=1)
    count = min(neighbours, len(known))
    low, high = targets.amin(0), targets.amax(0)

    def predict(rows: Tensor) -> Tensor:
        found = []
        for block in normalize(rows.float(), dim=1).split(_ROWS):
            cosine, place = (block @ known.T).topk(count)
            weight = (cosine / temperature).softmax(1)
            # A sum of weights may end a rounding error above 1.
            found.append((weight[..., None] * targets[place]).sum(1).clamp(low, high))
        return torch.cat(found)

    return predict
