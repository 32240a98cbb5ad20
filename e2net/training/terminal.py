"""What a training says in a terminal: five lines before it begins, and the next command after it."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from e2net.formats import printable

if TYPE_CHECKING:
    from e2net.training.run import TrainingJob


def opening(job: "TrainingJob") -> list[str]:
    """What matters about a run: task, data, encoder and what trains, precision and device, where it goes."""
    lines = {
        "task": _task(job),
        "data": _data(job),
        "encoder": _parts(job),
        "device": _device(job),
        "run": _place(job),
    }
    return [f"{name:<8} {printable(text)}" for name, text in lines.items()]


def next_command(folder: Path) -> str:
    """What to type after a training; a folder below the present one is named from there."""
    folder, here = folder.absolute(), Path.cwd()
    short = folder.relative_to(here) if folder.is_relative_to(here) else folder
    return f"python -m e2net.predict {shlex.quote(f'ckpt={short}')} input=PHOTOS output=OUT"


def _task(job: "TrainingJob") -> str:
    task = job.module.task
    if not job.data.validated:
        return f"{task.name}; nothing is validated, so the last checkpoint is tested"
    best = "largest" if task.directions[task.monitor] == "max" else "smallest"
    return f"{task.name}; the checkpoint with the {best} val/{task.monitor} is kept"


def _data(job: "TrainingJob") -> str:
    data = job.data
    train, held_out = data.split()
    tests = ", ".join(f"{len(data.source('test', name))} {name}" for name in data.test_names)
    height, width = data.size
    counts = f"{len(train)} training, {len(held_out)} validation images; test: {tests or 'none'}"
    return f"{counts}; {height}x{width} pixels, {data.batch_size} a batch"


def _parts(job: "TrainingJob") -> str:
    model, settings = job.module.model, job.module.config["encoder"]
    weights = settings.get("path") if settings.get("weights") != "random" else None
    parts = [f"{weights or 'random weights'}, tuning {type(model.tuning).__name__}: {_trained(model.encoder)}"]
    for name, part in (("neck", model.neck), ("decoder", model.decoder)):
        if any(True for _ in part.parameters()):
            parts.append(f"{name} {type(part).__name__}: {_trained(part)}")
    return "; ".join(parts)


def _trained(module: nn.Module) -> str:
    counts = [(p.numel(), p.requires_grad) for p in module.parameters()]
    whole, trained = sum(n for n, _ in counts), sum(n for n, trains in counts if trains)
    return f"{_count(trained)} of {_count(whole)} parameters train"


def _count(number: int) -> str:
    return f"{number / 1e6:.2f} M" if number >= 1e5 else str(number)


def _device(job: "TrainingJob") -> str:
    device, count = job.trainer.strategy.root_device, job.trainer.world_size
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{name}{f' x {count}' if count > 1 else ''}, precision {job.trainer.precision}"


def _place(job: "TrainingJob") -> str:
    return str(job.output) if job.checkpoint is None else f"{job.output}, from step {job.step} of {job.checkpoint}"
