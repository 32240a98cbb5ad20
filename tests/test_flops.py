"""The FLOPs of a piece of work are those of its arithmetic, whatever computes it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ARCHITECTURES, encoder_config, hf_model
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from e2net.compare import cost
from e2net.encoders import ViTEncoder
from e2net.encoders.listing import _cost, _key
from e2net.flops import FlopCounter, count_flops
from e2net.profile.measure import _Loop
from e2net.runs import compose_training
from e2net.training import prepare_training

B, HEADS, N, M, C, CV = 2, 3, 10, 7, 8, 4
FORWARD = 2 * B * HEADS * N * M * (C + CV)


def _qkv(device="cpu", channels=(C, C, CV), keys=M, grad=(True, True, True)):
    sizes = zip((N, keys, keys), channels, grad, strict=True)
    return [torch.randn(B, HEADS, n, c, device=device, requires_grad=g) for n, c, g in sizes]


def _products(q, k, v):
    return (q @ k.transpose(-1, -2)).softmax(-1) @ v


def _einsum(q, k, v):
    return torch.einsum("bhnm,bhmc->bhnc", torch.einsum("bhnc,bhmc->bhnm", q, k).softmax(-1), v)


def _baddbmm(q, k, v):
    q, k, v = (t.flatten(0, 1) for t in (q, k, v))
    return torch.baddbmm(torch.zeros(1, device=q.device), q, k.mT).softmax(-1).bmm(v)


def _grouped(q, k, v):
    return F.scaled_dot_product_attention(q, k[:, :1], v[:, :1], enable_gqa=True)


WAYS = {"fused": F.scaled_dot_product_attention, "products": _products, "einsum": _einsum, "baddbmm": _baddbmm}
MODES: dict[str, Callable[[], Any]] = {
    "grad": torch.enable_grad,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("way", WAYS)
def test_attention_however_it_is_written(way, mode, device):
    q, k, v = _qkv(device)
    with MODES[mode]():
        assert count_flops(lambda: WAYS[way](q, k, v)) == FORWARD


@pytest.mark.parametrize("grad", [(1, 1, 1), (1, 0, 1), (0, 0, 1), (1, 0, 0)])
@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
def test_attention_by_each_kernel_of_a_cpu_forward_and_backward(backend, grad):
    q, k, v = _qkv(channels=(C, C, C), grad=[bool(g) for g in grad])
    forward = 2 * B * HEADS * N * M * 2 * C
    parts = sum(grad) + (grad[0] or grad[1])  # the gradient of the weights is on the way to those of q and k
    with sdpa_kernel(backend):
        assert count_flops(lambda: F.scaled_dot_product_attention(q, k, v)) == forward
        counted = count_flops(lambda: F.scaled_dot_product_attention(q, k, v).sum().backward())
    assert counted == forward + parts * forward // 2


@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
@pytest.mark.parametrize("options", [{"scale": 0.5}, {"is_causal": True}, {"attn_mask": torch.ones(N, M) > 0}], ids=str)
def test_options_of_attention_change_nothing(options, backend):
    q, k, v = _qkv(channels=(C, C, C))
    with sdpa_kernel(backend):
        assert count_flops(lambda: F.scaled_dot_product_attention(q, k, v, **options)) == FORWARD * 2 * C // (C + CV)


# Kernels of GPUs: their shapes are all that is needed.
@pytest.mark.parametrize(
    "kernel, options",
    [
        ("flash_attention", ()),
        ("efficient_attention", (None, False)),
        ("cudnn_attention", (None, False)),
        ("flash_attention_for_cpu", ()),
    ],
)
def test_attention_by_the_kernels_of_a_gpu(kernel, options):
    q, k, v = (t.half() for t in _qkv("meta", (C, C, C)))
    operation = getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}")
    with torch.no_grad():
        assert count_flops(lambda: operation(q, k, v, *options)) == 2 * B * HEADS * N * M * 2 * C


def test_zeros_that_a_kernel_adds_to_a_head_are_not_counted():
    q, k, v = (F.pad(t, (0, 3)) for t in _qkv("meta", (5, 5, 5)))
    flash = torch.ops.aten._scaled_dot_product_flash_attention
    with torch.no_grad():
        assert count_flops(lambda: flash(q, k, v, scale=5**-0.5)) == 2 * B * HEADS * N * M * 2 * 5
        assert count_flops(lambda: flash(q, k, v, scale=0.1)) == 2 * B * HEADS * N * M * 2 * 8


def test_heads_that_share_keys():
    q, k, v = _qkv()
    assert count_flops(lambda: _grouped(q, k, v)) == FORWARD


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("need_weights", [True, False])
def test_multi_head_attention_in_all_its_ways(mode, need_weights):
    channels, tokens = 16, 9
    layer = nn.MultiheadAttention(channels, 4, batch_first=True).eval()
    x = torch.randn(B, tokens, channels)
    with MODES[mode]():  # without gradients PyTorch takes a fused operation for the whole layer
        counted = count_flops(lambda: layer(x, x, x, need_weights=need_weights))
    assert counted == 2 * B * tokens * channels * (4 * channels + 2 * tokens)


@pytest.mark.parametrize("mode", MODES)
def test_a_transformer_layer_in_all_its_ways(mode):
    channels, tokens, hidden = 16, 9, 24
    layer = nn.TransformerEncoderLayer(channels, 4, hidden, batch_first=True).eval()
    with MODES[mode]():
        counted = count_flops(lambda: layer(torch.randn(B, tokens, channels)))
    assert counted == 2 * B * tokens * channels * (4 * channels + 2 * tokens + 2 * hidden)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_products(device, mode):
    layer = nn.Linear(5, 6, device=device)
    x, vector = torch.randn(3, 4, 5, device=device), torch.randn(5, device=device)
    with MODES[mode]():
        assert count_flops(lambda: layer(x)) == 2 * 3 * 4 * 5 * 6
        assert count_flops(lambda: layer(x[0])) == 2 * 4 * 5 * 6
        assert count_flops(lambda: x @ vector) == 2 * 3 * 4 * 5
        assert count_flops(lambda: vector @ vector) == 2 * 5
        assert count_flops(lambda: x @ x.mT) == 2 * 3 * 4 * 5 * 4
        assert count_flops(lambda: x.norm() + x.softmax(-1).sum() + F.layer_norm(x, (5,)).sum()) == 0


CONVOLUTIONS = [
    # layer, FLOPs of an 8x6 image: kernel, channels of its group, positions
    (nn.Conv2d(4, 6, 3, padding=1), 2 * 9 * 4 * 6 * 48),
    (nn.Conv2d(4, 6, 3, padding=1, groups=2), 2 * 9 * 2 * 6 * 48),
    (nn.Conv2d(4, 4, 3, padding=1, groups=4), 2 * 9 * 4 * 48),
    (nn.Conv2d(4, 6, 2, stride=2), 2 * 4 * 4 * 6 * 12),
    (nn.ConvTranspose2d(4, 6, 2, stride=2), 2 * 4 * 4 * 6 * 48),
    (nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), 2 * 4 * 2 * 6 * 48),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layer, expected", CONVOLUTIONS, ids=str)
def test_convolutions(layer, expected, mode):
    x = torch.randn(B, 4, 8, 6)
    with MODES[mode]():
        assert count_flops(lambda: layer(x)) == B * expected
    with MODES[mode](), torch.device("meta"):
        assert count_flops(lambda: type(layer).forward(layer.to("meta"), x.to("meta"))) == B * expected
    layer.to_empty(device="cpu")


@pytest.mark.parametrize("layer, expected", CONVOLUTIONS, ids=str)
def test_convolutions_backward(layer, expected):
    x = torch.randn(B, 4, 8, 6)
    assert count_flops(lambda: layer(x).sum().backward()) == 2 * B * expected  # the image needs no gradient
    x.requires_grad_()
    assert count_flops(lambda: layer(x).sum().backward()) == 3 * B * expected


def test_recomputed_blocks_count_twice():
    layer, x = nn.Linear(5, 6), torch.randn(3, 5, requires_grad=True)
    once = 2 * 3 * 5 * 6
    checkpoint = torch.utils.checkpoint.checkpoint
    assert count_flops(lambda: checkpoint(layer, x, use_reentrant=True).sum().backward()) == 4 * once


def test_an_unknown_operation_is_named():
    """As a new release may bring one; it would count as nothing."""
    library = torch.library.Library("e2net_tests", "DEF")
    library.define("fused_attention3(Tensor q) -> Tensor")
    library.define("upsample_linear3(Tensor q) -> Tensor")
    for name in ("fused_attention3", "upsample_linear3"):
        library.impl(name, lambda q: q.clone(), "CPU")
    x = torch.randn(2)
    with pytest.raises(NotImplementedError, match=r"e2net_tests::fused_attention3 are not known: expected one of"):
        count_flops(lambda: torch.ops.e2net_tests.fused_attention3(x))
    assert count_flops(lambda: torch.ops.e2net_tests.upsample_linear3(x)) == 0
    with torch.no_grad(), pytest.raises(NotImplementedError, match="aten::_cudnn_rnn"):
        count_flops(lambda: torch.ops.aten._cudnn_rnn)
        with FlopCounter():
            q = torch.empty(2, 3, 4, device="meta")
            torch.ops.aten._cudnn_rnn(q, [q], 1, None, q, None, 0, 4, 0, 1, False, 0.0, False, False, [], None)


@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("mode", MODES)
def test_an_encoder_by_all_its_implementations_is_what_the_listing_says(architecture, implementation, backend, mode):
    size = 4 * ARCHITECTURES[architecture]["patch_size"]
    model = hf_model(architecture)
    model.set_attn_implementation(implementation)
    encoder = ViTEncoder(model)
    image = torch.randn(2, 3, size, size)
    with MODES[mode](), sdpa_kernel(backend):
        counted = count_flops(lambda: encoder(image))
    assert counted == 2 * _listed(encoder_config(architecture), size)


def _listed(config, size):
    return _cost(_key({"_target_": "e2net.encoders.ViTEncoder.from_config", "config": config}), size).flop


def test_compare_counts_what_the_listing_does(tmp_path, monkeypatch):
    job = _job(tmp_path, "decoder=linear")
    config = {**job.module.config, "data": {"size": 64, "batch_size": 3}}
    monkeypatch.setattr(cost, "load_model", lambda _checkpoint: (job.module.model, config))
    assert cost._Workload(Path("any.ckpt"), torch.device("cpu")).count().flops == _listed_of(job) + _decoder(job)


def test_profile_counts_what_the_listing_does(tmp_path):
    """A frozen encoder is gone through forward only, the decoder three times."""
    job = _job(tmp_path, "decoder=linear", "tuning=frozen", "data.batch_size=3")
    forward = _decoder(job)
    assert _Loop(job).flops() == 3 * (_listed_of(job) + 3 * forward)


def _job(folder, *overrides):
    quick = ["size=64", "data.n_train=24", "data.num_workers=0", "trainer.accelerator=cpu", "trainer.precision=32-true"]
    return prepare_training(compose_training([*quick, f"run_dir={folder}", *overrides]))


def _listed_of(job):
    return _listed(job.module.config["encoder"]["config"], 64)


def _decoder(job):
    model = job.module.model
    with torch.no_grad():
        features = model.encoder(torch.rand(1, 3, 64, 64))
        return count_flops(lambda: model.decode(features, (64, 64)))
