"""Compiling, frozen weights in bf16, the automatic batch size, and what an out-of-memory error says."""

import copy
import logging
import shutil
from functools import partial

import pytest
import torch
from conftest import ROOT, encoder_config, mostly_slow
from hydra import compose, initialize_config_dir

from e2net.decoders import E2NetDecoder, LinearDecoder
from e2net.encoders import Adapters, Frozen, Full, LoRA, ViTEncoder
from e2net.losses import Criterion
from e2net.model import DenseModel
from e2net.runs import resolve
from e2net.runs.checkpoint import saved_state
from e2net.speed import cast_frozen, compile_model, frozen_weights, halve_frozen
from e2net.training import OutOfMemoryError, memory, prepare_training, train
from e2net.training.memory import Trial, advise, available_bytes, choose_batch_size, is_out_of_memory, largest
from e2net.training.optim import AdamW
from e2net.training.schedules import Cosine

CPU = torch.device("cpu")


def _model(tuning=None, name="dinov3", decoder=LinearDecoder):
    torch.manual_seed(0)
    return DenseModel(ViTEncoder.from_config(encoder_config(name)), decoder, tuning or Frozen())


def _trial(tuning=None, size=(64, 64), **kwargs):
    return Trial(_model(tuning), Criterion({"bce": 1.0}), AdamW(Cosine()), size, CPU, **kwargs)


def _prepare(folder, *overrides):
    quick = ["size=64", "data.n_train=12", "data.n_test=2", "data.num_workers=0", "data.val_fraction=0.3"]
    quick += ["decoder=linear", "trainer.max_epochs=1", "trainer.accelerator=cpu", "num_samples=0"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = resolve(compose("train", [*quick, f"run_dir={folder}", *overrides]))
    return prepare_training(config)


# torch.compile


@pytest.mark.parametrize(
    "tuning", mostly_slow([Adapters, Frozen, Full, partial(Full, gradient_checkpointing=True), LoRA], quick=())
)
def test_compiled_models_compute_the_same_under_the_same_names(tuning):
    # The large decoder once: it takes most of the time, and has no part in the tuning.
    model = _model(tuning(), decoder=partial(E2NetDecoder, width=16) if tuning is Full else LinearDecoder).eval()
    names, image = list(model.state_dict()), torch.rand(2, 3, 64, 64)
    plain = model(image).prediction
    compile_model(model, backend="aot_eager")
    # Again, since hooks must not be those of the first call; and another size.
    for size in (64, 64) if tuning is Full else (64, 64, 96):
        twice = torch.nn.functional.interpolate(image, size=size)
        expected = plain if size == 64 else None
        found = model(twice).prediction
        assert found.shape == (2, 1, size, size)
        if expected is not None:
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    found.mean().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert list(model.state_dict()) == names


def test_blocks_share_compiled_code():
    torch._dynamo.reset()
    model = _model()
    seen = []

    def backend(graph, inputs):
        seen.append(graph)
        return graph.forward

    compile_model(model, backend=backend)
    with torch.no_grad():
        model.encoder(torch.rand(1, 3, 64, 64))
        first = len(seen)
        model.encoder(torch.rand(1, 3, 64, 64))
    assert len(seen) == first <= 2, "each of the four blocks was compiled on its own"


def test_a_copy_of_a_compiled_model_runs_its_own_weights():
    model = _model(Full()).eval()
    compile_model(model, backend="eager")
    twin, image = copy.deepcopy(model), torch.rand(1, 3, 64, 64)
    before = model(image).prediction
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(model(image).prediction, before)
    assert not torch.equal(twin(image).prediction, before)


def test_where_compiling_fails_there_is_one_warning(caplog):
    torch._dynamo.reset()

    def backend(graph, inputs):
        raise RuntimeError("no C++ compiler")

    model = _model(Full()).eval()
    image = torch.rand(1, 3, 64, 64)
    plain = model(image).prediction
    compile_model(model, backend=backend)
    with caplog.at_level(logging.WARNING, "e2net"):
        assert torch.equal(model(image).prediction, plain)
        model(image).prediction.mean().backward()
    warnings = [r.getMessage() for r in caplog.records if r.name.startswith("e2net")]
    assert len(warnings) == 1 and "compile=true has no effect" in warnings[0]


def test_faults_of_the_model_itself_are_no_compile_failures():
    torch._dynamo.reset()
    model = _model()
    compile_model(model, backend="eager")
    with pytest.raises(ValueError, match="not a multiple"):
        model(torch.rand(1, 3, 60, 60))


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compile_by_the_default_backend():
    torch._dynamo.reset()
    model = _model().eval()
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        plain = model(image).prediction
        compile_model(model)
        torch.testing.assert_close(model(image).prediction, plain, atol=1e-5, rtol=1e-4)


def test_a_compiled_run_trains_and_is_tested(tmp_path, monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    scores = train(_prepare(tmp_path, "compile=true", "data.batch_size=4"))
    assert scores["procedural"]["S"] > 0


# frozen weights in bf16


@pytest.mark.parametrize("tuning", [Frozen, Adapters, LoRA, Full])
def test_frozen_weights_in_bf16_change_no_result(architecture, tuning):
    model = _model(tuning(), architecture).eval()
    model.encoder.pretrained = True
    image = torch.rand(2, 3, *(2 * [4 * model.encoder.size_multiple]))
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(image).prediction
        stored = {k: v.clone() for k, v in saved_state(model).items()}
        cast_frozen(model, torch.bfloat16)
        assert torch.equal(model(image).prediction, expected)
        loss = model(image).prediction.float().mean()
    loss.backward()
    assert (tuning is Full) == (not any(p.dtype == torch.bfloat16 for p in model.parameters()))
    assert all(torch.equal(v, stored[k]) and v.dtype == stored[k].dtype for k, v in saved_state(model).items())


def test_weights_that_a_checkpoint_must_hold_stay_float32():
    assert not list(frozen_weights(_model()))  # random, and frozen
    model = _model()
    model.encoder.pretrained = True
    halve_frozen(model, "bf16-mixed", CPU)
    assert all(p.dtype == torch.float32 for p in model.parameters())


# the batch size


@pytest.mark.parametrize("limit", [1, 2, 3, 10, 100])
@pytest.mark.parametrize("fit", [0, 1, 2, 3, 5, 8, 33, 1000])
def test_the_largest_that_fits(limit, fit):
    tried = []

    def fits(n):
        tried.append(n)
        return n <= fit

    found, best = largest(fits, limit), min(fit, limit)
    assert found <= best and best - found <= max(1, found // 8) - (found < 8)
    assert all(1 <= n <= limit for n in tried) and len(tried) == len(set(tried)) <= 14


def test_a_batch_that_runs_out_of_memory_does_not_fit(monkeypatch):
    trial = _trial()
    step = trial.step

    def limited(images, mask):
        if len(images) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        step(images, mask)

    monkeypatch.setattr(trial, "step", limited)
    assert largest(trial.fits, 100) == 5
    monkeypatch.setattr(trial, "step", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trial.fits(1)


def test_the_estimate_grows_with_what_is_computed():
    frozen, full, larger = (
        trial.bytes_per_image() for trial in (_trial(), _trial(Full()), _trial(Full(), size=(128, 128)))
    )
    assert frozen < full < larger
    assert 3 < larger / full < 5  # four times the tokens
    assert _trial(Full(gradient_checkpointing=True)).bytes_per_image() < 0.6 * full
    assert _trial(cached=True).bytes_per_image() <= frozen


def _choose(model, images=100, size=(64, 64)):
    return choose_batch_size(model, Criterion({"bce": 1.0}), AdamW(Cosine()), size, images, CPU)


def test_auto_on_a_cpu_goes_by_the_memory_that_is_left(monkeypatch):
    model = _model(Full())
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    each = _trial(Full()).bytes_per_image()
    torch.set_rng_state(state)
    assert _choose(model) == 8 and _choose(model, images=3) == 3
    monkeypatch.setattr(memory, "available_bytes", lambda device: 7 * each)
    assert _choose(model) == 3
    monkeypatch.setattr(memory, "available_bytes", lambda device: each)
    with pytest.raises(ValueError, match="not even one image of 64x64 fits"):
        _choose(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_run_stores_the_number_that_auto_stood_for(tmp_path):
    job = _prepare(tmp_path, "data.batch_size=auto")
    assert job.data.batch_size == 8 == job.module.config["data"]["batch_size"]


def test_memory_that_is_left():
    left = available_bytes(CPU)
    assert left is not None and left > 1 << 20


# running out of memory


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"), True),
        (MemoryError(), True),
        (RuntimeError("shapes differ"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_out_of_memory_is_recognised(error, expected):
    assert is_out_of_memory(error) == expected


def test_advice_names_what_fits(monkeypatch):
    trial = _trial(Full())
    each = trial.bytes_per_image()
    trained = sum(p.numel() * 4 for p in trial.model.parameters() if p.requires_grad)
    monkeypatch.setattr(memory, "available_bytes", lambda device: int((3 * trained + 3.5 * each) / memory.MARGIN))
    text = advise(trial, 16, 2, "CUDA out of memory.\n Tried")
    assert "data.batch_size=16 and images of 64x64 on cpu: CUDA out of memory. Tried." in text
    assert "data.batch_size=3 trainer.accumulate_grad_batches=11" in text
    assert "size=16" in text and "tuning.gradient_checkpointing=true" in text
    monkeypatch.setattr(memory, "available_bytes", lambda device: None)
    assert "data.batch_size=8 trainer.accumulate_grad_batches=4" in advise(trial, 16, 2, "")
    frozen = _trial(size=(16, 16))
    monkeypatch.setattr(memory, "available_bytes", lambda device: 0)
    assert "Expected to fit: a smaller encoder" in advise(frozen, 1, 1, "")


def test_training_that_runs_out_of_memory_says_what_fits(tmp_path, monkeypatch):
    job = _prepare(tmp_path, "data.batch_size=4")

    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(job.module, "training_step", fail)
    with pytest.raises(OutOfMemoryError, match=r"data\.batch_size=2 trainer\.accumulate_grad_batches=2"):
        train(job)
