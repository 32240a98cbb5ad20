"""Forward passes of one encoder in several threads, and copies of it: nothing of a call may lie on shared modules."""

import copy
import pickle
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from conftest import encoder_config, hf_model
from test_encoders_sources import CONVNEXT, OTHERS, VIT, _model

from e2net.encoders import Adapters, ConvNeXtEncoder, Encoder, Frozen, Full, LoRA, Partial, Tuning, ViTEncoder
from e2net.encoders.timm_hub import _interpolate_like_hugging_face
from e2net.encoders.vit import _KEPT

POLICIES: dict[str, Callable[[], Tuning]] = {
    "frozen": Frozen,
    "adapter": Adapters,
    "lora": LoRA,
    "partial": lambda: Partial(last=1, gradient_checkpointing=True),
    "full": lambda: Full(gradient_checkpointing=True),
}


def _timm(name):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    extra = {"img_size": 64, "dynamic_img_size": True, "embed_dim": 32, "num_heads": 2, "depth": 4}
    model = timm.create_model(name, pretrained=False, num_classes=0, global_pool="", **extra)
    _interpolate_like_hugging_face(model)
    return ViTEncoder(model)


def _vit(make, of):
    return ViTEncoder(make(of))


ENCODERS: dict[str, Callable[[], Encoder]] = {
    **{name: partial(_vit, hf_model, name) for name in ("dinov3", "dinov2", "dinov2_registers")},
    **{name: partial(_vit, _model, OTHERS[name]) for name in sorted(OTHERS)},
    "aimv2": lambda: ViTEncoder(_model({**VIT, "model_type": "aimv2_vision_model"})),
    "convnext": lambda: ConvNeXtEncoder(_model(CONVNEXT)),
    "timm": lambda: _timm("vit_tiny_patch16_224"),
    "timm_dinov3": lambda: _timm("vit_small_patch16_dinov3"),
}


def _images(encoder):
    """Mixed sizes and batches."""
    p = encoder.size_multiple
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(b, 3, h * p, w * p, generator=generator) for b, h, w in ((1, 2, 3), (2, 4, 4), (1, 3, 5))]


@pytest.mark.parametrize("name", ENCODERS)
def test_eight_threads_get_what_one_gets(name):
    encoder = ENCODERS[name]()
    Frozen().apply(encoder)
    images = _images(encoder)
    alone = [encoder(image) for image in images]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda i: encoder(images[i % len(images)]), range(64)))
    for i, maps in enumerate(together):
        assert all(torch.equal(a, b) for a, b in zip(maps, alone[i % len(images)], strict=True))


@pytest.mark.parametrize("policy", POLICIES)
def test_threads_with_whatever_tunes_the_encoder(policy):
    encoder = ViTEncoder(hf_model("dinov2"))
    POLICIES[policy]().apply(encoder)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "adapter.up" in name or "lora_B" in name:
                torch.nn.init.normal_(parameter)
    images = _images(encoder)
    alone = [encoder(image) for image in images]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda i: encoder(images[i % len(images)]), range(64)))
    for i, maps in enumerate(together):
        assert all(torch.equal(a, b) for a, b in zip(maps, alone[i % len(images)], strict=True))


def test_threads_train_and_predict_at_once():
    """A pass that records a graph beside others that must not; and what DINOv3 keeps of positions serves both."""
    encoder = ViTEncoder(hf_model("dinov3"))
    Full(gradient_checkpointing=True).apply(encoder)
    encoder.eval()  # DINOv3 draws its coordinates in train mode
    images = _images(encoder)

    def gradient(_=None):
        loss = sum(m.square().sum() for m in encoder(images[0]))
        return torch.autograd.grad(loss, [p for p in encoder.parameters() if p.requires_grad])

    def predict(i):
        with torch.inference_mode():
            return encoder(images[i % len(images)])

    alone, expected = [predict(i) for i in range(len(images))], gradient()
    with ThreadPoolExecutor(8) as pool:
        gradients, maps = pool.map(gradient, range(4)), list(pool.map(predict, range(40)))
        assert all(torch.equal(a, b) for found in gradients for a, b in zip(found, expected, strict=True))
    for i, found in enumerate(maps):
        assert all(torch.equal(a, b) for a, b in zip(found, alone[i % len(images)], strict=True))


@pytest.mark.parametrize("name, policy", [*(("dinov2", policy) for policy in POLICIES), ("timm", "full")])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda encoder: pickle.loads(pickle.dumps(encoder))])
def test_a_copy_gives_the_same_and_is_its_own(name, policy, copied):
    encoder = ENCODERS[name]()
    POLICIES[policy]().apply(encoder)
    assert ("forward" in vars(encoder.layers()[-1])) == (policy in ("partial", "full"))
    image = _images(encoder)[1]
    other = copied(encoder)
    expected = [m.detach() for m in encoder(image)]
    assert all(torch.equal(a, b) for a, b in zip(other(image), expected, strict=True))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert all(torch.equal(a, b) for a, b in zip(encoder(image), expected, strict=True))
    assert not torch.equal(other(image)[0], expected[0])


def test_two_encoders_of_one_backbone_keep_their_own_blocks():
    backbone = hf_model("dinov2")
    first, second = ViTEncoder(backbone), ViTEncoder(backbone, blocks=[0, 1, 2, 3], norm=False)
    reference = ViTEncoder(hf_model("dinov2"))
    image = _images(first)[0]
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(first(image), reference(image), strict=True))
        assert len(second(image)) == 4


def test_no_other_hidden_state_is_kept_and_none_for_long():
    encoder = ViTEncoder.from_config(encoder_config("dinov2") | {"num_hidden_layers": 8})
    Frozen().apply(encoder)
    outputs, alive = [], []
    for i, block in enumerate(encoder.layers()):
        block.register_forward_hook(lambda _m, _i, out: outputs.append(weakref.ref(out)))
        if i == 7:
            block.register_forward_hook(
                lambda *_: alive.extend(i for i, ref in enumerate(outputs) if ref() is not None)
            )
    del block
    maps = encoder(_images(encoder)[0])
    assert alive == [1, 3, 5, 6, 7]  # the sixth is the last block's input
    del maps
    assert not any(ref() is not None for ref in outputs)
    with pytest.raises(RuntimeError):  # a pass that fails leaves nothing either
        encoder(torch.rand(1, 4, 14, 14))
    assert _KEPT.get() is None
