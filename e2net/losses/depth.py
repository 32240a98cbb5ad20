"""Loss terms of depth: maps (B, 1, H, W) in metres against targets of the same form, one value a batch.

Pixels whose target is not above 0 are unknown and count nowhere; a caller with a range of depths sets what is outside
it to 0. Where a training has several processes the batch is that of all of them. Predictions are above 0. Each term is
at least 0, and 0 where the map is right or no pixel is known; its gradient is finite. Work in float32 or better: leave
autocast off.
"""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from e2net.losses.base import Term, TermLoss
from e2net.losses.schedule import Weight
from e2net.processes import batch_sum

# Depths are taken to be at least a micrometre, so that an activation that underflows to 0 has a logarithm.
_LEAST = 1e-6
_SCALES = 4


def sig_loss(depth: Tensor, target: Tensor, variance: float = 1.0) -> Tensor:
    """Scale-invariant loss, sqrt(var(g) + 0.15·mean(g)²), where g is the logarithm of prediction over target.

    AdaBins (Bhat et al. 2021, without its factor 10), after Eigen et al. 2014 with λ = 0.85. The variance is
    over the known pixels of the batch and divides by their number, as there; the published code divides by one less.
    DINOv2's code also adds a millimetre to both depths.

    Args:
        depth, target: as for every term.
        variance: weight of the variance. DINO's protocol leaves it out (0) for the first 100 steps, so that the mean
            depth is right first.
    """
    known = target > 0
    g = _log_ratio(depth, target, known)
    summed, pixels = batch_sum(torch.stack([g.sum(), known.sum().to(g.dtype)]))
    pixels = pixels.clamp(min=1)
    mean = summed / pixels
    squares = batch_sum(((g - mean).square() * known).sum()) / pixels
    total = variance * squares + 0.15 * mean.square()
    # The derivative of a root is not finite at a perfect map's 0.
    positive = total > 0
    return total.where(positive, 1).sqrt() * positive


def gradient_loss(depth: Tensor, target: Tensor) -> Tensor:
    """Multi-scale gradient matching in log depth: Σ over scales of the mean |∇x g| + |∇y g|, g as in ``sig_loss``.

    Li & Snavely 2018 (MegaDepth), with the differences of Ranftl et al. 2020 (MiDaS): every pixel, every second, fourth
    and eighth of each axis; differences of adjacent pixels that are both known, divided by the number of known pixels
    at that scale. A factor on all depths does not change it. (DINOv2's version takes its steps over images instead of
    rows, so it has one scale.)
    """
    known = target > 0
    g = _log_ratio(depth, target, known)
    total = g.new_zeros(())
    for step in (2**scale for scale in range(_SCALES)):
        coarse, there = g[..., ::step, ::step], known[..., ::step, ::step]
        down = (coarse.diff(dim=-2).abs() * (there[..., 1:, :] & there[..., :-1, :])).sum()
        across = (coarse.diff(dim=-1).abs() * (there[..., 1:] & there[..., :-1])).sum()
        changes, pixels = batch_sum(torch.stack([down + across, there.sum().to(g.dtype)]))
        total = total + changes / pixels.clamp(min=1)
    return total


def l1(depth: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error in metres, over the known pixels of the batch."""
    known = target > 0
    error = (depth - target).where(known, 0).abs().sum()
    summed, pixels = batch_sum(torch.stack([error, known.sum().to(error.dtype)]))
    return summed / pixels.clamp(min=1)


def bins_to_depth(logits: Tensor, minimum: float, maximum: float) -> Tensor:
    """Depth as the mean of K bins, spaced linearly from ``minimum`` to ``maximum``, weighed by ReLU(logits) + 0.1.

    The linear probe of DINOv2 and DINOv3 (K = 256). DINO takes it at the resolution of the features and then resizes
    the depth, not the K maps.

    Args:
        logits: (B, K, H, W).
        minimum: nearest depth in metres, above 0.
        maximum: farthest depth in metres.

    Returns:
        (B, 1, H, W) metres, float32 or better.

    Raises:
        ValueError: one bin, or an empty range.
    """
    bins = logits.shape[1]
    if bins < 2 or not 0 < minimum < maximum:
        raise ValueError(
            f"expected at least 2 bins from a minimum above 0 to a greater maximum, found {bins} from {minimum} to "
            f"{maximum} m"
        )
    # Half precision has eight bits for a sum over 256 bins.
    weights = logits.to(torch.promote_types(logits.dtype, torch.float32)).relu() + 0.1
    centres = torch.linspace(minimum, maximum, bins, dtype=weights.dtype, device=weights.device)
    return (weights * centres.view(-1, 1, 1)).sum(1, keepdim=True) / weights.sum(1, keepdim=True)


class DepthLoss(TermLoss):
    """A weighted sum of ``sig``, ``sig_mean``, ``gradient`` and ``l1`` over a decoder's depth maps, in metres.

    ``sig_mean`` is ``sig`` without its variance. DINO's protocol begins with it and goes over to ``sig`` after 100 of
    38,400 steps; steps of the two weights say so.

    Args:
        final, coarse, refined: see :class:`~e2net.losses.base.TermLoss`.
    """

    def __init__(
        self,
        final: Mapping[str, Weight],
        coarse: Mapping[str, Weight] | None = None,
        refined: Mapping[str, Weight] | None = None,
    ) -> None:
        mean_only = partial(sig_loss, variance=0.0)
        terms: dict[str, Term] = {"sig": sig_loss, "sig_mean": mean_only, "gradient": gradient_loss, "l1": l1}
        super().__init__(terms, final, coarse, refined)


def _log_ratio(depth: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """Log prediction minus log target, 0 where the target is not known."""
    return (depth.clamp(min=_LEAST).log() - target.log()).where(known, 0)
