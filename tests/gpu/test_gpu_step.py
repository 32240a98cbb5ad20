"""One update in each precision: clipped, scaled, skipped, accumulated; fused or not, in the Trainer or beside it."""

from itertools import pairwise
from typing import Any

import lightning as L
import pytest
import torch
from conftest import encoder_config
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from pretend import install
from torch.utils.data import DataLoader

from e2net.datasets.datamodule import collate
from e2net.decoders import E2NetDecoder, LinearDecoder
from e2net.encoders import Frozen, Full, ViTEncoder
from e2net.losses import Criterion
from e2net.model import DenseModel
from e2net.structures import Encoded, Sample
from e2net.training import step as training_step
from e2net.training.averaging import WeightAverage
from e2net.training.memory import Trial
from e2net.training.module import DenseModule
from e2net.training.optim import AdamW
from e2net.training.schedules import Cosine
from e2net.training.step import Update, clip, leave_out_unused, precision_of, renewed, step

CPU = torch.device("cpu")
PRECISIONS = ["32-true", "bf16-mixed", "16-mixed"]
LOSS = {"dice": 1.0, "bce": 1.0}


def _parameters():
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape)) for shape in ((5, 7), (7,), (3, 2, 2))]


def _loss(parameters, factor=1.0):
    return factor * sum((p.square().sum() + p.sum()) for p in parameters)


@pytest.mark.parametrize("limit", [None, 0.0, 0.5, 1e6])
@pytest.mark.parametrize("name", PRECISIONS)
def test_a_fused_update_is_the_plain_one(name, limit):
    """To rounding, over steps of which two are skipped in fp16, with the scaler's state the same throughout."""
    found = []
    for fused in (False, True):
        parameters, precision = _parameters(), precision_of(name, CPU)
        optimizer = torch.optim.AdamW(parameters, lr=0.01, fused=fused)
        update = Update(optimizer, precision, limit)
        states = []
        for at in range(6):
            before = [p.detach().clone() for p in parameters]
            # A gradient of 1e36, times the scale, is more than float32 holds.
            overflows = precision_is_scaled(precision) and at in (0, 3)
            update.backward(_loss(parameters, 1e36 if overflows else 1.0))
            update.apply()
            assert all(p.grad is None for p in parameters)
            unchanged = all(torch.equal(p, b) for p, b in zip(parameters, before, strict=True))
            assert unchanged == overflows
            states.append(precision.state_dict())
        found.append(([p.detach() for p in parameters], states))
    for a, b in zip(found[0][0], found[1][0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert found[0][1] == found[1][1]
    if name == "16-mixed":
        assert found[0][1][-1]["scale"] == 2.0**16 / 4 and found[0][1][-1]["_growth_tracker"] == 2


def precision_is_scaled(precision):
    return getattr(precision, "scaler", None) is not None


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", PRECISIONS)
def test_what_is_clipped_is_the_gradient_and_not_its_scaled_copy(name, fused):
    parameters = _parameters()
    precision: Any = precision_of(name, CPU)
    optimizer = torch.optim.AdamW(parameters, fused=fused)
    _loss(parameters).backward()
    expected = [p.grad.clone() for p in parameters]
    torch.nn.utils.clip_grad_norm_(parameters, 0.5)
    clipped = [p.grad.clone() for p in parameters]
    assert any(not torch.equal(a, b) for a, b in zip(expected, clipped, strict=True))

    optimizer.zero_grad()
    update = Update(optimizer, precision)
    update.backward(_loss(parameters))
    if precision_is_scaled(precision) and not fused:
        precision.scaler.unscale_(optimizer)  # as Lightning does before its hook
    clip(optimizer, precision, 0.5)
    for p, want in zip(parameters, clipped, strict=True):
        torch.testing.assert_close(p.grad, want, rtol=1e-5, atol=1e-7)


def test_accumulated_gradients_are_those_of_one_batch():
    """Scaled with the same scale, since it moves only after a step."""
    found = []
    for parts in (1, 4):
        parameters, precision = _parameters(), precision_of("16-mixed", CPU)
        update = Update(torch.optim.AdamW(parameters, lr=0.01, fused=True), precision, 0.5)
        for _ in range(3):
            for _ in range(parts):
                update.backward(_loss(parameters) / parts)
            update.apply()
        found.append([p.detach() for p in parameters])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_an_optimiser_stays_fused_where_a_run_of_before_is_resumed():
    """A state holds ``fused`` too, and on a CPU it was not."""
    model = _model()
    source = torch.optim.AdamW(AdamW(Cosine()).groups(model), fused=False)
    target = AdamW(Cosine()).build(model, 10)["optimizer"]
    for p in (p for g in source.param_groups for p in g["params"]):
        p.grad = torch.ones_like(p)
    source.step()
    target.load_state_dict(source.state_dict())
    assert all(group["fused"] is True for group in target.param_groups)
    update = Update(target, precision_of("16-mixed", CPU), 1.0)
    parameters = [p for g in target.param_groups for p in g["params"]]
    before = [p.detach().clone() for p in parameters]
    update.backward(_loss(parameters))
    update.apply()
    assert all(not torch.equal(p, b) for p, b in zip(parameters, before, strict=True))


@pytest.mark.parametrize("limit", [None, 0.5])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", PRECISIONS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_step_with_a_gradient_that_is_not_finite_is_skipped_as_if_it_had_not_been(name, fused, limit, bad):
    """In all precisions, by a fused optimiser without a look at the result; and the steps after it are made."""
    found = []
    for faults in ((), (0, 2, 3)):
        parameters, precision = _parameters(), precision_of(name, CPU)
        optimizer = torch.optim.AdamW(parameters, lr=0.01, fused=fused)
        update = Update(optimizer, precision, limit)
        for at in range(3 + len(faults)):
            before = [p.detach().clone() for p in parameters]
            update.backward(_loss(parameters))
            if at in faults:
                parameters[1].grad[at] = bad
            update.apply()
            moved = [not torch.equal(p, b) for p, b in zip(parameters, before, strict=True)]
            assert all(moved) if at not in faults else not any(moved)
        states = [optimizer.state[p] for p in parameters]
        assert all(float(state["step"]) == 3 for state in states)
        found.append([p.detach() for p in parameters] + [state["exp_avg_sq"] for state in states])
    # fp16's scale is another one behind a skipped step.
    exact = name != "16-mixed"
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0 if exact else 1e-5, atol=0 if exact else 1e-7)


# Beside the Trainer


def _model(tuning=None, decoder=LinearDecoder, **options):
    torch.manual_seed(0)
    encoder = ViTEncoder.from_config(encoder_config("dinov3"))
    return DenseModel(encoder, lambda **k: decoder(**k, **options), tuning or Full())


class _Fixed(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, at):
        g = torch.Generator().manual_seed(at)
        image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=g)
        return Sample(image, (torch.rand(1, 32, 32, generator=g) > 0.5).float(), None, str(at), at)


def _module(model):
    return DenseModule(model, {}, Criterion(LOSS), AdamW(Cosine(), lr=1e-2))


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("bf16", [True, False], ids=["bf16", "fp16"])
def test_the_update_beside_the_trainer_is_that_of_the_trainer(bf16, accumulate, monkeypatch):
    """To the last bit: memory trial, profile and benchmarks make the steps that a run makes."""
    loader = DataLoader(_Fixed(), batch_size=2, collate_fn=collate)
    with install(monkeypatch, bf16):
        module = _module(_model())
        trainer = L.Trainer(
            max_epochs=1, precision="bf16-mixed" if bf16 else "16-mixed", gradient_clip_val=0.1, logger=False,
            accumulate_grad_batches=accumulate, enable_checkpointing=False, enable_progress_bar=False, devices=1,
        )  # fmt: skip
        trainer.fit(module, loader)
        assert trainer.strategy.root_device.type == "cuda" and trainer.optimizers[0].defaults["fused"]

        twin = _module(_model())
        twin.model.train()
        precision = renewed(trainer.precision_plugin)
        assert type(precision) is MixedPrecision and precision is not trainer.precision_plugin
        built = AdamW(Cosine(), lr=1e-2).build(twin.model, 4 // accumulate)
        update = Update(built["optimizer"], precision, 0.1)
        for at, batch in enumerate(loader):
            with precision.forward_context():
                loss = step(twin.model, batch.image.float() / 255, batch.target, twin.criterion)["loss"]
            update.backward(loss / accumulate)
            if (at + 1) % accumulate == 0:
                update.apply()
                built["lr_scheduler"]["scheduler"].step()
    for (name, a), b in zip(module.model.state_dict().items(), twin.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert precision.state_dict() == trainer.precision_plugin.state_dict()


def test_a_skipped_step_leaves_weights_and_average_finite_and_the_schedule_on_its_way(monkeypatch):
    """The schedule follows the run's steps, so that it ends with the run, whatever the scaler has skipped."""
    loader = DataLoader(_Fixed(), batch_size=2, collate_fn=collate)
    with install(monkeypatch, bf16=False):
        module = _module(_model())
        average, seen = WeightAverage(0.9), []
        trainer: Any = L.Trainer(
            max_epochs=1, precision="16-mixed", gradient_clip_val=1.0, logger=False, devices=1,
            enable_checkpointing=False, enable_progress_bar=False, callbacks=[average, _Watch(seen)],
        )  # fmt: skip
        # So large a scale overflows twice before it fits.
        trainer.precision_plugin.scaler._init_scale = 2.0**127
        trainer.precision_plugin.scaler._backoff_factor = 2.0**-60
        trainer.fit(module, loader)
    moved = [any(not torch.equal(a, b) for a, b in zip(*pair, strict=True)) for pair in pairwise(seen)]
    assert moved[0] is False and moved[-1] is True, "the first step should be skipped, the last not"
    assert all(v.isfinite().all() for v in module.model.state_dict().values())
    assert all(v.isfinite().all() for v in average.average.values()) and average.updates == 4
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-2 * Cosine()(1.0))


class _Watch(L.Callback):
    def __init__(self, seen):
        self.seen = seen

    def _keep(self, module):
        self.seen.append([p.detach().clone() for p in module.model.parameters()])

    def on_train_start(self, trainer, module):
        self._keep(module)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self._keep(module)


def test_a_trial_does_not_move_the_scaler_of_the_run():
    plugin: Any = precision_of("16-mixed", CPU)
    trial: Any = Trial(_model(), Criterion(LOSS), AdamW(Cosine()), (32, 32), CPU, plugin, clip=1.0)
    before = [p.detach().clone() for p in trial.model.parameters()]
    trial.step(*trial.batch(2))
    assert trial.precision.scaler is not plugin.scaler and plugin.scaler._scale is None
    assert any(not torch.equal(p, b) for p, b in zip(trial.model.parameters(), before, strict=True))


def test_a_trial_clips(monkeypatch):
    limits = []
    monkeypatch.setattr(training_step, "clip_grads_with_norm_", lambda grads, limit, norm: limits.append(limit))
    trial = Trial(_model(), Criterion(LOSS), AdamW(Cosine()), (32, 32), CPU, clip=0.25)
    assert trial.fits(2) and limits == [0.25, 0.25]


def test_precisions_by_name():
    assert type(precision_of(32, CPU)) is type(precision_of("32-true", CPU)) is Precision
    assert precision_of("bf16", CPU).precision == "bf16-mixed" and precision_of(16, CPU).precision == "16-mixed"
    with pytest.raises(ValueError, match="precision=bf16-true: expected one of 32-true, bf16-mixed, 16-mixed"):
        precision_of("bf16-true", CPU)


def test_parts_of_a_step_are_told_apart_and_add_nothing():
    model, criterion = _model(Frozen(), E2NetDecoder, width=16, dropout=0.0), Criterion(LOSS, LOSS)
    leave_out_unused(model, criterion)
    image, mask = torch.rand(2, 3, 32, 32), (torch.rand(2, 1, 32, 32) > 0.5).float()
    names = []

    class Part:
        def __init__(self, name):
            names.append(name)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

    told = step(model, image, mask, criterion, part=Part)
    assert names == ["encoder", "decoder", "loss"]
    encoded = Encoded(tuple(maps[:, None] for maps in model.encoder(image)), (32, 32))
    for other in (step(model, image, mask, criterion), step(model, encoded, mask, criterion)):
        assert other.keys() == told.keys() and torch.equal(other["loss"], told["loss"])
