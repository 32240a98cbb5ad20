"""Labels that spread from patch to patch of a film: the protocol of DINO's evaluation on DAVIS.

Jabri et al., "Space-Time Correspondence as a Contrastive Random Walk" (arXiv:2006.14613), Caron et al., "Emerging
Properties in Self-Supervised Vision Transformers" (arXiv:2104.14294, section 4.2), DINOv3 (arXiv:2508.10104).
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

# Similarities that are in memory at once; a row of patches at least.
_HELD = 1 << 23
# A difference of shares that is rounding.
_NOTHING = 1e-4


def propagate(
    target: Tensor,
    context: Sequence[Tensor],
    labels: Sequence[Tensor],
    radius: float | None = 12,
    top: int = 5,
    temperature: float = 0.2,
) -> Tensor:
    """What the patches of a frame are, from those of other frames that look like them and lie near.

    Each patch takes the labels of the ``top`` most similar patches of all the frames together that lie at most
    ``radius`` from its place, weighed by exp(cosine / temperature).

    Args:
        target: (h, w, D), the patches of the frame.
        context: of other frames, (h, w, D) each.
        labels: theirs, (h, w, C) each, a share for each of C objects and the background.
        radius: patches, Euclidean; None is the whole frame.
        top: how many patches vote.
        temperature: above 0.

    Returns:
        (h, w, C) float32, shares as in ``labels``.

    Raises:
        ValueError: no context, sizes that don't fit, or a setting out of its range.
    """
    _check(target, context, labels, radius, top, temperature)
    height, width, _ = target.shape
    queries = F.normalize(target.float(), dim=-1)
    keys = [F.normalize(frame.float(), dim=-1) for frame in context]
    reach = height + width if radius is None else int(radius)
    columns = torch.arange(width, device=target.device)
    rows = torch.arange(height, device=target.device)
    # Blocks of rows, each with the rows that it can reach: the similarities of all pairs would not fit.
    block = max(1, _HELD // (len(keys) * width * width * min(height, 2 * reach + 1)))
    found = []
    for start in range(0, height, block):
        end = min(start + block, height)
        low, high = max(0, start - reach), min(height, end + reach)
        near = torch.cat([frame[low:high].flatten(0, 1) for frame in keys])
        similar = queries[start:end].flatten(0, 1) @ near.T
        if radius is not None:
            down = (rows[start:end, None] - rows[None, low:high]) ** 2
            right = (columns[:, None] - columns[None, :]) ** 2
            far = (down[:, None, :, None] + right[None, :, None, :]) > radius**2
            similar = similar.masked_fill(far.flatten(2).flatten(0, 1).repeat(1, len(keys)), -torch.inf)
        values, places = similar.topk(min(top, similar.shape[1]), dim=1)
        weights = (values / temperature).softmax(dim=1)  # nothing for what is too far, of which exp(-inf) is 0
        shares = torch.cat([one[low:high].flatten(0, 1) for one in labels]).float()
        found.append((weights[..., None] * shares[places]).sum(1))
    return torch.cat(found).view(height, width, -1)


def shares_of(mask: Tensor, count: int, size: tuple[int, int]) -> Tensor:
    """Labels of pixels as shares of patches.

    Args:
        mask: (H, W), whole numbers from 0, the background, to ``count``.
        count: how many objects.
        size: (h, w) in patches.

    Returns:
        (h, w, count + 1) float32, the share of each object in the patch.
    """
    ones = F.one_hot(mask.long(), count + 1).permute(2, 0, 1).float()
    return F.interpolate(ones[None], size, mode="area")[0].permute(1, 2, 0).contiguous()


def labels_of(shares: Tensor, size: tuple[int, int], stretch: bool = True) -> Tensor:
    """Shares of patches as labels of pixels: enlarged bilinearly, the largest wins.

    Args:
        shares: (h, w, C).
        size: (H, W) in pixels.
        stretch: first bring each object's shares in the picture to [0, 1], as DINO's code does: a small object would
            lose against the background otherwise.

    Returns:
        (H, W) int64, from 0, the background.
    """
    large = F.interpolate(shares.permute(2, 0, 1)[None].float(), size, mode="bilinear", align_corners=False)[0]
    if stretch:
        low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
        spread = high - low
        # What is the same everywhere, but for rounding, stays as it is: an object that is gone is gone.
        large = torch.where(spread > _NOTHING, (large - low) / spread.clamp(min=_NOTHING), large)
    return large.argmax(0)


def _check(
    target: Tensor,
    context: Sequence[Tensor],
    labels: Sequence[Tensor],
    radius: float | None,
    top: int,
    temperature: float,
) -> None:
    if not context or len(context) != len(labels):
        raise ValueError(
            f"expected labels for each of at least one frame, found {len(context)} frames and {len(labels)} labels"
        )
    for frame, shares in zip(context, labels, strict=True):
        if frame.shape != target.shape or shares.shape[:2] != target.shape[:2]:
            raise ValueError(
                f"expected frames and labels of {tuple(target.shape)} patches and features, found "
                f"{tuple(frame.shape)} with labels {tuple(shares.shape)}: a film that changes its size"
            )
    if (radius is not None and radius < 0) or top < 1 or not temperature > 0:
        raise ValueError(
            "expected radius from 0 (or null), top from 1 and temperature above 0, found "
            f"{radius}, {top} and {temperature}"
        )
