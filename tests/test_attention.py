"""Attention against its formula in float64, in each way that it is computed, and in models that use it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from e2net import attention as ways
from e2net.attention import attention
from e2net.encoders import ViTEncoder


def plain(query, key, value):
    """Query by query, softmax(q·k / √c)·v in float64."""
    query, key, value = query.double(), key.double(), value.double()
    rows = []
    for q in query.unbind(2):
        weights = torch.exp((key * q[:, :, None]).sum(-1) / q.shape[-1] ** 0.5)
        rows.append((weights[..., None] * value).sum(2) / weights.sum(-1)[..., None])
    return torch.stack(rows, 2)


# Relative to the result's size: of each type some roundings.
TYPES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.03, torch.float16: 0.004}


@pytest.mark.parametrize("dtype", TYPES)
@given(shape=st.tuples(*[st.integers(1, 4)] * 2, *[st.integers(1, 12)] * 3), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_result_and_gradients_are_those_of_the_formula(dtype, shape, seed):
    batch, heads, n, m, channels = shape
    generator = torch.Generator().manual_seed(seed)
    given_ = [torch.randn(batch, heads, k, channels, generator=generator).to(dtype) for k in (n, m, m)]
    ours, theirs = ([x.to(t, copy=True).requires_grad_() for x in given_] for t in (dtype, torch.float64))
    results = attention(*ours), plain(*theirs)
    assert results[0].shape == (batch, heads, n, channels) and results[0].dtype == dtype
    for result in results:
        result.sum().backward()
    for a, b in zip([results[0], *(x.grad for x in ours)], [results[1], *(x.grad for x in theirs)], strict=True):
        assert (a.double() - b).norm() <= TYPES[dtype] * (b.norm() + 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_large_matrix_is_left_to_the_kernel_that_does_not_hold_it(dtype, monkeypatch):
    x = torch.randn(1, 2, 30, 8, dtype=dtype)
    small = attention(x, x, x)
    monkeypatch.setattr(ways, "_MOST", 2 * 30 * 30 - 1)
    called = []
    kernel = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(ways.F, "scaled_dot_product_attention", lambda *x: called.append(1) or kernel(*x))
    torch.testing.assert_close(attention(x, x, x), small, atol=0.02, rtol=0)
    assert called


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "dinov2"},
        {"model_type": "dinov3_vit", "num_register_tokens": 2},
        {"model_type": "siglip_vision_model", "image_size": 64},
        {"model_type": "vit", "image_size": 64},
    ],
    ids=lambda config: config["model_type"],
)
def test_encoders_attend_by_it(config, monkeypatch):
    """In bf16 by plain products, whose features lie as near to float32's as the kernel's do."""
    shape = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "patch_size": 16}
    torch.manual_seed(0)
    encoder = ViTEncoder.from_config({**shape, **config}).eval()
    image = torch.rand(2, 3, 64, 96)
    called = []
    kernel = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(ways.F, "scaled_dot_product_attention", lambda *x: called.append(1) or kernel(*x))
    with torch.no_grad():
        exact = encoder(image)
        assert len(called) == 4
        with torch.autocast("cpu", torch.bfloat16):
            half = encoder(image)
            assert len(called) == 4
            monkeypatch.setattr(ways, "_MOST", 0)
            fused = encoder(image)
            assert len(called) == 8
    for level in range(4):
        error, usual = ((x[level].float() - exact[level]).norm() / exact[level].norm() for x in (half, fused))
        assert error < 1.5 * usual + 1e-3
