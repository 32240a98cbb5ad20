"""What e2net chooses only on a GPU, one by one, on the pretended one."""

import threading

import numpy as np
import pytest
import torch
from conftest import encoder_config, mostly_slow
from pretend import TOTAL, install
from test_gpu_training import TINY, fit, prepare

from e2net import load
from e2net.compare import cost
from e2net.datasets.datamodule import collate
from e2net.decoders import LinearDecoder
from e2net.encoders import Frozen, Full, ViTEncoder
from e2net.evaluation.test import choose_precision
from e2net.losses import Criterion
from e2net.model import DenseModel
from e2net.profile import profile_job
from e2net.runs.checkpoint import saved_state
from e2net.runs.provenance import weights_hash
from e2net.speed import compile_model, halve_frozen
from e2net.structures import Encoded, Sample
from e2net.training import OutOfMemoryError, memory, train
from e2net.training.memory import Trial, advise, available_bytes, choose_batch_size
from e2net.training.optim import AdamW
from e2net.training.schedules import Cosine
from e2net.training.step import precision_of, step

CUDA = torch.device("cuda", 0)
LOSS = {"dice": 1.0, "bce": 1.0}


def _model(tuning=None):
    torch.manual_seed(0)
    encoder = ViTEncoder.from_config(encoder_config("dinov3"))
    encoder.pretrained = True
    return DenseModel(encoder, LinearDecoder, tuning or Frozen())


@pytest.mark.parametrize("bf16", [True, False], ids=["bf16", "fp16"])
def test_precision_optimiser_and_frozen_weights(bf16, monkeypatch):
    with install(monkeypatch, bf16):
        assert choose_precision("auto", "auto") == ("bf16-mixed" if bf16 else "16-mixed")
        assert choose_precision("auto", "cpu") == "32-true" and choose_precision("32-true", "gpu") == "32-true"
        model = _model()
        before = weights_hash(model.encoder)
        stored = saved_state(model).keys()
        assert AdamW(Cosine()).build(model, 10)["optimizer"]._step_supports_amp_scaling
        halve_frozen(model, choose_precision("auto", "auto"), CUDA)
        halved = {p.dtype for b in model.encoder.layers() for n, p in b.named_parameters() if n.endswith("proj.weight")}
        assert halved == {torch.bfloat16 if bf16 else torch.float32}
        assert (weights_hash(model.encoder) == before) != bf16, "hashes must be taken before the weights are cast"
        assert saved_state(model).keys() == stored
        assert all(v.dtype not in (torch.bfloat16, torch.float16) for v in saved_state(model).values())


@pytest.mark.parametrize("name", mostly_slow(["16-mixed", "bf16-mixed"]))
def test_the_largest_batch_by_whole_steps_within_a_limit(name, monkeypatch):
    """The fraction is of the whole memory: what is free and what this process holds already, less a tenth."""
    made = []
    original = Trial.step

    def limited(self, inputs, mask):
        if len(inputs) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        original(self, inputs, mask)
        made.append((self.optimizer.defaults["fused"], self.update.limit, self.precision))

    monkeypatch.setattr(Trial, "step", limited)
    with install(monkeypatch, name == "bf16-mixed") as gpu:
        model = _model()
        plugin = precision_of(name, CUDA)
        found = choose_batch_size(model, Criterion(LOSS), AdamW(Cosine()), (32, 32), 100, CUDA, plugin, 1.0)
        fractions = [args[0] for args in gpu.called("set_per_process_memory_fraction")]
        assert fractions == [pytest.approx(0.9 * 0.75), 1.0]
        assert gpu.called("empty_cache") and gpu.called("set_rng_state")
        assert available_bytes(CUDA) == TOTAL // 2
    assert found == 5
    assert all(fused and limit == 1.0 and precision is not plugin for fused, limit, precision in made)
    assert all(p.dtype == torch.float32 for p in model.parameters()), "the trial's weights are a copy"


def test_the_limit_is_lifted_when_a_trial_fails_otherwise(monkeypatch):
    monkeypatch.setattr(Trial, "fits", lambda self, n: 1 / 0)
    with install(monkeypatch, bf16=True) as gpu:
        with pytest.raises(ZeroDivisionError):
            choose_batch_size(_model(), Criterion(LOSS), AdamW(Cosine()), (32, 32), 9, CUDA)
        assert gpu.called("set_per_process_memory_fraction")[-1][0] == 1.0


def test_batch_size_auto_and_the_run_after_it(tmp_path, monkeypatch):
    with install(monkeypatch, bf16=True):
        job = prepare(tmp_path, "data.batch_size=auto", "trainer.max_epochs=1")
        assert job.module.config["data"]["batch_size"] == job.data.batch_size == len(job.data.train_names())
        assert train(job)["procedural"]["S"] > 0


@pytest.mark.parametrize("bf16", mostly_slow([False, True]), ids=["fp16", "bf16"])
def test_out_of_memory_in_training_names_what_fits(bf16, tmp_path, monkeypatch):
    """In fp16 the scaler is then between two steps, and cannot be copied."""
    with install(monkeypatch, bf16):
        job = prepare(tmp_path, "trainer.max_epochs=1")
        monkeypatch.setattr(job.module, "configure_gradient_clipping", _out_of_memory)
        with pytest.raises(OutOfMemoryError, match=r"data\.batch_size=2 trainer\.accumulate_grad_batches=2"):
            train(job)
        trial = Trial(_model(), Criterion(LOSS), AdamW(Cosine()), (32, 32), CUDA, precision_of("16-mixed", CUDA))
        monkeypatch.setattr(memory, "available_bytes", lambda device: 0)
        assert "cuda:0" in advise(trial, 4, 1, "CUDA out of memory")


def _out_of_memory(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


@pytest.mark.parametrize("bf16", mostly_slow([False, True]), ids=["fp16", "bf16"])
def test_profile_makes_the_steps_of_the_run(bf16, tmp_path, monkeypatch):
    clipped = []
    monkeypatch.setattr("e2net.training.step.clip", lambda *args: clipped.append(args))
    monkeypatch.setattr("e2net.profile.measure.peak_flops", lambda device, dtype: 1e12)  # 8192², which only a GPU does
    with install(monkeypatch, bf16) as gpu:
        job = prepare(tmp_path)
        found = profile_job(job, 2)
        assert gpu.called("synchronize") and gpu.called("reset_peak_memory_stats")
    assert found.facts["cuda"] and found.memory == 2 << 30 and found.dtype == "bfloat16"
    assert "Pretended GPU" in found.about and ("bf16-mixed" if bf16 else "16-mixed") in found.about
    assert 0 < found.mfu < 1
    optimizer, precision, limit, _ = clipped[0]
    assert len(clipped) == 3 + 2 + 2 and optimizer.defaults["fused"] and limit == 1.0
    assert precision is not job.trainer.precision_plugin


def test_the_peak_is_that_of_a_large_product_on_the_device(monkeypatch):
    sides = []
    original = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *size, **k: sides.append(size) or original(8, 8))
    from e2net.profile import peak_flops  # noqa: PLC0415

    with install(monkeypatch, bf16=True) as gpu:
        assert peak_flops(CUDA) > 0
        assert sides == [(8192, 8192)] * 2 and len(gpu.called("synchronize")) == 16


@pytest.mark.parametrize("bf16", mostly_slow([False, True]), ids=["fp16", "bf16"])
def test_cost_of_variants_cache_and_prediction(bf16, tmp_path, monkeypatch):
    """A frozen encoder with its features kept; then compare's figures of the run, and maps of a picture."""
    monkeypatch.setattr(cost, "_STEPS", 1)
    with install(monkeypatch, bf16) as gpu:
        cache = ["tuning=frozen", "cache.views=1", f"cache.folder={tmp_path / 'cache'}", "trainer.max_epochs=1"]
        job = prepare(tmp_path / "run", *cache)
        assert train(job)["procedural"]["S"] > 0
        assert job.data.train_dataloader().dataset[0, 0].image.maps[0].dtype == torch.float16
        assert cost.choose_device("auto").type == "cuda" and "Pretended GPU" in cost.machine(CUDA)
        checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"
        found = cost.measure([checkpoint, checkpoint], CUDA, rounds=1)
        assert len(found) == 2 and all(c.train_memory == 2 << 30 and c.train_step > 0 for c in found)
        assert gpu.called("reset_peak_memory_stats") and gpu.called("empty_cache")
        model = load(tmp_path / "run")
        assert model.device.type == "cuda" and model.precision == ("bf16-mixed" if bf16 else "16-mixed")
        image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        on_gpu = model.predict(image).prob
    on_cpu = load(tmp_path / "run", device="cpu").predict(image).prob
    np.testing.assert_allclose(on_gpu, on_cpu, atol=0.02)


def test_batches_are_pinned_by_a_thread_and_keep_their_type(tmp_path, monkeypatch):
    with install(monkeypatch, bf16=True) as gpu:
        job = prepare(tmp_path, "data.num_workers=1", "data.test={}", "trainer.max_epochs=1")
        loader = job.data.train_dataloader()
        assert loader.pin_memory
        fit(job)
        assert gpu.pinned >= 2 * 3
        from torch.utils.data._utils.pin_memory import pin_memory  # noqa: PLC0415

        mask = np.ones((3, 4), bool)
        pixels = torch.zeros(3, 8, 8, dtype=torch.uint8)
        image = Encoded((torch.rand(1, 2, 3, 3),) * 4, (8, 8), pixels=pixels)
        batch = collate([Sample(image, torch.zeros(1, 8, 8), mask, "a", 0)])
        pinned = pin_memory(batch)
        assert type(pinned) is type(batch) and pinned.names == ["a"] and pinned.native_targets[0] is mask
        assert type(pinned.image) is Encoded and pinned.image.shape == (1, 3, 8, 8)
        assert len(pinned.image.maps) == 4 and pinned.image.pixels.shape == (1, 3, 8, 8)
    assert threading.active_count() < 50


@pytest.mark.parametrize("name", mostly_slow(["16-mixed", "bf16-mixed"], quick=()))
def test_compiled_under_autocast(name):
    torch._dynamo.reset()
    device = torch.device("cpu")
    plain, compiled = (_model(Full()) for _ in range(2))
    compile_model(compiled, backend="aot_eager")
    image, mask, found = torch.rand(2, 3, 64, 64), (torch.rand(2, 1, 64, 64) > 0.5).float(), []
    for model in (plain, compiled):
        precision = precision_of(name, device)
        with precision.forward_context():
            loss = step(model, image, mask, Criterion(LOSS))["loss"]
        loss.backward()
        found.append((loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])))
    assert found[0][0].isfinite()
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-2, atol=1e-2)
    cosine = torch.nn.functional.cosine_similarity(found[0][1], found[1][1], dim=0)
    assert cosine > 0.99


def test_the_defaults_under_test_are_those_of_train_py():
    decisive = ("precision", "accelerator", "gradient_clip", "optim", "loss", "decoder=", "tuning", "compile", "ema")
    assert not [o for o in TINY if o.startswith(decisive) or o.startswith(tuple(f"trainer.{d}" for d in decisive))]
