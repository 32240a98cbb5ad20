"""A watch on dense features that needs no labels: what they have become, and how much of the original is left."""

import torch
from torch import Tensor
from torch.nn import functional as F

from e2net.structures import Tokens


class CollapseError(ValueError):
    """A training whose features or prototypes say nothing about a picture any more; the message says what to change."""


@torch.no_grad()
def dense_watch(tokens: Tokens, reference: Tokens, neighbours: int = 5) -> dict[str, float]:
    """What patches of one encoder are like, against those of another one on the same images.

    Args:
        tokens: of the encoder that trains, of B images with N patches.
        reference: of the original encoder; the width may be another.
        neighbours: k of the agreement.

    Returns:
        - ``class_cosine``: mean cosine of the patches to their image's class token, where there is one. It grows as
          patches come to say what the whole image says (DINOv3, arXiv:2508.10104, section 4.1).
        - ``effective_rank``: e to the entropy of the singular values of all patches, each of unit length
          (Roy & Vetterli, 2007), from 1, all alike, to D.
        - ``neighbour_agreement``: of each patch's k nearest in its image by cosine, the share that it has in the
          reference as well, from 0 to 1. Chance gives k / (N - 1).

    Raises:
        ValueError: other images, or no more than ``neighbours`` + 1 patches in each.
    """
    images, count = tokens.patches.shape[:2]
    if reference.patches.shape[:2] != (images, count):
        raise ValueError(
            f"expected the reference's tokens of the same images, {images} of {count} patches, found "
            f"{tuple(reference.patches.shape[:2])}"
        )
    if count <= neighbours + 1:
        raise ValueError(
            f"the watch on {neighbours} neighbours expects more than {neighbours + 1} patches an image, found {count}; "
            "take larger images"
        )
    patches = F.normalize(tokens.patches.float(), dim=-1)
    found = {}
    if tokens.class_token is not None:
        whole = F.normalize(tokens.class_token.float(), dim=-1)
        found["class_cosine"] = float((patches @ whole[:, :, None]).mean())
    found["effective_rank"] = effective_rank(patches.flatten(0, 1))
    ours, theirs = (_nearest(one, neighbours) for one in (patches, F.normalize(reference.patches.float(), dim=-1)))
    found["neighbour_agreement"] = float((ours & theirs).sum() / ours.sum())
    return found


def effective_rank(rows: Tensor) -> float:
    """e to the entropy of the singular values of ``rows`` (n, D) as shares of their sum; 0 for none but zeros."""
    rows = rows.double().cpu()
    smaller = rows.T @ rows if len(rows) > rows.shape[1] else rows @ rows.T
    values = torch.linalg.eigvalsh(smaller).clamp(min=0).sqrt()
    # What a float64 sum of squares cannot tell from zero.
    values = values[values > values.max() * 1e-7]
    return float(torch.special.entr(values / values.sum()).sum().exp()) if len(values) else 0.0


def _nearest(patches: Tensor, count: int) -> Tensor:
    """(B, N, D) of unit length -> (B, N, N) bool, whether the second is one of the ``count`` nearest of the first."""
    cosine = patches @ patches.transpose(1, 2)
    cosine.diagonal(dim1=1, dim2=2).fill_(-2)
    return torch.zeros_like(cosine, dtype=torch.bool).scatter_(2, cosine.topk(count).indices, True)


class Collapse:
    """Stops a training that has collapsed.

    What gives a collapse away is the information of the prototypes. It falls to rounding errors, 1e-6 and less, within
    some steps and stays there, as nothing is left to learn from; trainings that go well were seen at 5e-4 and more. The
    patches of a collapsed encoder still differ by their places: their rank falls by a half or so, and to 1 only where
    weights have run away.

    Args:
        rank: the least effective rank of the patches; at 1 all patches are alike.
        information: the least share of what the prototypes could say of a sample that they do say, see
            :func:`e2net.adapt.targets.usage`; it is 0 where all samples have one prototype and where each has all.

    Raises:
        ValueError: a limit is out of its range.
    """

    def __init__(self, rank: float = 1.5, information: float = 1e-5) -> None:
        if rank < 1 or not 0 <= information < 1:
            raise ValueError(
                "collapse: expected rank from 1 (off) and information from 0 (off) to below 1, found "
                f"{rank} and {information}"
            )
        self.rank, self.information = rank, information

    def check(self, step: int, effective_rank: float | None = None, information: float | None = None) -> None:
        """Looks at what was measured at a step; None is not measured.

        Raises:
            CollapseError: a limit is not reached, or a value is not finite.
        """
        limits = (
            ("the effective rank of the patches", effective_rank, self.rank, "all patches are becoming alike"),
            ("the information of the prototypes", information, self.information, "all samples have the same"),
        )
        for name, value, limit, meaning in limits:
            if value is not None and not value >= limit:
                raise CollapseError(
                    f"the features have collapsed at step {step}: {name} is {value:.3g}, below {limit:g} ({meaning}); "
                    "lower the learning rate or the teacher's temperature, or warm up longer"
                )
