"""An exponential moving average of the weights, which is what is validated, saved and tested."""

from typing import Any

import lightning as L
import torch
from torch import Tensor

from e2net.model import DenseModel
from e2net.processes import local, split_like, whole
from e2net.runs.checkpoint import saved_state

# The key under which a checkpoint holds what the average leaves out.
KEY = "ema"


def averaged_tensors(model: DenseModel) -> dict[str, Tensor]:
    """What changes in training, by its name in the state dict: parameters that train, and saved buffers.

    The tensors share the model's memory. Frozen parameters are not among them, so that an average next to a large
    frozen encoder costs no more than the decoder. Buffers are BatchNorm's statistics and counts.
    """
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: value for name, value in saved_state(model).items() if name not in frozen}


class WeightAverage(L.Callback):
    """After each optimiser step: average ← d · average + (1 - d) · weights, with d = min(decay, (1 + t) / (10 + t)).

    t counts the updates: d rises from 0.1, as the first weights are worth nothing and a short run would otherwise end
    with an average that still holds them. BatchNorm's running mean and variance are averaged in the same way, its
    counts are copied. A step that fp16's scaler has skipped counts, with weights that are what they were.

    Validation sees the average, and so does every score and picture that comes of it. A checkpoint's ``state_dict``
    is the average, for all that load a model; what training needs to go on lies beside it and is restored on resume.
    Lightning's own callback would copy the whole module, the frozen encoder included.

    Args:
        decay: 0 to 1, both excluded; the average reaches back over about 1 / (1 - decay) steps.

    Raises:
        ValueError: a decay outside of that range.
    """

    def __init__(self, decay: float) -> None:
        if not isinstance(decay, int | float) or not 0 < decay < 1:
            raise ValueError(f"ema: expected a decay above 0 and below 1, such as 0.99, or null (off), found {decay}")
        self.decay = decay
        self.updates = 0
        self.average: dict[str, Tensor] = {}
        self._live: dict[str, Tensor] = {}
        self._step = 0  # the optimiser step of the last update: with accumulation there are batches without one

    def start(self, model: DenseModel) -> None:
        """Begins with the model's weights, or goes on with an average that was loaded, on the model's device."""
        self._live = averaged_tensors(model)
        self.average = {k: split_like(self.average.get(k, v), v).to(v.device, copy=True) for k, v in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average towards the model's present weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        floats = [name for name, value in self._live.items() if value.is_floating_point()]
        # One fused operation for all tensors: one by one, a small model's update would take as long as its step.
        averages, weights = ([local(tensors[k]) for k in floats] for tensors in (self.average, self._live))
        torch._foreach_lerp_(averages, weights, 1 - decay)
        for name in self._live.keys() - set(floats):
            self.average[name].copy_(self._live[name])
        self.updates += 1

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges the values of average and model; twice is as before."""
        for name, value in self._live.items():
            kept = value.clone()
            value.copy_(self.average[name])
            self.average[name].copy_(kept)

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        # Not in setup: only here has the model reached its device, and a checkpoint been read.
        self.start(pl_module.model)

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._step = trainer.global_step  # of a resumed run it is known only now

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step > self._step:
            self._step = trainer.global_step
            self.update()

    def on_validation_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.swap()

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        # Before on_validation_end, where checkpoints are written.
        self.swap()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["state_dict"]
        checkpoint[KEY] = {"updates": self.updates, "weights": {name: state[name] for name in self.average}}
        checkpoint["state_dict"] = state | {name: whole(value) for name, value in self.average.items()}

    @torch.no_grad()
    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        if KEY not in checkpoint:  # the average begins with the weights of a run that had none
            return
        self.updates = checkpoint[KEY]["updates"]
        self.average = {name: checkpoint["state_dict"][name] for name in checkpoint[KEY]["weights"]}
        live = averaged_tensors(pl_module.model)
        for name, value in checkpoint[KEY]["weights"].items():
            if not live[name].is_meta:  # the first process's will be handed on
                live[name].copy_(value)
