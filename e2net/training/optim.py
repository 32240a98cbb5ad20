"""Optimiser: which parameter gets which rate, and whether it is decayed."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from e2net.model import DenseModel
from e2net.training.schedules import Schedule

# Ends of names of class, register and mask tokens and of position tables, in Hugging Face's models and timm's.
_NOT_DECAYED = (
    "_token",
    "_tokens",
    "position_embeddings",
    "position_embedding",
    "position_embedding.weight",
    "pos_embed",
)


class AdamW:
    """AdamW over the parameters that train, with one schedule for all of them.

    Biases, norms, scalars, special tokens and position embeddings are not decayed. What the tuning policy says about
    the encoder's learning rate, for all of it or by layer, is a factor on ``lr``.

    Args:
        lr: peak learning rate.
        weight_decay: for matrices and convolution kernels.
        schedule: how the rate changes over the run.

    Raises:
        ValueError: ``lr`` is not positive or ``weight_decay`` negative.
    """

    def __init__(self, schedule: Schedule, lr: float = 1e-3, weight_decay: float = 1e-2) -> None:
        if not (0 < lr < math.inf and 0 <= weight_decay < math.inf):
            raise ValueError(f"optim: lr must be positive and weight_decay at least 0, found {lr} and {weight_decay}")
        self.schedule, self.lr, self.weight_decay = schedule, lr, weight_decay

    def groups(self, model: DenseModel) -> list[dict[str, Any]]:
        """Parameter groups with a ``name``, ``lr`` and ``weight_decay``; every trainable parameter is in one.

        Names are ``encoder/decay`` or, where the rate has a factor, ``encoder/x0.1/no_decay``.
        """
        parts = {part: getattr(model, part) for part in ("encoder", "neck", "decoder")}
        return self.groups_of(parts, {"encoder": model.tuning.lr_scales(model.encoder)})

    def groups_of(
        self, parts: Mapping[str, nn.Module], scales: Mapping[str, Mapping[str, float]], factor: float = 1.0
    ) -> list[dict[str, Any]]:
        """The same for any modules.

        Args:
            parts: by the beginnings of the groups' names.
            scales: of some parts, {name of a parameter that trains: factor on the rate}.
            factor: on all rates.
        """
        members: dict[tuple[str, float, bool], list[nn.Parameter]] = {}
        for part, module in parts.items():
            for name, parameter in module.named_parameters():
                if parameter.requires_grad:
                    key = (part, scales[part][name] if part in scales else 1.0, _decays(name, parameter))
                    members.setdefault(key, []).append(parameter)
        return [
            {
                "name": "/".join([part] + [f"x{scale:.6g}"] * (scale != 1) + ["decay" if decays else "no_decay"]),
                "params": parameters,
                "lr": self.lr * factor * scale,
                "weight_decay": self.weight_decay if decays else 0.0,
            }
            for (part, scale, decays), parameters in members.items()
        ]

    def build(self, model: DenseModel, total_steps: int) -> dict[str, Any]:
        """What Lightning's ``configure_optimizers`` returns, for a run of ``total_steps`` optimiser steps."""
        optimizer = self.optimizer(self.groups(model))
        return {"optimizer": optimizer, "lr_scheduler": self.schedule.configure(optimizer, total_steps, model.task)}

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """AdamW over some groups."""
        # One kernel, but for float64: under trainer.precision=64-true torch counts steps in a type that it refuses.
        fused = all(parameter.dtype != torch.float64 for group in groups for parameter in group["params"])
        return _AdamW(groups, fused=fused)


def _decays(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim > 1 and not name.endswith(_NOT_DECAYED)


class _AdamW(torch.optim.AdamW):
    """Stays fused when it takes over another one's state, as runs of before were not on a CPU."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        groups = [{**group, "fused": self.defaults["fused"]} for group in state_dict["param_groups"]]
        super().load_state_dict({**state_dict, "param_groups": groups})
