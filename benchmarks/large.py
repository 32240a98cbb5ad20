"""Peak memory and time of prediction and evaluation on ever larger pictures, looked at in windows at their full size.

Each picture goes through the programs as a user starts them, in a process of its own, and each with the network's input
at the picture's own size. What is held must grow by bytes a pixel: the picture, the network's input and the result.

    python benchmarks/large.py                                      a tiny random encoder: memory, two minutes
    python benchmarks/large.py --ckpt RUN --window 256 --sides 1000 2000    a model of one's own: its time

Generated pictures. Linux, where the peak of a process is told in KiB.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
from load import ROOT, TINY, watch, write_pictures


def write_picture(folder: Path, side: int) -> None:
    """Writes a JPEG and a mask of ``side`` x ``side`` pixels into ``folder/test``."""
    grey = np.random.default_rng(0).integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
    picture = cv2.resize(grey, (side, side), interpolation=cv2.INTER_CUBIC)
    mask = np.zeros((side, side), np.uint8)
    cv2.circle(mask, (side // 2, side // 3), side // 5, 255, -1)
    for kind, name, values in (("Image", "a.jpg", picture), ("GT", "a.png", mask)):
        (folder / "test" / kind).mkdir(parents=True)
        cv2.imwrite(str(folder / "test" / kind / name), values)


def measure(command: list[str], place: Path) -> tuple[float, float]:
    """Seconds of processor time, so that what else the machine does counts little, and peak MiB of a program.

    Raises:
        RuntimeError: it failed; what it printed is in the message.
    """
    log = place / "log"
    with log.open("w") as output:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command, cwd=place, env=environment, stdout=output, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{' '.join(command[:3])} ended with {status}: {log.read_text()[-2000:]}")
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def train_tiny(place: Path) -> Path:
    """A run folder of a tiny model."""
    write_pictures(place / "small", 24)
    data = ["data=folder", f"data.root={place / 'small'}", "data.test=[]", "data.num_workers=0"]
    tiny = [*TINY, "encoder.config.patch_size=32"]  # few tokens: all that is asked for is memory
    watch([sys.executable, str(ROOT / "train.py"), *tiny, *data, f"hydra.run.dir={place / 'run'}"], place)
    return place / "run"


def main(arguments: argparse.Namespace) -> list[dict]:
    """Measures all sides; a row each."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        run = arguments.ckpt.resolve() if arguments.ckpt else train_tiny(place)
        for side in arguments.sides:
            folder = place / str(side)
            write_picture(folder, side)
            options = [f"ckpt={run}", f"size={side}", f"window={arguments.window}"]
            flip = str(arguments.flip).lower()
            picture = f"input={folder / 'test' / 'Image'}"
            programs = {
                "predict": [*("-m", "e2net.predict"), *options, picture, f"output={folder / 'out'}", f"flip={flip}"],
                "eval": [
                    *(str(ROOT / "eval.py"), *options, "data=folder", f"data.root={folder}", "data.test=[test]"),
                    *("data.num_workers=0", f"flip_test={flip}", f"output={folder / 'eval'}", "accelerator=cpu"),
                ],
            }
            row: dict = {"side": side, "Mpx": side * side / 1e6}
            for program in arguments.programs:
                row[f"{program} s"], row[f"{program} MiB"] = measure([sys.executable, *programs[program]], place)
            rows.append(row)
            print(row, file=sys.stderr, flush=True)
    return rows


def table(rows: list[dict], programs: list[str]) -> str:
    """Markdown, with what each further megapixel takes."""
    heads = [f"{p} {what}" for p in programs for what in ("s", "s a Mpx", "MiB", "bytes a pixel")]
    lines = ["| side | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    for before, row in zip([None, *rows], rows, strict=False):
        cells = []
        for p in programs:
            seconds, mib, each, held = row[f"{p} s"], row[f"{p} MiB"], "", ""
            if before is not None:
                more = row["Mpx"] - before["Mpx"]
                each = f"{(seconds - before[f'{p} s']) / more:.2f}"
                held = f"{(mib - before[f'{p} MiB']) * 2**20 / 1e6 / more:.1f}"
            cells += [f"{seconds:.0f}", each, f"{mib:.0f}", held]
        lines.append(f"| {row['side']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[1024, 2048, 4096, 8192], help="pixels")
    parser.add_argument("--window", type=int, default=512, help="pixels a side")
    parser.add_argument("--flip", action="store_true", help="average with the mirror image")
    parser.add_argument("--programs", nargs="+", choices=["predict", "eval"], default=["predict", "eval"])
    parser.add_argument("--ckpt", type=Path, help="a run of one's own instead of the tiny one")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = main(options)
    print(table(found, options.programs))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
