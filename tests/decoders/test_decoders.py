from typing import Any

import pytest
import torch
import torch.nn.functional as F

from e2net.decoders import (
    CAEM,
    CCM,
    CFZM,
    LFSM,
    CAEMDecoder,
    DPTDecoder,
    E2NetDecoder,
    LinearDecoder,
    Pyramid,
    UPerNetDecoder,
)
from e2net.decoders.layers import Fuse, TransformerBlock, attend, convolve, resize
from e2net.decoders.upernet import PyramidPooling
from e2net.flops import FlopCounter

DECODERS = [E2NetDecoder, CAEMDecoder, DPTDecoder, UPerNetDecoder]
PATCHES = {"patch 16": (16, (96, 160)), "patch 14": (14, (84, 126))}


def _features(patch, size, channels=24, batch=2):
    torch.manual_seed(0)
    return [torch.randn(batch, channels, size[0] // patch, size[1] // patch) for _ in range(4)]


@pytest.fixture(params=PATCHES)
def patch_and_size(request):
    return PATCHES[request.param]


def _assert_everything_trains(module, features, size):
    output = module(features, size)
    assert output.prediction.shape == (len(features[0]), 1, *size)
    sum(m.square().mean() for m in output.maps()).backward()
    assert [n for n, p in module.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("pyramid", ["standard", "simple"])
@pytest.mark.parametrize("decoder", DECODERS)
def test_logits_have_the_images_size_and_everything_trains(decoder, pyramid, patch_and_size):
    patch, size = patch_and_size
    torch.manual_seed(0)
    module = decoder((24,) * 4, (patch,) * 4, width=64, pyramid=pyramid)
    _assert_everything_trains(module, _features(patch, size), size)


@pytest.mark.parametrize("pyramid", ["standard", "simple"])
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("size", [(96, 160), (100, 140)], ids=str)
def test_maps_of_strides_4_to_32_and_sizes_that_32_does_not_divide(decoder, pyramid, size):
    torch.manual_seed(0)
    channels, strides = (12, 24, 48, 96), (4, 8, 16, 32)
    features = [torch.randn(2, c, size[0] // s, size[1] // s) for c, s in zip(channels, strides, strict=True)]
    _assert_everything_trains(decoder(channels, strides, width=128, pyramid=pyramid), features, size)


@pytest.mark.parametrize("pyramid", ["standard", "simple"])
@pytest.mark.parametrize("decoder", DECODERS)
def test_convolutions_are_channels_last(decoder, pyramid):
    """Maps made of tokens are channels-last; nothing on the way may copy them into another layout."""
    module = decoder((24,) * 4, (16,) * 4, width=16, pyramid=pyramid)
    seen = []
    for conv in (m for m in module.modules() if isinstance(m, torch.nn.Conv2d)):
        conv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    module([torch.randn(2, 8, 6, 24).permute(0, 3, 1, 2) for _ in range(4)], (128, 96))
    maps = [m for m in seen if m[0, 0].numel() > 1]
    assert len(maps) >= 6 and all(m.is_contiguous(memory_format=torch.channels_last) for m in maps)


@pytest.mark.parametrize("decoder", DECODERS)
def test_trains_on_a_single_image(decoder):
    """BatchNorm cannot be trained on one pooled value, so no decoder may have one there."""
    module = decoder((24,) * 4, (16,) * 4, width=16)
    assert module.train()(_features(16, (64, 96), batch=1), (64, 96)).prediction.isfinite().all()


def test_linear_is_one_convolution_over_the_concatenation(patch_and_size):
    patch, size = patch_and_size
    module: Any = LinearDecoder((24,) * 4, (patch,) * 4).eval()
    features = _features(patch, size)
    weight = torch.cat([p[1].weight for p in module.probes], dim=1)
    bias = sum(p[1].bias for p in module.probes)
    normed = torch.cat([p[0](f) for p, f in zip(module.probes, features, strict=True)], dim=1)
    expected = resize(F.conv2d(normed, weight, bias), size)
    torch.testing.assert_close(module(features, size).prediction, expected)


def test_outputs_are_logits_not_probabilities():
    module: Any = E2NetDecoder((24,) * 4, (16,) * 4, width=16)
    torch.nn.init.constant_(module.lfsm.head[1].bias, -7.0)
    torch.nn.init.constant_(module.ccm.head[1].bias, -7.0)
    for head in module.cfzm.heads:
        torch.nn.init.constant_(head.bias, -7.0)
    output = module(_features(16, (64, 64)), (64, 64))
    assert all(m.max() < 0 for m in output.maps())


def test_standard_pyramid_strides_at_384():
    features = [torch.randn(1, 8, 24, 24) for _ in range(4)]
    shapes = [tuple(m.shape[-2:]) for m in Pyramid("standard", (16,) * 4)(features, (384, 384))]
    assert shapes == [(96, 96), (48, 48), (24, 24), (12, 12)]
    simple = Pyramid("simple", (16,) * 4)(features, (384, 384))
    assert all(a is b for a, b in zip(simple, features, strict=True))
    with pytest.raises(ValueError, match="pyramid must be 'standard' or 'simple', found 'fpn'"):
        Pyramid("fpn", (16,) * 4)  # type: ignore[arg-type]  # what is refused


def test_reducing_channels_before_resampling_changes_nothing():
    """The reason why CAEM resamples after its 1x1 convolutions."""
    caem = CAEM((24,) * 4, (16,) * 4, 16, "standard").eval()
    features = _features(16, (96, 160))
    resampled = caem.pyramid(features, (96, 160))
    late = [conv(f) for conv, f in zip(caem.lateral, resampled, strict=True)]
    early = caem.pyramid([conv(f) for conv, f in zip(caem.lateral, features, strict=True)], (96, 160))
    for a, b in zip(early, late, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_caem_fuses_from_coarse_to_fine():
    caem = CAEM((24,) * 4, (16,) * 4, 16, "simple").eval()
    features = _features(16, (64, 64))
    before = caem(features, (64, 64))
    features[0] = features[0] + 1  # F1 reaches G1 alone
    changed = [not torch.equal(a, b) for a, b in zip(before, caem(features, (64, 64)), strict=True)]
    assert changed == [True, False, False, False]
    features[3] = features[3] + 1  # F4 reaches all
    assert all(not torch.equal(a, b) for a, b in zip(before, caem(features, (64, 64)), strict=True))


@pytest.mark.parametrize("size", [(6, 6), (12, 9), (24, 24), (3, 4)], ids=str)
def test_fuse_is_a_convolution_over_the_concatenation_of_resampled_maps(size):
    fuse = Fuse(8).eval()
    coarse, fine = torch.randn(2, 8, 3, 3), torch.randn(2, 8, 6, 6)
    weight = torch.cat([fuse.coarse.weight, fuse.fine.weight], dim=1)
    expected = F.relu(fuse.norm(F.conv2d(torch.cat([resize(coarse, size), resize(fine, size)], 1), weight, padding=1)))
    torch.testing.assert_close(fuse(coarse, fine, size), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize(
    "before, after", [((6, 6), (24, 24)), ((5, 7), (13, 15)), ((1, 3), (4, 12)), ((9, 6), (18, 16))]
)
def test_convolving_before_upsampling_gives_the_same(before, after, kernel, bias):
    """Values and gradients, also at the edges and for sizes that are no multiples."""
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(32, 24, kernel, padding=kernel // 2, bias=bias)
    found = []
    for run in (lambda x: convolve(conv, x, after), lambda x: conv(resize(x, after))):
        conv.zero_grad()
        x = torch.randn(2, 32, *before, generator=torch.Generator().manual_seed(0), requires_grad=True)
        with FlopCounter() as flops:
            y = run(x)
        y.square().mean().backward()
        found.append((y, x.grad, *(p.grad.clone() for p in conv.parameters()), flops.total))
    assert found[0][-1] < found[1][-1]
    for a, b in zip(*(f[:-1] for f in found), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("after", [(3, 4), (3, 12), (6, 6), (6, 7), (6, 12)], ids=str)
def test_where_convolving_first_gains_nothing_the_plain_order_is_taken(after):
    conv, x = torch.nn.Conv2d(8, 8, 3, padding=1), torch.randn(1, 8, 6, 6)
    assert torch.equal(convolve(conv, x, after), conv(resize(x, after)))


@pytest.mark.parametrize("decoder", [E2NetDecoder, CAEMDecoder, UPerNetDecoder])
def test_logits_are_those_of_upsampling_first(decoder, patch_and_size, monkeypatch):
    """The fast path against the plain one, with every level at its own stride."""
    patch, size = patch_and_size
    torch.manual_seed(0)
    module = decoder((24,) * 4, (patch,) * 4, width=64, pyramid="standard").eval()
    fast = module(_features(patch, size), size).prediction
    plain = []
    for place in ("layers", "caem", "upernet"):
        monkeypatch.setattr(
            f"e2net.decoders.{place}.convolve", lambda conv, x, s: plain.append(s) or conv(resize(x, s))
        )
    torch.testing.assert_close(fast, module(_features(patch, size), size).prediction, rtol=0, atol=1e-5)
    assert plain


def _aligned(decoder, align, pyramid, **options):
    torch.manual_seed(0)
    return decoder((24,) * 4, (16,) * 4, width=16, pyramid=pyramid, align=align, **options).eval()


@pytest.mark.parametrize("decoder", [E2NetDecoder, CAEMDecoder])
def test_unified_alignment_is_the_same_where_all_levels_have_one_size(decoder):
    native, unified = (_aligned(decoder, align, "simple") for align in ("native", "unified"))
    unified.load_state_dict(native.state_dict())
    a, b = (m(_features(16, (96, 160)), (96, 160)) for m in (native, unified))
    torch.testing.assert_close(a.prediction, b.prediction, rtol=0, atol=1e-5)


@pytest.mark.parametrize("decoder", [E2NetDecoder, CAEMDecoder])
def test_unified_alignment_differs_in_the_levels_sizes(decoder):
    size, features = (96, 160), _features(16, (96, 160))
    native, unified = (_aligned(decoder, align, "standard") for align in ("native", "unified"))
    unified.load_state_dict(native.state_dict())
    assert [g.shape[-2:] for g in native.caem(features, size)] == [(24, 40), (12, 20), (6, 10), (3, 5)]
    assert [g.shape[-2:] for g in unified.caem(features, size)] == [(24, 40)] * 4
    a, b = (m(features, size).prediction for m in (native, unified))
    assert a.shape == b.shape and not torch.equal(a, b)
    with pytest.raises(ValueError, match="align must be 'native' or 'unified', found 'both'"):
        _aligned(decoder, "both", "simple")


def test_unified_caem_is_upsampling_first_then_convolution_over_the_concatenation():
    caem: Any = CAEM((24,) * 4, (16,) * 4, 16, "standard", align="unified").eval()
    size, features = (96, 160), _features(16, (96, 160))
    maps = [resize(f, s) for f, s in zip(features, caem.pyramid.sizes(*size), strict=True)]
    f1, f2, f3, g4 = (resize(conv(m), (24, 40)) for conv, m in zip(caem.lateral, maps, strict=True))
    expected = [g4]
    for fuse, fine in zip(caem.fuse, (f3, f2, f1), strict=True):
        weight = torch.cat([fuse.coarse.weight, fuse.fine.weight], dim=1)
        expected.insert(0, F.relu(fuse.norm(F.conv2d(torch.cat([expected[0], fine], 1), weight, padding=1))))
    for a, b, enhance in zip(caem(features, size), expected, caem.enhance, strict=True):
        torch.testing.assert_close(a, enhance(b), rtol=1e-4, atol=1e-5)


def test_dpt_is_its_definition_where_nothing_is_resampled():
    """Ranftl et al. 2021: level through a residual unit, plus what came from below, through another one."""
    module: Any = DPTDecoder((24,) * 4, (16,) * 4, width=16, pyramid="simple").eval()
    features = _features(16, (64, 96))
    f1, f2, f3, f4 = (conv(f) for conv, f in zip(module.project, features, strict=True))
    x = module.fuse[3](f4)
    for i, f in ((2, f3), (1, f2), (0, f1)):
        x = module.fuse[i](x + f + module.adapt[i].residual(f))
    torch.testing.assert_close(module(features, (64, 96)).prediction, resize(module.head(x), (64, 96)))


def test_upernet_is_its_definition_where_nothing_is_resampled():
    """Xiao et al. 2018: 3x3 convolutions of the top-down sums, then one over all levels concatenated."""
    module: Any = UPerNetDecoder((24,) * 4, (16,) * 4, width=16, pyramid="simple").eval()
    features = _features(16, (64, 96))
    l1, l2, l3, l4 = (conv(f) for conv, f in zip(module.lateral, features, strict=True))
    p4 = module.pool(l4)
    p3, p2, p1 = l3 + p4, l2 + l3 + p4, l1 + l2 + l3 + p4
    levels = [F.relu(module.norms[i](module.smooth[i](p))) for i, p in enumerate((p1, p2, p3))] + [p4]
    weight = torch.cat([conv.weight for conv in module.fuse], dim=1)
    expected = resize(module.head(F.conv2d(torch.cat(levels, 1), weight, padding=1)), (64, 96))
    torch.testing.assert_close(module(features, (64, 96)).prediction, expected, rtol=1e-4, atol=1e-5)


def test_pyramid_pooling_is_a_convolution_over_the_upsampled_means():
    pool: Any = PyramidPooling(8).eval()
    x = torch.randn(2, 8, 12, 6)
    means = [F.adaptive_avg_pool2d(x, bins) for bins in (1, 2, 3, 6)]
    maps = [resize(F.relu(branch[1](m)), (12, 6)) for branch, m in zip(pool.context, means, strict=True)]
    weight = torch.cat([branch[3].weight for branch in pool.context], dim=1)
    expected = F.relu(pool.norm(pool.conv(x) + F.conv2d(torch.cat(maps, 1), weight)))
    torch.testing.assert_close(pool(x), expected, rtol=1e-4, atol=1e-5)


def test_attention_equals_the_formula_with_fewer_keys_than_queries():
    q, k, v = torch.randn(2, 10, 12), torch.randn(2, 4, 12), torch.randn(2, 4, 12)
    expected = torch.empty_like(q)
    for head in range(3):
        part = slice(4 * head, 4 * head + 4)
        scores = (q[..., part] @ k[..., part].transpose(1, 2) / 2).softmax(-1)
        expected[..., part] = scores @ v[..., part]
    torch.testing.assert_close(attend(q, k, v, 3), expected)


def test_transformer_block_equals_torchs_own():
    ours: Any = TransformerBlock(16, heads=4)
    theirs = torch.nn.TransformerEncoderLayer(16, 4, 64, 0.0, "gelu", batch_first=True, norm_first=True)
    names = {
        "self_attn.in_proj_weight": ours.qkv.weight, "self_attn.in_proj_bias": ours.qkv.bias,
        "self_attn.out_proj.weight": ours.proj.weight, "self_attn.out_proj.bias": ours.proj.bias,
        "linear1.weight": ours.mlp[0].weight, "linear1.bias": ours.mlp[0].bias,
        "linear2.weight": ours.mlp[2].weight, "linear2.bias": ours.mlp[2].bias,
        "norm1.weight": ours.norm1.weight, "norm1.bias": ours.norm1.bias,
        "norm2.weight": ours.norm2.weight, "norm2.bias": ours.norm2.bias,
    }  # fmt: skip
    theirs.load_state_dict({k: v.detach() for k, v in names.items()})
    x = torch.randn(2, 9, 16)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_cfzm_zooms_where_the_coarse_map_is_high():
    cfzm = CFZM(8).eval()
    maps = [torch.randn(1, 8, 4, 4) for _ in range(4)]
    closed, refined = cfzm(maps, torch.full((1, 1, 2, 2), -50.0))
    opened, _ = cfzm(maps, torch.full((1, 1, 2, 2), 50.0))
    for i, zoom in enumerate(cfzm.zoom):
        torch.testing.assert_close(closed[i], zoom(maps[i]))
        torch.testing.assert_close(opened[i], zoom(2 * maps[i]))
    assert [tuple(r.shape) for r in refined] == [(1, 1, 4, 4)] * 4


def test_lfsm_sees_the_whole_scene():
    lfsm = LFSM(16).eval()
    g4 = torch.randn(1, 16, 6, 6)
    before = lfsm(g4)[1]
    g4[..., 0, 0] = torch.randn(16)
    assert (lfsm(g4)[1] - before)[..., -1, -1].abs().item() > 1e-6


def test_ccm_stops_doubling_at_stride_4():
    ccm = CCM(16).eval()
    maps = [torch.randn(1, 16, 6, 6) for _ in range(4)]
    assert ccm(maps, (96, 96)).shape[-2:] == (24, 24)
    fine = [torch.randn(1, 16, s, s) for s in (24, 12, 6, 3)]
    assert ccm(fine, (96, 96)).shape[-2:] == (24, 24)
    assert ccm([torch.randn(1, 16, 6, 9)] * 4, (84, 126)).shape[-2:] == (21, 32)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match=r"multiple of decoder.heads, found 20 and 8"):
        E2NetDecoder((24,) * 4, (16,) * 4, width=20)


@pytest.mark.parametrize(
    ("decoder", "option"),
    [
        *((E2NetDecoder, o) for o in ({"search_depth": 2}, {"heads": 4}, {"dropout": 0.5})),
        *((decoder, {"width": 32}) for decoder in DECODERS),
        *((decoder, {"pyramid": "simple"}) for decoder in DECODERS),
        *((decoder, {"align": "unified"}) for decoder in (E2NetDecoder, CAEMDecoder)),
    ],
    ids=str,
)
def test_every_option_changes_the_output(decoder, option):
    without_dropout = {"dropout": 0.0} if decoder is E2NetDecoder else {}

    def logits(**options):
        torch.manual_seed(0)
        module = decoder((24,) * 4, (16,) * 4, **({"width": 16, "pyramid": "standard"} | without_dropout | options))
        torch.manual_seed(1)
        return module(_features(16, (64, 64)), (64, 64)).prediction

    assert torch.equal(logits(), logits())
    assert not torch.equal(logits(), logits(**option))
