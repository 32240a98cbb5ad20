"""What frozen patches know of masks, label maps and depth: a linear map in closed form."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from e2net.neighbours import Predictor
from e2net.structures import IGNORED
from e2net.tasks import Depth
from e2net.tasks.base import Array, Task

# Of the mean variance of a feature: the penalty of a linear map.
PENALTY = 1e-3


class Ridge:
    """Least squares with an L2 penalty, from sums over the samples: its memory does not grow with their number.

    Args:
        width: D, of the features.
        outputs: K.
        device: where the sums lie.
    """

    def __init__(self, width: int, outputs: int, device: torch.device | str = "cpu") -> None:
        kind: dict[str, Any] = {"dtype": torch.float64, "device": device}
        self._weight = torch.zeros((), **kind)
        self._x, self._y = torch.zeros(width, **kind), torch.zeros(outputs, **kind)
        self._xx, self._xy = torch.zeros(width, width, **kind), torch.zeros(width, outputs, **kind)

    def add(self, x: Tensor, y: Tensor, weight: Tensor) -> None:
        """Takes samples: features (n, D), targets (n, K), and how much each counts, (n,) from 0."""
        x, y, weight = x.double(), y.double(), weight.double()[:, None]
        self._weight += weight.sum()
        self._x += (x * weight).sum(0)
        self._y += (y * weight).sum(0)
        self._xx += x.T @ (x * weight)
        self._xy += x.T @ (y * weight)

    def solve(self, penalty: float = PENALTY) -> Predictor:
        """The map that has the least squared error plus ``penalty`` times the mean variance of a feature, a weight.

        Raises:
            ValueError: no sample counts.
        """
        if not self._weight > 0:
            raise ValueError("expected targets with something known in them, found none")
        mean, centre = self._x / self._weight, self._y / self._weight
        covariance = self._xx / self._weight - mean[:, None] * mean
        # Features that never change have no variance: the penalty alone must keep the system solvable.
        ridge = penalty * covariance.diagonal().clamp(min=0).mean() + 1e-12
        covariance.diagonal().add_(ridge)
        slope = torch.linalg.solve(covariance, self._xy / self._weight - mean[:, None] * centre)
        weight, offset = slope.float(), (centre - mean @ slope).float()
        return lambda rows: rows @ weight + offset


def targets_of(task: Task, target: Array, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """What a map's patches are to be.

    Args:
        task: what the map means.
        target: (H, W), canonical.
        grid: (h, w) patches.

    Returns:
        (h·w, K) float32, the shares of the classes, of a mask the object's alone, of depth the mean logarithm of the
        metres; and (h·w,), the share of the patch that is known.
    """
    pixels = task.to_tensor(target)[0]
    if isinstance(task, Depth):
        known = ((pixels >= task.minimum) & (pixels <= task.maximum)).float()
        values = torch.where(known > 0, pixels, 1).log()[None] * known
    elif pixels.is_floating_point():
        known, values = torch.ones_like(pixels), pixels[None].float()
    else:
        labels = torch.where(pixels == IGNORED, task.out_channels, pixels.long())
        values = F.one_hot(labels, task.out_channels + 1)[..., :-1].permute(2, 0, 1).float()
        known = (pixels != IGNORED).float()
    share = F.adaptive_avg_pool2d(known[None], grid)[0]
    pooled = F.adaptive_avg_pool2d(values, grid) / share.clamp(min=1e-6)
    return pooled.flatten(1).T.contiguous(), share.flatten()


def activated(task: Task, found: Tensor, grid: tuple[int, int]) -> Tensor:
    """What a predictor says of a picture's patches (h·w, K) as (K, h, w) that ``task.finish`` takes."""
    maps = found.T.reshape(-1, *grid)
    if isinstance(task, Depth):
        return maps.exp().clamp(task.minimum, task.maximum)
    return maps.clamp(0, 1) if len(maps) == 1 else maps
