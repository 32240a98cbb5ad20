from typing import Any

import pytest
import torch

from e2net.decoders.necks import Identity, LearnedPyramid, Norm

ENCODERS = {
    "patch 16": ((24,) * 4, (16,) * 4, (96, 160)),
    "patch 14": ((24,) * 4, (14,) * 4, (84, 126)),
    "odd grid": ((24,) * 4, (16,) * 4, (80, 112)),
    "strides 4 to 32": ((12, 24, 48, 96), (4, 8, 16, 32), (100, 140)),
}


@pytest.fixture(params=ENCODERS)
def encoder(request):
    channels, strides, size = ENCODERS[request.param]
    torch.manual_seed(0)
    features = [10 + 5 * torch.randn(2, c, size[0] // s, size[1] // s) for c, s in zip(channels, strides, strict=True)]
    return channels, strides, size, features


@pytest.mark.parametrize("make", [Identity, Norm, LearnedPyramid])
def test_says_what_comes_out_and_everything_trains(make, encoder):
    channels, strides, size, features = encoder
    neck = make(channels, strides)
    maps = neck(features, size)
    assert [m.shape[1] for m in maps] == list(neck.channels)
    if make is not LearnedPyramid:
        assert (neck.channels, neck.strides) == (channels, strides)
        assert [m.shape for m in maps] == [f.shape for f in features]
    if make is not Identity:
        sum((m * torch.randn_like(m)).sum() for m in maps).backward()
    assert [n for n, p in neck.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_learned_pyramid_has_the_pyramids_exact_sizes(encoder):
    channels, strides, size, features = encoder
    neck = LearnedPyramid(channels, strides, width=20)
    assert (neck.channels, neck.strides) == ((20,) * 4, (4, 8, 16, 32))
    sizes = [(-(-size[0] // s), -(-size[1] // s)) for s in neck.strides]
    assert [tuple(m.shape) for m in neck(features, size)] == [(2, 20, *s) for s in sizes]


def test_learned_pyramid_resamples_by_learned_convolutions():
    def kinds(strides):
        levels: Any = LearnedPyramid((24,) * 4, strides).levels
        return [[type(m).__name__ for m in level if "Conv" in type(m).__name__][1:] for level in levels]

    vit = [["ConvTranspose2d"] * 2, ["ConvTranspose2d"], [], ["Conv2d"]]
    assert kinds((16,) * 4) == vit and kinds((14,) * 4) == vit
    assert kinds((4, 8, 16, 32)) == [[]] * 4


def test_norms_make_mean_0_and_deviation_1(encoder):
    channels, strides, size, features = encoder
    layer, batch = Norm(channels, strides, "layer"), Norm(channels, strides, "batch")
    for norm, dims in ((layer, (1,)), (batch, (0, 2, 3))):
        for m in norm(features, size):
            torch.testing.assert_close(m.mean(dims), torch.zeros_like(m.mean(dims)), rtol=0, atol=1e-4)
            torch.testing.assert_close(m.var(dims, correction=0), torch.ones_like(m.mean(dims)), rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match=r"neck.kind must be 'layer' or 'batch', found 'group'"):
        Norm(channels, strides, "group")  # type: ignore[arg-type]  # what is refused


def test_learned_pyramid_needs_a_width():
    with pytest.raises(ValueError, match=r"neck.width must be at least 1, found 0"):
        LearnedPyramid((24,) * 4, (16,) * 4, width=0)
