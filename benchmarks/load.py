"""Memory of training, evaluation, prediction and check over as many pictures as NC4K has (4,121), of as many sizes.

Each program runs as a user starts it, over an eighth of the pictures and then over all; the resident memory of it and
of all that it has started is read four times a second. What a program holds for each picture would show as a higher
peak.

    python benchmarks/load.py --json load.json

Generated pictures, a tiny encoder and small sizes: what is tested is whether memory is flat, not how fast it is. Linux
alone, as it reads /proc.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).parent.parent
TINY = [
    "encoder.config.hidden_size=24", "encoder.config.intermediate_size=32", "decoder=linear", "size=64",
    "trainer.max_epochs=1", "trainer.accelerator=cpu", "num_samples=0",
]  # fmt: skip
_PERIOD = 0.25


def write_pictures(root: Path, count: int, sides: tuple[int, int] = (96, 224)) -> None:
    """Writes ``count`` JPEGs and masks of varied sizes into ``root/train``, and links them as ``root/test``."""
    rng = np.random.default_rng(0)
    for folder in ("Image", "GT"):
        (root / "train" / folder).mkdir(parents=True)
    for i in range(count):
        height, width = (int(side) for side in rng.integers(*sides, 2))
        mask = np.zeros((height, width), np.uint8)
        cv2.circle(mask, (width // 2, height // 2), int(rng.integers(3, min(height, width) // 2)), 255, -1)
        picture = rng.integers(0, 80, (height, width, 3), dtype=np.uint8) + (mask[..., None] // 3)
        cv2.imwrite(str(root / "train" / "Image" / f"{i:05}.jpg"), picture)
        cv2.imwrite(str(root / "train" / "GT" / f"{i:05}.png"), mask)
    (root / "test").symlink_to("train")


def _resident(process: int) -> int:
    """Bytes of a process and its children."""
    total = 0
    try:
        total += int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        for task in Path(f"/proc/{process}/task").iterdir():
            total += sum(_resident(int(child)) for child in (task / "children").read_text().split())
    except (OSError, IndexError):  # it has just ended
        pass
    return total


def watch(command: list[str], place: Path) -> tuple[float, list[int]]:
    """Runs a program; its seconds, and its memory over time in bytes.

    Raises:
        RuntimeError: it failed; what it printed is in the message.
    """
    log, start, memory = place / "log", time.monotonic(), []
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=place, env=environment, stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None:
            memory.append(_resident(process.pid))
            time.sleep(_PERIOD)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command[:3])} ended with {process.returncode}: {log.read_text()[-2000:]}")
    return time.monotonic() - start, [m for m in memory if m]


def main(count: int, workers: int) -> dict:
    """Runs everything; {program: {"seconds": ..., "peak": MiB, "mib": [at 0, 20, ... 100 % of its time]}}."""
    found = {}
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        write_pictures(place / "data", count)
        run, python = place / "run", sys.executable
        data = ["data=folder", f"data.root={place / 'data'}", f"data.num_workers={workers}", "data.batch_size=16"]
        programs = {
            "train": [python, str(ROOT / "train.py"), *TINY, *data, f"hydra.run.dir={run}"],
            "eval": [python, str(ROOT / "eval.py"), f"ckpt={run}", f"output={place / 'eval'}", "accelerator=cpu"],
            "eval of maps": [
                *(python, str(ROOT / "eval.py"), f"predictions={place / 'eval' / 'maps'}"),
                *("data=folder", f"data.root={place / 'data'}", f"output={place / 'maps'}", f"num_workers={workers}"),
            ],
            "predict": [
                *(python, "-m", "e2net.predict", f"ckpt={run}", f"input={place / 'data' / 'train' / 'Image'}"),
                *(f"output={place / 'predicted'}", "device=cpu", "rle=true", "overlays=true"),
            ],
            "check": [
                # Not with the test set, which has the same pictures.
                *(python, "-m", "e2net.check", "data=folder", f"data.root={place / 'data'}", "data.test=[]"),
                f"output={place / 'check'}",
            ],
        }
        for program, command in programs.items():
            seconds, memory = watch(command, place)
            steps = [memory[int(k / 5 * (len(memory) - 1))] for k in range(6)]
            mib = [round(m / 2**20) for m in steps]
            found[program] = {"seconds": round(seconds, 1), "peak": round(max(memory) / 2**20), "mib": mib}
            print(f"{count} pictures, {program}: {found[program]}", file=sys.stderr, flush=True)
        maps = len(list((place / "eval" / "maps").rglob("*.png")))
        predicted = len(list((place / "predicted" / "maps").rglob("*.png")))
        if (maps, predicted) != (count, count):
            raise RuntimeError(f"expected {count} maps each, found {maps} by eval and {predicted} by predict")
    return found


def table(few: dict, many: dict, pictures: int) -> str:
    """Markdown; ``pictures`` is how many more the second run had."""
    lines = ["| program | seconds | peak, an eighth | peak, all | KiB a picture | MiB over its time |"]
    lines.append("|---|---|---|---|---|---|")
    for program, one in many.items():
        before = few[program]["peak"]
        each = (one["peak"] - before) * 1024 / pictures
        steps = " ".join(map(str, one["mib"]))
        lines.append(f"| {program} | {one['seconds']} | {before} | {one['peak']} | {each:.1f} | {steps} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=4121)
    parser.add_argument("--workers", type=int, default=0, help="processes that read pictures")
    parser.add_argument("--most", type=float, default=48, help="KiB that a picture may leave behind: its curves")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    eighth = max(24, arguments.pictures // 8)
    runs = [main(count, arguments.workers) for count in (eighth, arguments.pictures)]
    print(table(runs[0], runs[1], arguments.pictures - eighth))
    if arguments.json:
        arguments.json.write_text(json.dumps(runs, indent=1) + "\n")
    limit = arguments.most * (arguments.pictures - eighth) / 1024
    few, many = (run.values() for run in runs)
    sys.exit(any(b["peak"] - a["peak"] > limit for a, b in zip(few, many, strict=True)))
