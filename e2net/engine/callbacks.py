"""Lightning callbacks: pictures to look at, prediction maps, checkpoints and what a resumed run needs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from e2net.drawing import contact_sheet
from e2net.engine.checkpoint import read_checkpoint
from e2net.engine.report import masks_hash
from e2net.files import write_atomically
from e2net.structures import Batch
from e2net.tasks.base import Task


class SamplePictures(L.Callback):
    """Writes ``val.png`` after each validation and ``test_<name>.png`` after a test: the first images of each set.

    Args:
        folder: where to.
        count: images per sheet; 0 writes none.
    """

    def __init__(self, folder: str | Path, count: int) -> None:
        if count < 0:
            raise ValueError(f"num_samples must be at least 0, found {count}")
        self.folder = Path(folder)
        self.count = count
        self._rows: dict[str, list[np.ndarray]] = {}

    def _add(self, sheet: str, batch: Batch, maps: list[np.ndarray], task: Task) -> None:
        rows = self._rows.setdefault(sheet, [])
        images = batch.image.cpu().permute(0, 2, 3, 1).numpy()
        for image, target, values in zip(images, batch.native_targets, maps, strict=True):
            if len(rows) < self.count:
                rows.append(task.panel(image, target, values))

    def _write(self) -> None:
        for sheet, rows in self._rows.items():
            if rows:
                _, png = cv2.imencode(".png", contact_sheet(rows)[..., ::-1])
                write_atomically(self.folder / f"{sheet}.png", png.tobytes())
        self._rows.clear()

    def on_validation_batch_end(
        self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if not trainer.sanity_checking:
            self._add("val", batch, outputs["maps"], module.task)

    def on_validation_epoch_end(self, trainer: L.Trainer, module: Any) -> None:
        self._write()

    def on_test_batch_end(
        self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._add(f"test_{module.test_names[dataloader_idx]}", batch, outputs["maps"], module.task)

    def on_test_epoch_end(self, trainer: L.Trainer, module: Any) -> None:
        self._write()


class MapWriter(L.Callback):
    """Writes every test result as ``<folder>/<test set>/<name>.png``, at the image's own size."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        target = self.folder / module.test_names[dataloader_idx]
        for name, values in zip(batch.names, outputs["maps"], strict=True):
            module.task.write(target / f"{name}.png", values)


class CheckpointFile(ModelCheckpoint):
    """Keeps one checkpoint in one file: that of the best validation, or that of the last epoch.

    The last one needs a callback of its own: Lightning's ``save_last`` writes it only when the best one improves. A
    resumed run in another folder goes on with the best score so far if that checkpoint lies in its folder already.

    Args:
        file: where to.
        monitor: what is best; None writes after every epoch.
        mode: ``max`` where larger is better, else ``min``.
    """

    def __init__(self, file: Path, monitor: str | None = None, mode: str = "max") -> None:
        super().__init__(
            file.parent,
            filename=file.stem,
            monitor=monitor,
            mode=mode,
            save_on_train_epoch_end=monitor is None,
            enable_version_counter=False,
        )
        self.file = file

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.monitor is None or not self.file.is_file():
            return
        # The score is that of the file: a run that ended between the two files has one that is an epoch younger.
        state = read_checkpoint(self.file)["callbacks"][self.state_key]
        path, score = str(self.file), state["best_model_score"]
        here = {"best_model_path": path, "kth_best_model_path": path, "best_k_models": {path: score}}
        super().load_state_dict({**state, **here, "dirpath": self.dirpath, "last_model_path": ""})


class ResumeState(L.Callback):
    """Keeps in checkpoints what Lightning leaves out, so that a resumed run equals an uninterrupted one bit by bit.

    That is the state of torch's random numbers, which dropout draws from (the data sets draw from seed, epoch and
    position instead); with several processes that of the first one, as all have the same seed and draw equally often.
    And the value that a plateau schedule waits for, as checkpoints are written before it has seen the epoch's.
    Beside these, a hash of the images' names, by which other data are recognised wherever they lie.
    Plain tensors, numbers and text, as a checkpoint is read without running code from it.

    Args:
        images: that hash.
    """

    KEY = "resume"

    def __init__(self, images: str = "") -> None:
        self.images = images
        self._state: dict[str, Any] = {}

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        state: dict[str, Any] = {"cpu": torch.get_rng_state(), "images": self.images}
        if pl_module.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(pl_module.device)
        for schedule in trainer.lr_scheduler_configs:
            if schedule.reduce_on_plateau and schedule.monitor in trainer.callback_metrics:
                state["plateau"] = float(trainer.callback_metrics[schedule.monitor])
        checkpoint[self.KEY] = state

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self._state = checkpoint.get(self.KEY, {})

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        # Not while loading: what is drawn between there and here was not drawn in the uninterrupted run.
        if "cpu" in self._state:
            torch.set_rng_state(self._state["cpu"].cpu())
        if "cuda" in self._state and pl_module.device.type == "cuda":
            torch.cuda.set_rng_state(self._state["cuda"].cpu(), pl_module.device)
        for schedule in trainer.lr_scheduler_configs:
            if schedule.reduce_on_plateau and "plateau" in self._state:
                schedule.scheduler.step(self._state["plateau"])
        self._state = {}


class TargetDigests(L.Callback):
    """Takes the digest of every target that a test run meets, so that a report can name the data it is about."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, str]] = {}

    def on_test_batch_end(
        self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        digests = self.found.setdefault(module.test_names[dataloader_idx], {})
        pairs = zip(batch.names, batch.native_targets, strict=True)
        digests.update((name, module.task.digest(target)) for name, target in pairs)

    def hash(self, name: str, stems: Sequence[str]) -> str | None:
        """Of all targets of a set, see ``masks_hash``; None where this process has not met all of them."""
        digests = self.found.get(name, {})
        return masks_hash(digests) if set(digests) == set(stems) else None
