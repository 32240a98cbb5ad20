"""What a step does: which losses count how much, what moves, what stays, and what the teachers see."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from conftest import encoder_config
from small import small_job
from torch import nn

from e2net.adapt.budget import AdaptTrial
from e2net.adapt.networks import copy_frozen, move_average, set_drop_path, set_rope_rescale, split_original
from e2net.adapt.recipe import Anchor, Recipe
from e2net.encoders import ExPLoRA, Full, LoRA, Partial, ViTEncoder

TUNINGS = {"full": Full, "lora": LoRA, "partial": Partial, "explora": ExPLoRA}


def _encoder(name="dinov3", **more):
    torch.manual_seed(0)
    return ViTEncoder.from_config(encoder_config(name) | more)


def _losses(module, batch, step):
    return module.losses(batch, np.random.default_rng(0), step)


def _batch(job):
    torch.manual_seed(0)
    return next(iter(job.pictures.loader(job.crops)))


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    return small_job(tmp_path_factory.mktemp("job"), "adapt.head_steps=2", "adapt.freeze_last_layer=4")


def test_the_loss_is_the_weighted_sum_of_its_terms(job):
    """G/(G+M) of the global terms and M/(G+M) of the local ones, as in DINOv2; KoLeo once a global crop."""
    module = copy.deepcopy(job.module).eval()  # without drop path
    module.recipe = Recipe(dino=0.5, local_weight=3.0, ibot=0.7, koleo=0.2)
    module.anchor = Anchor(0.9)
    found = {name: value.item() for name, value in _losses(module, _batch(job), 10).items()}
    dino = (2 * found["dino_global"] + 3.0 * 4 * found["dino_local"]) / (2 + 4)
    assert found["dino"] == pytest.approx(dino, rel=1e-5)
    whole = 0.5 * dino + 0.7 * found["ibot"] + 0.2 * found["koleo"] + 0.9 * found["gram"]
    assert found["loss"] == pytest.approx(whole, rel=1e-5)


def test_the_heads_come_first_and_the_prototypes_last(job):
    """Step by step: what has moved. Two steps of the heads alone, four with the prototypes kept."""
    trial = AdaptTrial(job.module, job.crops.largest, torch.device("cpu"), job.trainer.precision_plugin)
    module, batch = trial.module, trial.batch(4)[0]
    module.steps = 8
    optimizer = trial.update.optimizer
    for step in range(6):
        before = {name: p.detach().clone() for name, p in module.student.named_parameters()}
        _losses(module, batch, step)["loss"].backward()
        if step < module.recipe.freeze_last_layer:
            for parameter in module.student.heads.last_layers():
                parameter.grad = None
        optimizer.step()
        optimizer.zero_grad()
        moved = {name for name, p in module.student.named_parameters() if not torch.equal(p, before[name])}
        assert any(name.startswith("encoder") for name in moved) == (step >= 2)
        assert any("last_layer" in name for name in moved) == (step >= 4)
        assert any("heads.dino.mlp" in name for name in moved) and any("heads.ibot.mlp" in name for name in moved)


def test_every_parameter_that_trains_gets_a_gradient(job):
    module = copy.deepcopy(job.module)
    module.train()
    _losses(module, _batch(job), 10)["loss"].backward()
    without = [name for name, p in module.student.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    assert not any(p.requires_grad for p in module.networks.teacher.parameters())
    assert not any(p.requires_grad for p in module.networks.gram.parameters())


def test_teachers_stay_in_eval_mode(job):
    module = copy.deepcopy(job.module).train()
    assert module.student.encoder.backbone.training
    for encoder in (module.teacher.encoder, module.networks.gram):
        assert not any(part.training for part in encoder.modules())


def test_one_forward_for_each_size(job, monkeypatch):
    shapes = []
    plain = ViTEncoder.encode_tokens

    def noted(self, pixels, *args):
        shapes.append((tuple(pixels.shape), self is job.module.student.encoder))
        return plain(self, pixels, *args)

    monkeypatch.setattr(ViTEncoder, "encode_tokens", noted)
    _losses(job.module, _batch(job), 10)
    assert sorted(shape for shape, student in shapes if student) == [((8, 3, 16, 16)), ((8, 3, 32, 32))]
    assert sorted(shape for shape, student in shapes if not student) == [((8, 3, 32, 32)), ((8, 3, 64, 64))]


def test_the_gram_teacher_is_the_original_and_sees_the_undistorted_crop_at_twice_the_side(job):
    module, batch = copy.deepcopy(job.module).eval(), _batch(job)
    assert batch.gram.shape[-1] == 2 * batch.global_.shape[-1]
    # A student that is the Gram teacher, without masks, on crops of the same size and colours: nothing to anchor.
    module.recipe.mask_probability = 0.0
    same = batch._replace(gram=batch.global_)
    assert float(_losses(module, same, 10)["gram"]) < 1e-10
    assert float(_losses(module, batch, 10)["gram"]) > 1e-6
    with torch.no_grad():
        for parameter in module.student.encoder.parameters():
            parameter.mul_(1.1)
    assert float(_losses(module, same, 10)["gram"]) > 1e-8


@pytest.mark.parametrize("name", TUNINGS)
def test_what_does_not_train_is_there_once(name):
    encoder, tuning = _encoder(), TUNINGS[name]()
    images = torch.rand(2, 3, 32, 32)
    want = encoder(images)
    original = split_original(encoder, tuning, masks=True)
    teacher = copy_frozen(encoder)
    trains = {p.data_ptr() for p in encoder.parameters() if p.requires_grad}
    frozen = {p.data_ptr() for p in encoder.parameters() if not p.requires_grad}
    for other in (original, teacher):
        addresses = {p.data_ptr() for p in other.parameters()}
        assert addresses.isdisjoint(trains)
        assert frozen <= addresses
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    for other in (original, teacher):
        for got, expected in zip(other(images), want, strict=True):
            torch.testing.assert_close(got, expected)


def test_the_moving_average_is_its_formula():
    student: Any = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)).double()
    student[1].requires_grad_(False)
    teacher: Any = copy_frozen(student)
    with torch.no_grad():
        student[0].weight.add_(1.0)
    want = 0.9 * teacher[0].weight + 0.1 * student[0].weight
    move_average(teacher, student, 0.9)
    torch.testing.assert_close(teacher[0].weight, want)
    assert teacher[1].weight is student[1].weight


@pytest.mark.parametrize("name", TUNINGS)
def test_drop_path_and_rope_are_the_students_in_training_only(name):
    encoder = _encoder(pos_embed_rescale=None)
    split_original(encoder, TUNINGS[name](), masks=False)
    set_drop_path(encoder, 0.5)
    set_rope_rescale(encoder, 2.0)
    teacher: Any = copy_frozen(encoder)
    images = torch.rand(4, 3, 32, 32)
    encoder.train()
    one, other = (encoder.tokens(images)[-1].patches for _ in range(2))
    assert not torch.equal(one, other)
    encoder.eval()
    one, other = (encoder.tokens(images)[-1].patches for _ in range(2))
    assert torch.equal(one, other)
    torch.testing.assert_close(teacher.tokens(images)[-1].patches, one)


def test_drop_path_keeps_the_mean():
    from e2net.adapt.networks import DropPath  # noqa: PLC0415

    torch.manual_seed(0)
    kept = DropPath(0.25).train()(torch.ones(4000, 2, 3))
    assert torch.equal(kept.unique(), torch.tensor([0.0, 1 / 0.75]))
    assert float(kept.mean()) == pytest.approx(1.0, abs=0.03)
    assert kept.flatten(1).std(1).max() == 0  # a picture as a whole


def test_rotary_positions_are_asked_for_in_vain():
    with pytest.raises(ValueError, match=r"rope_rescale=2.0: Dinov2Model has no rotary positions; give"):
        set_rope_rescale(_encoder("dinov2"), 2.0)
    set_rope_rescale(_encoder("dinov2"), None)


def test_schedules_begin_when_the_encoder_does(job):
    module = copy.deepcopy(job.module)
    module.steps = 10
    assert [module.progress(step) for step in (0, 2, 6, 10)] == [0.0, 0.0, 0.5, 1.0]
    assert [module._encoder_rate(step) for step in (0, 1)] == [0.0, 0.0]
    assert module._encoder_rate(6) == pytest.approx(module.optim.schedule(0.5))
    assert module._head_rate(0) == 0.1 and module._head_rate(9) == pytest.approx(module.optim.schedule(7 / 8))


def test_rates_go_by_layer_patch_embedding_and_batch(tmp_path):
    module = small_job(
        tmp_path, "tuning.layer_decay=0.5", "adapt.patch_lr=0.2", "adapt.lr_batch=16", "optim.lr=1"
    ).module
    rates = {p: group["lr"] for group in module.parameter_groups() for p in group["params"]}
    names = {name: rates[p] for name, p in module.student.named_parameters()}
    base = math.sqrt(4 / 16)
    assert names["heads.dino.last_layer.weight"] == pytest.approx(base)
    assert names["encoder.backbone.embeddings.patch_embeddings.weight"] == pytest.approx(base * 0.2 * 0.5**4)
    assert names["encoder.backbone.embeddings.cls_token"] == pytest.approx(base * 0.5**4)


def test_when_the_gram_teacher_is_renewed():
    anchor = Anchor(1.0, start=0.25, renew_every=10)
    assert [step for step in range(1, 101) if anchor.copies(step, 100)] == [25, 35, 45, 55, 65, 75, 85, 95]
    twice = Anchor(1.0, renew_every=10, renewals=2)
    assert [step for step in range(101) if twice.copies(step, 100)] == [10, 20]
    assert not any(Anchor(1.0).copies(step, 100) for step in range(101))
    with pytest.raises(ValueError, match=r"gram.renewals=2: expected gram.renew_every beside it"):
        Anchor(1.0, renewals=2)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dino": 0, "ibot": 0}, "at least one of the two losses"),
        ({"teacher_momentum": 1.5}, "at most 1, found 1.5"),
        ({"teacher_temperature": 0}, "temperatures must be above 0"),
        ({"drop_path": 1.0}, r"drop_path in \[0, 1\)"),
        ({"mask_ratio": [0.5, 0.1]}, "two rising shares"),
        ({"rope_rescale": 0.5}, "at least 1"),
        ({"koleo": {"ramp": "cosine", "from": 0, "to": 1, "until": 2}}, "adapt.koleo.until must be a share"),
    ],
)
def test_impossible_recipes(settings, words):
    with pytest.raises(ValueError, match=words):
        Recipe(**settings)
