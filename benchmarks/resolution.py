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
is kept: the same command again continues where it stopped.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from e2net.evaluation.inference import Predictor
from e2net.evaluation.scales import scaled_size
from e2net.files import write_atomically
from e2net.model import DenseModel
from e2net.runs.checkpoint import load_model
from e2net.runs.config import build_data

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


@torch.inference_mode()
def score(model: DenseModel, config: dict, factor: float) -> dict[str, float]:
    """Scores of the test set at a factor on the training size, on the device of the model."""
    task, predictor = model.task, Predictor()
    size = scaled_size(build_data(config["data"], task).size, factor, model.encoder.size_multiple)
    data = build_data({**config["data"], "size": list(size)}, task)
    data.check("test")
    data.setup("test")
    (loader,), scores = data.test_dataloader(), task.set_scores()
    for batch in loader:
        maps = predictor(model, batch.image)
        for position, name, prob, target in zip(batch.positions, batch.names, maps, batch.native_targets, strict=True):
            scores.add(position, scores.score(task.finish(prob, target.shape[:2]), target, position, None), name)
    return {name: float(value) for name, value in scores.compute().items()}


def collect(options: argparse.Namespace) -> Scores:
    """Trains and scores what is not there yet; {"<kind>_<seed>": {factor: {score: value}}}."""
    file = options.output / "scores.json"
    found: Scores = json.loads(file.read_text()) if file.is_file() else {}
    runs = [(kind, seed) for seed in range(options.seeds) for kind in KINDS]
    for kind, seed in tqdm([run for run in runs if f"{run[0]}_{run[1]}" not in found], unit="run"):
        folder = options.output / f"{kind.replace(', ', '_')}_{seed}"
        if not (folder / "test_scores.json").is_file():
            train(kind, seed, folder, options)
        model, config = load_model(folder)
        scores = {str(factor): score(model.eval(), config, factor) for factor in FACTORS}
        ((_, own),) = json.loads((folder / "test_scores.json").read_text())["scores"].items()
        if abs(own["S"] - scores["1.0"]["S"]) > 1e-4:
            raise RuntimeError(f"{folder}: at the training size S is {scores['1.0']['S']}, train.py had {own['S']}")
        found[f"{kind}_{seed}"] = scores
        write_atomically(file, json.dumps(found, indent=1) + "\n")
    return found


def means(found: Scores, kind: str, name: str, seeds: int) -> list[tuple[float, float]]:
    """Mean and standard deviation over the seeds of a score, for each of ``FACTORS``."""
    rows = [[found[f"{kind}_{seed}"][str(factor)][name] for seed in range(seeds)] for factor in FACTORS]
    return [(statistics.mean(row), statistics.stdev(row) if seeds > 1 else 0.0) for row in rows]


def losses(found: Scores, kind: str, seeds: int) -> list[tuple[float, float]]:
    """S at each factor less S at the training size of the same run, mean and standard deviation over the seeds."""
    runs = [found[f"{kind}_{seed}"] for seed in range(seeds)]
    rows = [[run[str(factor)]["S"] - run["1.0"]["S"] for run in runs] for factor in FACTORS]
    return [(statistics.mean(row), statistics.stdev(row) if seeds > 1 else 0.0) for row in rows]


def table(found: Scores, options: argparse.Namespace) -> str:
    """Markdown: S, and what of it is lost against the training size, by factor and kind."""
    head = "| | " + " | ".join(f"{factor:g}×" for factor in FACTORS) + " |"
    lines = [head, "|---" * (len(FACTORS) + 1) + "|"]
    for kind in KINDS:
        lines.append(
            f"| {kind}, S | " + " | ".join(f"{m:.3f}" for m, _ in means(found, kind, "S", options.seeds)) + " |"
        )
    for kind in KINDS:
        cells = [f"{m:+.3f} ± {d:.3f}" for m, d in losses(found, kind, options.seeds)]
        lines.append(f"| {kind}, difference | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(found: Scores, options: argparse.Namespace) -> None:
    """S over the test size, a line for each kind with its deviation over the seeds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    sides = [factor * options.size for factor in FACTORS]
    absolute, relative = figure.subplots(1, 2)
    for kind in KINDS:
        for axes, values in (
            (absolute, means(found, kind, "S", options.seeds)),
            (relative, losses(found, kind, options.seeds)),
        ):
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
    found = collect(options)
    text = table(found, options)
    print(text)
    write_atomically(options.output / "table.md", text)
    draw(found, options)


if __name__ == "__main__":
    main()
