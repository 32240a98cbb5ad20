"""The LightningModule: one training step, one scoring step, and what a checkpoint holds."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from torch import Tensor

from e2net.engine.checkpoint import KEY, load_state, saved_state
from e2net.engine.optim import AdamW
from e2net.losses import Criterion
from e2net.metrics import MapScores, Protocol, score_map, to_map
from e2net.model import SegmentationModel
from e2net.structures import Batch

# Shown in the progress bar; the other scores go to the loggers only.
HEADLINE = ("S", "MAE")


class SegmentationModule(L.LightningModule):
    """Trains a segmentation model and scores its maps at each mask's own size.

    Args:
        model: what is trained.
        config: the resolved config, stored in every checkpoint.
        protocol: how a map is prepared before it is scored.
        criterion: the loss; None for testing only.
        optim: makes the optimiser and its schedule; None for testing only.
        test_names: names of the test sets, in the order of their data loaders.
        flip: score the mean of each image's map and its mirror image's, at twice the cost.
    """

    def __init__(
        self,
        model: SegmentationModel,
        config: dict[str, Any],
        protocol: Protocol,
        criterion: Criterion | None = None,
        optim: AdamW | None = None,
        test_names: tuple[str, ...] = (),
        flip: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.protocol = protocol
        self.criterion = criterion
        self.optim = optim
        self.test_names = test_names
        self.flip = flip
        self.val_scores = MapScores(protocol)
        # Registered, so that the scores' states follow the module to its device.
        self._test_scores = torch.nn.ModuleList(MapScores(protocol) for _ in test_names)
        # Scoring runs beside the next batch: NumPy and OpenCV release the interpreter lock.
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._pending: list[tuple[int, str, Future]] = []
        read_elsewhere = model.encoder.frozen and model.encoder.pretrained
        self._fingerprint = model.encoder.fingerprint() if read_elsewhere else None

    def forward(self, image: Tensor) -> Tensor:
        """Probabilities (B, 1, H, W) in [0, 1], float32, for uint8 RGB images (B, 3, H, W)."""
        prob = self._prob(image)
        return (prob + self._prob(image.flip(-1)).flip(-1)) / 2 if self.flip else prob

    def _prob(self, image: Tensor) -> Tensor:
        return self.model(image.float() / 255).logits.float().sigmoid()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        assert self.criterion is not None
        losses = self.criterion(self.model(batch.image.float() / 255), batch.mask)
        size = len(batch.names)
        self.log("train/loss", losses["loss"], prog_bar=True, batch_size=size)
        self.log_dict({f"train/{k}": v for k, v in losses.items() if k != "loss"}, batch_size=size)
        return losses["loss"]

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, list[np.ndarray]]:
        return self._score(batch)

    def on_validation_epoch_end(self) -> None:
        scores = self._collect(self.val_scores)
        self.log_dict({f"val/{k}": v for k, v in scores.items() if k in HEADLINE}, prog_bar=True)
        self.log_dict({f"val/{k}": v for k, v in scores.items() if k not in HEADLINE})

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, list[np.ndarray]]:
        if batch_idx == 0 and dataloader_idx > 0:
            self._drain(self.test_scores[dataloader_idx - 1])
        return self._score(batch)

    def on_test_epoch_end(self) -> None:
        self._drain(self.test_scores[-1])

    @property
    def test_scores(self) -> list[MapScores]:
        """One for each of ``test_names``."""
        return cast(list[MapScores], list(self._test_scores))

    def test_results(self) -> dict[str, dict[str, float]]:
        """{test set: {score: value}} of the last test run."""
        return {
            name: {k: float(v) for k, v in scores.compute().items()}
            for name, scores in zip(self.test_names, self.test_scores, strict=True)
        }

    def on_test_start(self) -> None:
        for scores in self.test_scores:
            scores.reset()

    def _score(self, batch: Batch) -> dict[str, list[np.ndarray]]:
        """Queues one map per image for scoring, and returns them as ``maps``: uint8 (h, w), as in a PNG."""
        maps = []
        probs = self(batch.image)
        for position, name, prob, mask in zip(batch.positions, batch.names, probs, batch.native_masks, strict=True):
            native = self.protocol.resize_map(prob[0], mask.shape).cpu()
            self._pending.append((position, name, self._pool.submit(score_map, native, mask, protocol=self.protocol)))
            maps.append(native.numpy() if native.dtype == torch.uint8 else to_map(native, mask.shape).numpy())
        return {"maps": maps}

    def _drain(self, scores: MapScores) -> None:
        for position, name, future in self._pending:
            scores.add(position, future.result(), name)
        self._pending.clear()

    def _collect(self, scores: MapScores) -> dict[str, Tensor]:
        self._drain(scores)
        values = scores.compute()
        scores.reset()
        return values

    def configure_optimizers(self) -> Any:
        assert self.optim is not None
        optimizer, schedule = self.optim.build(self.model, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """What a checkpoint must hold; see :func:`~e2net.engine.checkpoint.saved_state`."""
        return saved_state(self.model)

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> None:
        """Loads what :meth:`state_dict` returned; a tensor that does not fit is an error whatever ``strict`` says."""
        load_state(self.model, state_dict)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[KEY] = {"config": self.config, "encoder_fingerprint": self._fingerprint}
