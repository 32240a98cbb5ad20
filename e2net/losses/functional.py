"""Loss terms: each takes logits and masks and returns one value per image and map.

All work per image: a batch-wide Dice or IoU lets a large object hide a small one. Logits are (B, K, H, W), K maps of
the same image; masks are (B, 1, H, W), float, 0 or 1; results are (B, K), at least 0, and 0 where a map is perfect.
(``tversky`` has 1e-6 there, and ``edge`` what a mask's corners and its own offset leave: .1 to .3 of a small map.)
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_PIXELS = (2, 3)  # height, width


def bce(logits: Tensor, mask: Tensor) -> Tensor:
    """Binary cross-entropy, averaged over pixels."""
    return _cross_entropy(logits, mask).mean(_PIXELS)


def dice(logits: Tensor, mask: Tensor) -> Tensor:
    """Soft Dice loss, 1 - (2|P∩M| + 1) / (|P| + |M| + 1) (Milletari et al. 2016, without the squares)."""
    return _dice(logits.sigmoid(), mask)


def iou(logits: Tensor, mask: Tensor) -> Tensor:
    """Soft Jaccard loss, 1 - (|P∩M| + 1) / (|P∪M| + 1) (Rahman & Wang 2016, eq. 3)."""
    prob = logits.sigmoid()
    intersection = (prob * mask).sum(_PIXELS)
    union = (prob + mask).sum(_PIXELS) - intersection
    return 1 - (intersection + 1) / (union + 1)


def edge(logits: Tensor, mask: Tensor) -> Tensor:
    """Dice loss between the Sobel magnitude of the probability and the binarised one of the mask.

    Edges are a few per cent of the pixels; Dice does not let the rest drown them.
    """
    return _dice(_sobel(logits.sigmoid()), (_sobel(mask) > 0.1).to(logits.dtype))


def structure(logits: Tensor, mask: Tensor) -> Tensor:
    """Weighted BCE plus weighted IoU, both with weight 1 + 5·|mean31(mask) - mask| (Wei et al. 2020, eq. 3-6).

    Pixels near the contour weigh up to six times as much as others. Both parts are normalised by the weights' sum
    in each image. (The widely copied version of this loss averages its BCE first, so the weights cancel out of it.)
    """
    # The mean over 31x31 pixels, as one pass along each axis: fifteen times less work.
    context = F.avg_pool2d(mask, kernel_size=(31, 1), stride=1, padding=(15, 0))
    context = F.avg_pool2d(context, kernel_size=(1, 31), stride=1, padding=(0, 15))
    weight = 1 + 5 * (context - mask).abs()
    weighted_bce = (weight * _cross_entropy(logits, mask)).sum(_PIXELS) / weight.sum(_PIXELS)
    prob = logits.sigmoid()
    intersection = (prob * mask * weight).sum(_PIXELS)
    total = ((prob + mask) * weight).sum(_PIXELS)
    return weighted_bce + 1 - (intersection + 1) / (total - intersection + 1)


def focal(logits: Tensor, mask: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss, -α_t (1 - p_t)^γ log p_t, averaged over pixels (Lin et al. 2017, eq. 5).

    Args:
        logits, mask: as for every term.
        alpha: weight of the object's pixels, in [0, 1]; the background's is 1 - ``alpha``.
        gamma: at least 0; the larger, the less do pixels count that are right already.
    """
    towards_truth = logits * (2 * mask - 1)  # p_t is its sigmoid
    balance = alpha * mask + (1 - alpha) * (1 - mask)
    # (1 - p_t)^γ by way of its logarithm: the power's own derivative is not finite at p_t = 1 where γ < 1.
    easy = torch.exp(gamma * F.logsigmoid(-towards_truth))
    return (balance * easy * -F.logsigmoid(towards_truth)).mean(_PIXELS)


def tversky(logits: Tensor, mask: Tensor, alpha: float = 0.3, beta: float = 0.7, exponent: float = 1.0) -> Tensor:
    """Tversky loss, (1 - (TP + 1) / (TP + α·FP + β·FN + 1))^exponent (Salehi et al. 2017).

    Args:
        logits, mask: as for every term.
        alpha: cost of a false positive. With ``beta`` 0.5 each it is Dice; some authors swap the two letters.
        beta: cost of a missed pixel; above ``alpha`` it favours recall.
        exponent: 1 is the plain loss; 0.75 the focal Tversky loss (Abraham & Khan 2019, their γ = 4/3), in which
            images that are nearly right count for more.
    """
    prob = logits.sigmoid()
    hit = (prob * mask).sum(_PIXELS)
    index = (hit + 1) / (hit + alpha * (prob.sum(_PIXELS) - hit) + beta * (mask.sum(_PIXELS) - hit) + 1)
    # The derivative of a root is not finite at a perfect map's 0.
    return (1 - index).clamp(min=1e-6) ** exponent


def ual(logits: Tensor, mask: Tensor) -> Tensor:
    """Uncertainty-aware loss, 1 - |2p - 1|^2, averaged over pixels (Pang et al. 2022, "Zoom In and Out").

    It asks for decided maps, right or wrong, so it needs another term beside it, and no weight at the start of
    training. The mask is not looked at.
    """
    prob = logits.sigmoid()
    return (4 * prob * (1 - prob)).mean(_PIXELS)


def _cross_entropy(logits: Tensor, mask: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, mask.expand_as(logits), reduction="none")


def _dice(prob: Tensor, mask: Tensor) -> Tensor:
    return 1 - (2 * (prob * mask).sum(_PIXELS) + 1) / ((prob + mask).sum(_PIXELS) + 1)


def _sobel(x: Tensor) -> Tensor:
    """Gradient magnitude, in [0, 1] for maps (B, K, H, W) in [0, 1]; the border is replicated, so it is no edge."""
    kernel = x.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 4
    maps = F.pad(x, (1, 1, 1, 1), mode="replicate").flatten(0, 1).unsqueeze(1)
    gradient = F.conv2d(maps, torch.stack([kernel, kernel.T]).unsqueeze(1))
    # The largest magnitude is sqrt(2)·3/4 > 1, at a corner; the offset keeps the root's derivative finite at 0.
    return (gradient.square().sum(1) + 1e-8).sqrt().clamp(max=1).unflatten(0, x.shape[:2])
