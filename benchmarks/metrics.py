"""How many times faster than PySODMetrics the scores are, on one core.

Both are given the same 8-bit maps and masks within one process, a few maps to one side, then the same to the other,
so that each works as in a loop over a data set; a ratio is the median of the pairwise ratios. The scores are compared
on the way, so that a fast wrong answer can't win.

    python benchmarks/metrics.py --rounds 9 --json ratios.json
"""

import argparse
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")  # before NumPy starts its threads

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import py_sod_metrics  # noqa: E402
import torch  # noqa: E402

from e2net.metrics import MaskGeometry, MaskProtocol, score_map  # noqa: E402
from e2net.metrics.functional import prepare, weighted_f_of  # noqa: E402

SIZES = ((480, 640), (1024, 1024))
MAPS = 4  # per side and measurement
HISTOGRAM_SCORES = ("S", "Fmax", "Fmean", "Fadp", "Emax", "Emean", "Eadp", "MAE")


def soft_pair(height: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A blob as mask, and a blurred, displaced and noisy version of it as 8-bit map.

    Args:
        height: in pixels.
        width: in pixels.
        seed: of the random generator.

    Returns:
        (h, w) uint8 map and (h, w) bool mask, foreground about 15 %.
    """
    rng = np.random.default_rng(seed)
    field = cv2.GaussianBlur(rng.random((height, width)), (0, 0), height / 12)
    mask = field > np.quantile(field, 0.85)
    shifted = np.roll(field + 0.15 * field.std() * rng.standard_normal((height, width)), 4, axis=1)
    prob = 1 / (1 + np.exp(-6 * (shifted - np.quantile(field, 0.85)) / field.std()))
    return np.round(cv2.GaussianBlur(prob, (0, 0), 1.5) * 255).astype(np.uint8), mask


def reference(names: tuple[str, ...], level_map: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """PySODMetrics' scores of one 8-bit map against a 0/255 mask."""
    result = {}
    for name in names:
        scorer = getattr(py_sod_metrics, name)()
        scorer.step(level_map, mask)
        found = scorer.get_results()
        if name == "Smeasure":
            result["S"] = found["sm"]
        elif name == "MAE":
            result["MAE"] = found["mae"]
        elif name == "WeightedFmeasure":
            result["wF"] = found["wfm"]
        else:
            letter, part = ("F", found["fm"]) if name == "Fmeasure" else ("E", found["em"])
            result[f"{letter}adp"] = part["adp"]
            result[f"{letter}max"], result[f"{letter}mean"] = part["curve"].max(), part["curve"].mean()
    return {name: float(value) for name, value in result.items()}


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Wall-clock seconds of one call, and its result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def compare(height: int, width: int, rounds: int) -> dict[str, dict[str, float]]:
    """Time both sides alternately.

    Args:
        height: of the maps, in pixels.
        width: of the maps, in pixels.
        rounds: pairs of measurements per case.

    Returns:
        Case to milliseconds per map of either side and the median ratio.

    Raises:
        AssertionError: if scores differ by more than 1e-9.
    """
    protocol = MaskProtocol()

    def weighted(level_map: np.ndarray, mask: np.ndarray, geometry: MaskGeometry | None) -> dict[str, float]:
        # Without the histogram that score_map takes in any case, as the other side has none here.
        return {"wF": weighted_f_of(prepare(level_map, protocol), geometry or MaskGeometry(mask))}

    def scored(level_map: np.ndarray, mask: np.ndarray, names: tuple[str, ...]) -> dict[str, float]:
        return score_map(level_map, mask, protocol=protocol, scores=names).values

    cases: dict[str, tuple[tuple[str, ...], tuple[str, ...], bool]] = {
        "S + E + F + MAE": (("Smeasure", "Emeasure", "Fmeasure", "MAE"), HISTOGRAM_SCORES, False),
        "S": (("Smeasure",), ("S",), False),
        "E": (("Emeasure",), ("Emax", "Emean", "Eadp"), False),
        "F": (("Fmeasure",), ("Fmax", "Fmean", "Fadp"), False),
        "MAE": (("MAE",), ("MAE",), False),
        "weighted F": (("WeightedFmeasure",), ("wF",), False),
        "weighted F, kept geometry": (("WeightedFmeasure",), ("wF",), True),
    }
    pairs = [soft_pair(height, width, seed) for seed in range(MAPS)]
    coded = [mask.astype(np.uint8) * 255 for _, mask in pairs]
    report = {}
    for case, (theirs, ours, kept) in cases.items():
        geometries = [MaskGeometry(mask) if kept else None for _, mask in pairs]

        def slow(names: tuple[str, ...] = theirs) -> list[dict[str, float]]:
            return [reference(names, level_map, code) for (level_map, _), code in zip(pairs, coded, strict=True)]

        def fast(
            names: tuple[str, ...] = ours, known: list[MaskGeometry | None] = geometries
        ) -> list[dict[str, float]]:
            if names == ("wF",):
                return [weighted(level_map, mask, g) for (level_map, mask), g in zip(pairs, known, strict=True)]
            return [scored(level_map, mask, names) for level_map, mask in pairs]

        times: list[tuple[float, float]] = []
        for _ in range(rounds + 1):
            before, expected = seconds(slow)
            after, found = seconds(fast)
            times.append((before / MAPS, after / MAPS))
            for mine, right in zip(found, expected, strict=True):
                for name, value in mine.items():
                    assert abs(value - right[name]) < 1e-9, (case, name, value, right[name])
        del times[0]  # warm-up
        report[case] = {
            "pysodmetrics_ms": 1e3 * statistics.median(a for a, _ in times),
            "e2net_ms": 1e3 * statistics.median(b for _, b in times),
            "ratio": statistics.median(a / b for a, b in times),
        }
    return report


def main() -> None:
    """Print the table, and write it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=9, help="pairs of measurements per case, at least 5 (default 9)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    if options.rounds < 5:
        parser.error("--rounds: a median of fewer than 5 says little")

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    report = {}
    for height, width in SIZES:
        size = f"{width}x{height}"
        report[size] = compare(height, width, options.rounds)
        print(f"{size:<28}{'PySODMetrics ms':>16}{'e2net ms':>10}{'ratio':>8}")
        for case, row in report[size].items():
            print(f"  {case:<26}{row['pysodmetrics_ms']:>16.2f}{row['e2net_ms']:>10.2f}{row['ratio']:>8.1f}")
    if options.json:
        options.json.write_text(json.dumps({"rounds": options.rounds, "sizes": report}, indent=2) + "\n")


if __name__ == "__main__":
    main()
