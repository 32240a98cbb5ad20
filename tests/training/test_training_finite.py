"""Losses, gradients and scores that are not finite: skipped and told; many in a row end a run, its checkpoints good."""

import itertools
import logging
import math

import lightning as L
import numpy as np
import pytest
import torch
from apart import Program
from conftest import ROOT, mostly_slow
from tiny import TINY, rows_of, tiny_job

from e2net.evaluation.inference import Predictor
from e2net.losses import Criterion
from e2net.predict.segmenter import Segmenter
from e2net.runs.checkpoint import read_checkpoint
from e2net.structures import NotFiniteError
from e2net.training import train
from e2net.training.finite import FiniteSteps
from e2net.training.module import DenseModule

BAD = [float("nan"), float("inf"), -float("inf")]
OPTIONS = ["data.n_train=40", "trainer.max_epochs=2", "decoder.dropout=0.3"]


class Spoil(L.Callback):
    """Makes some steps' loss, its gradient, or an activation in the first BatchNorm bad."""

    def __init__(self, what, steps, value=float("nan")):
        self.what, self.steps, self.value = what, steps, value
        self.before, self.names, self.now = {}, {}, False

    def on_fit_start(self, trainer, module):
        forward = Criterion.forward

        def spoilt(criterion, output, mask, progress=1.0):
            if not (self.now and module.training):
                return forward(criterion, output, mask, progress)
            if self.what == "gradient":
                output.prediction.register_hook(lambda grad: grad * self.value)
            losses = forward(criterion, output, mask, progress)
            # An infinite loss whose gradient is finite is none that may be stepped by.
            return losses | ({"loss": losses["loss"] + self.value} if self.what == "loss" else {})

        module.criterion.forward = spoilt.__get__(module.criterion)
        layer = next(m for m in module.model.decoder.modules() if isinstance(m, torch.nn.BatchNorm2d))
        layer.register_forward_pre_hook(self._spoil_input)

    def _spoil_input(self, layer, inputs):
        return (inputs[0] * self.value,) if self.what == "activation" and self.now and layer.training else None

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.now = trainer.global_step in self.steps
        if self.now:
            self.before = {k: v.clone() for k, v in module.model.state_dict().items()}
            self.names[trainer.global_step] = batch.names

    def on_train_batch_end(self, trainer, module, *_):
        if self.now:
            after = module.model.state_dict()
            kept = [k for k in after if not k.endswith("num_batches_tracked")]
            if self.what == "gradient":  # a forward pass that was right may leave its statistics
                kept = [k for k in kept if "running_" not in k]
            assert [k for k in kept if not torch.equal(after[k], self.before[k])] == []
        self.now = False


@pytest.mark.parametrize(
    "what, value", mostly_slow(itertools.product(("loss", "gradient", "activation"), BAD), quick=(0, 4))
)
def test_a_bad_step_is_skipped_counted_and_told_with_its_images(what, value, tmp_path, caplog):
    options = [*OPTIONS, "ema=0.9", f"decoder={'e2net' if math.isnan(value) else 'linear'}"]
    job, spoil = tiny_job(tmp_path, *options), Spoil(what, {2, 3, 9}, value)
    job.trainer.callbacks.insert(0, spoil)
    with caplog.at_level(logging.WARNING, "e2net"):
        train(job)
    told = [r.getMessage() for r in caplog.records if "is skipped" in r.getMessage()]
    assert [int(line.split()[1]) for line in told] == [2, 3, 9]
    source = "gradient" if what == "gradient" else "loss"
    for line, names in zip(told, spoil.names.values(), strict=True):
        assert f"the {source} is not finite" in line and all(name in line for name in names)
    for name in ("best.ckpt", "last.ckpt"):
        content = read_checkpoint(tmp_path / "checkpoints" / name)
        assert all(value.isfinite().all() for value in content["state_dict"].values())
    assert content["resume"]["finite"] == {"skipped": 3, "in_a_row": 0}
    rows = rows_of(tmp_path)
    assert rows[-1]["train/mean_loss"] != "nan" and float(
        [r for r in rows if "train/skipped" in r][-1]["train/skipped"]
    )
    train(tiny_job(tmp_path, *options, "trainer.max_epochs=3", f"resume={tmp_path}"))
    assert read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["resume"]["finite"]["skipped"] == 3


def test_many_in_a_row_end_the_run_and_leave_the_last_good_checkpoint(tmp_path):
    """Which is neither replaced at the end of an epoch, nor every few steps, while steps are skipped."""
    options = [*OPTIONS, "decoder=linear", "trainer.max_epochs=9", "checkpoint_every_n_steps=2"]
    job = tiny_job(tmp_path, *options)
    job.trainer.callbacks.insert(0, Spoil("loss", range(9, 99)))
    with pytest.raises(NotFiniteError, match=r"20 steps in a row .* Lower optim\.lr"):
        train(job)
    last = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    assert last["global_step"] == 8 and last["resume"]["finite"] == {"skipped": 0, "in_a_row": 0}
    train(tiny_job(tmp_path, *options, "trainer.max_epochs=3", f"resume={tmp_path}"))


def test_the_best_checkpoint_never_has_a_score_that_is_not_finite(tmp_path, monkeypatch, caplog):
    values = iter([float("nan"), 0.5, float("inf"), float("nan"), 0.4])

    def scores(self):
        self.drain(self.val_scores)
        self.val_scores.reset()
        return {"S": torch.tensor(next(values))}

    monkeypatch.setattr(DenseModule, "_collect", scores)
    job = tiny_job(tmp_path, "trainer.max_epochs=5", "data.n_test=1")
    job.trainer.num_sanity_val_steps = 0
    train(job)
    assert read_checkpoint(tmp_path / "checkpoints" / "best.ckpt")["epoch"] == 1


def test_where_no_validation_had_a_finite_score_the_last_checkpoint_is_tested_and_it_is_said(
    tmp_path, monkeypatch, caplog
):
    def scores(self):
        self.drain(self.val_scores)
        self.val_scores.reset()
        return {"S": torch.tensor(float("nan"))}

    monkeypatch.setattr(DenseModule, "_collect", scores)
    train(tiny_job(tmp_path))
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]
    assert "no validation had a finite score: last.ckpt is tested" in caplog.text


@pytest.mark.parametrize("value", BAD, ids=str)
def test_a_result_that_is_not_finite_is_named_in_validation(value, tmp_path, monkeypatch):
    """And not scored: a class map, or a map in a file, would not show it."""
    look = Predictor._look
    monkeypatch.setattr(Predictor, "_look", lambda self, *arguments: look(self, *arguments) * value)
    job = tiny_job(tmp_path)
    with pytest.raises(NotFiniteError, match=rf"found others for {job.data.val_names()[0]}.*precision=32-true"):
        train(job)
    model = Segmenter(job.module.model, 32)
    with pytest.raises(NotFiniteError, match="found others for picture 0"):
        model.predict(np.zeros((32, 32, 3), np.uint8))


def test_a_rate_far_too_high_ends_in_one_line(tmp_path):
    """As a user meets it: of the program itself, without any fault of ours."""
    tiny = [*TINY, "data.n_train=60", "trainer.max_epochs=20", "optim.lr=4e9", "trainer.gradient_clip_val=null"]
    more = [f"hydra.run.dir={tmp_path}/run", "schedule=cosine"]
    status, _, error = Program(ROOT / "train.py", *tiny, *more, cwd=tmp_path).finish()
    line = error.strip().splitlines()[-1]
    assert status == 1 and line.startswith("error: ") and "finite" in line, error[-2000:]
    assert "Traceback" not in error


@pytest.mark.parametrize("scaled, most", [(False, 0), (True, 16)])
def test_steps_that_fp16_skips_until_its_scale_fits_do_not_keep_a_run_from_being_saved(scaled, most):
    steps = FiniteSteps()
    steps.start(torch.nn.Linear(1, 1), scaled)
    found = []
    for number in range(19):
        steps.add_loss(["a"], torch.tensor(1.0))
        steps.add_step(number, torch.tensor(False))
        steps.look()
        found.append(steps.doubtful)
    assert found == [False] * most + [True] * (19 - most)
    steps.add_loss(["a"], torch.tensor(1.0))
    steps.add_step(19, torch.tensor(True))
    steps.look()
    assert not steps.doubtful and (steps.skipped, steps.in_a_row) == (19, 0)


def test_a_run_without_any_good_step_has_nothing_to_test(tmp_path):
    job = tiny_job(tmp_path, "data.val_fraction=0")
    job.trainer.callbacks.insert(0, Spoil("loss", range(99)))
    with pytest.raises(NotFiniteError, match="found none: all steps were skipped"):
        train(job)
