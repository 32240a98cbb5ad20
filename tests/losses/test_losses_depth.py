import math

import pytest
import torch

from e2net.losses.depth import bins_to_depth, gradient_loss, l1, sig_loss

TERMS = {
    "sig": sig_loss,
    "sig_without_variance": lambda depth, target: sig_loss(depth, target, variance=False),
    "sig_half_variance": lambda depth, target: sig_loss(depth, target, 0.5),
    "gradient": gradient_loss,
    "l1": l1,
}
# (batch, height, width): odd sizes, a row, a column, one pixel; 19 has pixels at all four scales.
SHAPES = [(2, 5, 7), (1, 19, 17), (3, 1, 6), (2, 9, 1), (1, 1, 1)]


def _pair(batch, h, w, *, dtype=torch.float64, seed=0):
    """Depths of 0.1 to 9.1 m, targets of which a quarter is unknown."""
    generator = torch.Generator().manual_seed(seed)
    depth = 0.1 + 9 * torch.rand(batch, 1, h, w, generator=generator, dtype=dtype)
    target = 0.1 + 9 * torch.rand(batch, 1, h, w, generator=generator, dtype=dtype)
    unknown = torch.rand(batch, 1, h, w, generator=generator) < 0.25
    unknown[0, 0, 0, 0] = False
    return depth, target.where(~unknown, 0)


def _loop(term, depth, target):
    maps = [(p[0], t[0]) for p, t in zip(depth.tolist(), target.tolist(), strict=True)]
    pairs = [(p, t) for a, b in maps for x, y in zip(a, b, strict=True) for p, t in zip(x, y, strict=True) if t > 0]
    if term == "l1":
        return sum(abs(p - t) for p, t in pairs) / len(pairs)
    if term == "gradient":
        return sum(_gradient_at(maps, step) for step in (1, 2, 4, 8))
    g = [math.log(p) - math.log(t) for p, t in pairs]
    mean = sum(g) / len(g)
    variance = sum(x * x for x in g) / len(g) - mean * mean
    share = {"sig": 1, "sig_without_variance": 0, "sig_half_variance": 0.5}[term]
    return math.sqrt(max(share * variance, 0) + 0.15 * mean * mean)


def _gradient_at(maps, step):
    total, known = 0.0, 0
    for depth, target in maps:
        h, w = len(depth), len(depth[0])
        g = {
            (y // step, x // step): math.log(depth[y][x]) - math.log(target[y][x])
            for y in range(0, h, step)
            for x in range(0, w, step)
            if target[y][x] > 0
        }
        known += len(g)
        for (y, x), value in g.items():
            total += sum(abs(g[n] - value) for n in ((y + 1, x), (y, x + 1)) if n in g)
    return total / max(known, 1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("term", TERMS)
def test_term_equals_a_loop_written_from_its_definition(term, shape):
    depth, target = _pair(*shape)
    found = TERMS[term](depth, target)
    assert found.shape == ()
    assert float(found) == pytest.approx(_loop(term, depth, target), abs=1e-8 if "sig" in term else 1e-12)


def test_sig_loss_is_eigens_with_lambda_085():
    depth, target = _pair(2, 5, 7)
    known = target > 0
    g = depth[known].log() - target[known].log()
    n = g.numel()
    eigen = g.square().sum() / n - 0.85 / n**2 * g.sum() ** 2
    torch.testing.assert_close(sig_loss(depth, target), eigen.sqrt())
    # And what is published as code but for the n - 1.
    published = torch.sqrt(torch.var(g) * (n - 1) / n + 0.15 * torch.mean(g) ** 2)
    torch.testing.assert_close(sig_loss(depth, target), published)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("term", TERMS)
def test_gradient(term, shape):
    depth, target = _pair(*shape, seed=1)
    depth.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: TERMS[term](x, target), (depth,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("term", TERMS)
def test_a_perfect_map_is_0_with_a_finite_gradient(term, dtype):
    _, target = _pair(2, 9, 11, dtype=dtype)
    depth = target.where(target > 0, 3).requires_grad_()
    loss = TERMS[term](depth, target)
    loss.backward()
    assert float(loss.detach()) == 0
    assert depth.grad.isfinite().all()


@pytest.mark.parametrize("term", TERMS)
def test_an_almost_perfect_map_has_a_gradient_of_its_size(term):
    _, target = _pair(2, 9, 11, dtype=torch.float32)
    noise = 1e-6 * torch.randn(target.shape, generator=torch.Generator().manual_seed(2))
    depth = (target.where(target > 0, 3) * (1 + noise)).requires_grad_()
    loss = TERMS[term](depth, target)
    loss.backward()
    assert 0 < float(loss.detach()) < 1e-4
    # A root of sums of squares over n pixels has a slope of at most 1 / √n, here in log depth of at least 0.1 m.
    assert depth.grad.abs().max() < 10


@pytest.mark.parametrize("term", TERMS)
def test_no_known_pixel_is_a_loss_of_0_with_a_gradient_of_0(term):
    depth = (1 + torch.rand(2, 1, 5, 6)).requires_grad_()
    loss = TERMS[term](depth, torch.zeros(2, 1, 5, 6))
    loss.backward()
    assert float(loss.detach()) == 0
    assert (depth.grad == 0).all()


@pytest.mark.parametrize("unknown", [0.0, -1.0, math.nan])
@pytest.mark.parametrize("term", TERMS)
def test_what_is_unknown_does_not_matter(term, unknown):
    depth, target = _pair(2, 9, 7)
    expected = TERMS[term](depth, target)
    # Not even where the prediction has underflowed there.
    other = depth.where(target > 0, 0).requires_grad_()
    found = TERMS[term](other, target.where(target > 0, unknown))
    found.backward()
    torch.testing.assert_close(found.detach(), expected, rtol=0, atol=1e-12)
    assert other.grad.isfinite().all()
    assert (other.grad[target == 0] == 0).all()


@pytest.mark.parametrize("term", TERMS)
def test_an_activation_that_underflows_to_0_stays_finite(term):
    depth, target = _pair(1, 5, 5, dtype=torch.float32)
    depth[0, 0, 0, 0] = 0
    depth.requires_grad_()
    loss = TERMS[term](depth, target)
    loss.backward()
    assert loss.isfinite()
    assert depth.grad.isfinite().all()


def test_a_factor_on_all_depths():
    depth, target = _pair(2, 9, 11)
    torch.testing.assert_close(gradient_loss(3 * depth, target), gradient_loss(depth, target))
    # A map that is right but for its factor has the share of the mean left.
    scaled = 2 * target.where(target > 0, 1)
    assert float(sig_loss(scaled, target)) == pytest.approx(math.sqrt(0.15) * math.log(2))
    assert float(gradient_loss(scaled, target)) == pytest.approx(0, abs=1e-12)
    # And without the variance, so has one with noise of mean 0 about it.
    noise = torch.tensor([[0.5, -0.5], [1.0, -1.0]]).double().exp().view(1, 1, 2, 2)
    assert float(sig_loss(noise, torch.ones(1, 1, 2, 2).double(), 0)) == pytest.approx(0, abs=1e-9)


def test_l1_is_in_metres():
    target = torch.tensor([2.0, 4.0, 0.0]).view(1, 1, 1, 3)
    assert float(l1(torch.tensor([2.5, 3.0, 9.0]).view(1, 1, 1, 3), target)) == pytest.approx(0.75)


@pytest.mark.parametrize("bins", [2, 5, 256])
def test_bins_equal_a_loop(bins):
    logits = torch.randn(2, bins, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = bins_to_depth(logits, 0.001, 10)
    assert found.shape == (2, 1, 3, 4)
    centres = [0.001 + i * (10 - 0.001) / (bins - 1) for i in range(bins)]
    for i in range(2):
        for y in range(3):
            for x in range(4):
                weights = [max(v, 0) + 0.1 for v in logits[i, :, y, x].tolist()]
                mean = sum(w / sum(weights) * c for w, c in zip(weights, centres, strict=True))
                assert float(found[i, 0, y, x]) == pytest.approx(mean, abs=1e-12)


def test_bins_at_their_limits():
    negative = bins_to_depth(torch.full((1, 256, 1, 1), -5.0), 1, 3)
    assert float(negative) == pytest.approx(2)  # uniform
    certain = torch.zeros(1, 256, 1, 1)
    certain[0, 255] = 1e6
    assert float(bins_to_depth(certain, 1, 3)) == pytest.approx(3, abs=1e-4)
    logits = 20 * torch.randn(4, 16, 9, 9)
    depth = bins_to_depth(logits, 0.5, 8)
    assert depth.min() > 0.5
    assert depth.max() < 8


def test_gradient_of_bins():
    logits = torch.randn(1, 6, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: bins_to_depth(x, 0.001, 10), (logits,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_bins_of_half_precision_are_summed_in_float32(dtype):
    logits = torch.randn(1, 256, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = bins_to_depth(logits, 0.001, 10)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, bins_to_depth(logits.double(), 0.001, 10).float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("bins", "minimum", "maximum"), [(1, 0.1, 1), (4, 0, 1), (4, 2, 1), (4, 1, 1)])
def test_bins_refuse_an_empty_range(bins, minimum, maximum):
    with pytest.raises(ValueError, match="expected at least 2 bins"):
        bins_to_depth(torch.zeros(1, bins, 2, 2), minimum, maximum)
