"""Optimiser and learning-rate schedule: which parameter gets which rate, at which step."""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from e2net.model import SegmentationModel

Schedule = Callable[[float], float]


class WarmupCosine:
    """Linear warm-up, then half a cosine, as a factor on the learning rate.

    Args:
        warmup: fraction of all steps over which the factor rises from near 0 to 1.
        final: the factor at the last step.
    """

    def __init__(self, warmup: float = 0.05, final: float = 0.01) -> None:
        if not 0 <= warmup < 1 or not 0 <= final <= 1:
            raise ValueError(
                f"optim.schedule: warmup must be in [0, 1) and final in [0, 1], found {warmup} and {final}"
            )
        self.warmup, self.final = warmup, final

    def __call__(self, progress: float) -> float:
        """Factor at ``progress``, the fraction of all steps that have been taken, in [0, 1]."""
        if progress < self.warmup:
            # Never zero: the first step would be wasted.
            return max(progress / self.warmup, 1e-3)
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * _ramp(progress, self.warmup))) / 2


def _ramp(progress: float, start: float) -> float:
    return min((progress - start) / (1 - start), 1.0)


class AdamW:
    """AdamW over the parameters that train, with one schedule for all of them.

    Biases, norms, special tokens and position embeddings are not decayed. The encoder's learning rate is scaled by
    ``tuning.lr_scale``.

    Args:
        lr: peak learning rate.
        weight_decay: for matrices and convolution kernels.
        schedule: factor on the learning rate as a function of progress in [0, 1].
    """

    def __init__(self, schedule: Schedule, lr: float = 1e-3, weight_decay: float = 1e-2) -> None:
        if lr <= 0 or weight_decay < 0:
            raise ValueError(f"optim: lr must be positive and weight_decay at least 0, found {lr} and {weight_decay}")
        self.schedule, self.lr, self.weight_decay = schedule, lr, weight_decay

    def groups(self, model: SegmentationModel) -> list[dict]:
        """Parameter groups with a ``name``, ``lr`` and ``weight_decay``; every trainable parameter is in one."""
        groups = []
        for part, lr in (("encoder", self.lr * model.tuning.lr_scale), ("decoder", self.lr)):
            members: dict[bool, list[nn.Parameter]] = {True: [], False: []}
            for name, parameter in getattr(model, part).named_parameters():
                if parameter.requires_grad:
                    members[_decays(name, parameter)].append(parameter)
            for decays, parameters in members.items():
                if parameters:
                    kind, decay = ("decay", self.weight_decay) if decays else ("no_decay", 0.0)
                    groups.append({"name": f"{part}/{kind}", "params": parameters, "lr": lr, "weight_decay": decay})
        return groups

    def build(self, model: SegmentationModel, total_steps: int) -> tuple[Optimizer, LambdaLR]:
        """The optimiser and a scheduler to be stepped after each of ``total_steps`` optimiser steps."""
        optimizer = torch.optim.AdamW(self.groups(model), fused=_on_cuda(model))
        return optimizer, LambdaLR(optimizer, lambda step: self.schedule(step / max(total_steps, 1)))


def _decays(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim > 1 and not name.endswith(("_token", "_tokens", "position_embeddings"))


def _on_cuda(model: nn.Module) -> bool:
    return all(p.is_cuda for p in model.parameters() if p.requires_grad)
