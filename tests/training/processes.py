"""Trainings in one or two processes, as the environment says; what each has found lies in OUT/NAME.json: OUT CASE..."""

import json
import os
import sys
import traceback
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent.parent.parent)]

import lightning as L
import torch
from recipes import RECIPES, small_recipe

from e2net.processes import whole
from e2net.training import prepare_training, train

torch.set_num_threads(1)
# In float32 rounding alone, which AdamW blows up to whole steps where a gradient should be 0, parts two trainings by
# more than 1e-5 within 20 steps.
torch.Tensor.float = torch.Tensor.double
RANK = int(os.environ.get("LOCAL_RANK", "0"))
SEVERAL = "LOCAL_RANK" in os.environ
# Of all processes together, at a step.
BATCH = 4
WRITTEN: set[str] = set()


def _note_writes(event, args):
    if event == "open" and isinstance(args[0], str) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        WRITTEN.add(args[0])
    elif event == "os.rename":
        WRITTEN.add(str(args[1]))


class Report(L.Callback):
    """What a process finds in training."""

    def __init__(self):
        self.losses, self.rates, self.scores = [], [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_validation_end(self, trainer, module):
        if not trainer.sanity_checking:
            metrics = trainer.callback_metrics.items()
            self.scores.append({key: float(value) for key, value in metrics if key.startswith("val/")})


def settings(config):
    """The same training in so many processes."""
    config["data"]["batch_size"] = BATCH // (2 if SEVERAL else 1)
    config["trainer"] |= {"devices": 2 if SEVERAL else 1, "log_every_n_steps": 1}
    return config


def run(config):
    """Trains and tests, and says what was found."""
    report = Report()
    job = prepare_training(settings(config))
    job.trainer.callbacks.append(report)
    scores = train(job)
    state = job.module.model.state_dict().items()
    weights = {name: whole(value).double().sum().item() for name, value in state}
    found = {"losses": report.losses, "rates": report.rates, "val": report.scores, "test": scores, "weights": weights}
    return {**found, "wrote": sorted(w for w in WRITTEN if w.startswith(config["run_dir"]))}


def recipe(name, out):
    """Twenty steps in four epochs of five and a rest, with an odd number of pictures in validation and in test."""
    config = small_recipe(name, out / name, n_train=27, n_test=5, val_fraction=0.2)
    config["trainer"] |= {"max_epochs": 4, "precision": "64-true"}
    config["num_samples"] = 3
    if config["encoder"].get("blocks") is None and config["tuning"].get("blocks") is None:
        config["encoder"]["config"]["num_hidden_layers"] = 4
    if "patience" in config["optim"]["schedule"]:
        config["optim"]["schedule"]["patience"] = 0
    return run(config)


def _few_steps(folder, *overrides):
    """Two epochs of two steps of the recommended recipe, with averaged weights and mirror images."""
    config = small_recipe("recommended", folder, *overrides, n_train=14, n_test=3, val_fraction=0.2)
    config["trainer"] |= {"max_epochs": 2, "limit_train_batches": 2, "precision": "64-true"}
    if "path" not in config["encoder"]:
        config["encoder"]["config"]["num_hidden_layers"] = 4
    return config


def sharded(name, out):
    """The same training by DDP and by FSDP."""
    tuning = name.removeprefix("fsdp_")
    encoder = ["encoder=local", f"encoder.path={out.parent / 'encoder'}"] if tuning != "full" else []
    found = {}
    for strategy in ("ddp", "fsdp"):
        config = _few_steps(out / f"{strategy}_{tuning}", f"tuning={tuning}", f"strategy={strategy}", *encoder)
        found[strategy] = run(config)
    return found


def main(out, cases):
    sys.addaudithook(_note_writes)
    for case in RECIPES if cases == ["recipes"] else cases:
        kind, _, name = case.rpartition(":")
        try:
            found = globals()[kind or "recipe"](name, out)
        except Exception:
            found = {"error": traceback.format_exc()}
        (out / f"{name}.{RANK}.json").write_text(json.dumps(found))
        if "error" in found:
            print(found["error"], file=sys.stderr)
            raise SystemExit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
