"""Default runs as they are resolved on a GPU with bf16 and on one with fp16 only: from the first step to the scores."""

import lightning as L
import pytest
import torch
from conftest import ROOT
from hydra import compose, initialize_config_dir
from pretend import install

from e2net.evaluation import evaluate, prepare_evaluation
from e2net.evaluation.data import DataModule
from e2net.runs import compose_training, inherit, resolve
from e2net.runs.checkpoint import read_checkpoint
from e2net.training import prepare_training, train

# Sizes only: what decides how a step is computed is left at its default.
TINY = [
    "size=32", "decoder.width=16", "data.n_train=24", "data.n_test=2", "data.sides=[32,48]", "data.batch_size=4",
    "data.num_workers=0", "data.val_fraction=0.2", "num_samples=1", "encoder.config.hidden_size=24",
    "encoder.config.intermediate_size=32", "trainer.max_epochs=2", "trainer.log_every_n_steps=1",
]  # fmt: skip


def prepare(folder, *overrides):
    return prepare_training(compose_training([*TINY, f"run_dir={folder}", *overrides]))


def last(folder):
    return read_checkpoint(folder / "checkpoints" / "last.ckpt")


def fit(job):
    job.trainer.fit(job.module, datamodule=DataModule(job.data), ckpt_path=job.checkpoint, weights_only=True)


def assert_equal(a, b):
    """Nested mappings, lists, tensors and numbers, to the last bit."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list | tuple):
        for one, other in zip(a, b, strict=True):
            assert_equal(one, other)
    else:
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("bf16", [True, False], ids=["bf16", "fp16"])
def test_a_default_run_trains_validates_saves_resumes_and_is_tested(bf16, tmp_path, monkeypatch):
    with install(monkeypatch, bf16) as gpu:
        job = prepare(tmp_path / "whole")
        assert str(job.trainer.strategy.root_device) == "cuda:0"
        assert job.trainer.precision == ("bf16-mixed" if bf16 else "16-mixed")
        assert job.trainer.gradient_clip_val == 1.0 and job.module.config["compile"] is False
        scores = train(job)
        assert 0 < scores["procedural"]["S"] < 1
        assert gpu.pinned and gpu.moved
        environment = (tmp_path / "whole" / "environment.json").read_text()
        assert "Pretended GPU" in environment

        stopped = prepare(tmp_path / "stopped")
        stopped.trainer.callbacks.append(_Stop())
        fit(stopped)
        resumed = prepare(tmp_path / "resumed", f"resume={tmp_path}/stopped")
        fit(resumed)
        assert gpu.called("set_rng_state"), "a resumed run must restore the GPU's random state"

    whole, again, half = (last(tmp_path / name) for name in ("whole", "resumed", "stopped"))
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "resume", "global_step"):
        assert_equal(whole[key], again[key])
    assert all(group["fused"] for group in whole["optimizer_states"][0]["param_groups"])
    assert whole["resume"]["cuda"].tolist() == [7] * 16
    assert not torch.equal(whole["state_dict"]["decoder.ccm.q.weight"], half["state_dict"]["decoder.ccm.q.weight"])
    assert all(v.dtype not in (torch.bfloat16, torch.float16) for v in whole["state_dict"].values())
    # The scaler's state is that of the whole run too: its scale and how long it has not had to shrink.
    assert (whole.get("MixedPrecision") is None) == bf16
    assert whole.get("MixedPrecision") == again.get("MixedPrecision")

    with install(monkeypatch, bf16):  # on another machine with such a GPU
        config = resolve(inherit(_evaluation(tmp_path / "whole", tmp_path / "maps"), []))
        again_scores = evaluate(prepare_evaluation(config))
    assert again_scores["procedural"] == pytest.approx(scores["procedural"], abs=1e-6)


def _evaluation(run, output):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("eval", [f"ckpt={run}", f"output={output}", "num_workers=0", "num_samples=0"])


class _Stop(L.Callback):
    def on_train_epoch_end(self, trainer, module):
        trainer.should_stop = True
