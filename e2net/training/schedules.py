"""Learning-rate schedules: how the rate of every parameter group changes over a run."""

import math
from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from e2net.tasks.base import Direction, Task

# The mean loss of an epoch.
TRAIN_LOSS = "train/mean_loss"


class Schedule:
    """A factor on every group's learning rate."""

    def check(self, validated: bool, task: Task) -> None:
        """Raises ValueError if the schedule needs a validation score that there is not."""

    def configure(self, optimizer: Optimizer, total_steps: int, task: Task) -> dict[str, Any]:
        """Lightning's ``lr_scheduler`` entry, for a run of ``total_steps`` optimiser steps."""
        raise NotImplementedError


class Curve(Schedule):
    """A factor that depends on nothing but the progress: a linear warm-up, then the subclass's :meth:`shape`.

    Steps that fp16's scaler skips are progress too, so that the curve ends with the run.

    Args:
        warmup: fraction of all steps over which the factor rises from near 0 to 1.

    Raises:
        ValueError: ``warmup`` is not in [0, 1).
    """

    def __init__(self, warmup: float) -> None:
        if not 0 <= warmup < 1:
            raise ValueError(f"schedule.warmup must be in [0, 1), a fraction of all steps, found {warmup}")
        self.warmup = warmup

    def __call__(self, progress: float) -> float:
        """Factor at ``progress``, the fraction of all steps that have been taken, in [0, 1]."""
        if progress < self.warmup:
            # Never zero: the first step would be wasted.
            return max(progress / self.warmup, 1e-3)
        return self.shape(min(progress, 1.0))

    def shape(self, progress: float) -> float:
        """Factor at ``progress``, the fraction of all steps, from ``warmup`` to 1."""
        raise NotImplementedError

    def configure(self, optimizer: Optimizer, total_steps: int, task: Task) -> dict[str, Any]:
        scheduler = LambdaLR(optimizer, lambda step: self(step / max(total_steps, 1)))
        return {"scheduler": scheduler, "interval": "step"}


class Cosine(Curve):
    """Half a cosine from 1 down to ``final``, after a flat part if there is one.

    Args:
        warmup: see :class:`Curve`.
        flat: fraction of all steps that the full rate is held for after the warm-up.
        final: the factor at the last step.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, warmup: float = 0.05, flat: float = 0.0, final: float = 0.01) -> None:
        super().__init__(warmup)
        if not 0 <= flat < 1 - warmup or not 0 <= final <= 1:
            raise ValueError(
                "schedule: flat must be at least 0, warmup + flat below 1 and final in [0, 1], "
                f"found {warmup}, {flat} and {final}"
            )
        self.start, self.final = warmup + flat, final

    def shape(self, progress: float) -> float:
        ramp = max(progress - self.start, 0.0) / (1 - self.start)
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * ramp)) / 2


class Poly(Curve):
    """(1 - progress)^power, as a factor from 1 down to ``final``.

    Args:
        warmup: see :class:`Curve`.
        power: above 1 the rate falls early, below 1 late.
        final: the factor at the last step.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, warmup: float = 0.05, power: float = 0.9, final: float = 0.0) -> None:
        super().__init__(warmup)
        if not 0 < power < math.inf or not 0 <= final <= 1:
            raise ValueError(f"schedule: power must be positive and final in [0, 1], found {power} and {final}")
        self.power, self.final = power, final

    def shape(self, progress: float) -> float:
        left = (1 - progress) / (1 - self.warmup)
        return self.final + (1 - self.final) * left**self.power


class Step(Curve):
    """The rate falls by ``factor`` at each of some points.

    Args:
        warmup: see :class:`Curve`.
        at: the points, ascending, as fractions of all steps.
        factor: by which it falls.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, warmup: float = 0.05, at: Sequence[float] = (0.6, 0.9), factor: float = 0.1) -> None:
        super().__init__(warmup)
        if (
            not isinstance(at, Sequence)
            or not at
            or not all(isinstance(point, int | float) and warmup <= point < 1 for point in at)
            or list(at) != sorted(set(at))
        ):
            raise ValueError(
                f"schedule.at must be a list of ascending fractions of all steps, from the warmup {warmup} to below 1, "
                f"found {at}"
            )
        if not 0 < factor < 1:
            raise ValueError(f"schedule.factor must be between 0 and 1, found {factor}")
        self.at, self.factor = tuple(at), factor

    def shape(self, progress: float) -> float:
        return self.factor ** sum(progress >= point for point in self.at)


class Plateau(Schedule):
    """The rate falls by ``factor`` whenever a score has not improved for some epochs. There is no warm-up.

    Args:
        monitor: a validation score, such as ``val/S`` or ``val/MAE``, or ``train/mean_loss``; None: the score that
            chooses the checkpoint.
        factor: by which the rate falls.
        patience: epochs without improvement before it does; those without validation count too.
        final: the rate never falls below this fraction of the first one.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self, monitor: str | None = None, factor: float = 0.1, patience: int = 10, final: float = 1e-3
    ) -> None:
        if not 0 < factor < 1 or patience < 0 or not 0 <= final <= 1:
            raise ValueError(
                "schedule: factor must be between 0 and 1, patience at least 0 and final in [0, 1], "
                f"found {factor}, {patience} and {final}"
            )
        self.monitor, self.factor, self.patience, self.final = monitor, factor, patience, final

    def check(self, validated: bool, task: Task) -> None:
        monitor, monitors = self._monitor(task), _monitors(task)
        if monitor not in monitors:
            raise ValueError(f"schedule.monitor must be one of {', '.join(monitors)}, found {monitor}")
        if not validated and monitor != TRAIN_LOSS:
            raise ValueError(
                f"schedule.monitor={monitor} needs a validation part, and data.val_fraction=0 leaves none; "
                f"set schedule.monitor={TRAIN_LOSS}, or hold out images by data.val_fraction=0.1"
            )

    def configure(self, optimizer: Optimizer, total_steps: int, task: Task) -> dict[str, Any]:
        scheduler = ReduceLROnPlateau(
            optimizer,
            mode=_monitors(task)[self._monitor(task)],
            factor=self.factor,
            patience=self.patience,
            min_lr=[self.final * group["lr"] for group in optimizer.param_groups],
            eps=0.0,  # by default, falls of less than 1e-8 are left out: a decayed encoder's whole rate
        )
        # Not strict: before the first validation (trainer.check_val_every_n_epoch=2) there is no score to look at.
        return {"scheduler": scheduler, "interval": "epoch", "monitor": self._monitor(task), "strict": False}

    def _monitor(self, task: Task) -> str:
        return f"val/{task.monitor}" if self.monitor is None else self.monitor


def _monitors(task: Task) -> dict[str, Direction]:
    """What a plateau can be looked for in, and which way is better."""
    return {TRAIN_LOSS: "min", **{f"val/{score}": task.directions[score] for score in task.scores}}
