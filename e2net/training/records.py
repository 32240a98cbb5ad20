"""What a run writes while it trains: ``metrics.csv``, and checkpoints that are whole at every moment."""

import csv
import io
import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from e2net.files import naming, replacing, write_atomically


class MetricsFile(Logger):
    """Logs into a CSV file: a row a call, a column a metric, in alphabetical order.

    Rows that are there already stay, where Lightning's own logger would delete them: a resumed run goes on below them.

    Args:
        file: where to.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file
        self._columns: list[str] = []

    @property
    def name(self) -> str:
        """Of the experiment, which Lightning asks for: the file's."""
        return self.file.stem

    @property
    def version(self) -> str:
        """None is kept."""
        return ""

    @property
    def save_dir(self) -> str:
        """Where the file lies."""
        return str(self.file.parent)

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Writes nothing: settings are in the run's config."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row: dict[str, Any] = {**metrics, "step": step}
        if not self._columns and self.file.is_file():
            with self.file.open(newline="", encoding="utf-8") as stream:
                self._columns = list(csv.DictReader(stream).fieldnames or [])
        if self.file.is_file() and row.keys() <= set(self._columns):
            with naming(self.file), self.file.open("a", newline="", encoding="utf-8") as stream:
                stream.write(_lines(self._columns, [row]))  # in one piece
            return
        rows: list[dict[str, Any]] = []
        if self.file.is_file():
            with self.file.open(newline="", encoding="utf-8") as stream:
                rows = list(csv.DictReader(stream))
        self._columns = sorted({*self._columns, *row})
        header = dict(zip(self._columns, self._columns, strict=True))
        write_atomically(self.file, _lines(self._columns, [header, *rows, row]))


def _lines(columns: list[str], rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    csv.DictWriter(text, columns).writerows(rows)
    return text.getvalue()


class WholeCheckpoints(TorchCheckpointIO):
    """Writes each checkpoint beside its place first; it takes its place once it lies on the disk.

    Lightning writes it into the folder for temporary files, often on another disk, from where it is copied into its
    place: a process that is killed meanwhile, or a full disk, would leave half of a checkpoint there.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        with naming(Path(path)), replacing(Path(path)) as temporary, temporary.open("wb") as stream:
            torch.save(checkpoint, stream)
            stream.flush()
            os.fsync(stream.fileno())  # else a machine that goes down may have the new name without its content
