"""Lightning callbacks that write files: pictures to look at, and prediction maps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import lightning as L
import numpy as np

from e2net.datasets import write_map
from e2net.structures import Batch

# Height of every panel of a picture, in pixels.
PANEL = 160
GREEN = (60, 220, 90)
RED = (235, 60, 60)


def panel(image: np.ndarray, mask: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Image, mask, prediction and overlay side by side.

    In the overlay what is predicted is green, and what the mask has outside the prediction red.

    Args:
        image: (H, W, 3) uint8, RGB.
        mask: (h, w) bool.
        prediction: (h, w) uint8.

    Returns:
        (PANEL, w', 3) uint8, RGB.
    """
    height, width = mask.shape
    size = (max(1, round(PANEL * width / height)), PANEL)
    picture = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    truth = cv2.resize(mask.astype(np.uint8) * 255, size, interpolation=cv2.INTER_NEAREST)
    predicted = cv2.resize(prediction, size, interpolation=cv2.INTER_LINEAR)
    found = predicted > 127
    overlay = picture.copy()
    for where, colour in ((found, GREEN), ((truth > 127) & ~found, RED)):
        overlay[where] = (0.5 * overlay[where] + 0.5 * np.array(colour)).astype(np.uint8)
    grey = [cv2.cvtColor(x, cv2.COLOR_GRAY2RGB) for x in (truth, predicted)]
    return cv2.hconcat([picture, *grey, overlay])


def contact_sheet(rows: Sequence[np.ndarray], columns: int = 2) -> np.ndarray:
    """Pictures of equal height in a grid, on white, 4 pixels apart. (H, W, 3) uint8 in and out."""
    gap = 4
    width = max(row.shape[1] for row in rows)
    cells = [
        cv2.copyMakeBorder(r, 0, gap, 0, width - r.shape[1] + gap, cv2.BORDER_CONSTANT, value=(255,) * 3) for r in rows
    ]
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % columns)
    lines = [cv2.hconcat(cells[i : i + columns]) for i in range(0, len(cells), columns)]
    return cv2.vconcat(lines)


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

    def _add(self, sheet: str, batch: Batch, maps: list[np.ndarray]) -> None:
        rows = self._rows.setdefault(sheet, [])
        images = batch.image.cpu().permute(0, 2, 3, 1).numpy()
        for image, mask, prediction in zip(images, batch.native_masks, maps, strict=True):
            if len(rows) < self.count:
                rows.append(panel(image, mask, prediction))

    def _write(self) -> None:
        for sheet, rows in self._rows.items():
            if rows:
                self.folder.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(self.folder / f"{sheet}.png"), contact_sheet(rows)[..., ::-1])
        self._rows.clear()

    def on_validation_batch_end(
        self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if not trainer.sanity_checking:
            self._add("val", batch, outputs["maps"])

    def on_validation_epoch_end(self, trainer: L.Trainer, module: Any) -> None:
        self._write()

    def on_test_batch_end(
        self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._add(f"test_{module.test_names[dataloader_idx]}", batch, outputs["maps"])

    def on_test_epoch_end(self, trainer: L.Trainer, module: Any) -> None:
        self._write()


class MapWriter(L.Callback):
    """Writes every test map as ``<folder>/<test set>/<name>.png``: 8-bit grey, at the image's own size."""

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
            write_map(target / f"{name}.png", values)
