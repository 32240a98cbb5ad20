"""What each tuning policy trains, what it leaves as it is, and what it costs."""

import copy
from functools import partial
from typing import Any, cast

import pytest
import torch
from conftest import encoder_config, hf_model
from torch import nn
from transformers import AutoConfig, AutoModel

from e2net.encoders import Adapters, ConvNeXtEncoder, Encoder, Frozen, Full, LoRA, Partial, ViTEncoder, merge_lora

WRONG: Any = 3
POLICIES = {"frozen": Frozen, "adapter": Adapters, "lora": LoRA, "partial": Partial, "full": Full}
TUNED = {name: make for name, make in POLICIES.items() if name != "frozen"}


def _convnext(norm=True):
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "dinov3_convnext", hidden_sizes=[8, 12, 16, 20], depths=[1, 2, 1, 1], layer_scale_init_value=0.5
    )
    return ConvNeXtEncoder(AutoModel.from_config(config), norm=norm, pretrained=True)


def _encoder(architecture, norm=True):
    if architecture == "convnext":
        return _convnext(norm)
    return ViTEncoder(hf_model(architecture), norm=norm, pretrained=True)


def _apply(policy, encoder):
    torch.manual_seed(1)
    policy.apply(encoder)
    return encoder


def _image(encoder, batch=1):
    torch.manual_seed(2)
    return torch.rand(batch, 3, 2 * encoder.size_multiple, 3 * encoder.size_multiple)


def _loss(encoder, image):
    return sum(m.square().mean() for m in encoder(image))


def _trained(encoder):
    return {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}


def _move(encoder, steps=2):
    """A few steps on what trains, large enough to show."""
    optimizer = torch.optim.Adam([p for p in encoder.parameters() if p.requires_grad], lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        _loss(encoder, _image(encoder)).backward()
        optimizer.step()


@pytest.fixture(params=["dinov3", "dinov2", "dinov2_registers", "convnext"])
def any_architecture(request):
    return request.param


@pytest.mark.parametrize("mode", ["adapter", "lora"])
def test_before_the_first_step_features_are_those_of_the_frozen_encoder(any_architecture, mode):
    frozen = _apply(Frozen(), _encoder(any_architecture))
    targets = ["pointwise_conv1"] if any_architecture == "convnext" else None
    tuned = _apply(Adapters() if mode == "adapter" else LoRA(targets=targets), _encoder(any_architecture))
    names = [n for n, _ in frozen.backbone.named_parameters()]
    assert [n.replace(".base_layer", "") for n, _ in tuned.backbone.named_parameters() if "lora_" not in n and
            ".adapter." not in n] == names  # fmt: skip
    expected, found = frozen(_image(frozen)), tuned(_image(frozen))
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    _move(tuned)
    assert not any(torch.equal(a, b) for a, b in zip(expected, tuned(_image(frozen)), strict=True))


def test_an_adapter_is_what_its_formula_says(any_architecture):
    plain = _apply(Frozen(), _encoder(any_architecture))
    encoder = _apply(Adapters(blocks=[3]), _encoder(any_architecture))
    adapter = encoder.layers()[3].adapter
    assert adapter.scale.item() == pytest.approx(1e-3) and not adapter.up.weight.any()
    width = adapter.norm.weight.numel()
    assert adapter.down.weight.shape == (width // 4, width) and adapter.down.bias is None and adapter.up.bias is None
    for parameter in adapter.parameters():
        nn.init.normal_(parameter, std=0.5)
    outputs = {}
    for name, one in (("plain", plain), ("adapted", encoder)):
        one.layers()[3].register_forward_hook(lambda _m, _i, out, name=name: outputs.update({name: out}))
        one(_image(one))
    hidden = outputs["plain"]
    tokens = hidden.permute(0, 2, 3, 1) if any_architecture == "convnext" else hidden
    normed = (tokens - tokens.mean(-1, keepdim=True)) / (tokens.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    inner = (normed * adapter.norm.weight + adapter.norm.bias) @ adapter.down.weight.T
    inner = inner * (1 + torch.erf(inner / 2**0.5)) / 2
    change = adapter.scale * (inner @ adapter.up.weight.T)
    expected = hidden + (change.permute(0, 3, 1, 2) if any_architecture == "convnext" else change)
    torch.testing.assert_close(outputs["adapted"], expected)


def test_adapters_sit_after_the_chosen_blocks():
    def places(blocks):
        encoder = _apply(Adapters(blocks=blocks), _encoder("dinov3"))
        return [i for i, layer in enumerate(encoder.layers()) if hasattr(layer, "adapter")]

    assert places([1, 3]) == [1, 3] and places(None) == [0, 1, 2, 3]


class _Tuple(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.norm1, self.block = block.norm1, block

    def forward(self, hidden, **kwargs):
        return self.block(hidden, **kwargs), "attention"


def test_adapter_after_a_block_that_returns_a_tuple():
    encoder = _encoder("dinov3")
    block = encoder.layers()[0]
    encoder.layers = lambda: [_Tuple(block)]
    (wrapped,) = layers = encoder.layers()
    encoder.layers = lambda: layers
    _apply(Adapters(), encoder)
    nn.init.normal_(wrapped.adapter.up.weight)
    hidden = torch.rand(1, 9, 32)
    position = (torch.ones(4, 8), torch.zeros(4, 8))
    changed, rest = wrapped(hidden, position_embeddings=position)
    before = block(hidden, position_embeddings=position)
    torch.testing.assert_close(changed, before + wrapped.adapter(before))
    assert rest == "attention"


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("mode", TUNED)
def test_a_copy_shares_nothing(mode, recompute):
    encoder = _apply(TUNED[mode](gradient_checkpointing=recompute), _encoder("dinov2"))
    twin = copy.deepcopy(encoder)
    before = [m.detach().clone() for m in twin(_image(twin))]
    _move(encoder)
    assert all(torch.equal(a, b) for a, b in zip(before, twin(_image(twin)), strict=True))
    assert not torch.equal(before[3], encoder(_image(twin))[3])
    _loss(twin, _image(twin)).backward()
    assert all(p.grad is not None for p in twin.parameters() if p.requires_grad)


@pytest.mark.parametrize("mode", POLICIES)
def test_what_trains_moves_and_all_else_stays(any_architecture, mode):
    encoder = _encoder(any_architecture)
    lora = LoRA(targets=["pointwise_conv1"]) if any_architecture == "convnext" else LoRA()
    _apply(lora if mode == "lora" else POLICIES[mode](), encoder)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    trained = _trained(encoder)
    if mode == "frozen":
        assert not trained and encoder.frozen
        return
    _move(encoder)
    moved = {k for k, v in encoder.state_dict().items() if not torch.equal(v, before[k])}
    # Adam moves a key's bias by rounding errors, as softmax cancels its gradient; in DINOv3 it has none.
    assert {n for n in trained ^ moved if "k_proj.bias" not in n and "key.bias" not in n} == set()


def test_partial_trains_the_last_blocks_and_the_norm_that_is_used(architecture):
    for norm in (True, False):
        encoder = _apply(Partial(last=2), _encoder(architecture, norm))
        kept = {p for block in encoder.layers()[2:] for p in block.parameters()}
        found = {n for n, p in encoder.named_parameters() if p.requires_grad and p not in kept}
        assert {n.split(".")[-2] for n in found} == (
            {"norm"} if architecture == "dinov3" else {"layernorm"}
        ) or not norm
        assert norm or not found
        assert all(p.requires_grad for p in kept)


def test_blocks_are_counted_among_those_that_run():
    config = encoder_config("dinov3") | {"num_hidden_layers": 8}
    encoder = _apply(Partial(last=1), ViTEncoder.from_config(config, blocks=[0, 1, 2, 4], norm=False))
    assert {n.split(".")[3] for n in _trained(encoder)} == {"4"}


def test_modes_follow_what_trains():
    """Only the trained parts are in train mode: DINOv3 would rescale its coordinates there."""
    for mode, make in POLICIES.items():
        encoder = _apply(make(), _encoder("dinov3"))
        encoder.eval()
        assert not any(m.training for m in encoder.modules())
        encoder.train()
        in_train = {m for m in encoder.modules() if m.training} - {encoder}
        assert in_train == {m for part in encoder.trained for m in part.modules()}
        assert encoder.backbone.rope_embeddings.training == (mode == "full")
        assert encoder.training == (mode != "frozen")
        image = _image(encoder)
        same = torch.equal(encoder(image)[3], encoder(image)[3])
        assert same == (mode != "full")


def test_lora_dropout_works_in_training_only():
    encoder = _apply(LoRA(dropout=0.5), _encoder("dinov2"))
    _move(encoder)
    image = _image(encoder)
    assert not torch.equal(encoder(image)[3], encoder(image)[3])
    encoder.eval()
    assert torch.equal(encoder(image)[3], encoder(image)[3])


@pytest.mark.parametrize(
    "targets, found",
    [
        (None, {"q_proj", "v_proj"}),
        (["o_proj"], {"o_proj"}),
        (["mlp.up_proj", "k_proj"], {"up_proj", "k_proj"}),
        (["layer.3.attention.q_proj"], {"q_proj"}),
    ],
)
def test_lora_targets(targets, found):
    encoder = _apply(LoRA(rank=2, targets=targets), _encoder("dinov3"))
    names = {n.partition(".lora_")[0] for n in _trained(encoder)}
    assert {n.rpartition(".")[2] for n in names} == found
    assert len(names) == (1 if targets and "3" in targets[0] else 4 * len(found))
    assert all(p.shape[0] == 2 for n, p in encoder.named_parameters() if "lora_A" in n)


def test_lora_by_default_takes_query_and_value_under_any_name():
    class Block(nn.Module):
        def __init__(self, *names):
            super().__init__()
            for name in (*names, "proj"):
                self.add_module(name, nn.Linear(8, 8))

    for names, expected in ((("query", "key", "value"), {"query", "value"}), (("qkv",), {"qkv"})):
        block = Block(*names)
        encoder = Encoder(nn.Sequential(block, nn.Linear(8, 8)), (0,) * 3, (1,) * 3, 1, True)
        encoder.layers = partial(list, [block])
        _apply(LoRA(), encoder)
        assert {n.split(".")[2] for n in _trained(encoder)} == expected


def test_lora_says_what_there_is():
    with pytest.raises(ValueError, match=r"found qkv; choose from: down_proj, k_proj, o_proj, q_proj, up_proj, v_proj"):
        LoRA(targets=["q_proj", "qkv"]).apply(_encoder("dinov3"))
    with pytest.raises(ValueError, match=r"query and value, .* linear layers: pointwise_conv1, pointwise_conv2"):
        LoRA().apply(_encoder("convnext"))


def test_merged_lora_gives_the_same_features_from_plain_layers(architecture):
    encoder = _apply(LoRA(rank=4), _encoder(architecture))
    _move(encoder)
    encoder.eval()
    expected = [m.detach() for m in encoder(_image(encoder))]
    merge_lora(encoder)
    plain = _encoder(architecture)
    assert list(encoder.state_dict()) == list(plain.state_dict())
    assert [type(m) for m in encoder.modules()] == [type(m) for m in plain.modules()]
    for a, b in zip(expected, encoder(_image(encoder)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert encoder.frozen and not encoder.pretrained and not _trained(encoder)
    with pytest.raises(ValueError, match="no LoRA updates to merge"):
        merge_lora(encoder)


@pytest.mark.parametrize("mode", TUNED)
def test_recomputation_gives_the_same_gradients_from_less_memory(any_architecture, mode):
    """Counted are the distinct tensors that autograd keeps, and the blocks' inputs, which it keeps in their stead."""
    found = {}
    for recompute in (False, True):
        encoder = _encoder(any_architecture)
        options: dict[str, Any] = {}
        if mode == "partial":
            options["last"] = 3
        if mode == "lora":  # dropout, too, must be the same the second time
            options |= {"dropout": 0.3, "targets": ["pointwise_conv1"] if any_architecture == "convnext" else None}
        _apply(TUNED[mode](gradient_checkpointing=recompute, **options), encoder)
        for name, parameter in encoder.named_parameters():
            if name.endswith(("adapter.up.weight", "lora_B.default.weight")):
                nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
        kept = {}

        def pack(tensor, kept=kept):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        def note_input(_block, inputs, pack=pack):
            pack(inputs[0])

        hooks = [layer.register_forward_pre_hook(note_input) for layer in encoder.layers()]
        weights = {p.untyped_storage().data_ptr() for p in encoder.parameters()}
        torch.manual_seed(3)  # for dropout, and DINOv3's random coordinates in full tuning
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss = _loss(encoder, _image(encoder, 2))
        for hook in hooks:
            hook.remove()
        loss.backward()
        gradients = {n: p.grad for n, p in encoder.named_parameters() if p.requires_grad}
        found[recompute] = sum(size for place, size in kept.items() if place not in weights), gradients
    (most, plain), (least, recomputed) = found[False], found[True]
    assert least < 0.6 * most
    assert plain.keys() == recomputed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-6, atol=1e-7, msg=name)


@pytest.mark.parametrize("mode", TUNED)
def test_recomputation_changes_no_feature(mode):
    image = _image(_encoder("dinov3"))
    maps = []
    for recompute in (False, True):
        encoder = _apply(TUNED[mode](gradient_checkpointing=recompute), _encoder("dinov3")).eval()
        with torch.no_grad():
            maps.append(encoder(image))
        assert all(torch.equal(a, b) for a, b in zip(maps[-1], encoder(image), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(*maps, strict=True))


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Full(lr_scale=0.0), "tuning.lr_scale must be positive, found 0.0"),
        (lambda: Full(layer_decay=1.5), r"tuning.layer_decay must be in \(0, 1\], found 1.5"),
        (lambda: Full(layer_decay=0.0), "tuning.layer_decay"),
        (lambda: Partial(last=0), "tuning.last must be at least 1, found 0"),
        (lambda: Partial(last=5).apply(_encoder("dinov3")), "tuning.last must be at most 4, .* found 5"),
        (lambda: Adapters(reduction=0), "reduction must be at least 1"),
        (lambda: Adapters(scale=0.0), "scale above 0, .*found 4 and 0.0"),
        (lambda: Adapters(blocks=[3, 6]).apply(_encoder("dinov3")), r"indices below 4, .* found \[3, 6\]"),
        (lambda: Adapters(blocks=[1, 1]).apply(_encoder("dinov3")), "must be a list of different"),
        (lambda: Adapters(blocks=WRONG).apply(_encoder("dinov3")), "must be a list of different .* found 3; give null"),
        (lambda: Adapters(blocks=[cast(Any, 1.5)]).apply(_encoder("dinov3")), r"found \[1.5\]"),
        (lambda: Adapters(blocks=[]).apply(_encoder("dinov3")), r"found \[\]; give null for all"),
        (lambda: Adapters(blocks=[-1]).apply(_encoder("dinov3")), r"found \[-1\]"),
        (lambda: Adapters(reduction=64).apply(_encoder("dinov3")), "at most the width 32, found 64"),
        (lambda: LoRA(rank=0), "rank must be at least 1"),
        (lambda: LoRA(alpha=0.0), "alpha positive"),
        (lambda: LoRA(dropout=1.0), r"dropout in \[0, 1\)"),
        (lambda: LoRA(targets=[]), "must be a list of names .* found none; give null for query and value"),
        (lambda: LoRA(targets="q_proj"), "must be a list of names .* found q_proj; give null"),
    ],
)
def test_impossible_values(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_adapter_needs_a_width():
    encoder = Encoder(nn.Sequential(nn.Linear(4, 4)), (0,) * 3, (1,) * 3, 1, True)
    encoder.layers = lambda: list(encoder.backbone.children())
    with pytest.raises(ValueError, match="Linear has no norm layer to read the width from"):
        Adapters().apply(encoder)
