"""What a prediction takes: time of model and file in turns, and memory of each in a process of its own."""

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from e2net.export.formats import Run

# Turns of one picture, and of a batch; the first ones are not timed.
_TURNS, _BATCHES, _BATCH, _WARM = 40, 3, 8, 3
# Seconds before each turn: threads of the library whose turn it was wait busily for more, on the cores of the next.
_REST = 0.1


@dataclass(frozen=True)
class Cost:
    """Of one way to predict.

    Attributes:
        p50, p95: milliseconds for one picture.
        throughput: pictures a second, in batches of 8.
        memory: the most bytes of a process that loads it and predicts one picture; None where that cannot be known.
    """

    p50: float
    p95: float
    throughput: float
    memory: int | None


def time_in_turns(runs: Sequence[Run], images: Sequence[NDArray[np.uint8]]) -> list[tuple[float, float, float]]:
    """Milliseconds for one picture, median and 95th percentile, and pictures a second, of each run.

    In turns, so that what else the machine does meets all alike, with a rest before each.

    Args:
        runs: what is timed.
        images: (1, 3, H, W) each, of one size.
    """
    single: list[list[float]] = [[] for _ in runs]
    batches: list[list[float]] = [[] for _ in runs]
    batch = np.concatenate([images[i % len(images)] for i in range(_BATCH)])
    for turn in range(_WARM + _TURNS):
        for run, seconds in zip(runs, single, strict=True):
            seconds.append(_time(run, images[turn % len(images)]))
    for _ in range(1 + _BATCHES):
        for run, seconds in zip(runs, batches, strict=True):
            seconds.append(_time(run, batch))
    found = []
    for one, many in zip(single, batches, strict=True):
        p50, p95 = np.percentile(one[_WARM:], (50, 95))
        found.append((float(p50) * 1e3, float(p95) * 1e3, _BATCH / float(np.median(many[1:]))))
    return found


def _time(run: Run, image: NDArray[np.uint8]) -> float:
    time.sleep(_REST)
    start = time.perf_counter()
    run(image)
    return time.perf_counter() - start


def peak_memory(
    file: Path, size: tuple[int, int], threads: int, kind: str = "-", encoder_path: str | None = None
) -> int | None:
    """The most bytes of a process that loads a file or a checkpoint and predicts one picture; None on Windows.

    Args:
        file: of a format, or a checkpoint.
        size: (H, W) of the picture.
        threads: to compute with.
        kind: the file's format; ``-``: it is a checkpoint.
        encoder_path: where a checkpoint's encoder lies now.
    """
    if sys.platform == "win32":
        return None
    numbers = [str(value) for value in (*size, threads)]
    moved = [] if encoder_path is None else [encoder_path]
    command = [sys.executable, "-m", "e2net.export.alone", kind, str(file), *numbers, *moved]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout.split()[-1])


def processor_instructions() -> str:
    """Which instructions for products of 8-bit numbers the processor has, in words; none known is said too."""
    information = Path("/proc/cpuinfo")
    flags = set(information.read_text(encoding="utf-8").split()) if information.is_file() else set()
    known = {"amx_int8": "AMX", "avx512_vnni": "AVX-512 VNNI", "avx_vnni": "AVX-VNNI", "i8mm": "I8MM"}
    return ", ".join(words for flag, words in known.items() if flag in flags) or "none known"
