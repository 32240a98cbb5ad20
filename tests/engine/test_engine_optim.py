import math

import pytest
import torch
from conftest import encoder_config

from e2net.decoders import LinearDecoder
from e2net.encoders import Frozen, Full, ViTEncoder
from e2net.engine.optim import AdamW, WarmupCosine
from e2net.model import SegmentationModel


def _model(tuning):
    torch.manual_seed(0)
    return SegmentationModel(ViTEncoder.from_config(encoder_config("dinov3")), LinearDecoder, tuning)


def _table(model, optim):
    names = {p: n for n, p in model.named_parameters()}
    optimizer, _ = optim.build(model, 10)
    return {names[p]: (g["initial_lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}


def test_every_trainable_parameter_has_its_rate_and_decay():
    table = _table(_model(Full(lr_scale=0.1)), AdamW(WarmupCosine(), lr=1e-3, weight_decay=0.05))
    model = _model(Full())
    assert set(table) == {n for n, p in model.named_parameters() if p.requires_grad}
    expected = {
        "encoder.backbone.embeddings.patch_embeddings.weight": (1e-4, 0.05),
        "encoder.backbone.embeddings.patch_embeddings.bias": (1e-4, 0.0),
        "encoder.backbone.embeddings.cls_token": (1e-4, 0.0),
        "encoder.backbone.embeddings.register_tokens": (1e-4, 0.0),
        "encoder.backbone.norm.weight": (1e-4, 0.0),
        "decoder.probes.0.0.weight": (1e-3, 0.0),
        "decoder.probes.0.1.weight": (1e-3, 0.05),
        "decoder.probes.0.1.bias": (1e-3, 0.0),
    }
    assert {n: (round(table[n][0], 12), table[n][1]) for n in expected} == expected
    rates = {round(lr, 12) for n, (lr, _) in table.items() if n.startswith("encoder.")}
    assert rates == {1e-4}


def test_frozen_encoder_is_not_in_the_optimiser():
    assert all(n.startswith("decoder.") for n in _table(_model(Frozen()), AdamW(WarmupCosine())))


@pytest.mark.parametrize(
    "change", [{"lr": 2e-3}, {"weight_decay": 0.5}, {"warmup": 0.5}, {"final": 0.9}, {"scale": 0.2}]
)
def test_every_number_moves_the_weights(change):
    def weights(lr=1e-3, weight_decay=0.01, warmup=0.2, final=0.0, scale=1.0):
        model = _model(Full(scale))
        optimizer, schedule = AdamW(WarmupCosine(warmup, final), lr, weight_decay).build(model, 4)
        generator = torch.Generator().manual_seed(0)
        for _ in range(4):
            for p in model.parameters():
                p.grad = torch.randn(p.shape, generator=generator)
            optimizer.step()
            schedule.step()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert not torch.equal(weights(), weights(**change))


def test_warm_up_and_cosine():
    schedule = WarmupCosine(warmup=0.2, final=0.1)
    assert [schedule(x) for x in (0.1, 0.2, 0.6, 1.0)] == pytest.approx([0.5, 1.0, 0.55, 0.1])
    assert 0 < schedule(0) < 0.01
    assert schedule(0.4) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert WarmupCosine(warmup=0.0)(0.0) == 1.0


@pytest.mark.parametrize(
    "make", [lambda: WarmupCosine(1.0), lambda: WarmupCosine(0.1, 2.0), lambda: AdamW(None, lr=0.0), lambda: Full(0.0)]
)
def test_impossible_values(make):
    with pytest.raises(ValueError, match="must be"):
        make()
