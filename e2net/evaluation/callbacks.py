"""Lightning callbacks of validation and test: bars, pictures to look at, results as files, digests of targets."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import TQDMProgressBar

from e2net.drawing import contact_sheet
from e2net.evaluation.report import masks_hash
from e2net.files import write_atomically
from e2net.formats import encoded
from e2net.processes import gather_objects
from e2net.structures import Batch, Encoded
from e2net.tasks.base import Task


class Bars(TQDMProgressBar):
    """Lightning's bars in a terminal, gone when they are full; none in a log, which would keep each of their states."""

    def __init__(self) -> None:
        super().__init__()

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if not sys.stdout.isatty():
            self.disable()

    def init_train_tqdm(self) -> Any:
        bar = super().init_train_tqdm()
        bar.leave = False
        return bar

    def init_test_tqdm(self) -> Any:
        bar = super().init_test_tqdm()
        bar.leave = False
        return bar


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
        # By position in the set, as several processes have its images in turn.
        self._rows: dict[str, dict[int, np.ndarray]] = {}

    def _add(self, sheet: str, batch: Batch, maps: list[np.ndarray], task: Task) -> None:
        rows = self._rows.setdefault(sheet, {})
        pixels = batch.image.pixels if isinstance(batch.image, Encoded) else batch.image
        assert pixels is not None
        images = pixels.cpu().permute(0, 2, 3, 1).numpy()
        for position, image, target, values in zip(batch.positions, images, batch.native_targets, maps, strict=True):
            if len(rows) < self.count:
                rows[position] = task.panel(image, target, values)

    def _write(self, first_process: bool) -> None:
        for sheet in self._rows:
            rows = {position: row for part in gather_objects(self._rows[sheet]) for position, row in part.items()}
            if rows and first_process:
                first = [row for _, row in sorted(rows.items())[: self.count]]
                write_atomically(self.folder / f"{sheet}.png", encoded(contact_sheet(first)))
        self._rows.clear()

    def on_validation_batch_end(
        self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if not trainer.sanity_checking:
            self._add("val", batch, outputs["maps"], module.task)

    def on_validation_epoch_end(self, trainer: L.Trainer, module: Any) -> None:
        self._write(trainer.is_global_zero)

    def on_test_batch_end(
        self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._add(f"test_{module.test_names[dataloader_idx]}", batch, outputs["maps"], module.task)

    def on_test_epoch_end(self, trainer: L.Trainer, module: Any) -> None:
        self._write(trainer.is_global_zero)


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

    def on_test_epoch_end(self, trainer: L.Trainer, module: Any) -> None:
        for part in gather_objects(self.found):
            for name, digests in part.items():
                self.found.setdefault(name, {}).update(digests)

    def hash(self, name: str, stems: Sequence[str]) -> str | None:
        """Of all targets of a set, see ``masks_hash``; None where not all of them were met."""
        digests = self.found.get(name, {})
        return masks_hash(digests) if set(digests) == set(stems) else None
