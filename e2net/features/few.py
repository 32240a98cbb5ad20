"""Masks of new pictures from a few pictures with masks, on frozen patch features.

Each method has one call, ``fit(patches, share)``, which gives a function from patches to probabilities.
"""

from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from e2net.decoders import LinearDecoder
from e2net.features.logistic import fit_logistic
from e2net.neighbours import nearest

# (h, w, D) float32 patches to (h, w) probabilities.
Segment = Callable[[Tensor], Tensor]
Pairs = list[tuple[Tensor, Tensor]]
_CERTAIN = 0.75  # of a patch that teaches, so much is object, or background


def coverage(mask: NDArray[np.bool_], grid: tuple[int, int]) -> NDArray[np.float32]:
    """The share of each patch that is object: a mask (H, W) to (h, w) in [0, 1]."""
    whole = mask.astype(np.float32)
    found = cv2.resize(whole, grid[::-1], interpolation=cv2.INTER_AREA)
    return np.clip(found, 0, 1).astype(np.float32)


def labelled(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """The patches that are mostly object or mostly background: (n, D), and (n,) bool, True on the object.

    Raises:
        ValueError: there is none of one kind.
    """
    rows = torch.cat([patches.flatten(0, 1) for patches, _ in pairs])
    share = torch.cat([part.flatten() for _, part in pairs])
    for least in (_CERTAIN, 0.5):  # small objects have no patch of their own
        object_, ground = share >= least, share <= 1 - least
        if object_.any() and ground.any():
            keep = object_ | ground
            return rows[keep], object_[keep]
    if share.max() > 0 and share.min() < 0.5:  # an object smaller than a patch: its largest part
        return rows, share >= share.max()
    kind = "object" if share.max() == 0 else "background"
    raise ValueError(f"expected examples with object and background, found masks without {kind}; give other examples")


def fit_prototypes(pairs: Pairs, count: int = 16, temperature: float = 0.1, seed: int = 0) -> Segment:
    """The nearest of ``count`` means of object and of background patches, by cosine.

    Several means come from spherical k-means. The probability is the sigmoid of the difference of the two largest
    cosines, over ``temperature``.

    Args:
        pairs: patches (h, w, D) of each example, and the share (h, w) of each that is object.
        count: of prototypes on each side; 1 is the mean foreground and the mean background feature.
        temperature: of the sigmoid; it moves no decision at 0.5.
        seed: of k-means.
    """
    rows, is_object = labelled(pairs)
    rows = normalize(rows, dim=-1)
    front, back = (spherical_means(rows[is_object == side], count, seed) for side in (True, False))

    def segment(patches: Tensor) -> Tensor:
        unit = normalize(patches, dim=-1)
        return (((unit @ front.T).amax(-1) - (unit @ back.T).amax(-1)) / temperature).sigmoid()

    return segment


def spherical_means(unit: Tensor, count: int, seed: int = 0, steps: int = 20) -> Tensor:
    """``count`` centres (or as many as there are rows) of unit rows (n, D) by k-means on cosine, of length 1.

    Starts as k-means++ does: the first centre is the row nearest to the mean, each further one a row drawn with the
    chance of its distance, 1 - cosine, from those before.
    """
    if count == 1:
        return normalize(unit.mean(0, keepdim=True), dim=-1)
    chosen = [int((unit @ unit.mean(0)).argmax())]
    closest = unit @ unit[chosen[0]]
    generator = torch.Generator().manual_seed(seed)
    for _ in range(min(count, len(unit)) - 1):
        distance = (1 - closest).clamp_min(1e-9).double().cpu()
        chosen.append(int(torch.multinomial(distance, 1, generator=generator)))
        closest = torch.maximum(closest, unit @ unit[chosen[-1]])
    centres = unit[chosen]
    for _ in range(steps):
        group = (unit @ centres.T).argmax(1)
        sums = torch.zeros_like(centres).index_add_(0, group, unit)
        filled = sums.norm(dim=1) > 1e-6
        moved = torch.where(filled[:, None], normalize(sums, dim=-1), centres)
        if torch.allclose(moved, centres, atol=1e-6):
            break
        centres = moved
    return centres


def fit_knn(pairs: Pairs, neighbours: int = 20, temperature: float = 0.07) -> Segment:
    """A vote of the nearest labelled patches by cosine, each weighing exp(cosine / ``temperature``).

    Args:
        pairs: see :func:`fit_prototypes`.
        neighbours: how many vote; fewer where there are fewer patches.
        temperature: of the weights.
    """
    rows, is_object = labelled(pairs)
    predict = nearest(rows, is_object.float()[:, None], neighbours, temperature)
    return lambda patches: predict(patches.flatten(0, 1)).reshape(patches.shape[:2])


def fit_regression(pairs: Pairs, c: float = 1.0) -> Segment:
    """Logistic regression on the labelled patches, each of length 1, so that ``c`` means the same for every encoder.

    Args:
        pairs: see :func:`fit_prototypes`.
        c: as scikit-learn's C.
    """
    rows, is_object = labelled(pairs)
    fitted = fit_logistic(normalize(rows, dim=-1), is_object.long(), c=c)
    return lambda patches: fitted.probability(normalize(patches, dim=-1))


def fit_linear(pairs: Pairs, steps: int = 100, rate: float = 1e-2, seed: int = 0) -> Segment:
    """A linear probe trained as a decoder is: BatchNorm and 1x1 convolution, binary cross-entropy on all patches.

    AdamW with weight decay 1e-4 and a one-cycle rate; each step sees all patches of all examples.

    Args:
        pairs: see :func:`fit_prototypes`; shares are the targets, whatever they are.
        steps: of the training.
        rate: its largest learning rate.
        seed: of the weights.
    """
    device = pairs[0][0].device
    labelled(pairs)  # refuses examples of one kind
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        probe = LinearDecoder([pairs[0][0].shape[-1]], [1]).to(device)
        # All patches as one picture of one column: a 1x1 convolution knows no neighbours.
        rows = torch.cat([patches.flatten(0, 1) for patches, _ in pairs]).T[None, :, :, None]
        share = torch.cat([part.flatten() for _, part in pairs])[None, None, :, None]
        optimiser = torch.optim.AdamW(probe.parameters(), lr=rate, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
        for _ in range(steps):
            logits = probe([rows], rows.shape[2:]).prediction
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, share)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    probe.eval()

    def segment(patches: Tensor) -> Tensor:
        with torch.no_grad():
            found = probe([patches.permute(2, 0, 1)[None]], patches.shape[:2]).prediction
        return found[0, 0].sigmoid()

    return segment


METHODS: Mapping[str, Callable[..., Segment]] = {
    "prototypes": fit_prototypes,
    "knn": fit_knn,
    "logistic": fit_regression,
    "linear": fit_linear,
}


def fit(method: str, patches: list[NDArray[Any]], masks: list[NDArray[np.bool_]], **options: Any) -> Segment:
    """Learns from pictures with masks.

    Args:
        method: of ``METHODS``.
        patches: (h, w, D) float32 of each picture.
        masks: (H, W) bool of each, at any size.
        options: of the method.

    Raises:
        ValueError: the masks have no object, or no background, at all.
    """
    pairs = [
        (torch.as_tensor(one).float(), torch.from_numpy(coverage(mask, one.shape[:2])))
        for one, mask in zip(patches, masks, strict=True)
    ]
    return METHODS[method](pairs, **options)
