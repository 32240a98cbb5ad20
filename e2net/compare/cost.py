"""What a variant costs: parameters, floating-point operations, time and memory, measured on this machine."""

import ctypes
import gc
import platform
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from e2net.evaluation.test import choose_precision
from e2net.flops import count_flops
from e2net.model import DenseModel
from e2net.runs import build, load_model
from e2net.training.memory import Trial
from e2net.training.step import leave_out_unused, precision_of

ROUNDS = 8  # variants take turns, so that what else the machine does meets all alike
_SECONDS, _STEPS = 0.6, 5  # at most, for each variant, kind of step and round, but at least one step


@dataclass
class Cost:
    """Of one variant; times are medians, in seconds, memory is in bytes and None where it cannot be measured.

    Attributes:
        parameters, trained: how many there are, and how many of them train.
        flops: of one image's forward pass, a multiplication and an addition counted as two.
        size: of the input, (height, width) pixels.
        tokens: patches of that size, (rows, columns).
        batch: images in a step.
        train_step, predict_step: of one batch, on the network alone.
        train_memory, predict_memory: the most that a step needs, weights included.
    """

    parameters: int
    trained: int
    flops: int
    size: tuple[int, int]
    tokens: tuple[int, int]
    batch: int
    train_steps: list[float] = field(default_factory=list)
    predict_steps: list[float] = field(default_factory=list)
    train_memory: int | None = None
    predict_memory: int | None = None

    @property
    def train_step(self) -> float:
        """Seconds, the median."""
        return statistics.median(self.train_steps)

    @property
    def images_per_second(self) -> float:
        """In inference, from the median."""
        return self.batch / statistics.median(self.predict_steps)


def machine(device: torch.device) -> str:
    """What was measured on, in words."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, PyTorch {torch.__version__}"
    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    text = information.read_text(encoding="utf-8") if information.is_file() else ""
    if found := re.search(r"^model name\s*: (.+)$", text, re.MULTILINE):
        name = found[1]
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'' if threads == 1 else 's'}, PyTorch {torch.__version__}"


def choose_device(name: str) -> torch.device:
    """A GPU if there is one and the name is ``auto``."""
    return torch.device("cuda" if name == "auto" and torch.cuda.is_available() else "cpu")


def measure(checkpoints: Sequence[Path], device: torch.device, rounds: int = ROUNDS) -> list[Cost]:
    """Measures one run of each variant, all in this process and in turns.

    Args:
        checkpoints: of each variant, one.
        device: where to.
        rounds: turns of each variant.

    Raises:
        ValueError, OSError: a model cannot be rebuilt.
    """
    workloads, costs = [], []
    # What the first step of a process sets up for good would else be counted as the first variant's memory.
    first = _Workload(checkpoints[0], device)
    first.predict()
    first.train()
    first.rest()
    del first
    for checkpoint in checkpoints:
        before = _resident()
        workload = _Workload(checkpoint, device)
        cost = workload.count()
        cost.predict_memory = _memory(workload.predict, device, before)
        cost.train_memory = _memory(workload.train, device, before)
        if device.type == "cuda":
            workload.rest()
        workloads.append(workload)
        costs.append(cost)
    for _ in range(rounds):
        for workload, cost in zip(workloads, costs, strict=True):
            if device.type == "cuda":
                workload.move()
            cost.predict_steps += _time(workload.predict, device)
            cost.train_steps += _time(workload.train, device)
            if device.type == "cuda":
                workload.rest()
    return costs


class _Workload:
    """A rebuilt model with a batch of noise, ready for steps of inference and of training."""

    def __init__(self, checkpoint: Path, device: torch.device) -> None:
        self.model, config = load_model(checkpoint)
        self.device = device
        self.criterion, self.optim = build(config["loss"]), build(config["optim"])
        leave_out_unused(self.model, self.criterion)
        data = config["data"]
        self.size = (data["size"],) * 2 if isinstance(data["size"], int) else tuple(data["size"])
        self.batch = data["batch_size"]
        precision = choose_precision(config["trainer"]["precision"], "auto" if device.type == "cuda" else "cpu")
        self.precision = precision_of(precision, device)
        self.clip = config["trainer"].get("gradient_clip_val")
        self.move()

    def move(self) -> None:
        """To the device, with fresh optimiser state."""
        self.trial = Trial(self.model, self.criterion, self.optim, self.size, self.device, self.precision, self.clip)
        generator = torch.Generator().manual_seed(0)
        shape = (self.batch, 3, *self.size)
        self.image = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(self.device)
        self.target = self.model.task.random_targets(self.batch, self.size, self.device)

    def rest(self) -> None:
        """Gives the device's memory back."""
        self.model.zero_grad(set_to_none=True)
        del self.image, self.target, self.trial
        self.model.to("cpu")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def count(self) -> Cost:
        """Everything that needs no clock."""
        self.model.eval()
        # In the run's precision: weights that are kept in bf16 fit nothing else.
        with torch.no_grad(), self.precision.forward_context():
            flops = count_flops(lambda: self.model(self.image[:1].float() / 255))
        patch = self.model.encoder.size_multiple
        return Cost(
            parameters=sum(p.numel() for p in self.model.parameters()),
            trained=sum(p.numel() for p in _trained(self.model)),
            flops=flops,
            size=self.size,
            tokens=(self.size[0] // patch, self.size[1] // patch),
            batch=self.batch,
        )

    def predict(self) -> None:
        """Maps of one batch."""
        self.model.eval()
        with torch.inference_mode(), self.precision.forward_context():
            self.model.task.activate(self.model(self.image.float() / 255).prediction)

    def train(self) -> None:
        """One step: forward, loss, backward, clipping, AdamW, as in training."""
        self.model.train()
        self.trial.step(self.image.float() / 255, self.target)


def _trained(model: DenseModel) -> list[torch.nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def _time(step: Callable[[], None], device: torch.device) -> list[float]:
    if device.type == "cuda":  # after a move; on a CPU everything is warm from the measurement of memory
        step()
    times: list[float] = []
    while not times or (len(times) < _STEPS and sum(times) < _SECONDS):
        _wait(device)
        start = time.perf_counter()
        step()
        _wait(device)
        times.append(time.perf_counter() - start)
    return times


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _memory(step: Callable[[], None], device: torch.device, before: int | None) -> int | None:
    """Bytes at the peak of two steps: the second has the optimiser's state from the first.

    On a GPU what tensors take. On a CPU how much further the process grew than it was before the model was loaded; the
    kernel keeps that mark, and forgets it on request (Linux).
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        step()
        step()
        return torch.cuda.max_memory_allocated(device)
    _return_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return None
    step()
    step()
    peak = _status("VmHWM")
    return None if peak is None or before is None else max(0, peak - before)


def _resident() -> int | None:
    _return_memory()
    return _status("VmRSS")


def _status(key: str) -> int | None:
    file = Path("/proc/self/status")
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    found = re.search(rf"^{key}:\s+(\d+) kB$", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _return_memory() -> None:
    """Has glibc give free memory back, so that one variant does not live on what another has left behind."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # another C library
        return
