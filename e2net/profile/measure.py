"""Timing of whole training steps, part by part, and the floating-point operations in them."""

import itertools
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import DataLoader

from e2net.flops import count_flops
from e2net.speed import halve_frozen
from e2net.structures import Batch
from e2net.training import TrainingJob
from e2net.training.run import fill_cache
from e2net.training.step import Update, renewed, step

PARTS = ("data wait", "transfer", "encoder", "decoder", "loss", "backward", "optimiser", "validation")
_WARM_UP = 3
_VALIDATION_BATCHES = 3


@dataclass
class Parts:
    """What was found about one configuration.

    Attributes:
        seconds: of each of ``PARTS`` in one step; validation is its whole time over the steps between two of them.
        step: seconds of a step without validation, not stopped between its parts.
        flops: floating-point operations of a step, forward and backward; a multiply-add is two.
        peak: floating-point operations a second of a large matrix product on the device.
        dtype: of that product.
        memory: most bytes that the GPU held; None on a CPU.
        about: what was run, for the head of the table.
        facts: settings that advice depends on.
    """

    seconds: dict[str, float]
    step: float
    flops: int
    peak: float
    dtype: str
    memory: int | None
    about: str
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def mfu(self) -> float:
        """Model FLOPs utilisation: the part of ``peak`` that a step reaches, 0 to 1."""
        return self.flops / self.step / self.peak


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_flops(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> float:
    """Floating-point operations a second of a large square matrix product: what this device can do, not its table."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(8):
        wait(device)
        start = time.perf_counter()
        a @ b
        wait(device)
        seconds.append(time.perf_counter() - start)
    # The best: what else the device does in the meantime is no part of its peak.
    return 2 * side**3 / min(seconds)


class _Stopwatch:
    """Seconds by part, of one step after the other; synchronises only when it is asked to tell parts apart."""

    def __init__(self, device: torch.device, apart: bool) -> None:
        self.device, self.apart = device, apart
        self.steps: list[dict[str, float]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self.apart:
            wait(self.device)
        row = self.steps[-1]
        row[name] = row.get(name, 0.0) + time.perf_counter() - start


class _Loop:
    """Training steps of a job, as Lightning would run them, on its real data."""

    def __init__(self, job: TrainingJob) -> None:
        strategy = job.trainer.strategy
        self.job, self.module, self.device = job, job.module, strategy.root_device
        self.precision = renewed(strategy.precision_plugin)
        self.module.to(self.device)
        self.precision.convert_module(self.module)
        halve_frozen(self.module.model, str(job.trainer.precision), self.device)
        self.module.train()
        assert self.module.optim is not None and self.module.criterion is not None
        self.optimizer = self.module.optim.build(self.module.model, 1000)["optimizer"]
        trainer = job.trainer
        self.update = Update(self.optimizer, self.precision, trainer.gradient_clip_val, trainer.gradient_clip_algorithm)
        self.loader = job.data.train_dataloader()
        self.batches = self._endless()
        self.count = 0

    def _endless(self) -> Iterator[Batch]:
        for _ in itertools.count():
            yield from self.loader

    def run(self, steps: int, apart: bool) -> list[dict[str, float]]:
        """Seconds by part of so many steps, with ``total``; without ``apart`` only the total means something."""
        watch = _Stopwatch(self.device, apart)
        for _ in range(steps):
            wait(self.device)
            start = time.perf_counter()
            watch.steps.append({})
            self._step(watch)
            wait(self.device)
            watch.steps[-1]["total"] = time.perf_counter() - start
        return watch.steps

    def drain(self) -> None:
        """Drops the batches that workers have ready: these would hide how slow the workers are."""
        ready = self.loader.num_workers * (self.loader.prefetch_factor or 0)
        for _ in range(ready):
            next(self.batches)

    def _step(self, watch: _Stopwatch) -> None:
        with watch.part("data wait"):
            batch = next(self.batches)
        with watch.part("transfer"):
            batch = self.to_device(batch)
        self.compute(batch, watch)
        with watch.part("optimiser"):
            self.update.apply()
        self.count += 1

    def to_device(self, batch: Batch) -> Batch:
        return self.job.trainer.strategy.batch_to_device(batch, self.device)

    def compute(self, batch: Batch, watch: _Stopwatch) -> None:
        """Forward and backward."""
        assert self.module.criterion is not None
        with self.precision.forward_context():
            with watch.part("encoder"):
                image, target = self.module.resized(batch, 0, self.count, progress=1.0)
            loss = step(self.module.model, image, target, self.module.criterion, 0.5, watch.part)["loss"]
        with watch.part("backward"):
            self.update.backward(loss)

    def flops(self) -> int:
        """Of a step; the gradients are dropped."""
        batch = self.to_device(next(self.batches))
        counted = count_flops(lambda: self.compute(batch, self._ignored()))
        self.optimizer.zero_grad()
        return counted

    def _ignored(self) -> _Stopwatch:
        watch = _Stopwatch(self.device, apart=False)
        watch.steps.append({})
        return watch

    def validation(self) -> float:
        """Seconds of a whole validation, network and scores, from some of its batches; 0 without a validation part.

        Of a later one: the first validation of a run also computes what depends on the targets alone.
        """
        loader = self.job.data.val_dataloader()
        if not isinstance(loader, DataLoader):
            return 0.0
        module = self.module
        module.eval()
        batches = [self.to_device(batch) for batch in itertools.islice(loader, _VALIDATION_BATCHES)]
        for _ in range(2):
            start = time.perf_counter()
            with torch.no_grad(), self.precision.forward_context():
                for index, batch in enumerate(batches):
                    module.validation_step(batch, index)
            module.drain(module.val_scores)
            seconds = time.perf_counter() - start
            module.val_scores.reset()
        module.train()
        return seconds / len(batches) * len(loader)


def profile_job(job: TrainingJob, steps: int = 20) -> Parts:
    """Runs training steps and some of the validation, and times their parts.

    What Lightning adds to a step, logging and progress bar, is not in it. The model is trained by these steps.

    Args:
        job: from :func:`~e2net.training.prepare_training`; nothing is written to its run folder.
        steps: to measure, after three for warming up.
    """
    fill_cache(job)
    loop = _Loop(job)
    cuda = loop.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(loop.device)
    flops = loop.flops()
    loop.run(_WARM_UP, apart=True)
    loop.drain()
    rows = loop.run(steps, apart=True)
    seconds = {part: statistics.median(row[part] for row in rows) for part in PARTS if part in rows[0]}
    # The mean: batches come in bursts, one from each worker, and most steps wait for none.
    seconds["data wait"] = statistics.mean(row["data wait"] for row in rows)
    if cuda:  # kernels are launched ahead when nothing waits between the parts
        loop.drain()
        rows = loop.run(steps, apart=False)
    step = statistics.mean(row["total"] for row in rows)
    every = job.trainer.check_val_every_n_epoch or 1
    seconds["validation"] = loop.validation() / (len(loop.loader) * every)
    # A CPU may have no fast bf16 at all: there the run's own type is the one to compare with.
    dtype = torch.bfloat16 if cuda or "bf16" in str(job.trainer.precision) else torch.float32
    model, data = job.module.model, job.data
    height, width = data.size
    device = torch.cuda.get_device_name(loop.device) if cuda else "CPU"
    return Parts(
        seconds={part: seconds.get(part, 0.0) for part in PARTS},
        step=step,
        flops=flops,
        peak=peak_flops(loop.device, dtype),
        dtype=str(dtype).removeprefix("torch."),
        memory=torch.cuda.max_memory_allocated(loop.device) if cuda else None,
        about=(
            f"{device}, {height}x{width}, data.batch_size={data.batch_size}, {job.trainer.precision}, "
            f"data.num_workers={loop.loader.num_workers}"
        ),
        facts={
            "frozen": model.encoder.frozen,
            "cached": job.cache.views > 0,
            "compiled": bool(job.module.config["compile"]),
            "cuda": cuda,
            "batch_size": data.batch_size,
            "num_workers": data.num_workers,
        },
    )
