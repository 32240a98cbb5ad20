"""Which way to tune the encoder, with which decoder? Trains every pair on one's own pictures, and prints the table.

Every row is a command that a user could give (it is printed). `screen` trains each pair once and scores it on the
validation part of the training set; `final` trains the best five, and upstream's recipe, with several seeds on the
whole training set and scores the test set; `table` prints what there is, and writes it as Markdown. Finished runs are
kept: the same command again continues where it stopped.

    python benchmarks/recipes.py screen final table --root DATA --encoder FOLDER --output runs/recipes
"""

import argparse
import csv
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
TUNINGS = ("frozen", "adapter", "lora", "partial", "full")
DECODERS = ("linear", "caem", "dpt", "upernet", "e2net")
SCORES = ("S", "wF", "Emean", "MAE")
# What the recommended recipe is measured against: no averaging of weights or mirror images either.
UPSTREAM = "upstream"
UPSTREAM_OVERRIDES = (
    "tuning=frozen", "decoder=e2net", "loss=v5", "optim.lr=1e-4", "optim.weight_decay=5e-4", "ema=null",
    "flip_test=false",
)  # fmt: skip


def overrides_of(row: str) -> list[str]:
    """The overrides of a row, ``<tuning>+<decoder>`` or ``upstream``, on top of the recommended recipe."""
    if row == UPSTREAM:
        return list(UPSTREAM_OVERRIDES)
    tuning, decoder = row.split("+")
    return [f"tuning={tuning}", f"decoder={decoder}"]


def command(row: str, seed: int, stage: str, options: argparse.Namespace) -> list[str]:
    """The train.py command line of one run."""
    held_out = ["data.val_fraction=0.2", "data.test=[]"] if stage == "screen" else ["data.val_fraction=0"]
    size, epochs = {
        "screen": (options.screen_size, options.screen_epochs),
        "final": (options.size, options.epochs),
    }[stage]
    return [
        "train.py",
        *common(options, size),
        *overrides_of(row),
        *held_out,
        f"seed={seed}",
        f"trainer.max_epochs={epochs}",
        f"run_dir={folder_of(row, seed, stage, options)}",
        *options.set,
    ]


def common(options: argparse.Namespace, size: int) -> list[str]:
    """What all rows have in common."""
    return [
        "experiment=recommended",
        # One size and one look: parts and decoders are compared, and a cache of features knows no second one.
        "train_scales=[1.0]",
        "test_scales=[1.0]",
        "zoom_test=0",
        "sharpen=1",
        "data.augment.scale=[0.5,1.0]",
        "data=folder",
        f"data.root={options.root}",
        "encoder=local",
        f"encoder.path={options.encoder}",
        f"size={size}",
        f"trainer.precision={options.precision}",
    ]


def folder_of(row: str, seed: int, stage: str, options: argparse.Namespace) -> Path:
    """Where a run leaves its files."""
    return options.output.resolve() / stage / f"{row}_{seed}"


def finished(folder: Path) -> bool:
    """Whether the run was completed: this script writes the file when train.py has ended well."""
    return (folder / "seconds.txt").is_file()


def train(arguments: list[str], folder: Path, threads: int) -> None:
    """Runs train.py; its output goes to ``<folder>/log.txt``."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    start = time.perf_counter()
    with (folder / "log.txt").open("w") as out:
        done = subprocess.run(
            [sys.executable, *arguments, f"hydra.run.dir={folder}"],
            cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"train.py failed; see {folder / 'log.txt'}")
    (folder / "seconds.txt").write_text(f"{time.perf_counter() - start:.1f}\n")


def run_all(runs: list[tuple[str, int]], stage: str, options: argparse.Namespace) -> None:
    """Trains what is not there yet, several runs at a time."""
    todo = [(row, seed) for row, seed in runs if not finished(folder_of(row, seed, stage, options))]
    threads = max(1, (os.cpu_count() or 1) // options.workers)
    if todo:
        print(f"{stage}: {len(todo)} runs, such as\n  python {shlex.join(command(*todo[0], stage, options))}")
    with ThreadPoolExecutor(options.workers) as pool:
        jobs = [
            pool.submit(train, command(*run, stage, options), folder_of(*run, stage, options), threads) for run in todo
        ]
        failures = [e for job in tqdm(jobs, desc=stage, unit="run", disable=not todo) if (e := job.exception())]
    if failures:
        raise SystemExit("\n".join(map(str, failures)))


def scores_of(folder: Path, stage: str) -> dict[str, float]:
    """Scores of a finished run: of the last epoch's validation, or of the test set."""
    if stage == "screen":
        with (folder / "metrics.csv").open() as file:
            last = [row for row in csv.DictReader(file) if row.get("val/S")][-1]
        return {name: float(last[f"val/{name}"]) for name in SCORES}
    (scores,) = json.loads((folder / "test_scores.json").read_text())["scores"].values()
    return {name: scores[name] for name in SCORES}


def best(options: argparse.Namespace, count: int = 5) -> list[str]:
    """The rows with the highest S on the validation part."""
    rows = [f"{tuning}+{decoder}" for tuning in TUNINGS for decoder in DECODERS]
    found = {r: folder_of(r, 0, "screen", options) for r in rows if finished(folder_of(r, 0, "screen", options))}
    return sorted(found, key=lambda row: -scores_of(found[row], "screen")["S"])[:count]


def cost_of(row: str, options: argparse.Namespace, repeats: int = 5) -> tuple[float, float]:
    """Trained parameters (millions) and seconds a training step at the final size and the recipe's batch size."""
    # Seconds that the other stages don't need.
    from e2net.runs import build, build_model, resolve  # noqa: PLC0415
    from e2net.training.memory import Trial  # noqa: PLC0415
    from e2net.training.run import choose_precision  # noqa: PLC0415
    from e2net.training.step import precision_of  # noqa: PLC0415

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = resolve(
            compose("train", [*common(options, options.size), *overrides_of(row), "run_dir=unused", *options.set])
        )
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = precision_of(choose_precision(options.precision, device.type), device)
    size, limit = (options.size, options.size), config["trainer"]["gradient_clip_val"]
    trial = Trial(build_model(config), build(config["loss"]), build(config["optim"]), size, device, precision, limit)
    batch = trial.batch(config["data"]["batch_size"])
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        trial.step(*batch)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    trained = sum(p.numel() for p in trial.model.parameters() if p.requires_grad)
    return trained / 1e6, statistics.median(times[1:])  # the first one warms up


def table(options: argparse.Namespace) -> str:
    """The finished runs as Markdown: one table for each stage."""
    text = []
    for stage, what in (("screen", "validation part, one seed"), ("final", "test set, mean ± deviation over seeds")):
        rows: dict[str, list[dict[str, float]]] = {}
        for folder in sorted((options.output.resolve() / stage).glob("*_*")):
            if finished(folder):
                rows.setdefault(folder.name.rsplit("_", 1)[0], []).append(scores_of(folder, stage))
        if not rows:
            continue
        text.append(f"**{what}**\n\n| tuning | decoder | seeds | {' | '.join(SCORES)} | trained M | s / step |")
        text.append("|" + "---|" * (5 + len(SCORES)))
        for row, runs in sorted(rows.items(), key=lambda item: -statistics.mean(r["S"] for r in item[1])):
            cells = [" | ".join(row.split("+")) if "+" in row else "frozen | e2net, upstream's loss and rate"]
            cells.append(str(len(runs)))
            for name in SCORES:
                values = [run[name] for run in runs]
                spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.3f}{spread}")
            parameters, seconds = cost_of(row, options)
            text.append(f"| {' | '.join(cells)} | {parameters:.2f} | {seconds:.2f} |")
        text.append("")
    return "\n".join(text)


def main() -> None:
    """Runs the stages that were asked for, in the order screen, final, table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="+", choices=("screen", "final", "table"))
    parser.add_argument("--root", type=Path, required=True, help="holds train/ and test/, each with images and masks")
    parser.add_argument("--encoder", type=Path, required=True, help="folder of a pretrained encoder")
    parser.add_argument("--output", type=Path, default=Path("runs/recipes"))
    parser.add_argument("--screen-size", type=int, default=160, help="pixels a side")
    parser.add_argument("--screen-epochs", type=int, default=12)
    parser.add_argument("--size", type=int, default=256, help="pixels a side, in the final runs")
    parser.add_argument("--epochs", type=int, default=26, help="of the final runs")
    parser.add_argument("--seeds", type=int, default=3, help="of the final runs")
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further overrides for all runs")
    options = parser.parse_args()
    options.root, options.encoder = options.root.resolve(), options.encoder.resolve()
    if "screen" in options.stages:
        run_all([(f"{tuning}+{decoder}", 0) for tuning in TUNINGS for decoder in DECODERS], "screen", options)
    if "final" in options.stages:
        rows = [*best(options), UPSTREAM]
        run_all([(row, seed) for seed in range(options.seeds) for row in rows], "final", options)
    if "table" in options.stages:
        text = table(options)
        print(text)
        (options.output / "table.md").write_text(text)


if __name__ == "__main__":
    main()
