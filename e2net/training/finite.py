"""Steps whose loss or gradient is not finite: skipped, counted, told; many in a row end the run."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from e2net.structures import NotFiniteError

log = logging.getLogger(__name__)

# So many skipped steps in a row are no accident.
MOST = 20
# In so many at most fp16's scale falls from its first value to 1.
_SETTLING = 16
# To look at the results of a step is to wait for the device: it is done for so many steps at once.
_EVERY = 10


class _Step(NamedTuple):
    number: int
    batches: list[tuple[list[str], Tensor]]  # names, and whether the loss is finite
    finite: Tensor  # whether the gradient is


class FiniteSteps:
    """Keeps a record of steps that are skipped, and the model's running statistics free of what made them so.

    That the optimiser skips such a step is :func:`~e2net.training.step.clip`'s work. Nothing here waits for the device
    but :meth:`look`, which does so for ten steps at once.

    Attributes:
        skipped: steps so far.
        in_a_row: of them, those since the last one that was made.
    """

    def __init__(self) -> None:
        self.skipped = self.in_a_row = 0
        self._scaled = False
        self._batches: list[tuple[list[str], Tensor]] = []
        self._steps: list[_Step] = []
        self._live: list[Tensor] = []
        self._kept: list[Tensor] = []

    def start(self, model: nn.Module, scaled: bool) -> None:
        """Begins to watch a model, on its device and with the weights that it goes on from.

        Args:
            model: with BatchNorm's statistics, which a forward pass changes and no skipped step takes back.
            scaled: whether its gradients are scaled, as in fp16, where steps are skipped until the scale fits.
        """
        self._scaled = scaled
        layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        self._live = [b for layer in layers for b in (layer.running_mean, layer.running_var) if b is not None]
        self._kept = [value.clone() for value in self._live]

    @property
    def doubtful(self) -> bool:
        """Whether the present weights may be what the last steps were skipped for; the same in all processes."""
        return self.in_a_row > (_SETTLING if self._scaled else 0)

    def add_loss(self, names: Sequence[str], loss: Tensor) -> Tensor:
        """Notes a batch's loss.

        Args:
            names: of the batch's images.
            loss: a scalar.

        Returns:
            The loss to minimise: the same, but NaN where it is infinite, as that may have a finite gradient. So no
            process makes a step that another one skips.
        """
        finite = loss.detach().isfinite()
        self._batches.append((list(names), finite))
        return loss * torch.where(finite, 1.0, torch.nan)

    @torch.no_grad()
    def after_backward(self) -> None:
        """Where the batch's loss was not finite, running statistics become what they were before it."""
        if self._live:
            _, finite = self._batches[-1]
            pairs = zip(self._live, self._kept, strict=True)
            torch._foreach_copy_(self._kept, [torch.where(finite, *pair) for pair in pairs])
            torch._foreach_copy_(self._live, self._kept)

    def add_step(self, number: int, finite: Tensor) -> None:
        """Notes an optimiser step over the batches since the last one.

        Args:
            number: of the step.
            finite: a boolean scalar, whether its gradient is; the same in all processes.
        """
        self._steps.append(_Step(number, self._batches, finite))
        self._batches = []
        if len(self._steps) >= _EVERY:
            self.look()

    def look(self) -> None:
        """Counts and logs what has been skipped since the last look.

        Raises:
            NotFiniteError: too many in a row.
        """
        steps, self._steps = self._steps, []
        flags = [flag for step in steps for flag in (step.finite, *(finite for _, finite in step.batches))]
        values = iter(torch.stack(flags).tolist() if flags else [])
        for step in steps:
            finite, losses = next(values), [next(values) for _ in step.batches]
            if finite:
                self.in_a_row = 0
                continue
            self.skipped += 1
            self.in_a_row += 1
            log.warning("step %d is skipped: %s", step.number, self._reason(step, losses))
            if self.in_a_row >= MOST:
                raise NotFiniteError(
                    f"{self.in_a_row} steps in a row had a loss or a gradient that is not finite; the last good "
                    "checkpoint is kept. Lower optim.lr, set trainer.gradient_clip_val, or compute with more range: "
                    "trainer.precision=bf16-mixed or 32-true"
                )

    def _reason(self, step: _Step, losses: Sequence[bool]) -> str:
        batches = [(names, finite) for (names, _), finite in zip(step.batches, losses, strict=True)]
        names = ", ".join(name for names, finite in batches if not finite for name in names)
        if names:
            return f"the loss is not finite for the batch of {names}"
        usual = " (usual in fp16 until its scale fits)" if self._scaled else ""
        everything = ", ".join(name for names, _ in batches for name in names)
        return f"the gradient is not finite{usual} for the batch of {everything}"

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on with what :meth:`state_dict` returned."""
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]
