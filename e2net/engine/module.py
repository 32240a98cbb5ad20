"""The LightningModule: one training step, one scoring step, and what a checkpoint holds."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from torch import Tensor

from e2net.engine.checkpoint import KEY, checkpoint_entry, load_state, saved_state
from e2net.engine.inference import Predictor
from e2net.engine.optim import AdamW
from e2net.engine.scales import RandomScale
from e2net.engine.schedules import TRAIN_LOSS
from e2net.engine.speed import halve_frozen
from e2net.engine.step import Inputs, clip, leave_out_unused, step
from e2net.losses import DenseLoss
from e2net.model import DenseModel
from e2net.structures import Batch
from e2net.tasks.base import SetScores, Task

# Targets come again in every validation; what depends on them alone is kept up to so many bytes.
_KEPT_BYTES = 1 << 30
# Maps that may wait to be scored; where scoring is slower than the network, memory is bounded by this.
_WAITING = 64


class DenseModule(L.LightningModule):
    """Trains a model and scores its results at each target's own size.

    Args:
        model: what is trained.
        config: the resolved config, stored in every checkpoint.
        criterion: the loss; None for testing only.
        optim: makes the optimiser and its schedule; None for testing only.
        test_names: names of the test sets, in the order of their data loaders.
        predictor: how maps are computed, in validation and test alike; None: in one pass.
        rescale: resizes training batches; None: all are of one size.
        task: by which test sets are scored; None: the model's. Scores of the image need ``test_images`` set.

    Attributes:
        test_images: for each test set, reads an image (h, w, 3) uint8 RGB at its own size by position.
    """

    def __init__(
        self,
        model: DenseModel,
        config: dict[str, Any],
        criterion: DenseLoss | None = None,
        optim: AdamW | None = None,
        test_names: tuple[str, ...] = (),
        predictor: Predictor | None = None,
        rescale: RandomScale | None = None,
        task: Task | None = None,
    ) -> None:
        super().__init__()
        if criterion is not None:
            leave_out_unused(model, criterion)
        self.model = model
        self.config = config
        self.task = task or model.task
        self.criterion = criterion
        self.optim = optim
        self.test_names = test_names
        self.predictor = predictor or Predictor()
        self.rescale = rescale or RandomScale()
        self._total_steps = 1.0  # known when training starts
        self.val_scores = self.task.set_scores(_KEPT_BYTES)
        # Registered, so that the scores' states follow the module to its device.
        self._test_scores = torch.nn.ModuleList(cast(torch.nn.Module, self.task.set_scores()) for _ in test_names)
        self.test_images: Sequence[Callable[[int], np.ndarray | None]] = ()
        # Scoring runs beside the next batch: NumPy and OpenCV release the interpreter lock.
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._pending: list[tuple[int, str, Future]] = []
        # Now, as frozen weights may be cast later; for testing only nobody asks.
        self._entry = None if optim is None else checkpoint_entry(model, config)

    def forward(self, image: Tensor) -> Tensor:
        """The task's activated prediction (B, C, H, W), float32, for uint8 RGB images (B, 3, H, W)."""
        return self.predictor(self.model, image)

    def on_train_start(self) -> None:
        self._total_steps = max(self.trainer.estimated_stepping_batches, 1)

    def on_fit_start(self) -> None:
        halve_frozen(self.model, str(self.trainer.precision), self.device)
        self.val_scores.forget()  # a position may have been another image's

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        assert self.criterion is not None
        inputs, target = self.inputs(batch, self.current_epoch, batch_idx)
        losses = step(self.model, inputs, target, self.criterion, min(1.0, self.global_step / self._total_steps))
        size = len(batch.names)
        # A step's curves are the first process's own: to gather them would stop all processes at every step.
        self.log("train/loss", losses["loss"], prog_bar=True, batch_size=size)
        # A plateau schedule goes by this one, and must fall everywhere at once.
        self.log(TRAIN_LOSS, losses["loss"], on_step=False, on_epoch=True, batch_size=size, sync_dist=True)
        self.log_dict({f"train/{k}": v for k, v in losses.items() if k != "loss"}, batch_size=size)
        return losses["loss"]

    def inputs(self, batch: Batch, epoch: int, batch_idx: int) -> tuple[Inputs, Tensor]:
        """What a step takes of a training batch: images and targets at the size drawn, or features from the cache."""
        if batch.features:
            return [f[:, 0].float() for f in batch.features], batch.target
        multiple = self.model.encoder.size_multiple
        return self.rescale(batch.image.float() / 255, batch.target, multiple, epoch, batch_idx, self.model.task)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Clips what a fused optimiser unscales too, which Lightning's own hook refuses."""
        clip(optimizer, self.trainer.precision_plugin, gradient_clip_val, gradient_clip_algorithm)

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, list[np.ndarray]]:
        return self._score(batch, self.val_scores)

    def on_validation_epoch_end(self) -> None:
        scores = self._collect(self.val_scores)  # of all processes, the same in each
        shown = self.task.headline  # in the progress bar; the others go to the loggers only
        self.log_dict({f"val/{k}": v for k, v in scores.items() if k in shown}, prog_bar=True)
        self.log_dict({f"val/{k}": v for k, v in scores.items() if k not in shown})

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, list[np.ndarray]]:
        if batch_idx == 0 and dataloader_idx > 0:
            self.drain(self.test_scores[dataloader_idx - 1])
        image = self.test_images[dataloader_idx] if self.test_images else None
        return self._score(batch, self.test_scores[dataloader_idx], image)

    def on_test_epoch_end(self) -> None:
        self.drain(self.test_scores[-1])

    @property
    def test_scores(self) -> list[SetScores]:
        """One for each of ``test_names``."""
        return cast(list[SetScores], list(self._test_scores))

    def test_results(self) -> dict[str, dict[str, float]]:
        """{test set: {score: value}} of the last test run."""
        return {
            name: {k: float(v) for k, v in scores.compute().items()}
            for name, scores in zip(self.test_names, self.test_scores, strict=True)
        }

    def on_test_start(self) -> None:
        halve_frozen(self.model, str(self.trainer.precision), self.device)
        for scores in self.test_scores:
            scores.reset()

    def _score(
        self, batch: Batch, scores: SetScores, read_image: Callable[[int], np.ndarray | None] | None = None
    ) -> dict[str, list[np.ndarray]]:
        """Queues one result per image for scoring, and returns them as ``maps``: (h, w), as in a file."""
        maps = []
        size = batch.target.shape[-2:]
        probs = self.predictor.from_features(self.model, batch.features, size) if batch.features else self(batch.image)
        for position, name, prob, target in zip(batch.positions, batch.names, probs, batch.native_targets, strict=True):
            result = self.task.finish(prob, target.shape[:2])
            image = None if read_image is None else partial(read_image, position)
            self._pending.append((position, name, self._pool.submit(scores.score, result, target, position, image)))
            if len(self._pending) > _WAITING:
                self._pending[-_WAITING][2].result()
            maps.append(self.task.to_file(result))
        return {"maps": maps}

    def drain(self, scores: SetScores) -> None:
        """Waits for all maps that are being scored."""
        for position, name, future in self._pending:
            scores.add(position, future.result(), name)
        self._pending.clear()

    def _collect(self, scores: SetScores) -> dict[str, Tensor]:
        self.drain(scores)
        values = scores.compute()
        scores.reset()
        return values

    def configure_optimizers(self) -> Any:
        assert self.optim is not None
        return self.optim.build(self.model, int(self.trainer.estimated_stepping_batches))

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """What a checkpoint must hold; see :func:`~e2net.engine.checkpoint.saved_state`."""
        return saved_state(self.model)

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> None:
        """Loads what :meth:`state_dict` returned; a tensor that does not fit is an error whatever ``strict`` says."""
        load_state(self.model, state_dict)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[KEY] = self._entry
