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

from e2net.training import prepare_training, train

torch.set_num_threads(1)
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
    before = len(WRITTEN)
    scores = train(job)
    del before
    weights = {name: value.double().sum().item() for name, value in job.module.model.state_dict().items()}
    found = {"losses": report.losses, "rates": report.rates, "val": report.scores, "test": scores, "weights": weights}
    return {**found, "wrote": sorted(w for w in WRITTEN if w.startswith(config["run_dir"]))}


def recipe(name, out):
    """Twenty steps in five epochs, with an odd number of pictures in validation and in test."""
    config = small_recipe(name, out / name, n_train=25, n_test=5, val_fraction=0.2)
    config["trainer"] |= {"max_epochs": 5, "limit_train_batches": 4}
    config["num_samples"] = 3
    return run(config)


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
