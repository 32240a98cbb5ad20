"""Lightning callbacks of training: checkpoints and what a resumed run needs."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, TQDMProgressBar, early_stopping

from e2net.runs.checkpoint import read_checkpoint


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


class Progress(TQDMProgressBar):
    """A bar for each epoch and validation."""

    def __init__(self) -> None:
        super().__init__()


class LearningRate(LearningRateMonitor):
    """The learning rate of every parameter group among the curves, at every logged step."""

    def __init__(self) -> None:
        super().__init__("step")


class EarlyStopping(early_stopping.EarlyStopping):
    """Ends training where the score that chooses the checkpoint no longer improves.

    Args:
        patience: validations without improvement before it ends.
        min_delta: less than this is no improvement.

    Raises:
        ValueError: an argument is negative.
    """

    def __init__(self, patience: int = 10, min_delta: float = 0.0) -> None:
        if patience < 0 or min_delta < 0:
            raise ValueError(
                f"early_stopping: expected patience and min_delta of at least 0, found {patience} and {min_delta}"
            )
        super().__init__("val", min_delta, patience, strict=False)

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        task = pl_module.task
        self.monitor, self.mode = f"val/{task.monitor}", task.directions[task.monitor]
        self.min_delta = abs(self.min_delta) * (1 if self.mode == "max" else -1)
        super().setup(trainer, pl_module, stage)


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
