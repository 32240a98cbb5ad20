"""What a whole training step costs: time, images a second, memory and the part of the device's speed that is used.

Encoders have random weights: they cost what pretrained ones do. The cases take turns within one process, so that all
of them see the same machine; times are medians, and a ratio is the median of the ratios round by round, against the
first case. Peak memory is the GPU's; on a CPU it is measured in a process of its own for each case, beyond what that
process held before its first step. MFU compares with a large matrix product timed on the same device.

    python benchmarks/train_step.py                                 a small ViT, under a minute on one core
    python benchmarks/train_step.py --growth                        size, batch and images, with fitted exponents
    python benchmarks/train_step.py --device cuda --model vit_b vit_l --size 384 512 --batch 1 8 --precision bf16 \
        --compile both --json step.json
"""

import argparse
import gc
import itertools
import json
import math
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from e2net.decoders import E2NetDecoder, LinearDecoder
from e2net.encoders import Adapters, Frozen, Full, ViTEncoder
from e2net.flops import count_flops
from e2net.losses import Criterion
from e2net.model import DenseModel
from e2net.profile import peak_flops
from e2net.speed import compile_model
from e2net.training.memory import Trial
from e2net.training.optim import AdamW
from e2net.training.schedules import Cosine
from e2net.training.step import precision_of

# Width, blocks and heads, as DINOv3's; vit_tiny for machines without a GPU.
MODELS = {
    "vit_tiny": (192, 4, 3),
    "vit_ti": (192, 12, 3),
    "vit_s": (384, 12, 6),
    "vit_b": (768, 12, 12),
    "vit_l": (1024, 24, 16),
}
TUNINGS = {"frozen": Frozen, "adapter": Adapters, "full": Full}
DECODERS: dict[str, Callable[..., nn.Module]] = {"e2net": E2NetDecoder, "linear": LinearDecoder}
_LOSS = {"dice": 1.0, "bce": 1.0, "iou": 1.0}
PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
CLIP = 1.0  # as conf/trainer/default.yaml has it
PATCH = 16
MEMORY_STEPS = 2  # the second meets the optimiser's state, as in training
GIB = 2**30


@dataclass(frozen=True)
class Case:
    """One training step's settings; sizes in pixels a side."""

    model: str
    tuning: str
    decoder: str
    size: int
    batch: int
    precision: str
    compiled: bool
    width: int
    device: str


class Step:
    """Whole training steps of one case on random images."""

    def __init__(self, case: Case) -> None:
        torch.manual_seed(0)
        hidden, depth, heads = MODELS[case.model]
        encoder = ViTEncoder.from_config(
            {
                "model_type": "dinov3_vit",
                "patch_size": PATCH,
                "hidden_size": hidden,
                "intermediate_size": 4 * hidden,
                "num_hidden_layers": depth,
                "num_attention_heads": heads,
                "num_register_tokens": 4,
            }
        )
        # As if read from files, so that on a GPU frozen weights are kept in bf16.
        encoder.pretrained = True
        options = {} if case.decoder == "linear" else {"width": case.width}
        model = DenseModel(encoder, partial(DECODERS[case.decoder], **options), TUNINGS[case.tuning]())
        self.device, size = torch.device(case.device), (case.size, case.size)
        precision = precision_of(PRECISIONS[case.precision], self.device)
        criterion = Criterion(_LOSS, _LOSS, _LOSS)
        self.trial = Trial(model, criterion, AdamW(Cosine()), size, self.device, precision, CLIP)
        self.batch = self.trial.batch(case.batch)
        if case.compiled:
            compile_model(model)

    def __call__(self) -> float:
        """Seconds that one step took."""
        self._wait()
        start = time.perf_counter()
        self.trial.step(*self.batch)
        self._wait()
        return time.perf_counter() - start

    @torch.no_grad()
    def encode(self) -> float:
        """Seconds that the encoder's forward pass took."""
        self._wait()
        start = time.perf_counter()
        with self.trial.precision.forward_context():
            self.trial.model.encoder(self.batch[0])
        self._wait()
        return time.perf_counter() - start

    def flops(self) -> int:
        """Of forward and backward."""
        counted = count_flops(lambda: self.trial.loss(*self.batch).backward())
        self.trial.optimizer.zero_grad()
        return counted

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def resident(key: str) -> int:
    """Bytes of this process's memory: ``VmRSS`` now, ``VmHWM`` at most so far (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {key}")


def peak_bytes(case: Case, threads: int) -> int:
    """Most memory that steps took beyond what was there before the first one: the model, images, PyTorch itself."""
    torch.set_num_threads(threads)
    step = Step(case)
    if case.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten: importing has one of its own
        before = resident("VmRSS")
    for _ in range(MEMORY_STEPS):
        step()
    return (torch.cuda.max_memory_allocated() if case.device == "cuda" else resident("VmHWM")) - before


def memory_of(cases: Sequence[Case]) -> list[int]:
    """Peak bytes of each case; on a CPU in a fresh process, as memory that one case gives back would hide another's."""
    if cases[0].device == "cuda":
        found = []
        for case in cases:
            found.append(peak_bytes(case, torch.get_num_threads()))
            gc.collect()
            torch.cuda.empty_cache()
        return found
    # Of a server that has imported this file, and computed nothing: importing takes longer than measuring.
    with multiprocessing.get_context("forkserver").Pool(1, maxtasksperchild=1) as pool:
        return [pool.apply(peak_bytes, (case, torch.get_num_threads())) for case in cases]


def measure(cases: Sequence[Case], repeats: int) -> list[dict[str, Any]]:
    """Each case's settings with ``seconds``, ``images_per_second``, ``ratio``, ``gflops``, ``mfu`` and ``peak_gib``.

    All cases are held at once, to take turns.
    """
    peaks: dict[str, float] = {}
    memory = memory_of(cases)
    steps = [Step(case) for case in cases]
    flops = [step.flops() for step in steps]
    times: list[list[float]] = [[] for _ in cases]
    for turn in range(repeats + 2):  # the first two warm up: kernels are chosen or compiled, AdamW's state is made
        for row, step in zip(times, steps, strict=True):
            seconds = step()
            if turn >= 2:
                row.append(seconds)
    report = []
    for case, own, count, peak_memory in zip(cases, times, flops, memory, strict=True):
        if case.precision not in peaks:
            # A GPU always against bf16; a CPU, which may have no fast bf16 at all, against what the case runs in.
            dtype = torch.bfloat16 if case.device == "cuda" or case.precision == "bf16" else torch.float32
            peaks[case.precision] = peak_flops(torch.device(case.device), dtype)
        seconds = statistics.median(own)
        report.append(
            {
                **asdict(case),
                "seconds": seconds,
                "images_per_second": case.batch / seconds,
                "ratio": statistics.median(a / b for a, b in zip(own, times[0], strict=True)),
                "gflops": count / 1e9,
                "mfu": count / seconds / peaks[case.precision],
                "peak_gib": peak_memory / GIB,
            }
        )
    return report


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """p of the power law y = c · x^p, by least squares of the logarithms."""
    logs = [(math.log(a), math.log(b)) for a, b in zip(x, y, strict=True)]
    centre_x, centre_y = (statistics.mean(values) for values in zip(*logs, strict=True))
    return sum((a - centre_x) * (b - centre_y) for a, b in logs) / sum((a - centre_x) ** 2 for a, _ in logs)


def in_turns(steps: Sequence[Callable[[], float]], repeats: int) -> list[float]:
    """Median seconds of each, after one round for warming up."""
    rounds = [[step() for step in steps] for _ in range(repeats + 1)]
    return [statistics.median(times) for times in zip(*rounds[1:], strict=True)]


def _epoch(step: Step, count: int) -> float:
    return sum(step() for _ in range(count))


def measure_growth(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Step time and memory against the number of tokens, the batch size and the number of images.

    Returns:
        What grows to ``x``, ``seconds`` and ``peak_gib`` (lists), and the exponents ``time`` and ``memory``; the
        encoder's own forward pass has time only, and images stand for an epoch of single steps.
    """
    base = Case(
        options.model[0], options.tuning[0], "e2net", 256, 1, options.precision, False, options.width, options.device
    )
    sizes, batches = (256, 384, 512, 768, 1024), (1, 2, 4, 8)
    growth: dict[str, dict[str, Any]] = {}
    for label, cases, x in (
        (
            "tokens (step)",
            [Case(**{**asdict(base), "size": size}) for size in sizes],
            [(size // PATCH) ** 2 for size in sizes],
        ),
        ("batch (step)", [Case(**{**asdict(base), "batch": batch}) for batch in batches], list(batches)),
    ):
        memory = memory_of(cases)
        seconds = in_turns([Step(case) for case in cases], options.repeats)
        growth[label] = {"x": x, "seconds": seconds, "peak_gib": [m / GIB for m in memory]}
    step = Step(base)
    counts = (4, 8, 16, 32)
    epochs = in_turns([partial(_epoch, step, count) for count in counts], options.repeats)
    growth["images (epoch)"] = {"x": list(counts), "seconds": epochs, "peak_gib": []}
    encoders = in_turns([Step(Case(**{**asdict(base), "size": size})).encode for size in sizes], options.repeats)
    tokens = [(size // PATCH) ** 2 for size in sizes]
    growth["tokens (encoder forward)"] = {"x": tokens, "seconds": encoders, "peak_gib": []}
    for row in growth.values():
        row["time"] = exponent(row["x"], row["seconds"])
        row["memory"] = exponent(row["x"], row["peak_gib"]) if row["peak_gib"] else None
    return growth


def device_name(device: str) -> str:
    """What stands in the head of a table."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def show(report: Sequence[dict[str, Any]]) -> None:
    """Prints the table of cases."""
    print(
        f"{'model':<9}{'size':>5}{'batch':>6} {'comp.':<6}{'tuning':<8}{'decoder':<8}"
        f"{'ms/step':>9}{'images/s':>9}{'ratio':>6}{'GFLOP':>8}{'MFU':>7}{'GiB':>7}"
    )
    for row in report:
        print(
            f"{row['model']:<9}{row['size']:>5}{row['batch']:>6} {'yes' if row['compiled'] else 'no':<6}"
            f"{row['tuning']:<8}{row['decoder']:<8}{row['seconds'] * 1e3:>9.1f}{row['images_per_second']:>9.2f}"
            f"{row['ratio']:>6.2f}{row['gflops']:>8.1f}{row['mfu']:>7.1%}{row['peak_gib']:>7.2f}"
        )
    print("ratio: of the step's time to that of the first line of its block; GFLOP: forward and backward")


def show_growth(growth: dict[str, dict[str, Any]]) -> None:
    """Prints the table of growth, and what its exponents are compared with."""
    for label, row in growth.items():
        cells = [f"{x}: {seconds * 1e3:.0f} ms" for x, seconds in zip(row["x"], row["seconds"], strict=True)]
        if row["peak_gib"]:
            cells = [f"{cell}, {gib:.2f} GiB" for cell, gib in zip(cells, row["peak_gib"], strict=True)]
        print(f"{label:<26}{'; '.join(cells)}")
    print(f"\n{'exponent in':<26}{'time':>6}{'memory':>8}")
    for label, row in growth.items():
        memory = "" if row["memory"] is None else f"{row['memory']:.2f}"
        print(f"{label:<26}{row['time']:>6.2f}{memory:>8}")
    print("attention's own exponent in tokens is 2 in time (1 in memory, by scaled_dot_product_attention)")


def main() -> None:
    """Reads the arguments, measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--model", nargs="+", choices=MODELS, default=["vit_tiny"])
    parser.add_argument("--size", type=int, nargs="+", default=[128], help=f"pixels a side, multiples of {PATCH}")
    parser.add_argument("--batch", type=int, nargs="+", default=[2])
    parser.add_argument("--tuning", nargs="+", choices=TUNINGS, default=list(TUNINGS))
    parser.add_argument("--decoder", nargs="+", choices=DECODERS, default=list(DECODERS))
    parser.add_argument("--width", type=int, default=64, help="channels inside the e2net decoder")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="bf16 and fp16 are autocast")
    parser.add_argument("--compile", choices=("no", "yes", "both"), default="no")
    parser.add_argument("--repeats", type=int, default=5, help="at least 5")
    parser.add_argument("--growth", action="store_true", help="growth instead of the table; --model's first, --width")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    if options.repeats < 5:
        parser.error(f"--repeats={options.repeats}: expected at least 5, or the median means little")
    if any(size % PATCH for size in options.size):
        parser.error(f"--size: expected multiples of {PATCH}, found {options.size}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device=cuda: this machine has no GPU that PyTorch can use")

    print(f"{device_name(options.device)}, torch {torch.__version__}, {torch.get_num_threads()} threads", end=", ")
    print(f"{options.precision}, patches of {PATCH}, e2net of width {options.width}, median of {options.repeats}\n")
    if options.growth:
        figures: Any = measure_growth(options)
        show_growth(figures)
    else:
        compiled = {"no": (False,), "yes": (True,), "both": (False, True)}[options.compile]
        figures = []
        # A block for each shape: only what is compared is held in memory at once.
        for model, size, batch in itertools.product(options.model, options.size, options.batch):
            cases = [
                Case(model, tuning, decoder, size, batch, options.precision, fast, options.width, options.device)
                for fast, tuning, decoder in itertools.product(compiled, options.tuning, options.decoder)
            ]
            figures += measure(cases, options.repeats)
        show(figures)
    if options.json is not None:
        settings = {k: v for k, v in vars(options).items() if k != "json"}
        settings |= {"device_name": device_name(options.device), "torch": torch.__version__}
        options.json.write_text(json.dumps({"settings": settings, "figures": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
