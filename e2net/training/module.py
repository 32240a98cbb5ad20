"""The LightningModule that trains: a step, a validation, and what a checkpoint holds."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from e2net.evaluation.inference import Predictor
from e2net.evaluation.module import EvaluationModule, ReadImage
from e2net.evaluation.scales import RandomScale
from e2net.losses import DenseLoss
from e2net.model import DenseModel
from e2net.processes import gather, one_batch
from e2net.runs.checkpoint import KEY, checkpoint_entry, load_state, saved_state
from e2net.speed import halve_frozen
from e2net.structures import Batch, Images, unit_range
from e2net.training.finite import FiniteSteps
from e2net.training.optim import AdamW
from e2net.training.schedules import TRAIN_LOSS
from e2net.training.step import clip, leave_out_unused, step

# Targets come again in every validation; what depends on them alone is kept up to so many bytes.
_KEPT_BYTES = 1 << 30


class DenseModule(EvaluationModule):
    """Trains a model, and scores its validation and test results at each target's own size.

    Args:
        model: what is trained.
        config: the resolved config, stored in every checkpoint.
        criterion: the loss.
        optim: makes the optimiser and its schedule.
        test_names: names of the test sets, in the order of their data loaders.
        predictor: how maps are computed, in validation and test alike; None: in one pass.
        rescale: resizes training batches; None: all are of one size.

    Attributes:
        val_images: as ``test_images``, of the validation part.
    """

    def __init__(
        self,
        model: DenseModel,
        config: dict[str, Any],
        criterion: DenseLoss,
        optim: AdamW,
        test_names: tuple[str, ...] = (),
        predictor: Predictor | None = None,
        rescale: RandomScale | None = None,
    ) -> None:
        super().__init__(model, config, test_names, predictor)
        leave_out_unused(model, criterion)
        self.criterion = criterion
        self.optim = optim
        self.rescale = rescale or RandomScale()
        self._total_steps = 1.0  # known when training starts
        self.val_scores = self.task.set_scores(_KEPT_BYTES)
        self.val_images: ReadImage | None = None
        # Now, as frozen weights may be cast later.
        self._entry = checkpoint_entry(model, config)
        # The optimiser step of the last validation, and the threshold that was best in it.
        self._threshold: tuple[int, float] | None = None
        self.finite = FiniteSteps()
        # Of this epoch's finite losses in this process: their sum over images, and how many images that were.
        # Lightning's own mean would be lost where a run goes on in the middle of an epoch.
        self.mean_loss = torch.zeros(2)

    def on_train_start(self) -> None:
        self.finite.start(self.model, getattr(self.trainer.precision_plugin, "scaler", None) is not None)
        self.mean_loss = self.mean_loss.to(self.device)
        self._total_steps = max(self.trainer.estimated_stepping_batches, 1)

    def on_fit_start(self) -> None:
        halve_frozen(self.model, str(self.trainer.precision), self.device)
        self.val_scores.forget()  # a position may have been another image's

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        progress = min(1.0, self.global_step / self._total_steps)
        image, target = self.resized(batch, self.current_epoch, batch_idx, progress)
        with one_batch():
            losses = step(self.model, image, target, self.criterion, progress)
        loss, size = self.finite.add_loss(batch.names, losses["loss"]), len(batch.names)
        counted = torch.stack([loss.detach() * size, torch.full_like(loss, size)])
        self.mean_loss += torch.where(loss.isfinite(), counted, 0.0)
        # A step's curves are the first process's own: to gather them would stop all processes at every step.
        self.log("train/loss", losses["loss"], prog_bar=True, batch_size=size)
        self.log_dict({f"train/{k}": v for k, v in losses.items() if k != "loss"}, batch_size=size)
        if self.finite.skipped:
            self.log("train/skipped", float(self.finite.skipped), batch_size=size)
        return loss

    def resized(self, batch: Batch, epoch: int, batch_idx: int, progress: float) -> tuple[Images, Tensor]:
        """Images in [0, 1] and targets of a training batch, at the size drawn for it."""
        multiple, task = self.model.encoder.size_multiple, self.model.task
        return self.rescale(unit_range(batch.image), batch.target, multiple, epoch, batch_idx, task, progress)

    def on_after_backward(self) -> None:
        self.finite.after_backward()

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Clips what a fused optimiser unscales too, which Lightning's own hook refuses; skips what is not finite."""
        precision = self.trainer.precision_plugin
        finite = clip(optimizer, precision, gradient_clip_val, gradient_clip_algorithm)
        self.finite.add_step(self.global_step, finite)

    def on_train_epoch_end(self) -> None:
        self.finite.look()
        total, images = self.gathered_mean().sum(0)
        # A plateau schedule goes by it, and must fall everywhere at once.
        self.log(TRAIN_LOSS, total / images, sync_dist=True)
        self.mean_loss.zero_()

    def gathered_mean(self) -> Tensor:
        """``mean_loss`` of all processes, (processes, 2)."""
        return gather(self.mean_loss)

    def on_validation_start(self) -> None:
        self.finite.look()

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, list[np.ndarray]]:
        return self._score(batch, self.val_scores, self.val_images)

    def on_validation_epoch_end(self) -> None:
        scores = self._collect()  # of all processes, the same in each
        shown = self.task.headline  # in the progress bar; the others go to the loggers only
        self.log_dict({f"val/{k}": v for k, v in scores.items() if k in shown}, prog_bar=True)
        self.log_dict({f"val/{k}": v for k, v in scores.items() if k not in shown})

    def _collect(self) -> dict[str, Tensor]:
        scores = self.val_scores
        self.drain(scores)
        values = scores.compute()
        calibration = self.task.calibration(scores.table())
        self._threshold = None if calibration is None else (self.global_step, calibration.threshold)
        scores.reset()
        return values

    def configure_optimizers(self) -> Any:
        return self.optim.build(self.model, int(self.trainer.estimated_stepping_batches))

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """What a checkpoint must hold; see :func:`~e2net.runs.checkpoint.saved_state`."""
        return saved_state(self.model)

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> None:
        """Loads what :meth:`state_dict` returned; a tensor that does not fit is an error whatever ``strict`` says."""
        load_state(self.model, state_dict)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Of these very weights or of none: steps taken since the validation have made others of them.
        step, threshold = self._threshold or (None, None)
        checkpoint[KEY] = {**self._entry, "threshold": threshold if step == self.global_step else None}
