"""A training in two processes; Lightning starts the second by running this file again: FOLDER LOSS."""

import json
import sys
from pathlib import Path

import lightning as L
import torch
from torch import distributed

from e2net.runs import compose_training
from e2net.training import prepare_training, train

TINY = [
    "size=32", "decoder.width=16", "data.n_train=20", "data.n_test=3", "data.sides=[32,48]", "data.batch_size=4",
    "data.num_workers=0", "data.val_fraction=0.2", "num_samples=0", "encoder.config.hidden_size=24",
    "encoder.config.intermediate_size=32", "trainer.max_epochs=2", "trainer.log_every_n_steps=1", "seed=3",
    "schedule=plateau", "schedule.monitor=train/mean_loss", "schedule.patience=0",
    "trainer.accelerator=cpu", "trainer.devices=2",
]  # fmt: skip


class _Report(L.Callback):
    """Gathers what each process has found, when both have trained."""

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if k in ("train/mean_loss", "val/S")}
        weights = sum(float(p.double().abs().sum()) for p in module.model.parameters())
        mine = {**metrics, "weights": weights, "lr": trainer.optimizers[0].param_groups[0]["lr"]}
        mine["loss"] = float(trainer.logged_metrics["train/loss"])
        mine["steps"] = trainer.global_step
        found: list = [None] * distributed.get_world_size()
        distributed.all_gather_object(found, mine)
        if trainer.is_global_zero:
            (Path(sys.argv[1]) / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    job = prepare_training(compose_training([*TINY, f"run_dir={sys.argv[1]}", f"loss={sys.argv[2]}"]))
    job.trainer.callbacks.append(_Report())
    train(job)
