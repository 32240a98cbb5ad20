"""How many images a second prediction makes, from files to maps on disk, and what doing things at once gains.

Pictures are generated and written as JPEGs first. Then each case goes over all of them: read, network, map as PNG.
"plain" does one after the other, picture by picture in batches; "overlapped" reads and writes in threads beside the
network, as ``e2net.load(...).predict(images)`` and ``python -m e2net.predict`` do. Both sides run in turns within one
process; a ratio is the median of the ratios of the turns, and the maps of the two are compared on the way. Peak memory
is the GPU's, or this process's where there is none (then it never falls from one case to the next).

    python benchmarks/infer.py                                       a small random DINOv2, under a minute on 2 cores
    python benchmarks/infer.py --device cuda --hidden 1024 --depth 24 --heads 16 --size 518 --images 256 --batch 1 8 32
"""

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from e2net.datasets import ProceduralPairs
from e2net.decoders import E2NetDecoder
from e2net.encoders import Frozen, ViTEncoder
from e2net.evaluation.inference import Predictor
from e2net.formats import read_image, read_map
from e2net.model import DenseModel
from e2net.predict.segmenter import Segmenter


def build(arguments: argparse.Namespace, flip: bool) -> Segmenter:
    """A segmenter on a DINOv2-like ViT with random weights and the whole decoder."""
    torch.manual_seed(0)
    encoder = ViTEncoder.from_config(
        {
            "model_type": "dinov2",
            "patch_size": 14,
            "hidden_size": arguments.hidden,
            "num_hidden_layers": arguments.depth,
            "num_attention_heads": arguments.heads,
            "image_size": arguments.size,
        }
    )
    model = DenseModel(encoder, partial(E2NetDecoder, width=arguments.width), Frozen())
    return Segmenter(model, arguments.size, arguments.device, Predictor(flip=flip), arguments.precision)


def write_pictures(folder: Path, count: int, side: int) -> list[Path]:
    """Generated camouflage as JPEGs with longer sides of ``side`` to 4/3 ``side`` pixels."""
    pairs = ProceduralPairs(min(count, 16), 0, 0.5, "test", (side, side * 4 // 3))
    paths = []
    for i in range(count):
        paths.append(folder / f"{i:05d}.jpg")
        if i < len(pairs):
            cv2.imwrite(str(paths[-1]), pairs.read(i)[0][..., ::-1])
        else:  # generating costs more than reading ever will
            paths[-1].write_bytes(paths[i % len(pairs)].read_bytes())
    return paths


def plain(model: Segmenter, paths: list[Path], output: Path, batch_size: int, threads: int) -> None:
    """One thing after the other; ``threads`` is not used."""
    for first in range(0, len(paths), batch_size):
        chunk = paths[first : first + batch_size]
        images = [read_image(path) for path in chunk]
        # Read by now: little is left for the one thread that predict needs in any case.
        for path, result in zip(chunk, model.predict(images, batch_size=batch_size, threads=1), strict=True):
            result.save(output / f"{path.stem}.png")


def overlapped(model: Segmenter, paths: list[Path], output: Path, batch_size: int, threads: int) -> None:
    """Reading, network and writing at once, with so many threads for reading and as many for writing."""
    with ThreadPoolExecutor(threads) as pool:
        results = model.predict(paths, batch_size=batch_size, threads=threads)
        writes = [
            pool.submit(result.save, output / f"{path.stem}.png") for path, result in zip(paths, results, strict=True)
        ]
        for write in writes:
            write.result()


def seconds(work: Callable[[], None]) -> float:
    """Wall-clock seconds of one call, with all that it left to do on the GPU."""
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_memory(device: torch.device) -> float:
    """MiB, of the GPU since the last reset, or of this process since its start."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    # In KiB on Linux, in bytes on a Mac.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def compare(model: Segmenter, paths: list[Path], folder: Path, batch_size: int, rounds: int, threads: int) -> dict:
    """Times both sides in turns.

    Args:
        model: what predicts.
        paths: of the pictures.
        folder: for the maps.
        batch_size: pictures for each step of the network.
        rounds: turns, at least 5.
        threads: of the overlapped side.

    Returns:
        Images a second of either side, the median ratio of their times and the peak memory in MiB.

    Raises:
        AssertionError: the two sides' maps differ.
    """
    sides = {"plain": plain, "overlapped": overlapped}
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, side in sides.items():
            took = seconds(partial(side, model, paths, folder / name, batch_size, threads))
            if turn:  # the first warms up: kernels are chosen, files come into the cache
                times[name].append(took)
    for path in paths:
        first, second = (read_map(folder / name / f"{path.stem}.png") for name in sides)
        assert np.array_equal(first, second), f"{path.name}: the two sides' maps differ"
    return {
        **{name: len(paths) / statistics.median(values) for name, values in times.items()},
        "ratio": statistics.median(p / o for p, o in zip(times["plain"], times["overlapped"], strict=True)),
        "memory_MiB": peak_memory(model.device),
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All cases: batch sizes, with and without mirror images."""
    cv2.setNumThreads(1)  # as the command line does: pictures are read in threads of our own
    cases = []
    with tempfile.TemporaryDirectory() as temporary:
        (pictures := Path(temporary) / "pictures").mkdir()
        paths = write_pictures(pictures, arguments.images, arguments.side)
        for flip in (False, True):
            model = build(arguments, flip)
            for batch_size in arguments.batch:
                case = compare(model, paths, Path(temporary), batch_size, arguments.rounds, arguments.threads)
                cases.append({"batch_size": batch_size, "flip": flip, **case})
        device = model.device
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "settings": {k: v for k, v in vars(arguments).items() if k != "json"},
        "precision": model.precision,
        "cases": cases,
    }


def show(report: dict[str, Any]) -> None:
    """Prints the table."""
    settings = report["settings"]
    print(
        f"{report['device']}, torch {report['torch']}, {report['precision']}, {report['torch_threads']} torch threads; "
        f"ViT of {settings['depth']} blocks, width {settings['hidden']}, at {settings['size']}; "
        f"{settings['images']} pictures of {settings['side']} pixels and more; median of {settings['rounds']}\n"
    )
    print(f"{'batch':>5}  {'flip':<5}  {'plain im/s':>10}  {'overlapped im/s':>15}  {'ratio':>5}  {'peak MiB':>8}")
    for case in report["cases"]:
        print(
            f"{case['batch_size']:>5}  {'yes' if case['flip'] else 'no':<5}  {case['plain']:>10.1f}  "
            f"{case['overlapped']:>15.1f}  {case['ratio']:>5.2f}  {case['memory_MiB']:>8.0f}"
        )


def main() -> None:
    """Reads the arguments, measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--precision", default="auto", help="auto, 32-true, bf16-mixed or 16-mixed")
    parser.add_argument("--hidden", type=int, default=96, help="width of the ViT")
    parser.add_argument("--depth", type=int, default=4, help="blocks of the ViT")
    parser.add_argument("--heads", type=int, default=3, help="attention heads of the ViT")
    parser.add_argument("--width", type=int, default=32, help="channels of the decoder")
    parser.add_argument("--size", type=int, default=112, help="pixels a side of the network's input")
    parser.add_argument("--side", type=int, default=480, help="pixels of the pictures' shorter sides, about")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=5, help="at least 5")
    parser.add_argument("--threads", type=int, default=min(8, max(1, cores - 1)))
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    if arguments.rounds < 5:
        parser.error(f"--rounds={arguments.rounds}: expected at least 5, or the median means little")
    report = measure(arguments)
    show(report)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
