"""Runs that must be equal to the last digit, and averages of weights that must be what their formula says."""

import csv
import json

import lightning as L
import pytest
import torch
from conftest import ROOT, mostly_slow
from hydra import compose, initialize_config_dir

from e2net.evaluation.data import DataModule
from e2net.runs import load_model, resolve
from e2net.runs.checkpoint import read_checkpoint
from e2net.training import prepare_training, train
from e2net.training.averaging import WeightAverage, averaged_tensors
from e2net.training.module import DenseModule

TINY = [
    "size=32", "decoder.width=16", "decoder.dropout=0.3", "data.n_train=25", "data.n_test=3", "data.sides=[32,48]",
    "data.batch_size=4", "data.num_workers=0", "data.val_fraction=0.2", "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=1", "num_samples=0", "encoder.config.hidden_size=24",
    "encoder.config.intermediate_size=32", "encoder.config.pos_embed_rescale=2.0",
]  # fmt: skip


def _job(folder, *overrides):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return prepare_training(resolve(compose("train", [*TINY, f"run_dir={folder}", *overrides])))


def _fit(job, *callbacks):
    job.trainer.callbacks.extend(callbacks)
    job.trainer.fit(job.module, datamodule=DataModule(job.data), ckpt_path=job.checkpoint, weights_only=True)
    return job


def _losses(folder):
    with (folder / "metrics.csv").open() as file:
        return [row["train/loss"] for row in csv.DictReader(file) if row["train/loss"]]


def _last(folder):
    return read_checkpoint(folder / "checkpoints" / "last.ckpt")


def _assert_equal(a, b):
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def test_same_seed_same_losses_with_workers_dropout_and_random_sizes(tmp_path):
    """Dropout, random positions, random sizes and two reading processes: still the same to the last digit."""
    losses = []
    for i, seed in enumerate((5, 5, 6)):
        torch.rand(i)  # whatever was drawn before makes no difference
        options = ["train_scales=[0.5,1.0,1.5]", "data.num_workers=2", "trainer.max_epochs=3", "ema=0.9"]
        _fit(_job(tmp_path / str(i), f"seed={seed}", *options))
        losses.append(_losses(tmp_path / str(i)))
    assert len(losses[0]) >= 15
    assert losses[0] == losses[1]
    assert all(a != b for a, b in zip(losses[0], losses[2], strict=False))


class _Stop(L.Callback):
    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_epoch_end(self, trainer, module):
        trainer.should_stop = trainer.current_epoch >= self.epoch


@pytest.mark.parametrize(
    "options",
    mostly_slow(
        [
            ["ema=0.9", "train_scales=[0.5,1.0]"],
            ["schedule=plateau", "schedule.monitor=train/mean_loss", "data.val_fraction=0"],
            ["data.num_workers=1"],
            ["schedule=plateau", "schedule.patience=0"],
        ],
        quick=(0, 1),
    ),
)
def test_interrupted_and_resumed_equals_uninterrupted(options, tmp_path):
    """Bit by bit: weights, average, optimiser, random numbers and each loss."""
    options = ["trainer.max_epochs=3", *options]
    _fit(_job(tmp_path / "whole", *options))
    _fit(_job(tmp_path / "stopped", *options), _Stop(1))
    torch.manual_seed(99)
    _fit(_job(tmp_path / "resumed", f"resume={tmp_path}/stopped", *options))
    assert _losses(tmp_path / "stopped") + _losses(tmp_path / "resumed") == _losses(tmp_path / "whole")
    whole, resumed = _last(tmp_path / "whole"), _last(tmp_path / "resumed")
    _assert_equal(whole["state_dict"], resumed["state_dict"])
    if "ema" in whole:
        assert whole["ema"]["updates"] == resumed["ema"]["updates"] == whole["global_step"]
        _assert_equal(whole["ema"]["weights"], resumed["ema"]["weights"])
    assert torch.equal(whole["resume"]["cpu"], resumed["resume"]["cpu"])
    assert whole["resume"].get("plateau") == resumed["resume"].get("plateau")
    assert whole["lr_schedulers"] == resumed["lr_schedulers"]
    a, b = (list(c["optimizer_states"][0]["state"].values()) for c in (whole, resumed))
    assert all(torch.equal(one[k], other[k]) for one, other in zip(a, b, strict=True) for k in one)


def test_every_epoch_is_the_last_one_and_the_best_one_survives_a_resume(tmp_path, monkeypatch):
    """Also where the score never gets better again: here after the first of three epochs."""

    def falling(self):
        self.drain(self.val_scores)
        self.val_scores.reset()
        return {"S": torch.tensor(1.0 / (1 + self.current_epoch))}

    def epochs(name):
        folder = tmp_path / name / "checkpoints"
        return [torch.load(folder / file, weights_only=True)["epoch"] for file in ("best.ckpt", "last.ckpt")]

    monkeypatch.setattr(DenseModule, "_collect", falling)
    job = _job(tmp_path / "first", "trainer.max_epochs=3")
    job.trainer.callbacks.append(_Stop(1))
    train(job)
    assert epochs("first") == [0, 1]
    train(_job(tmp_path / "resumed", "trainer.max_epochs=3", f"resume={tmp_path}/first"))
    assert epochs("resumed") == [0, 2]
    record = json.loads((tmp_path / "resumed" / "environment.json").read_text())
    assert record["resumed"].endswith("first/checkpoints/last.ckpt")
    _fit(_job(tmp_path / "first", "trainer.max_epochs=3", f"resume={tmp_path}/first"))  # into its own folder
    assert epochs("first") == [0, 2]


class _Record(L.Callback):
    """What the model's weights are after each optimiser step, and in validation."""

    def __init__(self):
        self.steps, self.validated, self.seen = [], [], 0

    def on_train_batch_end(self, trainer, module, *_):
        if trainer.global_step > self.seen:
            self.seen = trainer.global_step
            self.steps.append({k: v.clone() for k, v in averaged_tensors(module.model).items()})

    def on_validation_batch_end(self, trainer, module, *_):
        if not trainer.sanity_checking:
            self.validated.append({k: v.clone() for k, v in averaged_tensors(module.model).items()})


def test_average_follows_its_formula_and_is_what_is_validated_saved_and_loaded(tmp_path):
    options = ["ema=0.8", "trainer.max_epochs=2", "trainer.accumulate_grad_batches=2"]
    job = _job(tmp_path, *options)
    expected = {k: v.clone() for k, v in averaged_tensors(job.module.model).items()}
    record = _Record()
    _fit(job, record)
    for t, weights in enumerate(record.steps):
        decay = min(0.8, (1 + t) / (10 + t))
        for k, v in weights.items():
            expected[k] = decay * expected[k] + (1 - decay) * v if v.is_floating_point() else v
    checkpoint = _last(tmp_path)
    assert checkpoint["ema"]["updates"] == len(record.steps) == job.trainer.global_step
    assert job.trainer.global_step < job.trainer.fit_loop.total_batch_idx  # one update for two batches
    assert set(checkpoint["state_dict"]) - set(expected) == {"encoder.backbone.embeddings.mask_token"}  # never trains
    for k, v in expected.items():
        assert torch.allclose(checkpoint["state_dict"][k].double(), v.double(), atol=1e-6), k
    _assert_equal(record.validated[-1], {k: checkpoint["state_dict"][k] for k in expected})
    _assert_equal(record.steps[-1], checkpoint["ema"]["weights"])
    assert any("running_mean" in k for k in expected)
    best = read_checkpoint(tmp_path)
    _assert_equal(load_model(tmp_path)[0].state_dict(), best["state_dict"])
    # After training the model has its own weights again, and not the average.
    _assert_equal(averaged_tensors(job.module.model), record.steps[-1])


def test_average_leaves_the_frozen_encoder_out(tmp_path):
    model = _job(tmp_path, "tuning=frozen").module.model
    names = set(averaged_tensors(model))
    assert names and not any(name.startswith("encoder.") for name in names)
    assert {name for name, p in model.named_parameters() if p.requires_grad} <= names
    average = WeightAverage(0.9)
    average.start(model)
    assert sum(v.numel() for v in average.average.values()) == sum(
        v.numel() for v in model.decoder.state_dict().values()
    )


def test_swapping_twice_is_as_before(tmp_path):
    model = _job(tmp_path).module.model
    average = WeightAverage(0.9)
    average.start(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        for value in averaged_tensors(model).values():
            value.add_(1)
    moved = {k: v.clone() for k, v in model.state_dict().items()}
    average.swap()
    _assert_equal(model.state_dict(), before)
    average.swap()
    _assert_equal(model.state_dict(), moved)


def test_resume_with_or_without_the_average_is_the_same_or_refused(tmp_path):
    for name, ema, other in (("with", "0.9", "null"), ("without", "null", "0.9")):
        _fit(_job(tmp_path / name, f"ema={ema}", "trainer.max_epochs=1"))
        with pytest.raises(ValueError, match="expected the settings of that run, ema="):
            _job(tmp_path / "other", f"resume={tmp_path}/{name}", f"ema={other}")


@pytest.mark.parametrize("decay", [1.0, -0.5, 2, "0.9x"])
def test_impossible_decay(decay):
    with pytest.raises(ValueError, match="ema: expected a decay above 0 and below 1"):
        WeightAverage(decay)


def test_deterministic_kernels_on_request(tmp_path):
    try:
        _job(tmp_path, "trainer.deterministic=warn")
        assert torch.are_deterministic_algorithms_enabled() and torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
