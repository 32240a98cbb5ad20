"""How many times faster than PySODMetrics' usual loop a folder of maps is scored, decoding of the PNGs included.

The usual loop is one process: cv2.imread of map and mask, then a step of each of the five scorers. On the other side
is what eval.py predictions=... runs, worker processes and their start included. Both score the same files in turn; the
ratio is the median of the pairwise ratios, and the scores are compared on the way. On a machine that is busy with other
things the processor seconds, summed over all processes, tell more than the clock: the second ratio is theirs, times the
number of workers, as if each had a core of its own.

    python benchmarks/folder.py --maps 200 --workers 2 --rounds 3 --json folder.json
"""

import argparse
import json
import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")  # before NumPy starts its threads

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import py_sod_metrics  # noqa: E402
from metrics import soft_pair  # noqa: E402

from e2net.datasets import FolderTargets  # noqa: E402
from e2net.evaluation.predictions import find_maps, score_maps  # noqa: E402
from e2net.tasks import Camouflage  # noqa: E402


def write_folder(root: Path, count: int, height: int, width: int) -> None:
    """Writes ``count`` maps into ``root/maps/set`` and their masks into ``root/data/set/GT``."""
    for folder in (root / "maps" / "set", root / "data" / "set" / "GT"):
        folder.mkdir(parents=True)
    for i in range(count):
        level_map, mask = soft_pair(height, width, i)
        cv2.imwrite(str(root / "maps" / "set" / f"{i:05}.png"), level_map)
        cv2.imwrite(str(root / "data" / "set" / "GT" / f"{i:05}.png"), mask.astype(np.uint8) * 255)


def usual_loop(root: Path) -> dict[str, float]:
    """PySODMetrics' scores of the folder, by the loop that its readme shows."""
    scorers = [getattr(py_sod_metrics, n)() for n in ("Smeasure", "Emeasure", "Fmeasure", "MAE", "WeightedFmeasure")]
    for path in sorted((root / "data" / "set" / "GT").iterdir()):
        mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        level_map = cv2.imread(str(root / "maps" / "set" / path.name), cv2.IMREAD_GRAYSCALE)
        for scorer in scorers:
            scorer.step(pred=level_map, gt=mask)
    s, e, f, error, weighted = (scorer.get_results() for scorer in scorers)
    return {
        "S": s["sm"],
        "Fmax": f["fm"]["curve"].max(),
        "Fmean": f["fm"]["curve"].mean(),
        "Fadp": f["fm"]["adp"],
        "wF": weighted["wfm"],
        "Emax": e["em"]["curve"].max(),
        "Emean": e["em"]["curve"].mean(),
        "Eadp": e["em"]["adp"],
        "MAE": error["mae"],
    }


def ours(root: Path, workers: int) -> dict[str, float]:
    """The same scores by worker processes."""
    found = find_maps(root / "maps", "set", FolderTargets(root / "data" / "set"), Camouflage())
    (result,), faults = score_maps(found, None, workers)
    assert not faults, faults
    return result.values()


def processor_seconds() -> float:
    """Of this process and its finished children so far."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def main() -> None:
    """Print seconds and ratio, and write them as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--maps", type=int, default=200, help="in the folder (default 200)")
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("H", "W"), help="default 480 640")
    parser.add_argument("--workers", type=int, default=2, help="processes on our side (default 2)")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of measurements (default 3)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    if min(options.maps, *options.size, options.workers, options.rounds) < 1:
        parser.error("all numbers must be at least 1")

    cv2.setNumThreads(1)
    warnings.simplefilter("ignore")
    times, cpu = [], []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_folder(root, options.maps, *options.size)
        for _ in range(options.rounds):
            start, used = time.perf_counter(), processor_seconds()
            expected = usual_loop(root)
            middle, used_there = time.perf_counter(), processor_seconds()
            found = ours(root, options.workers)
            times.append((middle - start, time.perf_counter() - middle))
            cpu.append((used_there - used, processor_seconds() - used_there))
            for name, value in found.items():
                assert abs(value - expected[name]) < 1e-9, (name, value, expected[name])
    figures = {
        "maps": options.maps,
        "size": list(options.size),
        "workers": options.workers,
        "rounds": options.rounds,
        "pysodmetrics_s": statistics.median(a for a, _ in times),
        "e2net_s": statistics.median(b for _, b in times),
        "pysodmetrics_cpu_s": statistics.median(a for a, _ in cpu),
        "e2net_cpu_s": statistics.median(b for _, b in cpu),
        "ratio": statistics.median(a / b for a, b in times),
        "cpu_ratio": options.workers * statistics.median(a / b for a, b in cpu),
    }
    print(
        f"{options.maps} maps of {options.size[1]}x{options.size[0]}, {options.workers} workers: "
        f"PySODMetrics {figures['pysodmetrics_s']:.2f} s, e2net {figures['e2net_s']:.2f} s, "
        f"ratio {figures['ratio']:.1f} (of {', '.join(f'{a / b:.1f}' for a, b in times)}); processor seconds "
        f"{figures['pysodmetrics_cpu_s']:.2f} and {figures['e2net_cpu_s']:.2f}, "
        f"ratio by them and {options.workers} workers {figures['cpu_ratio']:.1f}"
    )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
