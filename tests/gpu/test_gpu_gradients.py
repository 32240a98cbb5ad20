"""Every decoder, loss, neck, encoder and tuning on a device of its own: nothing on another one, no idle weight.

The device is ``meta``, which computes shapes and no values. A tensor that a forward pass makes on the CPU meets the
others there as it would on a GPU: with an error. And several processes wait for the gradient of every parameter that
trains: one that gets none stops them all (``find_unused_parameters`` would hide it, at the cost of a pass).
"""

import copy
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, encoder_config
from transformers import AutoConfig, AutoModel

from e2net.decoders import E2NetDecoder, LinearDecoder
from e2net.encoders import ConvNeXtEncoder, Frozen, ViTEncoder
from e2net.evaluation.scales import RandomScale
from e2net.losses import Criterion
from e2net.model import DenseModel
from e2net.runs import build
from e2net.structures import Encoded
from e2net.tasks import Camouflage
from e2net.training.step import leave_out_unused, step

META = torch.device("meta")
ENDS = ("alpha", "v5")


def _options(group):
    return sorted(Path(file).stem for file in (ROOT / "conf" / group).glob("*.yaml"))


def _config(group, option):
    """A file of a group, on top of those that it begins with."""
    content = yaml.safe_load((ROOT / "conf" / group / f"{option}.yaml").read_text())
    base = [_config(group, name) for name in content.pop("defaults", [])]
    return {key: value for part in (*base, content) for key, value in part.items()}


@pytest.fixture(scope="module")
def groups():
    found = {group: {o: _config(group, o) for o in _options(group)} for group in ("loss", "tuning", "neck", "decoder")}
    found["loss"] = {name: loss for name, loss in found["loss"].items() if loss["_target_"] == "e2net.losses.Criterion"}
    return found


@pytest.fixture(autouse=True)
def _autocast(monkeypatch):
    """``meta`` has no autocast of its own to switch off."""
    original = torch.autocast
    monkeypatch.setattr(torch, "autocast", lambda kind, *a, **k: original("cpu" if kind == "meta" else kind, *a, **k))


def idle(model, criterion, size=(32, 32), image=None):
    """Names of parameters that train and get no gradient in a step on ``meta``."""
    leave_out_unused(model, criterion)
    model.train()
    image = torch.rand(2, 3, *size, device=META) if image is None else image
    losses = step(model, image, torch.ones(2, 1, *size, device=META), criterion)
    assert all(value.device.type == "meta" for value in losses.values())
    losses["loss"].backward()
    names = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    model.zero_grad()
    return names


@pytest.mark.parametrize("decoder", _options("decoder"))
def test_every_decoder_under_every_loss_and_neck(decoder, groups):
    """And every one of F1..F4 gets a gradient, so that what is tuned behind them does: see the next test.

    A loss meets what comes out of a decoder, a neck what goes in: every loss without a neck, every neck with two losses
    (one looks at all maps, the other not at the refined ones).
    """
    options, tried = groups["decoder"][decoder] | ({"width": 16} if decoder != "linear" else {}), 0
    for neck_name, neck in groups["neck"].items():
        between = build(neck | ({"width": 16} if "width" in neck else {}), _partial_=True)(
            channels=(24,) * 4, strides=(16,) * 4
        )
        head = build(options, _partial_=True)(channels=between.channels, strides=between.strides)
        model = _Beheaded(between, head).to(META)
        losses = groups["loss"] if neck_name == "none" else {name: groups["loss"][name] for name in ENDS}
        for loss_name, loss in losses.items():
            features = [torch.rand(2, 1, 24, 2, 2, device=META, requires_grad=True) for _ in range(4)]
            assert idle(model, build(loss), image=Encoded(tuple(features), (32, 32))) == [], f"{neck_name}, {loss_name}"
            assert all(f.grad is not None for f in features)
            tried += 1
    assert tried == len(groups["loss"]) + 2 * 2 >= 7 + 4
    parts = [build(groups["loss"][name]).parts for name in ENDS]
    assert parts == [{"final", "coarse", "refined"}, {"final", "coarse"}]


class _Beheaded(torch.nn.Module):
    """A model without its encoder."""

    def __init__(self, neck, decoder):
        super().__init__()
        self.neck, self.decoder = neck, decoder

    decode = DenseModel.decode

    def encoder(self, image):
        return image.chosen()


@pytest.mark.parametrize("options", [{"pyramid": "standard"}, {"pyramid": "standard", "align": "unified"}])
def test_the_other_forms_of_e2net_too(options, groups):
    encoder = ViTEncoder.from_config(encoder_config("dinov3"))
    model = DenseModel(encoder, lambda **k: E2NetDecoder(width=16, **k, **options), Frozen()).to(META)
    for loss in groups["loss"].values():
        assert idle(model, build(loss), (64, 64)) == []


def _encoders():
    deep, convnext = encoder_config("dinov3") | {"num_hidden_layers": 6}, {"hidden_sizes": [8, 12, 16, 20]}
    siglip = {"model_type": "siglip_vision_model", "image_size": 64, "patch_size": 16, "hidden_size": 32}
    siglip |= {"intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    for norm in (True, False):
        for token in (True, False):
            yield ViTEncoder.from_config(encoder_config("dinov3"), None, norm, token)
        config = AutoConfig.for_model("dinov3_convnext", depths=[1, 2, 1, 1], **convnext)
        yield ConvNeXtEncoder(AutoModel.from_config(config), norm=norm)
    yield ViTEncoder.from_config(encoder_config("dinov2"))
    yield ViTEncoder.from_config(encoder_config("dinov2_registers"), norm=False)
    yield ViTEncoder.from_config(deep, [0, 1, 2, 4])
    yield ViTEncoder.from_config(siglip)


@pytest.mark.slow
def test_every_encoder_under_every_tuning(groups):
    criterion, tried = Criterion({"bce": 1.0}), 0
    tunings = [tuning for name, tuning in groups["tuning"].items() if name not in ("frozen", "scratch")]
    tunings.append(groups["tuning"]["full"] | {"gradient_checkpointing": True})
    for encoder in _encoders():
        side = 2 * encoder.size_multiple
        for chosen in tunings:
            convnext = "targets" in chosen and isinstance(encoder, ConvNeXtEncoder)
            tuning = chosen | ({"targets": ["pointwise_conv1"]} if convnext else {})
            model = DenseModel(copy.deepcopy(encoder), LinearDecoder, build(tuning)).to(META)
            assert idle(model, criterion, (side, side)) == [], f"{encoder}, {tuning}"
            tried += 1
    assert tried == 10 * 6


def test_batches_are_resized_where_they_are():
    image, mask = RandomScale((0.5,))(torch.rand(2, 3, 64, 64, device=META), torch.ones(2, 1, 64, 64, device=META), 16,
                                      0, 0, Camouflage())  # fmt: skip
    assert image.device == mask.device == META and image.shape[-1] == 32


def test_a_decoder_leaves_out_what_no_loss_looks_at():
    torch.manual_seed(0)
    decoder = E2NetDecoder((24,) * 4, (16,) * 4, width=16, dropout=0.0)
    features, names = [torch.randn(2, 24, 4, 4) for _ in range(4)], list(decoder.state_dict())
    whole = decoder(features, (64, 64))
    decoder.leave_out({"refined"})
    without = decoder(features, (64, 64))
    assert "refined" not in without.auxiliary and len(whole.auxiliary["refined"]) == 4
    assert all(torch.equal(a, b) for a, b in zip(without.maps(), whole.maps(), strict=False))
    assert list(decoder.state_dict()) == names
    assert {n.split(".")[0] for n, p in decoder.named_parameters() if not p.requires_grad} == {"cfzm"}
    decoder.leave_out(set())
    assert len(decoder(features, (64, 64)).maps()) == 6 and all(p.requires_grad for p in decoder.parameters())


def test_the_parts_that_a_criterion_looks_at():
    assert Criterion({"bce": 1.0}, {"bce": 0.0}).parts == {"final"}
    assert Criterion({"bce": 1.0}, None, {"bce": [[0, 0.0], [0.5, 1.0]]}).parts == {"final", "refined"}
