"""Self-supervised losses and what their targets are made by; pure functions, written from the papers.

A head gives each token its similarity to K prototypes, its logits. Targets are a teacher's probabilities over the same
prototypes, and have no gradient. Work is in float32, in float64 where that is given, whatever autocast says.

Sources: DINO (Caron et al. 2021), iBOT (Zhou et al. 2022), KoLeo (Sablayrolles et al. 2019), Sinkhorn-Knopp (Cuturi
2013, as in SwAV, Caron et al. 2020), DINOv2 (Oquab et al. 2024), Gram anchoring (DINOv3, Siméoni et al. 2025).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from e2net.processes import gather, whole_batch


def prototype_cross_entropy(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of a student's probabilities with those of a teacher, -Σ_k t_k log softmax(s / τ)_k.

    Args:
        logits: (..., K) of the student.
        targets: (..., K) probabilities of the teacher.
        temperature: τ of the student, above 0.

    Returns:
        (...), in nats; at least the entropy of the targets.
    """
    return _cross_entropy(_log_probabilities(logits, temperature), targets)


def dino_loss(logits: Tensor, targets: Tensor, temperature: float) -> dict[str, Tensor]:
    """The DINO loss (Caron et al. 2021, eq. 3): each crop of the student against each global crop of the teacher.

    Args:
        logits: (C, B, K) of the student's C crops of B images; the first G are the global crops, in the targets' order.
        targets: (G, B, K) probabilities of the teacher for the global crops.
        temperature: of the student, above 0.

    Returns:
        ``global``, the mean over the G·(G - 1) pairs of two different global crops, and ``local``, that over the
        G·(C - G) pairs with a local crop; scalars, 0 where there is no such pair.
    """
    crops, teachers = len(logits), len(targets)
    if crops < teachers:
        raise ValueError(f"expected the {teachers} global crops among the student's, found {crops} crops")
    # Once for all pairs: this is the largest tensor of a step.
    student = _log_probabilities(logits, temperature)
    pairs = torch.stack([_cross_entropy(student, target).mean(1) for target in targets])  # (G, C)
    itself = torch.eye(teachers, crops, dtype=torch.bool, device=pairs.device)
    pairs = pairs.masked_fill(itself, 0)
    return {
        "global": pairs[:, :teachers].sum() / max(teachers * (teachers - 1), 1),
        "local": pairs[:, teachers:].sum() / max(teachers * (crops - teachers), 1),
    }


def ibot_loss(logits: Tensor, targets: Tensor, image: Tensor, images: int, temperature: float) -> Tensor:
    """The iBOT loss (Zhou et al. 2022, eq. 2) over the masked patches of a batch.

    A patch weighs 1 / (masked patches of its image), so that images count alike however much of them is masked.

    Args:
        logits: (M, K) of the student at the M masked patches.
        targets: (M, K) probabilities of the teacher, which has seen these patches.
        image: (M,) int64, the image that a patch belongs to, in [0, ``images``).
        images: how many there are, with those that have no masked patch.
        temperature: of the student, above 0.

    Returns:
        A scalar: the sum over images of their mean, divided by ``images``; 0 where nothing is masked.
    """
    losses = prototype_cross_entropy(logits, targets, temperature)
    masked = losses.new_zeros(images).index_add_(0, image, torch.ones_like(losses))
    return (losses / masked[image]).sum() / images


def koleo(tokens: Tensor) -> Tensor:
    """KoLeo (Sablayrolles et al. 2019, eq. 2): -log(distance to the nearest neighbour + 1e-8), which spreads tokens.

    Within :func:`e2net.processes.one_batch` the neighbours are those of all processes' batches.

    Args:
        tokens: (B, D), B at least 2; class tokens before the head, of one crop of each image: two crops of an image
            should not be driven apart.

    Returns:
        The mean over the L2-normalised tokens; at least -log 2, which is reached by two opposite ones.

    Raises:
        ValueError: for a batch of one image, which has no neighbour.
    """
    with torch.autocast(tokens.device.type, enabled=False):
        points = F.normalize(_exact(whole_batch(tokens)), dim=-1)
        if len(points) < 2:
            raise ValueError(f"KoLeo: expected at least 2 images in a batch, found {len(points)}; leave it out")
        with torch.no_grad():
            nearest = (points @ points.T).fill_diagonal_(-2).argmax(1)
        # The norm's derivative is 0 where two tokens are equal, so the gradient is finite.
        distance = torch.linalg.vector_norm(points - points[nearest], dim=-1)
        return -(distance + 1e-8).log().mean()


def gram(student: Tensor, teacher: Tensor) -> Tensor:
    """Gram anchoring (DINOv3, Siméoni et al. 2025, eq. 2): patches should be as similar to each other as the teacher's.

    Args:
        student: (B, N, D) patch tokens after the final norm.
        teacher: (B, N, E) those of the same places by the Gram teacher, see :func:`resize_patches`; no gradient.

    Returns:
        The mean over B·N·N of the squared differences between cosines of patches of an image; a scalar in [0, 4].
    """
    with torch.autocast(student.device.type, enabled=False):
        return (_cosines(student) - _cosines(teacher.detach())).square().mean()


def resize_patches(patches: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Patch tokens (B, h·w, D) of a grid (h, w) -> (B, H·W, D) of the grid ``size`` (H, W), bicubic; float32.

    The Gram teacher sees a crop at twice the side, and its features are reduced to the student's grid.
    """
    maps = _exact(patches).transpose(1, 2).unflatten(2, grid)
    return F.interpolate(maps, size, mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)


@torch.no_grad()
def sinkhorn_knopp(logits: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Probabilities that use all prototypes alike (SwAV, Caron et al. 2020, sec. 3.1), over all processes' batches.

    exp(logits / τ) is scaled, in turn, to equal sums of all prototypes and to sums of 1 of all samples. A collective
    call, in which processes may have different numbers of samples, also none.

    Args:
        logits: (N, K) of the teacher.
        temperature: τ, above 0.
        iterations: at least 1; the more, the nearer are the prototypes' sums to samples of all processes / K.

    Returns:
        (N, K) without a gradient; rows sum to 1.
    """
    if iterations < 1:
        raise ValueError(f"Sinkhorn-Knopp: expected at least 1 iteration, found {iterations}")
    # By logarithms: exp() of confident logits at a low temperature has rows and columns of nothing but zeros.
    scores = _exact(logits) / temperature
    for _ in range(iterations):
        scores = scores - gather(scores.logsumexp(0)).logsumexp(0)
        scores = scores.log_softmax(1)
    return scores.exp()


@torch.no_grad()
def centred(logits: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """Probabilities by a centre, softmax((logits - centre) / τ) (DINO, Caron et al. 2021, sec. 3.1); no gradient.

    Args:
        logits: (N, K) of the teacher.
        centre: (K,), a moving average of such logits.
        temperature: τ, above 0.

    Returns:
        (N, K); rows sum to 1.
    """
    return ((_exact(logits) - centre) / temperature).softmax(-1)


def _log_probabilities(logits: Tensor, temperature: float) -> Tensor:
    return (_exact(logits) / temperature).log_softmax(-1)


def _cross_entropy(student: Tensor, targets: Tensor) -> Tensor:
    return -(_exact(targets.detach()) * student).sum(-1)


def _cosines(tokens: Tensor) -> Tensor:
    """(B, N, D) -> (B, N, N)."""
    unit = F.normalize(_exact(tokens), dim=-1)
    return unit @ unit.transpose(1, 2)


def _exact(values: Tensor) -> Tensor:
    """In float32, or in float64 where they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
