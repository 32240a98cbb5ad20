"""Seconds from the start of train.py until S on a test set passes given levels, by recipe, in turns.

What is timed: the clock starts right before ``python train.py ...`` is started, as a user starts it, in the default
number of threads. A level is passed when a checkpoint that scores it has been written: the time of its file, less the
start. "finish" is the end of the process: the last epoch, the test of the best checkpoint, report and pictures.
Validation after each epoch is part of it, as it is of a user's run.

How: e2net puts each epoch's last.ckpt into place as a new file. This program keeps a hard link to each (which costs the
training nothing), and scores them when all trainings have ended, as eval.py does, one after the other until the highest
level is passed. They are removed then; until then they take up to 100 MB an epoch for a ViT-Ti. Recipes run one after
the other, and all of that again for each turn.

    python benchmarks/time_to_score.py --root DATA --encoder FOLDER --precision bf16-mixed --turns 3
    python benchmarks/time_to_score.py --root DATA --encoder FOLDER --recipes published "mine: experiment=fast size=192"
    python benchmarks/time_to_score.py --root DATA --encoder FOLDER --recipes fast --profile       where the time goes

DATA holds train/ and test/. Finished turns are kept in --output: the same command goes on where it stopped. Leaves
table.md and times.json there. Run it on a machine with nothing else to do, at least until it scores.
"""

import argparse
import json
import os
import pstats
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from scoring import score

from e2net.files import write_atomically
from e2net.runs.checkpoint import load_model, read_checkpoint

ROOT = Path(__file__).resolve().parent.parent
# The published one: reference frozen encoder, simple pyramid, all levels first brought to the size of the largest.
RECIPES = {
    "fast": "experiment=fast",
    "recommended": "experiment=recommended size=384",
    "frozen": (
        "experiment=recommended size=256 tuning=frozen decoder=e2net cache.views=1 train_scales=[1.0] "
        "test_scales=[1.0] zoom_test=0"
    ),
    "published": (
        "tuning=frozen decoder=e2net decoder.width=128 decoder.pyramid=simple decoder.align=unified loss=v5 "
        "schedule=plateau optim.lr=1e-4 optim.weight_decay=5e-4 size=384 data.batch_size=8 trainer.max_epochs=20"
    ),
}
# Of the profile: what to call it, and the functions (end of the file's path, name) whose time it is.
PARTS = {
    "imports": [("frozen importlib._bootstrap>", "_find_and_load")],
    "build and check": [("training/run.py", "prepare_training")],
    "  of it: data check": [("datasets/datamodule.py", "check")],
    "  of it: model": [("runs/config.py", "build_model")],
    "feature cache": [("training/run.py", "fill_cache")],
    "training and validation": [("trainer/trainer.py", "fit")],
    "  of it: start of data workers": [("utils/data/dataloader.py", "__init__")],
    "  of it: waiting for data": [("utils/data/dataloader.py", "__next__")],
    "  of it: validation": [
        ("training/module.py", "validation_step"),
        ("training/module.py", "on_validation_epoch_end"),
    ],
    "  of it: checkpoints": [("trainer/trainer.py", "save_checkpoint")],
    "  of it: pictures": [("evaluation/callbacks.py", "_write"), ("evaluation/callbacks.py", "_add")],
    "test and report": [("evaluation/test.py", "test")],
    "  of it: report": [("evaluation/report.py", "report")],
    "  of it: curves": [("evaluation/plots.py", "curve_figure")],
}


def command(overrides: list[str], folder: Path, options: argparse.Namespace) -> list[str]:
    """Of a training, behind ``python``."""
    return [
        str(ROOT / "train.py"), *overrides, "data=folder", f"data.root={options.root}", "data.test=[test]",
        f"data.val_fraction={options.val_fraction}", "encoder=local", f"encoder.path={options.encoder}",
        f"trainer.precision={options.precision}", f"cache.folder={folder / 'cache'}", *options.set,
        f"hydra.run.dir={folder}",
    ]  # fmt: skip


def keep(last: Path, kept: Path, before: int | None) -> int | None:
    """Links the newest checkpoint into ``kept`` unless it is there; the number of its file, or None."""
    try:
        number = last.stat().st_ino
    except FileNotFoundError:
        return before
    if number == before:
        return before
    link = kept / f"{len(list(kept.iterdir())):04}.ckpt"
    os.link(last, link)
    return link.stat().st_ino  # it may have been replaced since it was looked at


def watch(overrides: list[str], folder: Path, kept: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Runs train.py to its end; when it started and ended, seconds since 1970.

    Raises:
        RuntimeError: it failed.
    """
    log, number = folder.with_name(f"{folder.name}.log"), None
    kept.mkdir(parents=True)
    with log.open("w") as out:
        start = time.time()
        process = subprocess.Popen(
            [sys.executable, *command(overrides, folder, options)], cwd=ROOT, stdout=out, stderr=subprocess.STDOUT
        )
        while process.poll() is None:
            number = keep(folder / "checkpoints" / "last.ckpt", kept, number)
            time.sleep(0.05)
        end = time.time()
    if process.returncode:
        raise RuntimeError(f"train.py ended with {process.returncode}; see {log}")
    keep(folder / "checkpoints" / "last.ckpt", kept, number)
    return {"start": start, "end": end}


def train(name: str, turn: int, options: argparse.Namespace) -> None:
    """One training; what :func:`watch` says of it goes into a file beside its folder."""
    folder = options.output / f"{name}_{turn}"
    if not _clock(folder).is_file():
        clock = watch(options.recipes[name], folder, _kept(folder), options)
        write_atomically(_clock(folder), json.dumps(clock) + "\n")
        print(f"{name} {turn}: {clock['end'] - clock['start']:.1f} s", flush=True)


def measure(name: str, turn: int, options: argparse.Namespace) -> dict[str, Any]:
    """Of one training: {"epochs": [[seconds, S], ...], "begins", "finish": seconds, "S": of the tested checkpoint}.

    S is None of the epochs behind the one that passes the highest level.
    """
    folder = options.output / f"{name}_{turn}"
    file, kept = folder.with_suffix(".json"), _kept(folder)
    if file.is_file():
        return json.loads(file.read_text())
    clock = json.loads(_clock(folder).read_text())
    epochs: list[tuple[float, float | None]] = []
    due, there = 0, False
    for checkpoint in sorted(kept.iterdir()):
        epoch = read_checkpoint(checkpoint)["epoch"]
        if epoch != due:
            print(f"{name} {turn}: expected the checkpoint of epoch {due}, found that of {epoch}: some are missing")
        due = epoch + 1
        found = None if there else score(*load_model(checkpoint))["S"]
        epochs.append((checkpoint.stat().st_mtime - clock["start"], found))
        if found is not None:
            print(f"{name} {turn}: {epochs[-1][0]:.1f} s, S {found:.3f}", flush=True)
            there = found >= max(options.levels)
    ((_, tested),) = json.loads((folder / "test_scores.json").read_text())["scores"].items()
    run = {
        "epochs": epochs,
        "begins": (folder / "config.yaml").stat().st_mtime - clock["start"],
        "finish": clock["end"] - clock["start"],
        "S": tested["S"],
    }
    write_atomically(file, json.dumps(run) + "\n")
    for checkpoint in kept.iterdir():
        checkpoint.unlink()
    kept.rmdir()
    return run


def _clock(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}_clock.json")


def _kept(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}_kept")


def passed(run: dict[str, Any], level: float) -> float | None:
    """Seconds until the first checkpoint that scores the level; None where none does."""
    return next((seconds for seconds, s in run["epochs"] if s is not None and s >= level), None)


def middle(values: list[float | None], form: str = ".0f") -> str:
    """Median and range of what there is; how many turns have none."""
    there = [value for value in values if value is not None]
    if not there:
        return "–"
    text = f"{statistics.median(there):{form}}"
    if len(there) > 1:
        text += f" ({min(there):{form}}–{max(there):{form}})"
    return text if len(there) == len(values) else f"{text}, {len(values) - len(there)} never"


def table(runs: dict[str, list[dict[str, Any]]], levels: list[float]) -> str:
    """Markdown, seconds; median (range) of the turns."""
    heads = [
        "recipe",
        "epochs",
        *(f"S ≥ {level:g}" for level in levels),
        "start-up",
        "first epoch",
        "test, report",
        "finish",
        "S, tested",
    ]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, turns in runs.items():
        cells = [
            name,
            str(len(turns[0]["epochs"])),
            *(middle([passed(run, level) for run in turns]) for level in levels),
        ]
        cells.append(middle([run["begins"] for run in turns], ".1f"))
        cells.append(middle([run["epochs"][0][0] - run["begins"] for run in turns], ".1f"))
        cells.append(middle([run["finish"] - run["epochs"][-1][0] for run in turns], ".1f"))
        cells += [middle([run["finish"] for run in turns]), middle([run["S"] for run in turns], ".3f")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def profile(name: str, options: argparse.Namespace) -> str:
    """Where the time of a whole process goes, by cProfile, which makes Python itself slower: shares, not seconds."""
    folder = options.output / f"{name}_profile"
    file, log = folder.with_suffix(".prof"), folder.with_suffix(".log")
    options.output.mkdir(parents=True, exist_ok=True)
    with log.open("w") as out:
        start = time.time()
        subprocess.run(
            [sys.executable, "-m", "cProfile", "-o", str(file), *command(options.recipes[name], folder, options)],
            cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, check=True,
        )  # fmt: skip
        total = time.time() - start
    stats: Any = pstats.Stats(str(file))
    lines = [f"{name}: {total:.1f} s"]
    for part, functions in PARTS.items():
        seconds = [
            row[3]
            for (path, _, function), row in stats.stats.items()
            if any(path.endswith(end) and function == wanted for end, wanted in functions)
        ]
        lines.append(f"  {part:<32}{sum(seconds):7.1f} s{sum(seconds) / total:7.1%}")
    return "\n".join(lines)


def recipes(given: list[str]) -> dict[str, list[str]]:
    """{name: overrides}, of names of RECIPES and "name: overrides".

    Raises:
        ValueError: a name that is not among RECIPES.
    """
    found = {}
    for one in given:
        name, _, overrides = one.partition(":")
        if not overrides and name not in RECIPES:
            raise ValueError(f"--recipes {one}: expected one of {', '.join(RECIPES)}, or 'name: overrides'")
        found[name.strip()] = shlex.split(overrides or RECIPES[name])
    return found


def main() -> None:
    """Trains in turns, and prints the table; or prints the profiles."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="holds train/ and test/, each with images and masks")
    parser.add_argument("--encoder", type=Path, required=True, help="folder of a pretrained encoder")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), help="names, or 'name: overrides'")
    parser.add_argument("--levels", nargs="+", type=float, default=[0.671, 0.72, 0.76], help="of S")
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--val-fraction", type=float, default=0.1, help="of the training set")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--output", type=Path, default=Path("runs/time_to_score"))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further overrides for all")
    parser.add_argument("--profile", action="store_true", help="profile each recipe once instead")
    options = parser.parse_args()
    try:
        options.recipes = recipes(options.recipes)
    except ValueError as error:
        parser.error(str(error))
    options.root, options.encoder, options.output = (
        p.resolve() for p in (options.root, options.encoder, options.output)
    )
    if options.profile:
        for name in options.recipes:
            print(profile(name, options), flush=True)
        return
    options.output.mkdir(parents=True, exist_ok=True)
    every = [(name, turn) for turn in range(options.turns) for name in options.recipes]
    for name, turn in every:
        place = options.output / f"{name}_{turn}"
        if place.exists() and not _clock(place).is_file():
            parser.error(f"--output: {place} was begun and not finished; remove it, and {place.name}_kept beside it")
    for name, turn in every:
        train(name, turn, options)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in options.recipes}
    for name, turn in every:
        runs[name].append(measure(name, turn, options))
    text = table(runs, options.levels)
    print(text)
    write_atomically(options.output / "table.md", text)
    write_atomically(options.output / "times.json", json.dumps(runs, indent=1) + "\n")


if __name__ == "__main__":
    main()
