"""A teacher's logits made targets, against collapse: by Sinkhorn-Knopp or by a moving centre; and a watch on both.

Both are called as ``targets(logits, temperature)``, and told of the same logits by ``targets.update(logits)`` once the
targets are taken. Both are collective calls: all processes come to them, with as many samples each as they have. What
they remember is the same in all processes and is in the state dict.
"""

import math

import torch
from torch import Tensor, nn

from e2net import processes
from e2net.losses.self_supervised import centred, sinkhorn_knopp


class Sinkhorn(nn.Module):
    """Targets by Sinkhorn-Knopp (SwAV, DINOv2's and DINOv3's way), over the batch and a queue of earlier ones.

    Args:
        prototypes: K.
        queue: how many samples of earlier batches, of all processes, a batch is seen together with; 0 for none. Of use
            where batches are below about 256 samples, which cannot use many prototypes alike. Takes 4·K bytes each.
        iterations: of Sinkhorn-Knopp.
    """

    queue: Tensor
    seen: Tensor

    def __init__(self, prototypes: int, queue: int = 0, iterations: int = 3) -> None:
        super().__init__()
        if prototypes < 2 or queue < 0 or iterations < 1:
            raise ValueError(
                "Sinkhorn: expected prototypes of at least 2, a queue of at least 0 and iterations of at least 1, "
                f"found {prototypes}, {queue} and {iterations}"
            )
        self.iterations = iterations
        self.register_buffer("queue", torch.zeros(queue, prototypes))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, logits: Tensor, temperature: float) -> Tensor:
        """(N, K) of the teacher -> (N, K) probabilities, float32, without a gradient; rows sum to 1."""
        together = logits.detach().to(self.queue.dtype)
        if len(self.queue):
            # Each process brings a share of the queue, which is the same in all of them.
            held = self.queue[: int(self.seen)][processes.rank() :: processes.count()]
            together = torch.cat([together, held])
        return sinkhorn_knopp(together, temperature, self.iterations)[: len(logits)]

    @torch.no_grad()
    def update(self, logits: Tensor) -> None:
        """Puts the teacher's logits (N, K) of all processes into the queue, in the place of the oldest."""
        length = len(self.queue)
        if not length:
            return
        rows = _of_all_processes(logits.to(self.queue.dtype))[-length:]
        places = (self.seen + torch.arange(len(rows), device=rows.device)) % length
        self.queue[places] = rows
        self.seen += len(rows)


class Centre(nn.Module):
    """Targets by a moving average of the logits (DINO, Caron et al. 2021, eq. 4); for batches of any size.

    Args:
        prototypes: K.
        momentum: share of the average that is kept at an update, in [0, 1).
    """

    centre: Tensor

    def __init__(self, prototypes: int, momentum: float = 0.9) -> None:
        super().__init__()
        if prototypes < 2 or not 0 <= momentum < 1:
            raise ValueError(
                f"Centre: expected prototypes of at least 2 and a momentum in [0, 1), found {prototypes} and {momentum}"
            )
        self.momentum = momentum
        self.register_buffer("centre", torch.zeros(prototypes))

    def forward(self, logits: Tensor, temperature: float) -> Tensor:
        """(N, K) of the teacher -> (N, K) probabilities, float32, without a gradient; rows sum to 1."""
        return centred(logits, self.centre, temperature)

    @torch.no_grad()
    def update(self, logits: Tensor) -> None:
        """Moves the centre towards the mean of the teacher's logits (N, K) of all processes."""
        mean, samples = _mean(logits.to(self.centre.dtype))
        # Where no process has a sample it stays; asking for the number here would have a GPU wait.
        self.centre.lerp_(torch.where(samples > 0, mean, self.centre), 1 - self.momentum)


def entropy(probabilities: Tensor) -> Tensor:
    """(..., K) probabilities -> (...) in nats, from 0 for one prototype to log K for all alike."""
    return torch.special.entr(probabilities).sum(-1)


@torch.no_grad()
def usage(probabilities: Tensor) -> dict[str, Tensor]:
    """How samples use the prototypes; a collective call, for a watch on collapse.

    Collapse has two faces: all samples have one prototype (both entropies are 0), or each has all of them (both are 1).
    In either, a sample's prototypes say nothing about it, and ``information`` is 0. Neither Sinkhorn-Knopp nor a centre
    hides that: of equal logits they make equal targets.

    Args:
        probabilities: (N, K), of a student or a teacher.

    Returns:
        Scalars in [0, 1], over the samples of all processes: ``entropy``, the mean of the samples', and
        ``mean_entropy``, that of their mean, as shares of log K; ``information``, the difference of the two in nats
        (the mutual information of sample and prototype) as a share of the most that so many samples can have.
    """
    prototypes = probabilities.shape[1]
    mean, samples = _mean(torch.cat([probabilities, entropy(probabilities)[:, None]], 1))
    of_samples, of_mean = mean[-1], entropy(mean[:-1])
    most = samples.clamp(min=2, max=prototypes).log()
    return {
        "entropy": of_samples / math.log(prototypes),
        "mean_entropy": of_mean / math.log(prototypes),
        "information": (of_mean - of_samples) / most,
    }


def _mean(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(N, K) -> (K,) over the rows of all processes, and how many they are, a scalar; 0 where there is none."""
    sums = processes.total(torch.cat([rows.sum(0), rows.new_tensor([len(rows)])]))
    return sums[:-1] / sums[-1].clamp(min=1), sums[-1]


def _of_all_processes(rows: Tensor) -> Tensor:
    """(N, K), N of each process its own -> all of them behind each other, the same in all processes."""
    counts = processes.gather(torch.tensor([len(rows)], device=rows.device))[:, 0].tolist()
    padded = torch.cat([rows, rows.new_zeros(max(counts) - len(rows), rows.shape[1])])
    return torch.cat([part[:n] for part, n in zip(processes.gather(padded), counts, strict=True)])
