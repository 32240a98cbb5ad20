"""What the decoders cost: time of a training step, operations, peak memory, parameters.

The variants take turns within one process, so that all of them see the same machine; times are medians and the ratio
is the median of the ratios round by round, against E2Net's decoder with every level at the finest level's size. The
share is that of a large matrix product's rate, timed in the same process, which a step's operations reach. On a CPU
each variant's memory is measured in a process of its own.

    python benchmarks/decoder.py --repeats 5 --json decoder.json
    python benchmarks/decoder.py --device cuda --size 1024 --dim 1024 --width 256
"""

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from e2net.decoders import CAEMDecoder, DPTDecoder, E2NetDecoder, LinearDecoder, UPerNetDecoder
from e2net.flops import count_flops
from e2net.profile import peak_flops

PATCH = 16
VARIANTS: dict[str, tuple[Callable[..., nn.Module], dict[str, str]]] = {
    "e2net native simple": (E2NetDecoder, {"align": "native", "pyramid": "simple"}),
    "e2net unified simple": (E2NetDecoder, {"align": "unified", "pyramid": "simple"}),
    "e2net native standard": (E2NetDecoder, {"align": "native", "pyramid": "standard"}),
    "e2net unified standard": (E2NetDecoder, {"align": "unified", "pyramid": "standard"}),
    "caem native standard": (CAEMDecoder, {"align": "native", "pyramid": "standard"}),
    "caem unified standard": (CAEMDecoder, {"align": "unified", "pyramid": "standard"}),
    "dpt standard": (DPTDecoder, {"pyramid": "standard"}),
    "upernet standard": (UPerNetDecoder, {"pyramid": "standard"}),
    "linear": (LinearDecoder, {}),
}
BASELINE = "e2net unified standard"
MEMORY_STEPS = 2  # the second meets the gradients' memory of the first, as in training
GIB = 2**30


class Step:
    """Forward and backward of one variant on random features of images.

    Args:
        variant: a key of ``VARIANTS``.
        device: ``cpu``, ``cuda`` or ``meta`` (nothing is computed).
        size: of the image, in pixels a side.
        dim: channels of the encoder's four maps.
        width: channels inside the decoder.
        batch: images.
    """

    def __init__(self, variant: str, device: str, size: int, dim: int, width: int, batch: int = 1) -> None:
        make, options = VARIANTS[variant]
        sized = {} if make is LinearDecoder else {"width": width}
        with torch.device(device):
            self.decoder = make((dim,) * 4, (PATCH,) * 4, **sized, **options).train()
            # Channels last in memory, as maps made from tokens are.
            grids = [torch.randn(batch, size // PATCH, size // PATCH, dim) for _ in range(4)]
        self.features = [grid.permute(0, 3, 1, 2) for grid in grids]
        self.device, self.image_size = device, (size, size)

    def forward(self) -> torch.Tensor:
        """A scalar that depends on every output."""
        output = self.decoder(self.features, self.image_size)
        return torch.stack([m.square().mean() for m in output.maps()]).sum()

    def __call__(self) -> float:
        """Seconds that one step took."""
        self.decoder.zero_grad()
        self._wait()
        start = time.perf_counter()
        self.forward().backward()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def gflops(variant: str, *shape: int) -> tuple[float, float]:
    """10^9 floating-point operations of a forward pass, and of a step; a multiply-add is two."""
    step = Step(variant, "meta", *shape)
    return count_flops(step.forward) / 1e9, count_flops(lambda: step.forward().backward()) / 1e9


def resident(key: str) -> int:
    """Bytes of this process's memory: ``VmRSS`` now, ``VmHWM`` at most so far (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {key}")


def peak_bytes(variant: str, device: str, shape: tuple[int, ...], threads: int) -> int:
    """Most memory that steps took beyond what was there before the first one: decoder, features, PyTorch itself."""
    torch.set_num_threads(threads)
    step = Step(variant, device, *shape)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten: importing has one of its own
        before = resident("VmRSS")
    for _ in range(MEMORY_STEPS):
        step()
    return (torch.cuda.max_memory_allocated() if device == "cuda" else resident("VmHWM")) - before


def measure(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Every variant's figures.

    Returns:
        Variant to ``seconds`` (median), ``ratio`` (how many times faster than ``BASELINE``), ``gflops`` (forward),
        ``share`` (of a matrix product's rate in float32), ``peak_gib`` and ``parameters``.
    """
    shape = (options.size, options.dim, options.width, options.batch)
    operations = {variant: gflops(variant, *shape) for variant in VARIANTS}
    rate = peak_flops(torch.device(options.device), torch.float32) / 1e9
    report: dict[str, dict[str, Any]] = {}
    # A fresh process for each: memory that one variant gives back to its allocator would hide the next one's.
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for variant in VARIANTS:
            peak = pool.apply(peak_bytes, (variant, options.device, shape, torch.get_num_threads()))
            report[variant] = {"gflops": operations[variant][0], "peak_gib": peak / GIB}

    steps = {variant: Step(variant, options.device, *shape) for variant in VARIANTS}
    times: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for _ in range(options.repeats + 1):
        for variant, step in steps.items():
            times[variant].append(step())
    for variant, row in report.items():
        own, base = times[variant][1:], times[BASELINE][1:]  # without the warm-up
        row["seconds"] = statistics.median(own)
        row["ratio"] = statistics.median(b / a for a, b in zip(own, base, strict=True))
        row["share"] = operations[variant][1] / row["seconds"] / rate
        row["parameters"] = sum(p.numel() for p in steps[variant].decoder.parameters())
    return report


def main() -> None:
    """Print the table, and write it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", type=int, default=384, help=f"pixels a side, a multiple of {PATCH} (default 384)")
    parser.add_argument("--dim", type=int, default=768, help="channels of the encoder's maps (default 768)")
    parser.add_argument("--width", type=int, default=128, help="channels inside the decoders (default 128)")
    parser.add_argument("--batch", type=int, default=1, help="images (default 1)")
    parser.add_argument("--repeats", type=int, default=5, help="measured steps per variant, at least 5 (default 5)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    if options.repeats < 5:
        parser.error("--repeats: a median of fewer than 5 says little")
    if options.size % PATCH:
        parser.error(f"--size must be a multiple of {PATCH}, found {options.size}")

    report = measure(options)
    title = f"{options.device}, {options.size}², dim {options.dim}, width {options.width}"
    print(f"{title:<34}{'s/step':>8}{'faster':>8}{'GFLOP':>8}{'share':>7}{'GiB':>7}{'M par.':>8}")
    for variant, row in report.items():
        print(
            f"  {variant:<32}{row['seconds']:>8.3f}{row['ratio']:>7.1f}x{row['gflops']:>8.1f}"
            f"{row['share']:>7.0%}{row['peak_gib']:>7.2f}{row['parameters'] / 1e6:>8.2f}"
        )
    print(f"batch {options.batch}, forward + backward, {torch.get_num_threads()} threads; GFLOP of the forward pass;")
    print(f"faster than '{BASELINE}'; GiB: peak beyond what the process held before its first step.")
    if options.json:
        settings = {k: v for k, v in vars(options).items() if k != "json"} | {"threads": torch.get_num_threads()}
        settings |= {"torch": torch.__version__, "patch": PATCH}
        options.json.write_text(json.dumps({"settings": settings, "variants": report}, indent=2) + "\n")


if __name__ == "__main__":
    main()
