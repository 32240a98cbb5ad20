"""Extraction, colours, similarity, norms and attention against plain loops and the library's own."""

import math

import cv2
import numpy as np
import pytest
import torch
from conftest import ARCHITECTURES, encoder_config, hf_model

from e2net.encoders import ConvNeXtEncoder, ViTEncoder
from e2net.features import Extractor, attention, norms, pca, similarity
from e2net.features.looks import components, patches_at, sharpened
from e2net.features.sheet import shortened


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture(params=sorted(ARCHITECTURES))
def extractor(request):
    return Extractor(ViTEncoder(hf_model(request.param)), size=56, device="cpu")


@pytest.mark.parametrize("shape", [(60, 60), (40, 100), (90, 31)])
def test_features_are_those_of_the_encoder_row_by_row(extractor, shape):
    found = next(extractor(picture(*shape)))
    p = extractor.encoder.patch_size
    h, w = found.patches.shape[:2]
    assert found.picture.shape == (h * p, w * p, 3) and found.size == shape and (h < w) == (shape[0] < shape[1])
    assert min(h, w) * p == round(56 / p + 1e-9) * p
    image = torch.from_numpy(found.picture).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        (tokens,) = extractor.encoder.tokens(image, blocks=[3], norm=True)
    for y in range(h):
        for x in range(w):
            assert np.allclose(found.patches[y, x], tokens.patches[0, y * w + x], atol=1e-5)
    assert np.allclose(found.class_token, tokens.class_token[0], atol=1e-5)
    assert found.special.shape == (extractor.encoder.num_special_tokens - 1, 32)


def test_batches_change_neither_order_nor_values(extractor):
    pictures = [picture(*shape, seed) for seed, shape in enumerate([(30, 30), (30, 30), (30, 60), (30, 30), (30, 30)])]
    single = [next(extractor(one)) for one in pictures]
    for batched, one in zip(extractor(pictures, batch_size=2), single, strict=True):
        assert np.allclose(batched.patches, one.patches, atol=1e-4)
    assert [one.name for one in extractor(pictures)] == list("01234")


def test_levels_are_the_blocks_in_the_order_given():
    encoder = ViTEncoder(hf_model("dinov3"))
    both = next(Extractor(encoder, 32, blocks=[3, 0], device="cpu").levels(picture(32, 48)))
    for level, block in zip(both, (3, 0), strict=True):
        alone = next(Extractor(encoder, 32, blocks=[block], device="cpu")(picture(32, 48)))
        assert np.array_equal(level.patches, alone.patches)
    with pytest.raises(ValueError, match="below 4"):
        Extractor(encoder, blocks=[4])


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
@pytest.mark.parametrize("block", [0, 3])
def test_attention_is_that_of_the_library(architecture, block):
    x = Extractor(ViTEncoder(hf_model(architecture)), size=56, device="cpu")
    found = attention(x, picture(50, 80), block)[0]
    eager = hf_model(architecture)
    eager.set_attn_implementation("eager")
    pixels = (x.tensor(x.prepare(picture(50, 80))) - x.encoder.mean) / x.encoder.std
    with torch.no_grad():
        whole = eager(pixels, output_attentions=True).attentions[block][0]  # (heads, N, N)
    tokens, heads, h, w = found.shape
    assert tokens == 1 + encoder_config(architecture).get("num_register_tokens", 0)
    expected = whole[:, :tokens, tokens:].transpose(0, 1).reshape(tokens, heads, h, w)
    assert np.allclose(found, expected, atol=1e-5) and 0 < found[0].sum((1, 2)).max() < 1


def test_an_encoder_without_such_tokens_is_one_clear_line():
    config = {"model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4}
    bare = ViTEncoder.from_config({**config, "num_attention_heads": 4, "patch_size": 16, "image_size": 64})
    x = Extractor(bare, 32, device="cpu")
    assert next(x(picture(32, 40))).class_token is None
    with pytest.raises(ValueError, match="neither class token nor registers"):
        attention(x, picture(32, 40))
    stages = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 2, 1]}
    y = Extractor(ConvNeXtEncoder.from_config({"model_type": "dinov3_convnext", **stages}), 64, [1, 3], device="cpu")
    assert [level.patches.shape for level in next(y.levels(picture(64, 96)))] == [(8, 12, 8), (2, 3, 16)]
    with pytest.raises(ValueError, match="neither"):
        attention(y, picture(64, 64))


def test_similarity_and_norms_are_plain_loops(extractor):
    pictures = [picture(50, 80, 1), picture(60, 60, 2)]
    features = list(extractor(pictures))
    maps, long = similarity(extractor, pictures, (79, 49)), norms(extractor, pictures)
    query = features[0].patches[-1, -1]
    for one, found, length in zip(features, maps, long, strict=True):
        for y, x in np.ndindex(found.shape):
            other = one.patches[y, x]
            cosine = other @ query / math.sqrt(float(other @ other) * float(query @ query))
            assert found[y, x] == pytest.approx(cosine, abs=1e-4)
            assert length[y, x] == pytest.approx(math.sqrt(float(other @ other)), rel=1e-4)
    assert maps[0][-1, -1] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("place", [(80, 0), (0, 50), (-1, 0), (5, 5, 4, 9), (1, 2, 3)])
def test_a_place_outside_of_the_picture_is_refused(place):
    features = next(Extractor(ViTEncoder(hf_model("dinov3")), 32, device="cpu")(picture(50, 80)))
    with pytest.raises(ValueError, match="expected"):
        patches_at(features, place)


def test_a_box_takes_the_patches_whose_centres_it_holds():
    features = next(Extractor(ViTEncoder(hf_model("dinov3")), 64, device="cpu")(picture(64, 96)))
    assert np.argwhere(patches_at(features, (16, 0, 47, 31))).tolist() == [[0, 1], [0, 2], [1, 1], [1, 2]]
    assert np.argwhere(patches_at(features, (1, 1, 2, 2))).tolist() == [[0, 0]]


def test_colours_find_an_object_and_share_one_basis():
    rng = np.random.default_rng(0)
    axes = rng.normal(size=(2, 12))
    scenes = []
    for top, left in ((2, 3), (4, 1)):
        patches = rng.normal(0, 0.1, (10, 9, 12)) + axes[0]
        patches[top : top + 4, left : left + 4] = axes[1] * 3 + rng.normal(0, 0.3, (4, 4, 12))
        scenes.append(patches.astype(np.float32))
    for colours, (top, left) in zip(components(scenes), ((2, 3), (4, 1)), strict=True):
        inside = np.zeros((10, 9), bool)
        inside[top : top + 4, left : left + 4] = True
        assert np.array_equal(colours.any(-1), inside)
    plain = components(scenes, foreground=False)
    rows = np.concatenate([one.reshape(-1, 12) for one in scenes]).astype(float)
    _, _, right = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    white = (rows - rows.mean(0)) @ right[:3].T
    expected = 1 / (1 + np.exp(-2 * white / white.std(0)))
    found = np.concatenate([one.reshape(-1, 3) for one in plain])
    for c in range(3):  # signs are free
        assert min(np.abs(found[:, c] - e).max() for e in (expected[:, c], 1 - expected[:, c])) < 1e-4
    twice = components([*scenes, scenes[0]])
    assert np.array_equal(twice[0], twice[2])


def test_titles_keep_what_tells_them_apart():
    titles = ["vit-tiny-patch16-as-dinov2 block 5", "vit-tiny-patch16-as-dinov2:random block 5", "é" * 99]
    short = [shortened(title, 183) for title in titles]
    assert len(set(short)) == 3 and all(one.endswith("block 5") for one in short[:2]) and ":random" in short[1]
    assert shortened("block 5", 183) == "block 5" and shortened("block 5", 3) == ""


def test_pca_of_one_picture_in_three_lines():
    x = Extractor("tiny", size=64, device="cpu")
    (colours,) = pca(x, [picture(64, 100)])
    assert colours.shape == (8, 13, 3) and 0 <= colours.min() <= colours.max() <= 1


def test_sharpening_moves_edges_to_those_of_the_picture():
    scene = np.zeros((64, 96, 3), np.uint8)
    scene[:, 43:] = (200, 180, 90)
    coarse = np.zeros((4, 6), np.float32)
    coarse[:, 3:] = 1  # the edge at 48, five pixels beside that of the picture
    sharp = sharpened(coarse, scene, 16)
    true = np.zeros((64, 96))
    true[:, 43:] = 1
    smooth = cv2.resize(coarse, (96, 64), interpolation=cv2.INTER_CUBIC)
    assert np.abs(sharp - true).mean() < 0.95 * np.abs(smooth - true).mean()
    jump = np.abs(np.diff(sharp[32]))
    assert jump.argmax() == 42 and jump.max() > 3 * np.abs(np.diff(smooth[32])).max()
    assert sharp.shape == (64, 96) and 0 <= sharp.min() <= sharp.max() <= 1
    assert sharpened(np.stack([coarse] * 2, -1), scene, 16).shape == (64, 96, 2)
