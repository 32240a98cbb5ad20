"""Class token, special tokens and patches of every kind of encoder, with patches masked and without."""

import copy

import pytest
import torch
from conftest import encoder_config
from test_encoders_sources import CONVNEXT, OTHERS, SPECIAL, _hidden_states, _model, _norm
from torch import nn

from e2net.encoders import ConvNeXtEncoder, Frozen, Full, LoRA, ViTEncoder

DINO = {name: encoder_config(name) for name in ("dinov2", "dinov2_registers", "dinov3")}
VITS = {**OTHERS, **DINO}
PREFIX = {**SPECIAL, "dinov2": 1, "dinov2_registers": 5, "dinov3": 5}
NO_CLASS = ("siglip", "siglip2")
MASKING = sorted(set(VITS) - {"siglip", "siglip2"})


def _encoder(name, **settings):
    return ViTEncoder(_model(VITS[name]), (0.0,) * 3, (1.0,) * 3, **settings)


def _image(encoder, batch=2):
    p = encoder.size_multiple
    return torch.rand(batch, 3, 3 * p, 5 * p, generator=torch.Generator().manual_seed(1))


def _mask(image, encoder):
    h, w = (side // encoder.size_multiple for side in image.shape[-2:])
    return torch.rand(len(image), h * w, generator=torch.Generator().manual_seed(2)) < 0.4


@pytest.mark.parametrize("name", sorted(VITS))
@pytest.mark.parametrize("norm", [None, False, True])
def test_tokens_of_any_block_are_hugging_faces_hidden_states(name, norm):
    encoder, model = _encoder(name, norm=False), _model(VITS[name])
    image, skip = _image(encoder), PREFIX[name]
    hidden = _hidden_states(model, image, encoder.patch_size)
    first = 0 if name in NO_CLASS else 1
    with torch.no_grad():
        found = encoder.tokens(image, blocks=[2, 0], norm=norm)
    for tokens, state in zip(found, (hidden[3], hidden[1]), strict=True):
        expected = (_norm(model)(state) if norm else state).detach()
        if first:
            torch.testing.assert_close(tokens.class_token, expected[:, 0], rtol=0, atol=1e-5)
        else:
            assert tokens.class_token is None
        torch.testing.assert_close(tokens.special, expected[:, first:skip], rtol=0, atol=1e-5)
        torch.testing.assert_close(tokens.patches, expected[:, skip:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", sorted(VITS))
@pytest.mark.parametrize("norm", [False, True])
def test_maps_are_the_tokens_to_the_bit(name, norm):
    encoder = _encoder(name, norm=norm, class_token=name not in NO_CLASS)
    image = _image(encoder)
    for maps, tokens in zip(encoder(image), encoder.tokens(image), strict=True):
        patches = tokens.patches
        if encoder.class_token:
            patches = torch.cat((patches, tokens.class_token[:, None].expand_as(patches)), -1)
        assert torch.equal(maps.flatten(2).transpose(1, 2), patches)


@pytest.mark.parametrize("name", MASKING)
def test_a_masked_patch_is_the_mask_token(name):
    """The tokens say nothing of the masked pixels, and all of the others; nothing masked is no mask."""
    encoder = _encoder(name)
    encoder.train_mask_token()
    with torch.no_grad():
        encoder.backbone.embeddings.mask_token.normal_(std=3)
    image, last = _image(encoder), encoder.blocks[-1:]
    masked = _mask(image, encoder)
    p, (rows, columns) = encoder.patch_size, (3, 5)
    pixels = masked.view(-1, 1, rows, columns).repeat_interleave(p, 2).repeat_interleave(p, 3)
    with torch.no_grad():
        one, other = (
            encoder.tokens(torch.where(pixels, value, image), masked, last)[0].patches for value in (0.0, 1.0)
        )
        seen = encoder.tokens(torch.where(pixels, image, 1 - image), masked, last)[0].patches
        bare = encoder.tokens(image, blocks=last)[0].patches
        torch.testing.assert_close(one, other)
        assert not torch.allclose(one, seen, atol=1e-3)
        assert not torch.allclose(one, bare, atol=1e-3)
        torch.testing.assert_close(encoder.tokens(image, torch.zeros_like(masked), last)[0].patches, bare)
        # All patches alike and all masked: only positions tell them apart, whatever the image.
        everything = torch.ones_like(masked)
        torch.testing.assert_close(*(encoder.tokens(i, everything, last)[0].patches for i in (image, 1 - image)))


@pytest.mark.parametrize("name", MASKING)
@pytest.mark.parametrize("tuning", [Full(), LoRA(rank=2), Full(gradient_checkpointing=True)])
def test_the_mask_token_trains_only_when_asked(name, tuning):
    encoder = _encoder(name)
    copy.deepcopy(tuning).apply(encoder)
    names = [n for n, p in encoder.named_parameters() if n.endswith("mask_token") and p.requires_grad]
    assert not names
    encoder.train_mask_token()
    image = _image(encoder)
    encoder.tokens(image, _mask(image, encoder), encoder.blocks[-1:])[0].patches.square().sum().backward()
    assert encoder.backbone.embeddings.mask_token.grad.abs().sum() > 0
    lacking = [n for n, p in encoder.named_parameters() if p.requires_grad and p.grad is None]
    assert not lacking


def test_what_cannot_be_masked_says_so():
    siglip = _encoder("siglip")
    timm = ViTEncoder.from_timm("vit_tiny_patch16_224", weights="random")
    convnext = ConvNeXtEncoder(_model(CONVNEXT))
    for encoder in (siglip, timm, convnext):
        image = torch.rand(1, 3, 64, 64)
        with pytest.raises(ValueError, match=r"cannot mask patches; expected a vision transformer of Hugging Face"):
            encoder.tokens(image, torch.zeros(1, 16, dtype=torch.bool))
        with pytest.raises(ValueError, match=r"cannot mask patches"):
            encoder.train_mask_token()
    with pytest.raises(ValueError, match=r"ViTModel came without a mask token; call train_mask_token"):
        _encoder("vit").tokens(torch.rand(1, 3, 64, 64), torch.zeros(1, 16, dtype=torch.bool))


def test_impossible_arguments_are_refused():
    encoder = _encoder("dinov3", norm=False)
    image = torch.rand(1, 3, 64, 64)
    for masked in (torch.zeros(1, 4, 4, dtype=torch.bool), torch.zeros(1, 16), torch.zeros(2, 16, dtype=torch.bool)):
        with pytest.raises(ValueError, match=r"masked patches as bool of shape \(1, 16\), found torch"):
            encoder.tokens(image, masked)
    for blocks in ([4], [-1], [0, 0]):
        with pytest.raises(ValueError, match=r"blocks must be different 0-based indices below 4, found"):
            encoder.tokens(image, blocks=blocks)
    with pytest.raises(ValueError, match="is not a multiple of 16"):
        encoder.tokens(torch.rand(1, 3, 60, 64))
    beit = ViTEncoder(_model({**OTHERS["vit"], "model_type": "beit"}), norm=False)
    with pytest.raises(ValueError, match=r"BeitModel has no final norm; expected tokens with norm=False"):
        beit.tokens(image, norm=True)


def test_timms_tokens_are_split_too():
    encoder = ViTEncoder.from_timm("vit_small_patch16_dinov3.lvd1689m", weights="random")
    tokens = encoder.tokens(torch.rand(1, 3, 32, 48))[-1]
    assert (tokens.class_token.shape, tokens.special.shape, tokens.patches.shape) == (
        (1, 384),
        (1, 4, 384),
        (1, 6, 384),
    )


@pytest.mark.parametrize("norm", [False, True])
def test_convnext_gives_maps_and_their_mean(norm):
    model, encoder = _model(CONVNEXT), ConvNeXtEncoder(_model(CONVNEXT), (0.0,) * 3, (1.0,) * 3, norm=norm)
    image = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        hidden, maps, tokens = model(image), encoder(image), encoder.tokens(image)
        normed = encoder.tokens(image, blocks=[3], norm=True)[0]
    for one, found in zip(maps, tokens, strict=True):
        torch.testing.assert_close(one.flatten(2).transpose(1, 2), found.patches)
        assert found.special.shape[1] == 0
    torch.testing.assert_close(normed.class_token, hidden.pooler_output)
    torch.testing.assert_close(normed.patches, hidden.last_hidden_state[:, 1:])
    torch.testing.assert_close(tokens[0].class_token, maps[0].mean((2, 3)))
    with pytest.raises(ValueError, match="blocks of a ConvNeXt are its stages, 0 to 3, found"):
        encoder.tokens(image, blocks=[4])


def test_timms_convnext_gives_the_same():
    encoder = ConvNeXtEncoder.from_timm("convnext_atto", weights="random")
    image = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        maps, last = encoder(image), encoder.tokens(image, blocks=encoder.blocks[-1:])[0]
        pooled = encoder.tokens(image, blocks=[3], norm=False)[0].patches.mean(1)
        norm = encoder.backbone.head.norm
        expected = nn.functional.layer_norm(pooled, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    torch.testing.assert_close(maps[-1].flatten(2).transpose(1, 2), last.patches)
    torch.testing.assert_close(last.class_token, expected)


def test_a_frozen_encoder_builds_no_graph():
    encoder = _encoder("dinov3")
    Frozen().apply(encoder)
    assert not encoder.tokens(torch.rand(1, 3, 32, 32))[0].patches.requires_grad


def test_a_copy_keeps_its_own_tokens():
    """A teacher is a copy of its student; hooks that were added on the way go with it, once."""
    encoder = _encoder("dinov3")
    image = _image(encoder)
    before = encoder.tokens(image, blocks=[0])[0].patches
    teacher = copy.deepcopy(encoder)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(0.5)
    assert torch.equal(encoder.tokens(image, blocks=[0])[0].patches, before)
    assert not torch.equal(teacher.tokens(image, blocks=[0])[0].patches, before)
