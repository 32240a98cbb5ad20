import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from conftest import ROOT

from e2net.losses import TERMS, Criterion, WeightSchedule, functional
from e2net.structures import Output


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
        elif term == "focal":
            truth_prob = {i: p[i] if m[i] else 1 - p[i] for i in pixels}
            balance = {i: 0.25 if m[i] else 0.75 for i in pixels}
            results.append(sum(-balance[i] * (1 - q) ** 2 * math.log(q) for i, q in truth_prob.items()) / len(pixels))
        elif term == "tversky":
            false_positives = sum(p[i] * (1 - m[i]) for i in pixels)
            missed = sum((1 - p[i]) * m[i] for i in pixels)
            results.append(1 - (both + 1) / (both + 0.3 * false_positives + 0.7 * missed + 1))
        elif term == "ual":
            results.append(sum(1 - abs(2 * p[i] - 1) ** 2 for i in pixels) / len(pixels))
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
    # The uncertainty-aware loss is content with any decided map.
    assert perfect < (0.1 if term == "edge" else 1e-3) and (inverted > 0.5 or term in ("edge", "ual"))
    for mask in (torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)):
        for value in (-200.0, 0.0, 200.0):
            logits = torch.full((1, 1, 8, 8), value, requires_grad=True)
            TERMS[term](logits, mask).sum().backward()
            assert logits.grad.isfinite().all()


def test_focal_without_focus_or_balance_is_half_the_cross_entropy():
    logits, mask = _pair()
    torch.testing.assert_close(2 * functional.focal(logits, mask, 0.5, 0.0), TERMS["bce"](logits, mask))
    weighted = functional.focal(logits, mask, 1.0, 3.0)  # the object's pixels alone, with (1 - p)^3
    prob = logits.sigmoid()
    torch.testing.assert_close(weighted, (-mask * (1 - prob) ** 3 * prob.log()).mean((2, 3)))


def test_tversky_of_equal_costs_is_dice_and_its_exponent_a_power():
    logits, mask = _pair()
    prob = logits.sigmoid()
    hit, total = (prob * mask).sum((2, 3)), (prob + mask).sum((2, 3))
    torch.testing.assert_close(functional.tversky(logits, mask, 0.5, 0.5), 1 - (2 * hit + 2) / (total + 2))
    plain, focal = (functional.tversky(logits, mask, 0.4, 0.6, e) for e in (1.0, 0.75))
    torch.testing.assert_close(focal, plain**0.75)
    perfect = (200 * (2 * mask - 1)).requires_grad_()
    functional.tversky(perfect, mask, exponent=0.75).sum().backward()
    assert perfect.grad.isfinite().all()


@pytest.mark.parametrize(("term", "name", "value"), [
    ("focal", "alpha", 0.5), ("focal", "gamma", 1.0),
    ("tversky", "alpha", 0.7), ("tversky", "beta", 0.3), ("tversky", "exponent", 0.75),
])  # fmt: skip
def test_params_reach_their_term_and_no_other(term, name, value):
    output, mask = _output()
    weights = dict.fromkeys(TERMS, 1.0)
    before = Criterion(weights)(output, mask)
    after = Criterion(weights, params={term: {name: value}})(output, mask)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"loss", f"final/{term}"}
    torch.testing.assert_close(after[f"final/{term}"], TERMS[term](output.prediction, mask, **{name: value}).mean())


STEPS = [[0, 2.0], [0.3, 1.5], [0.6, 1.0]]


@pytest.mark.parametrize(("weight", "expected"), [
    (0.7, {0.0: 0.7, 0.5: 0.7, 1.0: 0.7}),
    (STEPS, {0.0: 2.0, 29 / 100: 2.0, 30 / 100: 1.5, 59 / 100: 1.5, 60 / 100: 1.0, 1.0: 1.0}),
    ({"ramp": "cosine", "from": 0.0, "to": 1.0}, {0.0: 0.0, 1 / 3: 0.25, 0.5: 0.5, 2 / 3: 0.75, 1.0: 1.0}),
    ({"ramp": "linear", "from": 3.0, "to": 1.0}, {0.0: 3.0, 0.25: 2.5, 1.0: 1.0}),
], ids=["number", "steps", "cosine", "linear"])  # fmt: skip
def test_a_weight_over_the_course_of_training(weight, expected):
    schedule = WeightSchedule(weight)
    assert {progress: schedule(progress) for progress in expected} == pytest.approx(expected)
    assert schedule.peak == max(expected.values())
    output, mask = _output()
    criterion = Criterion({"bce": 1.0, "ual": weight})
    for progress, value in expected.items():
        values = criterion(output, mask, progress)
        torch.testing.assert_close(values["loss"], values["final/bce"] + value * values["final/ual"])
    torch.testing.assert_close(criterion(output, mask)["loss"], values["loss"])  # the end, unless told


def test_a_weight_of_0_for_now_is_logged_and_one_of_0_for_good_is_not():
    output, mask = _output()
    rising = {"ramp": "cosine", "from": 0.0, "to": 1.0}
    values = Criterion({"bce": 1.0, "ual": rising, "dice": 0.0, "iou": [[0, 0.0]]})(output, mask, 0.0)
    assert set(values) == {"loss", "final/bce", "final/ual"}
    assert values["final/ual"] > 0


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
    return Output(logits, {"coarse": (coarse,), "refined": refined}), mask


@pytest.mark.parametrize("part", ["final", "coarse", "refined"])
@pytest.mark.parametrize("term", TERMS)
def test_every_weight_changes_the_total_by_what_is_logged(part, term):
    output, mask = _output()
    base: dict[str, Any] = {"final": {"bce": 1.0, "dice": 1.0}, "coarse": {}, "refined": {}}
    changed: dict[str, Any] = {**base, part: {**base[part], term: base[part].get(term, 0.0) + 0.7}}
    before, after = Criterion(**base)(output, mask), Criterion(**changed)(output, mask)
    assert f"{part}/{term}" in after
    expected = before["loss"] + 0.7 * after[f"{part}/{term}"]
    torch.testing.assert_close(after["loss"], expected)
    assert not torch.equal(before["loss"], after["loss"])


def test_published_v1_weights():
    output, mask = _output()
    weights = {"final": {"dice": 2.0, "bce": 1.0, "iou": 0.5, "edge": 0.5}, "coarse": {"dice": 0.3, "bce": 0.3}}
    values = Criterion(final=weights["final"], coarse=weights["coarse"])(output, mask)
    coarse = F.interpolate(output.auxiliary["coarse"][0], size=(16, 16), mode="bilinear")
    expected = sum(w * TERMS[t](output.prediction, mask).mean() for t, w in weights["final"].items())
    expected = expected + 0.3 * (TERMS["dice"](coarse, mask) + TERMS["bce"](coarse, mask)).mean()
    torch.testing.assert_close(values["loss"], expected)


def test_parts_that_a_decoder_lacks_are_left_out():
    output, mask = _output()
    values = Criterion({"bce": 1.0}, {"bce": 1.0}, {"bce": 1.0})(Output(output.prediction), mask)
    assert set(values) == {"loss", "final/bce"}


def test_computed_in_float32_under_autocast():
    output, mask = _output()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = Output(output.prediction.bfloat16(), {"coarse": (output.auxiliary["coarse"][0].bfloat16(),)})
        assert Criterion({t: 1.0 for t in TERMS})(half, mask)["loss"].dtype == torch.float32


def test_wrong_settings():
    with pytest.raises(ValueError, match=r"loss.coarse has the unknown term 'dcie'; expected one of bce, dice"):
        Criterion({"bce": 1.0}, {"dcie": 1.0})
    with pytest.raises(ValueError, match=r"loss.final.bce must be at least 0, found -1"):
        Criterion({"bce": -1.0})
    with pytest.raises(ValueError, match="nothing would train"):
        Criterion({"bce": 0.0}, {"bce": 1.0})
    with pytest.raises(ValueError, match=r"loss.params has the unknown term 'foca'; expected one of bce"):
        Criterion({"bce": 1.0}, params={"foca": {"gamma": 1.0}})
    with pytest.raises(ValueError, match=r"loss.params.focal has the unknown parameter 'beta'; .* alpha, gamma"):
        Criterion({"bce": 1.0}, params={"focal": {"beta": 1.0}})
    with pytest.raises(ValueError, match=r"loss.params.bce has the unknown parameter 'gamma'; it has none"):
        Criterion({"bce": 1.0}, params={"bce": {"gamma": 1.0}})
    with pytest.raises(ValueError, match=r"loss.params.focal.gamma must be at least 0, found -2"):
        Criterion({"bce": 1.0}, params={"focal": {"gamma": -2}})


@pytest.mark.parametrize(("weight", "message"), [
    ([[0, 1.0], [0.5, -1.0]], "at least 0, found -1.0"),
    ([[0.1, 1.0]], r"rise from 0 .* found \[0.1\]"),
    ([[0, 1.0], [30, 2.0]], "stay below 1, as shares of training"),
    ([[0, 1.0], [0.6, 2.0], [0.3, 1.0]], "must have steps that rise"),
    ([0.5, 0.7], "must be pairs of"),
    ([], "must be pairs of"),
    ("high", "at least 0, found high"),
    (float("nan"), "at least 0, found nan"),
    ({"ramp": "sine", "from": 0.0, "to": 1.0}, "a ramp of linear, cosine, found"),
    ({"ramp": "cosine", "to": 1.0}, "must be like {ramp: cosine, from: 0.0, to: 1.0}"),
    ({"ramp": "cosine", "from": 0.0, "to": -1.0}, "at least 0, found -1.0"),
], ids=str)  # fmt: skip
def test_wrong_schedules(weight, message):
    with pytest.raises(ValueError, match=rf"loss.final.edge must .*{message}|loss.final.edge .*{message}"):
        Criterion({"bce": 1.0, "edge": weight})


# The others stand for one of these, or are another task's.
BINARY = [f for f in sorted((ROOT / "conf" / "loss").glob("*.yaml")) if "e2net.losses.Criterion\n" in f.read_text()]


def _configured(name):
    """What a loss option's YAML makes."""
    config = yaml.safe_load((ROOT / "conf" / "loss" / f"{name}.yaml").read_text())
    del config["_target_"]
    return Criterion(**config)


def test_published_schedules():
    """E2Net's at epochs 0, 30 and 60 of 100; ZoomNeXt's ramp."""
    final = _configured("v1_schedule").weights["final"]
    assert [final["dice"](epoch / 100) for epoch in (0, 29, 30, 59, 60, 99)] == [2.0, 2.0, 1.5, 1.5, 1.0, 1.0]
    assert [final["edge"](epoch / 100) for epoch in (0, 29, 30, 59, 60, 99)] == [0.3, 0.3, 0.5, 0.5, 0.8, 0.8]
    final = _configured("ual").weights["final"]
    assert [final["ual"](p) for p in (0.0, 0.5, 1.0)] == pytest.approx([0, 0.5, 1]) and final["bce"](0.0) == 1


@pytest.mark.parametrize("file", BINARY, ids=lambda f: f.stem)
def test_options_list_every_term_so_that_each_can_be_overridden(file):
    criterion = _configured(file.stem)
    assert [set(weights) for weights in criterion.weights.values()] == [set(TERMS)] * 3
    output, mask = _output()
    output.prediction.requires_grad_()
    criterion(output, mask, 0.5)["loss"].backward()
    assert output.prediction.grad.any()
