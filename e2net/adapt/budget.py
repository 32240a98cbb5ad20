"""What a training will take, told before it starts: parameters, memory, pictures a second, the largest batch."""

import copy
import time
from typing import NamedTuple

import numpy as np
import torch
from lightning.pytorch.plugins.precision import Precision
from torch import Tensor, nn

from e2net.adapt.crops import CropBatch, MultiCrop
from e2net.adapt.module import SelfSupervised
from e2net.adapt.pictures import Pictures
from e2net.training.memory import CPU_MARGIN, MARGIN, StepTrial, available_bytes, most_that_fit
from e2net.training.step import Update, renewed

# Pictures that are cropped, and in a step on a CPU, to see how long that takes.
_TIMED = 8
# A CPU gains nothing by more, but prototypes do.
CPU_LIMIT = 64


class AdaptTrial(StepTrial):
    """Steps of self-supervised training on random crops.

    Args:
        module: copied; random state and weights of the run stay as they are.
        crops: their sizes.
        device: where.
        precision: of the Trainer.
        clip: limit of the gradients' norm.
    """

    def __init__(
        self,
        module: SelfSupervised,
        crops: MultiCrop,
        device: torch.device,
        precision: Precision,
        clip: float | None = None,
    ) -> None:
        self.precision = renewed(precision)
        self.module = copy.deepcopy(module).to(device).train()
        self.precision.convert_module(self.module)
        self.model, self.crops, self.device = self.module, crops, device
        self.update = Update(self.module.optim.optimizer(self.module.parameter_groups()), self.precision, clip)

    def batch(self, batch_size: int) -> tuple[CropBatch]:
        """Random crops of so many pictures."""

        def made(count: int, side: int) -> Tensor:
            shape = (count, batch_size, 3, side, side)
            return torch.randint(0, 256, shape, dtype=torch.uint8, device=self.device)

        crops = self.crops
        gram = None if crops.gram_size is None else made(crops.globals, crops.gram_size)
        return (CropBatch(made(crops.globals, crops.global_size), made(crops.locals, crops.local_size), gram),)

    def loss(self, batch: CropBatch) -> Tensor:
        """Of a step with the encoder."""
        module = self.module
        # At its end, when every loss that there is counts.
        module.steps = module.recipe.head_steps + 1
        with self.precision.forward_context():
            return module.losses(batch, np.random.default_rng(0), module.steps)["loss"]


class Budget(NamedTuple):
    """What was found out.

    Attributes:
        parameters: of each part: all, and those that train.
        held_bytes: weights of all networks, gradients and the optimiser's state.
        bytes_per_picture: that a step takes beside these, an estimate.
        pictures_per_second: of training steps.
        crops_per_second: of one reading process.
        largest: batch that fits; None where this system does not say.
    """

    parameters: dict[str, tuple[int, int]]
    held_bytes: int
    bytes_per_picture: int
    pictures_per_second: float
    crops_per_second: float
    largest: int | None

    def lines(self, batch_size: int, steps: int, accumulate: int, workers: int) -> list[str]:
        """For people, before training begins."""
        parts = ", ".join(
            f"{name} {count / 1e6:.2f} M ({trains / 1e6:.2f} M trained)"
            for name, (count, trains) in self.parameters.items()
        )
        memory = (self.held_bytes + batch_size * self.bytes_per_picture) / 2**20
        fits = "" if self.largest is None else f"; the largest batch that fits: {self.largest}"
        rate = (
            min(self.pictures_per_second, self.crops_per_second * workers)
            if workers
            else 1 / (1 / self.pictures_per_second + 1 / self.crops_per_second)
        )
        wait = "" if rate >= 0.95 * self.pictures_per_second or not workers else ", and training waits for them"
        return [
            f"parameters: {parts}",
            f"memory: about {memory:.0f} MiB at data.batch_size={batch_size} "
            f"({self.held_bytes / 2**20:.0f} held, {self.bytes_per_picture / 2**20:.1f} a picture){fits}",
            f"time: {self.pictures_per_second:.3g} pictures a second in training; a reading process crops "
            f"{self.crops_per_second:.3g}, there {'is 1' if workers < 2 else f'are {workers}'}{wait}: about "
            f"{_duration(steps * accumulate * batch_size / rate)} for {steps} steps of "
            f"{batch_size * accumulate} pictures",
        ]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def estimate(
    module: SelfSupervised,
    pictures: Pictures,
    crops: MultiCrop,
    device: torch.device,
    precision: Precision,
    clip: float | None,
) -> Budget:
    """Tries what a training will take; its random state and weights stay as they are."""
    cuda = device.type == "cuda"
    batch_size = pictures.batch_size
    with torch.random.fork_rng(devices=[device] if cuda else []):
        trial = AdaptTrial(module, crops, device, precision, clip)
        per_picture = trial.bytes_per_image()
        count = batch_size if cuda else max(2, min(batch_size, _TIMED))
        if cuda and not trial.fits(count):
            raise ValueError(
                f"data.batch_size={batch_size} does not fit into the memory of {device}: give a smaller one and more "
                "trainer.accumulate_grad_batches, tuning.gradient_checkpointing=true, tuning=lora, or fewer "
                "heads.prototypes"
            )
        batch = trial.batch(count)
        if not cuda:
            trial.step(*batch)  # the first one allocates
        seconds = _timed(lambda: trial.step(*batch), device)
        held = _held(module)
        free = available_bytes(device)
        share = MARGIN if cuda else CPU_MARGIN
        largest = None if free is None else max(0, int((share * free - (0 if cuda else held)) / per_picture))
    parts = {
        "encoder": module.student.encoder,
        "heads": module.student.heads,
    }
    return Budget(
        {name: _counts(part) for name, part in parts.items()},
        held,
        per_picture,
        count / seconds,
        _cropping(pictures, crops),
        largest,
    )


def largest_batch(
    module: SelfSupervised,
    crops: MultiCrop,
    images: int,
    device: torch.device,
    precision: Precision,
    clip: float | None,
) -> int:
    """What ``data.batch_size=auto`` stands for.

    Raises:
        ValueError: not even two pictures fit.
    """
    found = most_that_fit(lambda: AdaptTrial(module, crops, device, precision, clip), images, device, CPU_LIMIT)
    if found < 2:
        raise ValueError(
            f"data.batch_size=auto: not even two pictures fit into the memory of {device}; reduce size or "
            "heads.prototypes, take tuning=lora or tuning.gradient_checkpointing=true"
        )
    return found


def _timed(step: object, device: torch.device) -> float:
    assert callable(step)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _cropping(pictures: Pictures, crops: MultiCrop) -> float:
    """Pictures a second that one process reads and crops."""
    count = min(_TIMED, len(pictures))
    start = time.perf_counter()
    made = 0
    for index in range(count):
        try:
            crops(pictures.read(index), np.random.default_rng(index))
        except (OSError, ValueError):  # told when it is met in training
            continue
        made += 1
    return max(made, 1) / (time.perf_counter() - start)


def _counts(module: nn.Module) -> tuple[int, int]:
    return (
        sum(p.numel() for p in module.parameters()),
        sum(p.numel() for p in module.parameters() if p.requires_grad),
    )


def _held(module: nn.Module) -> int:
    """Bytes of all weights and buffers, each tensor once, and of gradients and AdamW's two averages."""
    tensors = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in (*module.parameters(), *module.buffers())
    }
    return sum(tensors.values()) + 3 * sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)
