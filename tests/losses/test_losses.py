import math

import pytest
import torch
import torch.nn.functional as F

from e2net.losses import TERMS, Criterion
from e2net.structures import SegOutput


def _pair(size=(9, 7), batch=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, 1, *size, generator=generator, dtype=dtype)
    mask = (torch.rand(batch, 1, *size, generator=generator) > 0.6).to(dtype)
    return logits, mask


def _sigmoid(x):
    return 1 / (1 + math.exp(-x))


def _loop(term, logits, mask):
    """The terms pixel by pixel, from their definitions."""
    results = []
    for one, truth in zip(logits[:, 0].tolist(), mask[:, 0].tolist(), strict=True):
        h, w = len(one), len(one[0])
        pixels = [(y, x) for y in range(h) for x in range(w)]
        p = {(y, x): _sigmoid(one[y][x]) for y, x in pixels}
        m = {(y, x): truth[y][x] for y, x in pixels}
        cross = {i: -m[i] * math.log(p[i]) - (1 - m[i]) * math.log(1 - p[i]) for i in pixels}
        both = sum(p[i] * m[i] for i in pixels)
        total = sum(p[i] + m[i] for i in pixels)
        if term == "bce":
            results.append(sum(cross.values()) / len(pixels))
        elif term == "dice":
            results.append(1 - (2 * both + 1) / (total + 1))
        elif term == "iou":
            results.append(1 - (both + 1) / (total - both + 1))
        elif term == "structure":
            weight = {}
            for y, x in pixels:
                near = [m[i, j] for i, j in pixels if abs(i - y) <= 15 and abs(j - x) <= 15]
                weight[y, x] = 1 + 5 * abs(sum(near) / 31**2 - m[y, x])
            bce = sum(weight[i] * cross[i] for i in pixels) / sum(weight.values())
            both = sum(weight[i] * p[i] * m[i] for i in pixels)
            total = sum(weight[i] * (p[i] + m[i]) for i in pixels)
            results.append(bce + 1 - (both + 1) / (total - both + 1))
        else:
            results.append(_edge_loop(p, m, h, w))
    return torch.tensor(results, dtype=torch.float64)


def _edge_loop(p, m, h, w):
    def magnitude(f, y, x):
        at = {(i, j): f[min(max(y + i, 0), h - 1), min(max(x + j, 0), w - 1)] for i in (-1, 0, 1) for j in (-1, 0, 1)}
        gx = sum((1, 2, 1)[i + 1] * (at[i, 1] - at[i, -1]) for i in (-1, 0, 1)) / 4
        gy = sum((1, 2, 1)[j + 1] * (at[1, j] - at[-1, j]) for j in (-1, 0, 1)) / 4
        return min(math.sqrt(gx * gx + gy * gy + 1e-8), 1)

    a = {i: magnitude(p, *i) for i in p}
    b = {i: float(magnitude(m, *i) > 0.1) for i in p}
    return 1 - (2 * sum(a[i] * b[i] for i in p) + 1) / (sum(a.values()) + sum(b.values()) + 1)


@pytest.mark.parametrize("term", TERMS)
def test_term_equals_a_loop_written_from_its_definition(term):
    logits, mask = _pair()
    result = TERMS[term](logits, mask)
    torch.testing.assert_close(result[:, 0], _loop(term, logits, mask), rtol=1e-9, atol=1e-9)
    several = TERMS[term](torch.cat([logits, -logits, logits.flip(0)], dim=1), mask)
    torch.testing.assert_close(several[:, :1], result)
    torch.testing.assert_close(several[:, 1], _loop(term, -logits, mask), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("term", TERMS)
def test_gradients_are_exact(term):
    logits, mask = _pair((5, 4), batch=1)
    assert torch.autograd.gradcheck(lambda x: TERMS[term](x, mask), logits.requires_grad_())


@pytest.mark.parametrize("term", TERMS)
def test_terms_are_per_image_finite_and_zero_when_perfect(term):
    logits, mask = _pair((40, 40))
    alone = torch.cat([TERMS[term](logits[i : i + 1], mask[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(TERMS[term](logits, mask), alone)
    square = torch.zeros(1, 1, 40, 40)
    square[..., 10:30, 10:30] = 1
    perfect = TERMS[term](60 * (2 * square - 1), square).item()
    inverted = TERMS[term](60 * (1 - 2 * square), square).item()
    # Sobel rounds the corners: even a perfect map has an edge loss of a few per cent there.
    assert perfect < (0.1 if term == "edge" else 1e-3) and (inverted > 0.5 or term == "edge")
    for mask in (torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)):
        for value in (-200.0, 0.0, 200.0):
            logits = torch.full((1, 1, 8, 8), value, requires_grad=True)
            TERMS[term](logits, mask).sum().backward()
            assert logits.grad.isfinite().all()


def test_structure_loss_weights_its_bce():
    """The copied version averages the BCE before weighing it; the weights then cancel."""
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 20:44, 20:44] = 1
    near, far = torch.full_like(mask, -8.0), torch.full_like(mask, -8.0)
    near[mask > 0] = far[mask > 0] = 8.0
    near[..., 20:22, 20:44] = -8.0  # the same number of wrong pixels, at the contour ...
    far[..., 31:33, 20:44] = -8.0  # ... and in the middle
    assert TERMS["bce"](near, mask).item() == pytest.approx(TERMS["bce"](far, mask).item())
    assert TERMS["structure"](near, mask).item() > TERMS["structure"](far, mask).item() * 1.2


def _output():
    logits, mask = _pair((16, 16), dtype=torch.float32)
    coarse, refined = torch.randn(3, 1, 4, 4), tuple(torch.randn(3, 1, s, s) for s in (8, 4))
    return SegOutput(logits, coarse, refined), mask


@pytest.mark.parametrize("part", ["final", "coarse", "refined"])
@pytest.mark.parametrize("term", TERMS)
def test_every_weight_changes_the_total_by_what_is_logged(part, term):
    output, mask = _output()
    base = {"final": {"bce": 1.0, "dice": 1.0}, "coarse": {}, "refined": {}}
    changed = {**base, part: {**base[part], term: base[part].get(term, 0.0) + 0.7}}
    before, after = Criterion(**base)(output, mask), Criterion(**changed)(output, mask)
    assert f"{part}/{term}" in after
    expected = before["loss"] + 0.7 * after[f"{part}/{term}"]
    torch.testing.assert_close(after["loss"], expected)
    assert not torch.equal(before["loss"], after["loss"])


def test_published_v1_weights():
    output, mask = _output()
    weights = {"final": {"dice": 2.0, "bce": 1.0, "iou": 0.5, "edge": 0.5}, "coarse": {"dice": 0.3, "bce": 0.3}}
    values = Criterion(**weights)(output, mask)
    coarse = F.interpolate(output.coarse, size=(16, 16), mode="bilinear")
    expected = sum(w * TERMS[t](output.logits, mask).mean() for t, w in weights["final"].items())
    expected = expected + 0.3 * (TERMS["dice"](coarse, mask) + TERMS["bce"](coarse, mask)).mean()
    torch.testing.assert_close(values["loss"], expected)


def test_parts_that_a_decoder_lacks_are_left_out():
    output, mask = _output()
    values = Criterion({"bce": 1.0}, {"bce": 1.0}, {"bce": 1.0})(SegOutput(output.logits), mask)
    assert set(values) == {"loss", "final/bce"}


def test_computed_in_float32_under_autocast():
    output, mask = _output()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = SegOutput(output.logits.bfloat16(), output.coarse.bfloat16())
        assert Criterion({t: 1.0 for t in TERMS})(half, mask)["loss"].dtype == torch.float32


def test_wrong_settings():
    with pytest.raises(ValueError, match=r"loss.coarse has the unknown term 'dcie'; expected one of bce, dice"):
        Criterion({"bce": 1.0}, {"dcie": 1.0})
    with pytest.raises(ValueError, match=r"loss.final.bce must be at least 0, found -1"):
        Criterion({"bce": -1.0})
    with pytest.raises(ValueError, match="nothing would train"):
        Criterion({"bce": 0.0}, {"bce": 1.0})
