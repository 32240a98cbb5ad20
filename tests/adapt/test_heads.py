import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from e2net.adapt.heads import PrototypeHead


def _head(**settings):
    torch.manual_seed(0)
    head = PrototypeHead(6, 7, **{"hidden": 5, "bottleneck": 4, **settings}).double()
    for parameter in head.parameters():  # large enough that each of them matters
        nn.init.normal_(parameter)
    return head


def _linear(weight, bias, row):
    return [sum(w * x for w, x in zip(ws, row, strict=True)) + b for ws, b in zip(weight, bias, strict=True)]


def _unit(row):
    length = math.sqrt(sum(x * x for x in row))
    return [x / length for x in row]


def _loop(head, row, layers, weight_norm):
    state = {name: value.tolist() for name, value in head.state_dict().items()}
    for layer in range(layers):
        row = _linear(state[f"mlp.{2 * layer}.weight"], state[f"mlp.{2 * layer}.bias"], row)
        if layer < layers - 1:
            row = [x * 0.5 * (1 + math.erf(x / math.sqrt(2))) for x in row]
    prototypes = state["last_layer.weight"]
    if weight_norm:
        prototypes = [_unit(prototype) for prototype in prototypes]
    return _linear(prototypes, [0] * len(prototypes), _unit(row))


@pytest.mark.parametrize("weight_norm", [False, True])
@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_logits_are_those_of_a_loop(layers, weight_norm):
    head, tokens = _head(layers=layers, weight_norm=weight_norm), torch.randn(2, 3, 6, dtype=torch.float64)
    expected = [[_loop(head, row, layers, weight_norm) for row in rows] for rows in tokens.tolist()]
    torch.testing.assert_close(head(tokens), torch.tensor(expected, dtype=torch.float64))
    assert torch.autograd.gradcheck(head, tokens.requires_grad_())
    assert head(tokens[0]).shape == (3, 7) and head(tokens[:, :0]).shape == (2, 0, 7)


def test_published_sizes():
    """DINOv2's: three layers of 2048, a bottleneck of 256, 65,536 prototypes and one bias less."""
    with torch.device("meta"):
        head = PrototypeHead(768, 65536)
    assert [tuple(p.shape) for p in head.parameters()] == [
        *((2048, 768), (2048,), (2048, 2048), (2048,), (256, 2048), (256,)),
        (65536, 256),
    ]


def test_weight_norm_is_torchs_with_a_gain_of_one():
    """In value, and in the gradient of what it norms; there is no gain that could be trained."""
    head = _head(weight_norm=True)
    features = F.normalize(torch.randn(3, 4, dtype=torch.float64), dim=1)
    normed = nn.utils.parametrizations.weight_norm(copy.deepcopy(_plain(head.last_layer)))
    nn.init.ones_(normed.parametrizations.weight.original0)
    for layer in (head.last_layer, normed):
        layer(features).square().sum().backward()
    torch.testing.assert_close(head.last_layer(features), normed(features))
    torch.testing.assert_close(head.last_layer.weight.grad, normed.parametrizations.weight.original1.grad)
    assert [name for name, _ in head.last_layer.named_parameters()] == ["weight"]
    assert head(torch.randn(9, 6, dtype=torch.float64) * 100).abs().max() <= 1


def _plain(layer):
    plain = nn.Linear(layer.in_features, layer.out_features, bias=False).double()
    plain.load_state_dict(layer.state_dict())
    return plain


@pytest.mark.parametrize("weight_norm", [False, True])
def test_last_layer_can_be_kept(weight_norm):
    head = _head(weight_norm=weight_norm)
    before = copy.deepcopy(head.state_dict())
    optimiser = torch.optim.AdamW(head.parameters(), lr=0.1, weight_decay=0.1)
    for kept in (True, False):
        head.last_layer.requires_grad_(not kept)
        optimiser.zero_grad()
        head(torch.randn(3, 6, dtype=torch.float64)).square().sum().backward()
        optimiser.step()
        moved = {name for name, value in head.state_dict().items() if not torch.equal(value, before[name])}
        assert moved == set(before) - ({"last_layer.weight"} if kept else set())


def test_starts_small_and_without_biases():
    torch.manual_seed(0)
    head = PrototypeHead(64, 512)
    for name, parameter in head.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        else:
            assert float(parameter.detach().std()) == pytest.approx(0.02, rel=0.05)


def test_half_precision():
    """Logits are near those of float32; the length of features that a float16 can hardly hold is right."""
    torch.manual_seed(0)
    head: Any = PrototypeHead(32, 64)
    tokens = torch.randn(16, 32)
    with torch.autocast("cpu", torch.bfloat16):
        half = head(tokens)
    whole = head(tokens)
    assert half.dtype == torch.bfloat16 and whole.dtype == torch.float32
    assert (half - whole).abs().max() < 0.02 * whole.abs().max()

    head.mlp = nn.Identity()
    head.last_layer = nn.Linear(32, 64, bias=False)
    small = tokens * 1e-7
    expected = head(small.half().float())
    found = head.half()(small.half())
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("setting", ["width", "prototypes", "hidden", "bottleneck", "layers"])
def test_sizes_are_checked(setting):
    sizes: dict[str, Any] = {"width": 6, "prototypes": 7, setting: 0}
    with pytest.raises(ValueError, match=f"expected {setting} of at least . found 0".replace(". f", ".* f")):
        PrototypeHead(**sizes)
