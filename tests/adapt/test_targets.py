import copy
import io
import math
from typing import Any

import pytest
import torch
from gloo import in_two
from torch import nn

from e2net.adapt.heads import PrototypeHead
from e2net.adapt.targets import Centre, Sinkhorn, entropy, usage
from e2net.losses.self_supervised import prototype_cross_entropy, sinkhorn_knopp

TAU = 0.07


def _logits(seed, samples=6, prototypes=5):
    return torch.randn(samples, prototypes, generator=torch.Generator().manual_seed(seed))


# --- Sinkhorn-Knopp


def test_without_a_queue_it_is_the_function():
    targets, logits = Sinkhorn(5, iterations=2), _logits(0)
    for seed in range(2):
        logits = _logits(seed)
        assert torch.equal(targets(logits, TAU), sinkhorn_knopp(logits, TAU, 2))
        targets.update(logits)


@pytest.mark.parametrize("sizes", [[3, 3, 3, 3, 3], [4, 1, 2, 4, 4], [7, 2, 0, 9, 3]])
def test_queue_holds_the_latest_samples(sizes):
    """A batch is seen with the last 7 samples of those before it, as many as there are, and is not in them itself."""
    targets, before = Sinkhorn(5, queue=7), torch.zeros(0, 5)
    for seed, size in enumerate(sizes):
        logits = _logits(seed, size)
        expected = sinkhorn_knopp(torch.cat([logits, before[-7:]]), TAU)[:size]
        for _ in range(2):  # to ask changes nothing
            torch.testing.assert_close(targets(logits, TAU), expected)
        targets.update(logits)
        before = torch.cat([before, logits])


def test_a_queue_uses_prototypes_that_a_small_batch_cannot():
    """Two samples alone have half of the prototypes each; with a queue they have those that are nearest to them."""
    prototypes = 16
    logits = _logits(0, 256, prototypes)
    alone, queued = Sinkhorn(prototypes), Sinkhorn(prototypes, queue=254)
    queued.update(logits[2:])
    whole = sinkhorn_knopp(logits, TAU)[:2]
    far, near = (float((t(logits[:2], TAU) - whole).abs().max()) for t in (alone, queued))
    assert near < 1e-5 and far > 0.1


# --- centre


def test_centre_is_the_moving_mean():
    targets, centre = Centre(5, momentum=0.8), torch.zeros(5)
    for seed in range(4):
        logits = _logits(seed, 3 + seed) + 2
        expected = ((logits - centre) / TAU).softmax(1)
        torch.testing.assert_close(targets(logits, TAU), expected)
        targets.update(logits)
        centre = 0.8 * centre + 0.2 * logits.mean(0)
        torch.testing.assert_close(targets.centre, centre)
        targets.update(logits[:0])  # no masked patch in this batch
        torch.testing.assert_close(targets.centre, centre)


def test_centre_takes_a_prototype_from_everyone():
    logits = _logits(0, 32)
    logits[:, 3] += 5
    targets = Centre(5)
    assert float(targets(logits, TAU)[:, 3].mean()) > 0.99
    for _ in range(100):
        targets.update(logits)
    assert float(targets(logits, TAU)[:, 3].mean()) < 0.5


# --- both


@pytest.mark.parametrize("make", [lambda: Sinkhorn(5), lambda: Sinkhorn(5, queue=8), lambda: Centre(5)])
def test_goes_on_where_it_was(make):
    """Saved, loaded and continued it gives the same targets, bit by bit; so does a copy."""
    whole = make()
    for seed in range(3):
        whole.update(_logits(seed))
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    file.seek(0)
    resumed = make()
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for targets in (resumed, copy.deepcopy(whole)):
        one = copy.deepcopy(whole)
        for seed in range(3, 6):
            assert torch.equal(targets(_logits(seed), TAU), one(_logits(seed), TAU))
            targets.update(_logits(seed))
            one.update(_logits(seed))


@pytest.mark.parametrize("targets", [Sinkhorn(5, queue=8), Centre(5)])
def test_half_precision_and_gradients(targets):
    """Logits in bfloat16 give the targets of the same numbers in float32, under autocast too; none has a gradient."""
    half = _logits(0).bfloat16().requires_grad_()
    other = copy.deepcopy(targets)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            found = targets(half, TAU)
            targets.update(half)
    for _ in range(2):
        expected = other(half.detach().float(), TAU)
        other.update(half.detach().float())
    assert torch.equal(found, expected) and not found.requires_grad and found.dtype == torch.float32
    assert not any(p.requires_grad for p in targets.state_dict(keep_vars=True).values())
    assert not list(targets.parameters())


def test_settings_are_checked():
    for settings in ({"prototypes": 1}, {"prototypes": 5, "queue": -1}, {"prototypes": 5, "iterations": 0}):
        with pytest.raises(ValueError, match="Sinkhorn: expected prototypes of at least 2, a queue of at least 0"):
            Sinkhorn(**settings)
    for prototypes, momentum in ((1, 0.9), (5, 1), (5, -0.1)):
        with pytest.raises(ValueError, match="Centre: expected prototypes of at least 2 and a momentum in"):
            Centre(prototypes, momentum)


# --- the watch


def test_entropy_is_that_of_a_loop():
    probabilities = _logits(0).softmax(1)
    expected = [-sum(p * math.log(p) for p in row) for row in probabilities.tolist()]
    torch.testing.assert_close(entropy(probabilities), torch.tensor(expected))
    assert torch.equal(entropy(torch.eye(4)), torch.zeros(4))
    assert float(entropy(torch.full((4,), 0.25))) == pytest.approx(math.log(4))


def test_usage_is_that_of_a_loop():
    probabilities = _logits(0, 4, 7).softmax(1).double()
    of_samples = sum(-p * math.log(p) for row in probabilities.tolist() for p in row) / 4
    of_mean = sum(-p * math.log(p) for p in probabilities.mean(0).tolist())
    expected = {
        "entropy": of_samples / math.log(7),
        "mean_entropy": of_mean / math.log(7),
        "information": (of_mean - of_samples) / math.log(4),
    }
    assert {name: float(x) for name, x in usage(probabilities).items()} == pytest.approx(expected)


@pytest.mark.parametrize(
    "probabilities, expected",
    [
        (torch.eye(8)[[3]].expand(6, 8), (0, 0, 0)),  # one prototype for all
        (torch.full((6, 8), 1 / 8), (1, 1, 0)),  # all of them for each
        (torch.eye(8), (0, 1, 1)),
        (torch.eye(8)[:2], (0, math.log(2) / math.log(8), 1)),  # two samples can do no better
        (torch.full((1, 8), 1 / 8), (1, 1, 0)),
        (torch.zeros(0, 8), (0, 0, 0)),
    ],
)
def test_usage_at_its_limits(probabilities, expected):
    assert [float(x) for x in usage(probabilities).values()] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("targets", [Sinkhorn(8), Centre(8)])
def test_neither_hides_a_collapse(targets):
    """Of an encoder that gives all pictures the same token."""
    collapsed = _logits(0, 1, 8).expand(16, 8)
    for _ in range(200):
        targets.update(collapsed)
    assert float(usage(targets(collapsed, TAU))["information"]) < 1e-4
    assert float(usage(targets(_logits(1, 16, 8), TAU))["information"]) > 0.3


# --- together


def _trained(targets, steps=150):
    """A student and its averaged teacher on two views of 32 points; what the teacher's prototypes say of the points."""
    torch.manual_seed(0)
    student = nn.Sequential(
        nn.Linear(8, 16), nn.GELU(), PrototypeHead(16, 12, hidden=32, bottleneck=8, weight_norm=True)
    )
    for layer in student.modules():
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()  # 0.02 is for wide layers: of these, biases would soon be all that counts
    teacher = copy.deepcopy(student)
    optimiser = torch.optim.AdamW(student.parameters(), lr=3e-3)
    points = torch.randn(32, 8)
    for _ in range(steps):
        one, other = (points + 0.3 * torch.randn_like(points) for _ in range(2))
        with torch.no_grad():
            logits = teacher(one)
        loss = prototype_cross_entropy(student(other), targets(logits, 0.04), 0.1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        targets.update(logits)
        with torch.no_grad():
            for mine, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
                mine.lerp_(theirs, 0.05)
    with torch.no_grad():
        return float(usage((teacher(points) / 0.04).softmax(1))["information"])


class Plain(nn.Module):
    """A softmax with nothing against collapse."""

    def forward(self, logits, temperature):
        return (logits / temperature).softmax(1)

    def update(self, logits):
        pass


def test_targets_keep_a_training_from_collapse():
    """As in DINO's section 5.3: where there is neither, all pictures end in the same prototypes."""
    found = {
        name: _trained(t) for name, t in {"plain": Plain(), "sinkhorn": Sinkhorn(12), "centre": Centre(12)}.items()
    }
    assert found["sinkhorn"] > 0.35 and found["centre"] > 0.35, found
    assert found["plain"] < 0.05, found


# --- two processes

# Samples of each step, and where the second process's begin.
STEPS = [(6, 3), (5, 1), (4, 4), (7, 0), (6, 2)]


def _steps(rank):
    """Each process with its part; None for all of it in one."""
    all_targets: dict[str, Any] = {"sinkhorn": Sinkhorn(5), "queue": Sinkhorn(5, queue=9), "centre": Centre(5)}
    found = []
    for seed, (samples, cut) in enumerate(STEPS):
        logits = _logits(seed, samples) + torch.arange(5)
        own = logits if rank is None else (logits[:cut], logits[cut:])[rank]
        for name, targets in all_targets.items():
            probabilities = targets(own, TAU)
            targets.update(own)
            found.append({"targets": probabilities, "usage": usage(probabilities), **targets.state_dict()})
            found[-1]["name"] = name
    return found


def test_two_processes_are_one(tmp_path):
    """In every step targets, what is remembered and the watch are those of one process with all samples."""
    for one, first, second in zip(_steps(None), *in_two(_steps, tmp_path), strict=True):
        torch.testing.assert_close(torch.cat([first.pop("targets"), second.pop("targets")]), one.pop("targets"))
        for name, expected in one.items():
            if name == "name":
                continue
            torch.testing.assert_close(first[name], expected)
            assert first[name] == second[name] if name == "usage" else torch.equal(first[name], second[name])
