"""What is looked at while an encoder trains: its dense features, the prototypes, and a probe on labelled pictures."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import lightning as L
import numpy as np
import torch
from torch import Tensor

from e2net.adapt.networks import last_tokens
from e2net.adapt.pictures import Pictures
from e2net.adapt.probe import Probe
from e2net.adapt.watch import Collapse, dense_watch
from e2net.encoders import Encoder
from e2net.files import naming, replacing
from e2net.runs.checkpoint import FORMAT, KEY
from e2net.structures import Tokens

log = logging.getLogger(__name__)

# At a time, of pictures that are looked at.
_BATCH = 8


class Watch:
    """How often and at what is looked.

    Args:
        every: optimiser steps between two looks; one is taken before the first step and one after the last.
        pictures: so many of the training pictures are looked at.
        neighbours: k of the patches' agreement with the original encoder.
        rank, information: limits of :class:`~e2net.adapt.watch.Collapse`; below them training stops.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self, every: int = 100, pictures: int = 16, neighbours: int = 5, rank: float = 1.5, information: float = 1e-5
    ) -> None:
        if every < 1 or pictures < 2 or neighbours < 1:
            raise ValueError(
                "watch: expected every and neighbours of at least 1 and pictures of at least 2, found "
                f"{every}, {neighbours} and {pictures}"
            )
        self.every, self.pictures, self.neighbours = every, pictures, neighbours
        self.collapse = Collapse(rank, information)


def chosen_pictures(pictures: Pictures, count: int, size: int) -> Tensor:
    """Some pictures at even distances in their order, squeezed into squares: (n, 3, size, size) uint8, RGB."""
    found: list[np.ndarray] = []
    places = np.linspace(0, len(pictures) - 1, min(count, len(pictures))).round().astype(int)
    for place in places:
        try:
            image = pictures.read(int(place))
        except (OSError, ValueError):  # told when it is met in training
            continue
        shrinks = min(image.shape[:2]) >= size
        found.append(cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC))
    if not found:
        raise ValueError(
            f"none of {len(places)} pictures can be read, such as {pictures.name(int(places[0]))}; check the data"
        )
    return torch.from_numpy(np.ascontiguousarray(np.stack(found).transpose(0, 3, 1, 2)))


@torch.no_grad()
def tokens_of(encoder: Encoder, images: Tensor) -> Tokens:
    """Tokens of the last block for (n, 3, S, S) uint8 pictures, float32 on the CPU; the mode must be eval."""
    device = encoder.mean.device
    parts = [last_tokens(encoder, chunk.to(device)) for chunk in images.split(_BATCH)]
    joined = [
        None if values[0] is None else torch.cat([v.float().cpu() for v in values])
        for values in zip(*parts, strict=True)
    ]
    return Tokens(*joined)  # type: ignore[arg-type]


class Follow(L.Callback):
    """Looks at the teacher before training and every so many steps, keeps the best one, stops what has collapsed.

    Args:
        watch: how often, and the limits.
        images: (n, 3, S, S) uint8, that are looked at.
        reference: tokens of the original encoder for them.
        probe: on labelled pictures; None: the last encoder counts as the best.
        file: where the best one is kept.
    """

    def __init__(self, watch: Watch, images: Tensor, reference: Tokens, probe: Probe | None, file: Path | None) -> None:
        self.watch, self.images, self.reference, self.probe, self.file = watch, images, reference, probe, file
        # One a look, in order: step, and scores by name.
        self.rows: list[dict[str, float]] = []

    @property
    def best(self) -> dict[str, float] | None:
        """The row of the best look after training began; None without a probe, or before there is one."""
        rows = [row for row in self.rows if row["step"] > 0]
        return max(rows, key=self.merit) if rows and self.probe is not None else None

    def merit(self, row: Mapping[str, float]) -> float:
        """Of a look: more is better."""
        assert self.probe is not None
        sign = 1 if self.probe.task.directions[self.probe.monitor] == "max" else -1
        return sign * row[f"probe/{self.probe.monitor}"]

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = [dict(row) for row in state_dict["rows"]]

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not self.rows:
            self._look(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        step = trainer.global_step
        # While the heads alone train there is nothing new to see.
        due = (step % self.watch.every == 0 and not pl_module.heads_only(step)) or step >= pl_module.steps
        if due and self.rows[-1]["step"] < step:
            self._look(trainer, pl_module)
        trainer.should_stop = trainer.should_stop or step >= pl_module.steps

    def _look(self, trainer: L.Trainer, module: Any) -> None:
        step, encoder = trainer.global_step, module.teacher.encoder
        encoder.eval()
        seen = dense_watch(tokens_of(encoder, self.images), self.reference, self.watch.neighbours)
        if module.usage:
            seen["information"] = float(module.usage["information"])
        shown = {f"watch/{name}": value for name, value in seen.items()}
        if self.probe is not None:
            shown |= {f"probe/{name}": value for name, value in self.probe(encoder).items()}
        for logger in trainer.loggers:
            logger.log_metrics(shown, step)
        log.info("step %d: %s", step, ", ".join(f"{name} {value:.4g}" for name, value in shown.items()))
        # Before this look can become the best one.
        if not module.heads_only(step) and step > 0:
            self.watch.collapse.check(step, seen["effective_rank"], seen.get("information"))
        row = {"step": float(step), **shown}
        self.rows.append(row)
        if self.best is row and self.file is not None:
            keep(self.file, module, step)


def keep(file: Path, module: Any, step: int) -> None:
    """Writes what trains of a teacher's encoder, with the config."""
    encoder = module.student.encoder
    trains = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    state = {n: p.detach().cpu() for n, p in module.teacher.encoder.named_parameters() if n in trains}
    content = {KEY: {"format": FORMAT, "config": module.config}, "state_dict": state, "global_step": step}
    with naming(file), replacing(file) as temporary:
        torch.save(content, temporary)


def take(encoder: Encoder, state: Mapping[str, Tensor]) -> None:
    """Gives an encoder what :func:`keep` wrote.

    Raises:
        ValueError: it is another one's.
    """
    own = dict(encoder.named_parameters())
    wrong = sorted(name for name in state if name not in own or own[name].shape != state[name].shape)
    if wrong:
        raise ValueError(
            f"checkpoint does not fit the encoder: {', '.join(wrong[:3])}; give the run's own encoder and tuning"
        )
    with torch.no_grad():
        for name, value in state.items():
            own[name].copy_(value)
