"""Lightning callbacks of training: checkpoints and what a resumed run needs."""

import logging
import signal
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import (
    Checkpoint,
    LearningRateMonitor,
    ModelCheckpoint,
    early_stopping,
)
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from e2net.evaluation.breakdown import fraction
from e2net.evaluation.callbacks import Bars
from e2net.runs.checkpoint import read_checkpoint
from e2net.training.schedules import TRAIN_LOSS

log = logging.getLogger(__name__)


class BestCheckpoint(ModelCheckpoint):
    """Keeps the checkpoint of the best validation; a score that is not finite is never the best.

    A resumed run in another folder goes on with the best score so far if that checkpoint lies in its folder already.

    Args:
        file: where to.
        monitor: what is best.
        mode: ``max`` where larger is better, else ``min``.
    """

    def __init__(self, file: Path, monitor: str, mode: str) -> None:
        super().__init__(
            file.parent,
            filename=file.stem,
            monitor=monitor,
            mode=mode,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )
        self.file = file

    @property
    def state_key(self) -> str:
        # The class's former name, by which older runs' checkpoints hold its state.
        return super().state_key.replace(type(self).__qualname__, "CheckpointFile")

    def check_monitor_top_k(self, trainer: L.Trainer, current: Tensor | None = None) -> bool:
        if current is not None and not current.isfinite():
            log.warning("%s is %s: this state does not become %s", self.monitor, float(current), self.file.name)
            return False
        return super().check_monitor_top_k(trainer, current)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if not self.file.is_file():
            return
        # The score is that of the file: a run that ended between the two files has one that is an epoch younger.
        state = read_checkpoint(self.file)["callbacks"][self.state_key]
        path, score = str(self.file), state["best_model_score"]
        here = {"best_model_path": path, "kth_best_model_path": path, "best_k_models": {path: score}}
        super().load_state_dict({**state, **here, "dirpath": self.dirpath, "last_model_path": ""})


class LastCheckpoint(Checkpoint):
    """Keeps the latest state of a run: after every epoch, every so many steps if asked for, and before SIGTERM ends it.

    Also where a run is to end within an epoch, as by ``trainer.max_time``. It is written between two optimiser steps.
    What follows an epoch's last one is left to the end of the epoch, so that a validation is never half done; SIGTERM
    waits for it too. A state whose last step was skipped as not finite is not written, but for fp16's first steps: the
    one before may be the last good one.

    Args:
        file: where to.
        every_n_steps: optimiser steps; None: after epochs only.

    Raises:
        ValueError: ``every_n_steps`` is less than 1.
    """

    def __init__(self, file: Path, every_n_steps: int | None = None) -> None:
        if every_n_steps is not None and (type(every_n_steps) is not int or every_n_steps < 1):
            raise ValueError(f"checkpoint_every_n_steps: expected at least 1, or null (off), found {every_n_steps}")
        self.file, self.every_n_steps = file, every_n_steps
        self._step = 0  # that of the last look: with accumulation there are batches without a step
        self._terminated = self._written = self._ending = False

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._step = trainer.global_step
        self._terminated = self._written = self._ending = False
        if threading.current_thread() is threading.main_thread():
            # Instead of Lightning's, which would end a validation without anything saved. It puts back what was there.
            signal.signal(signal.SIGTERM, self._on_sigterm)

    def _on_sigterm(self, *_: Any) -> None:
        log.info("SIGTERM: the run is saved, then it ends")
        self._terminated = True

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self._step or batch_idx + 1 >= trainer.num_training_batches:
            return
        self._step = trainer.global_step
        self._ending = self._asked(trainer)
        self._written = self._ending or trainer.should_stop
        if self._written or (self.every_n_steps and self._step % self.every_n_steps == 0):
            self._save(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not self._written:  # else the epoch is not over, though Lightning calls it so
            self._save(trainer, pl_module)
        self._step = trainer.global_step
        self._ending = self._asked(trainer)

    def _asked(self, trainer: L.Trainer) -> bool:
        """Whether any process has been asked to end: all must save and end together."""
        return trainer.strategy.reduce_boolean_decision(self._terminated, all=False)

    # The run ends here, when what was logged has been written as well.

    def on_train_batch_start(self, *_: Any) -> None:
        self._end()

    def on_train_epoch_start(self, *_: Any) -> None:
        self._end()

    def on_train_end(self, *_: Any) -> None:
        self._end()

    def _end(self) -> None:
        if self._ending:
            raise SIGTERMException

    def _save(self, trainer: L.Trainer, pl_module: Any) -> None:
        pl_module.finite.look()
        if pl_module.finite.doubtful:
            log.warning("%s stays that of before the skipped steps", self.file.name)
            return
        trainer.save_checkpoint(self.file, weights_only=False)


class Progress(Bars):
    """A bar for each epoch and validation, in a terminal; the line of each epoch is there without it."""

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        super().on_train_epoch_start(trainer, *_)
        self.train_progress_bar.set_description(_epoch(trainer))


class EpochLines(L.Callback):
    """Says a line after each epoch: its mean loss, the scores of its validation, how long it took."""

    def __init__(self) -> None:
        self._begun = 0.0
        self._validated = False

    def on_train_start(self, *_: Any) -> None:
        self._begin()  # the rest of an epoch within which a run goes on is not begun anew

    def on_train_epoch_start(self, *_: Any) -> None:
        self._begin()

    def _begin(self) -> None:
        self._begun, self._validated = time.monotonic(), False

    def on_validation_end(self, *_: Any) -> None:
        self._validated = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        total, images = pl_module.gathered_mean().sum(0).tolist()  # all processes take part
        if not trainer.is_global_zero:
            return
        words = [f"loss {total / images:.4g}" if images else "no finite loss"]
        if self._validated:
            task, found = pl_module.task, trainer.callback_metrics
            names = [name for name in (f"val/{score}" for score in task.headline) if name in found]
            words += [f"{name} {fraction(float(found[name]))}" for name in names]
            chosen = next((c for c in trainer.checkpoint_callbacks if isinstance(c, BestCheckpoint)), None)
            if chosen is not None and chosen.best_model_score == found[str(chosen.monitor)]:
                words.append("the best so far")
        done, whole = trainer.fit_loop.epoch_loop.batch_progress.current.ready, int(trainer.num_training_batches)
        part = f", {done} of {whole} batches" if done < whole else ""
        seconds = time.monotonic() - self._begun
        words.append(f"{seconds:.1f} s" if seconds < 60 else f"{seconds / 60:.1f} min")
        log.info("%s%s: %s", _epoch(trainer), part, ", ".join(words))


def _epoch(trainer: L.Trainer) -> str:
    epoch, whole = f"epoch {trainer.current_epoch + 1}", trainer.max_epochs or 0
    if trainer.max_steps > 0:  # which end it, long before its epochs do
        return f"{epoch}, step {trainer.global_step}/{trainer.max_steps}"
    return f"{epoch}/{whole}" if whole > 0 else epoch


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

    @classmethod
    def check(cls, callbacks: Iterable[L.Callback], validated: bool) -> None:
        """Raises ValueError if one of these is such a callback, and no validation would ever tell it to end."""
        if not validated and any(isinstance(one, cls) for one in callbacks):
            raise ValueError(
                "callbacks=early_stopping: expected a validation whose score it goes by, found none; hold out images "
                "by data.val_fraction=0.1 (python -m e2net.adapt has no validation), or leave it out"
            )

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        task = pl_module.task
        self.monitor, self.mode = f"val/{task.monitor}", task.directions[task.monitor]
        self.min_delta = abs(self.min_delta) * (1 if self.mode == "max" else -1)
        if stage == "fit":
            # Set where the mode was not known yet. What a checkpoint holds is loaded later.
            self.best_score = torch.tensor(-torch.inf if self.mode == "max" else torch.inf)
        super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # A resumed run may have another patience, which Lightning would take from the checkpoint.
        super().load_state_dict({**state_dict, "patience": self.patience})


class ResumeState(L.Callback):
    """Keeps in checkpoints what Lightning leaves out, so that a resumed run equals an uninterrupted one bit by bit.

    That is the state of torch's random numbers, which dropout draws from (the data sets draw from seed, epoch and
    position instead); with several processes that of the first one, as all have the same seed and draw equally often.
    The batches of the epoch that have been seen, its mean loss so far, and the steps that were skipped. And the value
    that a plateau schedule waits for, as checkpoints are written before it has seen the epoch's.
    Beside these, a hash of the images' names, by which other data are recognised wherever they lie.
    Plain tensors, numbers and text, as a checkpoint is read without running code from it.

    Args:
        images: that hash.
    """

    KEY = "resume"

    def __init__(self, images: str = "") -> None:
        self.images = images
        self._state: dict[str, Any] = {}

    @classmethod
    def position(cls, checkpoint: dict[str, Any]) -> tuple[int, int]:
        """The epoch in which a checkpoint's run goes on, from 0, and how many of its batches have been seen."""
        # Checkpoints of before were written at the end of an epoch.
        epoch, batches = checkpoint.get(cls.KEY, {}).get("position", (checkpoint["epoch"] + 1, 0))
        return epoch, batches

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        batches = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        progress: Any = trainer.fit_loop.epoch_progress.current
        ended = progress.processed > trainer.current_epoch
        over = ended or batches >= trainer.num_training_batches
        means = pl_module.gathered_mean().cpu()
        state: dict[str, Any] = {
            "cpu": torch.get_rng_state(),
            "images": self.images,
            "position": [trainer.current_epoch + over, 0 if over else batches],
            "mean_loss": means,
            "finite": pl_module.finite.state_dict(),
        }
        if pl_module.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(pl_module.device)
        for schedule in trainer.lr_scheduler_configs:
            if not over or not schedule.reduce_on_plateau:
                continue
            if schedule.monitor == TRAIN_LOSS and not ended:  # what is logged under that name is of the epoch before
                total, images = means.sum(0)
                state["plateau"] = float(total / images)
            elif schedule.monitor in trainer.callback_metrics:
                state["plateau"] = float(trainer.callback_metrics[schedule.monitor])
        checkpoint[self.KEY] = state

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self._state = checkpoint.get(self.KEY, {})
        if "finite" in self._state:
            pl_module.finite.load_state_dict(self._state["finite"])
            means, world = self._state["mean_loss"], trainer.world_size
            if len(means) != world:
                if trainer.is_global_zero:
                    log.warning(
                        "resumed in %d processes, begun in %d: data.batch_size is that of each, so a step is of %g "
                        "times as many images as before, and the results are not those of a run without interruption",
                        world,
                        len(means),
                        world / len(means),
                    )
                means = torch.cat([means.sum(0, keepdim=True), torch.zeros(world - 1, 2)])
            pl_module.mean_loss = means[trainer.global_rank].clone()

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

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        # Lightning calls a loop restarted until the end of the epoch in which it goes on, and has no plateau schedule
        # look at that epoch's score then.
        trainer.fit_loop.restarting = False
