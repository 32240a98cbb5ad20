"""Do rotary positions keep their scores at other test sizes than absolute ones do?

The same tiny encoder with each kind of position, from random weights, trained at one size on generated pictures, then
scored at sizes from half to twice that size. Everything else is equal: blocks, width, registers, LayerScale, decoder,
pictures, seeds, steps.

    absolute          a learned vector for each place of the training grid, resized to that of the test: DINOv2
    rotary            queries and keys turned by their place, as a fraction of the picture: DINOv3
    rotary, rescaled  the same with places multiplied by a random factor of 1/2 to 2 at each step: DINOv3 as it trains
    none              one vector for all places: what positions are worth here at all

    python benchmarks/resolution.py --output runs/resolution

Leaves table.md, curves.png and scores.json in the output folder, and a run folder for each training. What is finished
is kept: the same command again continues where it stopped. Table and curves are written anew after each training, of
the seeds that are there: first of the two kinds that are compared, then of the other two.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from scoring import score
from tqdm import tqdm

from e2net.evaluation.scales import scaled_size
from e2net.files import write_atomically
from e2net.runs.checkpoint import load_model

ROOT = Path(__file__).resolve().parent.parent
FACTORS = (0.5, 0.625, 0.75, 0.875, 1.0, 1.25, 1.5, 1.75, 2.0)
SHARED = "patch_size:8,hidden_size:64,num_hidden_layers:4,num_attention_heads:2,num_register_tokens:4"
ABSOLUTE = f"model_type:dinov2_with_registers,mlp_ratio:2,{SHARED}"
ROTARY = f"model_type:dinov3_vit,intermediate_size:128,{SHARED}"
KINDS = {
    "absolute": f"{ABSOLUTE},image_size:SIZE",
    "rotary": f"{ROTARY},pos_embed_rescale:null",
    "rotary, rescaled": f"{ROTARY},pos_embed_rescale:2.0",
    "none": f"{ABSOLUTE},image_size:8",  # one patch: its vector is resized to all places
}
Scores = dict[str, dict[str, dict[str, float]]]


def overrides(kind: str, seed: int, folder: Path, options: argparse.Namespace) -> list[str]:
    """Those of one training, on top of the default one; its last weights are tested, as nothing is validated."""
    config = KINDS[kind].replace("SIZE", str(options.size))
    return [
        "~encoder.config", f"+encoder.config={{{config}}}", f"size={options.size}", f"seed={seed}",
        f"trainer.max_epochs={options.epochs}", "data.val_fraction=0", "num_samples=0", "logger=csv", *options.set,
        f"hydra.run.dir={folder}",
    ]  # fmt: skip


def train(kind: str, seed: int, folder: Path, options: argparse.Namespace) -> None:
    """Runs train.py, or goes on with what an earlier run of it has left; its output goes to ``<folder>.log``.

    Raises:
        RuntimeError: it failed.
    """
    last = folder / "checkpoints" / "last.ckpt"
    resume = [f"resume={folder}"] if last.is_file() else []
    command = [sys.executable, str(ROOT / "train.py"), *overrides(kind, seed, folder, options), *resume]
    log = folder.with_name(f"{folder.name}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as out:
        done = subprocess.run(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise RuntimeError(f"train.py failed; see {log}")


def collect(options: argparse.Namespace) -> Scores:
    """Trains and scores what is not there yet; {"<kind>_<seed>": {factor: {score: value}}}."""
    file = options.output / "scores.json"
    found: Scores = json.loads(file.read_text()) if file.is_file() else {}
    kinds, seeds = list(KINDS), range(options.seeds)
    runs = [(kind, seed) for part in (kinds[:2], kinds[2:]) for seed in seeds for kind in part]
    for kind, seed in tqdm([run for run in runs if f"{run[0]}_{run[1]}" not in found], unit="run"):
        folder = options.output / f"{kind.replace(', ', '_')}_{seed}"
        if not (folder / "test_scores.json").is_file():
            train(kind, seed, folder, options)
        model, config = load_model(folder)
        sizes = [scaled_size((options.size, options.size), factor, model.encoder.size_multiple) for factor in FACTORS]
        scores = {str(f): score(model, config, size) for f, size in zip(FACTORS, sizes, strict=True)}
        ((_, own),) = json.loads((folder / "test_scores.json").read_text())["scores"].items()
        if abs(own["S"] - scores["1.0"]["S"]) > 1e-4:
            raise RuntimeError(f"{folder}: at the training size S is {scores['1.0']['S']}, train.py had {own['S']}")
        found[f"{kind}_{seed}"] = scores
        write_atomically(file, json.dumps(found, indent=1) + "\n")
        write_atomically(options.output / "table.md", table(found))
        draw(found, options)
    return found


def over_seeds(found: Scores, kind: str, relative: bool = False) -> list[tuple[float, float]]:
    """Mean and standard deviation of S at each factor; relative: less S at the training size of the same run."""
    runs = [scores for name, scores in found.items() if name.rpartition("_")[0] == kind]
    rows = [[run[str(factor)]["S"] - relative * run["1.0"]["S"] for run in runs] for factor in FACTORS]
    return [(statistics.mean(row), statistics.stdev(row) if len(row) > 1 else 0.0) for row in rows]


def kinds_of(found: Scores) -> dict[str, int]:
    """Those of which there is something, and how many seeds."""
    counts = {kind: sum(name.rpartition("_")[0] == kind for name in found) for kind in KINDS}
    return {kind: count for kind, count in counts.items() if count}


def table(found: Scores) -> str:
    """Markdown: S, and its difference to the training size, by factor and kind."""
    heads = ["positions", "seeds", *(f"{factor:g}×" for factor in FACTORS)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for kind, count in kinds_of(found).items():
        lines.append(f"| {kind} | {count} | " + " | ".join(f"{m:.3f}" for m, _ in over_seeds(found, kind)) + " |")
    for kind, count in kinds_of(found).items():
        cells = [f"{m:+.3f} ± {d:.3f}" for m, d in over_seeds(found, kind, relative=True)]
        lines.append(f"| {kind}, difference | {count} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(found: Scores, options: argparse.Namespace) -> None:
    """S over the test size, a line for each kind with its deviation over the seeds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    sides = [factor * options.size for factor in FACTORS]
    absolute, relative = figure.subplots(1, 2)
    for kind in kinds_of(found):
        for axes in (absolute, relative):
            values = over_seeds(found, kind, axes is relative)
            middle = [m for m, _ in values]
            (line,) = axes.plot(sides, middle, "o-", markersize=3, label=kind)
            low, high = ([m + sign * s for m, s in values] for sign in (-1, 1))
            axes.fill_between(sides, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    absolute.set(xlabel="test size, pixels", ylabel="S")
    relative.set(xlabel="test size, pixels", ylabel=f"S less S at {options.size} pixels")
    for axes in (absolute, relative):
        axes.axvline(options.size, color="0.6", linewidth=0.8)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    absolute.legend(frameon=False)
    figure.savefig(options.output / "curves.png", dpi=120)


def main() -> None:
    """Trains, scores, and writes the table and the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/resolution"))
    parser.add_argument("--size", type=int, default=64, help="of training, pixels a side")
    parser.add_argument("--epochs", type=int, default=11)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further overrides of train.py")
    options = parser.parse_args()
    options.output = options.output.resolve()
    print(table(collect(options)))


if __name__ == "__main__":
    main()
