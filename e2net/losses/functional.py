"""Loss terms: each takes logits and masks and returns one value per image and map.

All work per image: a batch-wide Dice or IoU lets a large object hide a small one. Logits are (B, K, H, W), K maps of
the same image; masks are (B, 1, H, W), float, 0 or 1; results are (B, K), at least 0, and 0 where a map is perfect.
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
