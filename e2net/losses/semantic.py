"""Loss terms of semantic segmentation: logits (B, K, H, W) against label maps (B, 1, H, W) int64, one value a batch.

A pixel whose label is ``ignore`` counts nowhere. Dice and Lovász are taken over the whole batch and averaged over the
classes that occur in its labels: mIoU sums intersections and unions over the set before it divides, to which a batch
is closer than an image (Berman et al. 2018), and a class that a crop touches with ten pixels would weigh
as much in it as one that fills it. A class that does not occur has no overlap to improve; what is wrongly given to it
is missed elsewhere. Where a training has several processes the batch is that of all of them. Each term is at least 0,
and 0 where every pixel is right or none counts; its gradient is finite. Work in float32 or better: leave autocast off.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from e2net.processes import batch_sum, whole_batch

IGNORE = 255


def cross_entropy(
    logits: Tensor, labels: Tensor, ignore: int = IGNORE, weights: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy, averaged over the batch's pixels that count; with weights, the weighted mean.

    Args:
        logits, labels, ignore: as for every term.
        weights: (K,) of the classes, at least 0; see ``class_weights``.
        smoothing: share of the target that is spread evenly over all classes, in [0, 1] (Szegedy et al. 2016,
            section 7). With weights, each class's part of it has that class's weight, as in PyTorch.
    """
    flat = labels[:, 0]
    weights = None if weights is None else weights.to(logits)
    total = F.cross_entropy(logits, flat, weights, ignore_index=ignore, reduction="sum", label_smoothing=smoothing)
    counted = flat != ignore
    share = counted if weights is None else weights[flat.where(counted, 0)] * counted
    total, weight = batch_sum(torch.stack([total, share.sum().to(logits.dtype)]))
    # PyTorch's own mean is 0 / 0 where no pixel counts, or only those of classes that weigh nothing.
    return torch.where(weight > 0, total / weight.where(weight > 0, 1), total * 0)


def dice(logits: Tensor, labels: Tensor, ignore: int = IGNORE) -> Tensor:
    """Soft Dice loss, 1 - 2|P∩G| / (|P| + |G|) of each class that occurs in the batch, averaged over these.

    Milletari et al. 2016 without the squares, as for masks; nothing is added to the fraction, as a class that occurs
    has |G| > 0.
    """
    prob = logits.softmax(1)
    counted = labels != ignore
    known = labels.where(counted, 0)
    both = _per_class(prob.gather(1, known) * counted, known, prob.shape[1])
    truth = _per_class(counted.to(prob.dtype), known, prob.shape[1])
    predicted = (prob * counted).sum((0, 2, 3))
    both, truth, predicted = batch_sum(torch.stack([both, truth, predicted]))
    present = truth > 0
    loss = 1 - 2 * both / (predicted + truth).where(present, 1)
    return (loss * present).sum() / present.sum().clamp(min=1)


def lovasz(logits: Tensor, labels: Tensor, ignore: int = IGNORE) -> Tensor:
    """Lovász-Softmax: the Lovász extension of 1 - IoU of each class that occurs in the batch, averaged over these.

    Berman et al. 2018, algorithm 1. Each class that occurs takes a sort of all pixels, so it costs
    more than all other terms together. It has little to say far from the solution; its authors add cross-entropy.
    """
    # Ranks all pixels of the batch, so that several processes must hand each other their maps.
    prob, labels = whole_batch(logits.softmax(1)), whole_batch(labels)
    counted = labels[:, 0] != ignore
    known = labels[:, 0][counted]
    present = known.unique().tolist()
    if not present:
        return prob.sum() * 0
    # Unbound, not indexed: the gradient of an index is a tensor of zeros as large as all maps, for each class.
    maps = prob.unbind(1)
    return torch.stack([_lovasz_of(maps[label][counted], known == label) for label in present]).mean()


def class_weights(counts: Tensor) -> Tensor:
    """Weights of the classes from how often they occur: 1 / ln(1.02 + share), ENet's (Paszke et al. 2016).

    They rise with rarity, but never beyond 36 times the weight that a class without rivals would have. Median frequency
    balancing (Eigen & Fergus 2015) is in proportion to 1 / share, so that a class of a few pixels gets thousands.

    Args:
        counts: (K,) pixels of each class in the training set, those to ignore left out.

    Returns:
        (K,) float32, scaled so that the mean over all counted pixels is 1. A class that never occurs gets 1, as without
        weights: its share would make it the heaviest of all, to which label smoothing then pushes every pixel; with 0,
        one that was missed where only a part was counted would silently never be learnt.

    Raises:
        ValueError: a negative count, or no pixel at all.
    """
    if counts.ndim != 1 or (counts < 0).any() or counts.sum() <= 0:
        raise ValueError(
            f"expected pixel counts (K,), at least 0 and one above, found {counts.tolist()}: are all labels ignored? "
            "See task.ignore"
        )
    share = counts.double() / counts.sum()
    weights = 1 / torch.log(1.02 + share)
    return (weights / (share * weights).sum()).where(counts > 0, 1).float()


def _per_class(values: Tensor, labels: Tensor, classes: int) -> Tensor:
    """(K,) sums of ``values`` (B, 1, H, W) over the pixels of each label; by image first, for float32's sake."""
    images = len(labels)
    slot = labels + classes * torch.arange(images, device=labels.device).view(-1, 1, 1, 1)
    sums = values.new_zeros(images * classes).index_add(0, slot.flatten(), values.flatten())
    return sums.view(images, classes).sum(0)


def _lovasz_of(prob: Tensor, truth: Tensor) -> Tensor:
    """Of one class: its probabilities (N,) and whether each pixel is of it (N,), some of which are."""
    errors, order = torch.where(truth, 1 - prob, prob).sort(descending=True)
    truth = truth[order]
    # By how much 1 - IoU grows when one more pixel is wrong, the worst first. Pixels of the class leave the
    # intersection, others join the union. From integers, as differences of almost equal IoUs have few digits left.
    missed, extra = truth.cumsum(0), (~truth).cumsum(0)
    intersection = (missed[-1] - missed).to(prob.dtype)
    union = (missed[-1] + extra).to(prob.dtype)
    growth = torch.where(truth, 1 / union, intersection / (union * (union - 1).clamp(min=1)))
    return (errors * growth).sum()
