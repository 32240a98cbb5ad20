"""Each loss against a loop over plain numbers, from its paper; its gradient; its limits; halves; two processes."""

import math

import pytest
import torch
import torch.nn.functional as F
from gloo import in_two

from e2net import processes
from e2net.losses.self_supervised import (
    centred,
    dino_loss,
    gram,
    ibot_loss,
    koleo,
    prototype_cross_entropy,
    resize_patches,
    sinkhorn_knopp,
)

TAU = 0.1


def _draw(seed, *shape, scale=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def _probabilities(seed, *shape):
    return _draw(seed, *shape, scale=2).softmax(-1)


# --- loops over plain numbers


def _softmax(row, tau):
    powers = [math.exp(x / tau) for x in row]
    return [power / sum(powers) for power in powers]


def _cross(student, teacher, tau):
    return -sum(t * math.log(s) for s, t in zip(_softmax(student, tau), teacher, strict=True))


def _dino(logits, targets, tau):
    terms = {"global": [], "local": []}
    for g, target in enumerate(targets):
        for c, crop in enumerate(logits):
            if c != g:
                kind = "global" if c < len(targets) else "local"
                terms[kind] += [_cross(s, t, tau) for s, t in zip(crop, target, strict=True)]
    return {kind: sum(found) / len(found) if found else 0 for kind, found in terms.items()}


def _ibot(logits, targets, image, images, tau):
    total = 0
    for one in range(images):
        own = [m for m, of in enumerate(image) if of == one]
        if own:
            total += sum(_cross(logits[m], targets[m], tau) for m in own) / len(own)
    return total / images


def _unit(row):
    length = math.sqrt(sum(x * x for x in row))
    return [x / length for x in row]


def _koleo(tokens):
    points = [_unit(row) for row in tokens]
    nearest = [min(math.dist(a, b) for j, b in enumerate(points) if j != i) for i, a in enumerate(points)]
    return sum(-math.log(d + 1e-8) for d in nearest) / len(points)


def _gram(student, teacher):
    found = []
    for ours, theirs in zip(student, teacher, strict=True):
        s, t = [_unit(row) for row in ours], [_unit(row) for row in theirs]
        for i in range(len(s)):
            for j in range(len(s)):
                ours_ij = sum(a * b for a, b in zip(s[i], s[j], strict=True))
                theirs_ij = sum(a * b for a, b in zip(t[i], t[j], strict=True))
                found.append((ours_ij - theirs_ij) ** 2)
    return sum(found) / len(found)


def _sinkhorn(logits, tau, iterations):
    """SwAV's: a matrix of prototypes × samples, its rows then its columns divided by their sums, to 1 / K and 1 / N."""
    n, k = len(logits), len(logits[0])
    q = [[math.exp(logits[j][i] / tau) for j in range(n)] for i in range(k)]
    total = sum(map(sum, q))
    q = [[x / total for x in row] for row in q]
    for _ in range(iterations):
        q = [[x / sum(row) / k for x in row] for row in q]
        sums = [sum(q[i][j] for i in range(k)) for j in range(n)]
        q = [[q[i][j] / sums[j] / n for j in range(n)] for i in range(k)]
    return [[q[i][j] * n for i in range(k)] for j in range(n)]


@pytest.mark.parametrize("seed", range(4))
def test_cross_entropy_is_that_of_a_loop(seed):
    logits, targets = _draw(seed, 2, 3, 5), _probabilities(seed + 9, 2, 3, 5)
    found = prototype_cross_entropy(logits, targets, TAU)
    expected = [
        [_cross(s, t, TAU) for s, t in zip(*rows, strict=True)]
        for rows in zip(logits.tolist(), targets.tolist(), strict=True)
    ]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("crops, teachers, batch", [(10, 2, 3), (5, 3, 2), (2, 2, 4), (4, 1, 2), (1, 1, 1)])
def test_dino_is_that_of_a_loop(crops, teachers, batch):
    logits, targets = _draw(crops, crops, batch, 6), _probabilities(teachers, teachers, batch, 6)
    found = dino_loss(logits, targets, TAU)
    expected = _dino(logits.tolist(), targets.tolist(), TAU)
    assert {kind: float(x) for kind, x in found.items()} == pytest.approx(expected, rel=1e-12)


def test_dino_leaves_a_crop_against_itself_out():
    """What the first global crop says of itself counts neither in value nor in gradient."""
    logits, targets = _draw(0, 2, 1, 4).requires_grad_(), _probabilities(1, 2, 1, 4)
    other = targets.clone()
    other[0] = _probabilities(2, 1, 4)  # the first target: seen by the second crop alone
    for one in (targets, other):
        dino_loss(logits, one, TAU)["global"].backward()
    first, second = logits.grad.clone(), logits.grad
    logits.grad = None
    dino_loss(logits, targets, TAU)["global"].backward()
    assert torch.allclose(first[0], 2 * logits.grad[0], atol=1e-14)
    assert not torch.allclose(second[1], 2 * logits.grad[1])


def test_dino_wants_the_global_crops_among_the_students():
    with pytest.raises(ValueError, match="expected the 2 global crops among the student's, found 1"):
        dino_loss(_draw(0, 1, 3, 4), _probabilities(0, 2, 3, 4), TAU)


@pytest.mark.parametrize("image", [[0, 0, 0, 1, 3], [2, 0, 2, 1, 2], [3], []])
def test_ibot_is_that_of_a_loop(image):
    logits, targets = _draw(1, len(image), 5), _probabilities(2, len(image), 5)
    found = ibot_loss(logits, targets, torch.tensor(image, dtype=torch.int64), 4, TAU)
    assert float(found) == pytest.approx(_ibot(logits.tolist(), targets.tolist(), image, 4, TAU), rel=1e-12)


def test_ibot_weighs_images_alike():
    """One patch of an image says as much as the same patch ten times."""
    logits, targets = _draw(1, 2, 5), _probabilities(2, 2, 5)
    once = ibot_loss(logits, targets, torch.tensor([0, 1]), 2, TAU)
    repeated = torch.tensor([0] + [1] * 10)
    found = ibot_loss(logits[repeated], targets[repeated], repeated, 2, TAU)
    assert float(found) == pytest.approx(float(once), rel=1e-12)


@pytest.mark.parametrize("batch, width", [(2, 3), (7, 2), (9, 16)])
def test_koleo_is_that_of_a_loop(batch, width):
    tokens = _draw(batch, batch, width, scale=3)
    assert float(koleo(tokens)) == pytest.approx(_koleo(tokens.tolist()), rel=1e-12)


@pytest.mark.parametrize("batch, patches, width, other", [(1, 4, 3, 3), (3, 5, 2, 2), (2, 9, 8, 5)])
def test_gram_is_that_of_a_loop(batch, patches, width, other):
    student, teacher = _draw(1, batch, patches, width, scale=3), _draw(2, batch, patches, other, scale=0.1)
    assert float(gram(student, teacher)) == pytest.approx(_gram(student.tolist(), teacher.tolist()), rel=1e-12)


@pytest.mark.parametrize("iterations", [1, 3, 10])
@pytest.mark.parametrize("samples, prototypes", [(6, 4), (3, 8), (1, 5)])
def test_sinkhorn_is_that_of_a_loop(samples, prototypes, iterations):
    logits = _draw(samples, samples, prototypes)
    found = sinkhorn_knopp(logits, 0.06, iterations)
    expected = torch.tensor(_sinkhorn(logits.tolist(), 0.06, iterations), dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


def test_centred_is_that_of_a_loop():
    logits, centre = _draw(0, 4, 5), _draw(1, 5)
    shifted = [[x - c for x, c in zip(row, centre.tolist(), strict=True)] for row in logits.tolist()]
    expected = torch.tensor([_softmax(row, 0.04) for row in shifted], dtype=torch.float64)
    torch.testing.assert_close(centred(logits, centre, 0.04), expected, rtol=1e-10, atol=1e-14)


# --- gradients


@pytest.mark.parametrize("kind", ["cross", "global", "local", "ibot", "koleo", "gram", "resize"])
def test_gradients(kind):
    image = torch.tensor([0, 2, 2, 0, 0])
    losses = {
        "cross": (lambda x: prototype_cross_entropy(x, _probabilities(1, 3, 4), TAU), (3, 4)),
        "global": (lambda x: dino_loss(x, _probabilities(1, 2, 2, 4), TAU)["global"], (4, 2, 4)),
        "local": (lambda x: dino_loss(x, _probabilities(1, 2, 2, 4), TAU)["local"], (4, 2, 4)),
        "ibot": (lambda x: ibot_loss(x, _probabilities(1, 5, 4), image, 3, TAU), (5, 4)),
        "koleo": (koleo, (5, 3)),
        "gram": (lambda x: gram(x, _draw(1, 2, 4, 3)), (2, 4, 3)),
        "resize": (lambda x: resize_patches(x, (4, 6), (2, 3)), (2, 24, 2)),
    }
    loss, shape = losses[kind]
    assert torch.autograd.gradcheck(loss, _draw(0, *shape).requires_grad_())


def test_targets_have_no_gradient():
    teacher, student = _draw(0, 2, 3, 4).requires_grad_(), _draw(1, 2, 3, 4).requires_grad_()
    image = torch.tensor([0, 1, 1])
    for targets in (teacher.softmax(-1), teacher.detach().softmax(-1)):
        loss = prototype_cross_entropy(student, targets, TAU).mean() + sum(dino_loss(student, targets, TAU).values())
        loss = loss + ibot_loss(student[0], targets[0], image, 2, TAU) + gram(student, targets)
        loss.backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0
    assert not sinkhorn_knopp(teacher[0], TAU).requires_grad
    assert not centred(teacher[0], torch.zeros(4), TAU).requires_grad


# --- limits


def test_uniform_targets_and_one_cluster():
    k, image = 8, torch.tensor([0, 1, 1])
    uniform, student = torch.full((2, 3, k), 1 / k), torch.zeros(4, 3, k)
    sure, cluster = F.one_hot(torch.zeros(4, 3, dtype=torch.int64), k).float(), torch.zeros(2, 3, k)
    cluster[..., 0] = 1
    for logits, targets, expected in [
        (student, uniform, math.log(k)),
        (student, cluster, math.log(k)),
        (sure * 30, cluster, 0),
        # Uniform targets of a student that is sure: all but one of the prototypes are 30 / τ away.
        (sure * 30, uniform, (k - 1) / k * 30 / TAU),
    ]:
        found = dino_loss(logits, targets, TAU)
        found["ibot"] = ibot_loss(logits[0], targets[0], image, 2, TAU)
        assert {name: float(x) for name, x in found.items()} == pytest.approx(dict.fromkeys(found, expected), abs=1e-4)


def test_cross_entropy_is_least_at_the_targets():
    """Where it is their entropy, and its gradient is 0."""
    targets = _probabilities(0, 5, 7)
    logits = (targets.log() * TAU).requires_grad_()
    loss = prototype_cross_entropy(logits, targets, TAU)
    loss.sum().backward()
    torch.testing.assert_close(loss, -(targets * targets.log()).sum(-1))
    assert logits.grad.abs().max() < 1e-12


def test_koleo_of_equal_and_of_opposite_tokens():
    pair = torch.tensor([[1.0, 2.0], [-2.0, -4.0]])
    assert float(koleo(pair)) == pytest.approx(-math.log(2), abs=1e-6)
    equal = torch.ones(4, 3).requires_grad_()
    loss = koleo(equal)
    loss.backward()
    assert loss.item() == pytest.approx(-math.log(1e-8), rel=1e-5)
    assert equal.grad.isfinite().all()
    with pytest.raises(ValueError, match="at least 2 images in a batch, found 1"):
        koleo(torch.ones(1, 3))
    tokens = _draw(0, 6, 4)
    torch.testing.assert_close(koleo(tokens), koleo(tokens * _draw(1, 6, 1).abs()))


def test_gram_knows_directions_within_an_image_alone():
    student = _draw(0, 2, 6, 4)
    rotation = torch.linalg.qr(_draw(1, 4, 4)).Q
    for same in (student, student @ rotation, student * _draw(2, 2, 6, 1).abs()):
        assert float(gram(student, same)) < 1e-28
    # Patches all alike against patches all at right angles: every pair of two patches is off by 1.
    assert float(gram(torch.ones(3, 5, 5), torch.eye(5).expand(3, 5, 5))) == pytest.approx(20 / 25)
    # Images are never compared with each other: to turn one of them changes nothing.
    turned = torch.stack([student[0], student[1] @ rotation])
    assert float(gram(turned, student)) < 1e-28
    nothing = torch.zeros(1, 2, 3).requires_grad_()
    gram(nothing, torch.ones(1, 2, 3)).backward()
    assert nothing.grad.isfinite().all()


def test_patches_are_resized_on_their_grid():
    """Twice the side halved: a plane stays a plane inside, each channel by itself, rows and columns in their places."""
    y, x = torch.meshgrid(torch.arange(12.0), torch.arange(16.0), indexing="ij")
    fine = torch.stack([y, x, 3 * y - x], -1).flatten(0, 1)[None]
    found = resize_patches(fine, (12, 16), (6, 8)).unflatten(1, (6, 8))[0, 1:-1, 1:-1]
    y, x = torch.meshgrid(torch.arange(6.0)[1:-1], torch.arange(8.0)[1:-1], indexing="ij")
    y, x = 2 * y + 0.5, 2 * x + 0.5
    torch.testing.assert_close(found, torch.stack([y, x, 3 * y - x], -1))
    assert torch.equal(resize_patches(fine, (12, 16), (12, 16)), fine)


def test_sinkhorn_uses_prototypes_alike():
    logits = _draw(0, 64, 8)
    found = sinkhorn_knopp(logits, TAU, 200)
    torch.testing.assert_close(found.sum(1), torch.ones(64, dtype=torch.float64))
    torch.testing.assert_close(found.sum(0), torch.full((8,), 8.0, dtype=torch.float64), rtol=1e-4, atol=0)
    # A constant of a sample or of a prototype is no matter, so no prototype can be everyone's.
    biased = logits + _draw(1, 8, scale=5) + _draw(2, 64, 1, scale=5)
    # Three iterations go part of the way.
    one, three, ten = (float(sinkhorn_knopp(biased, TAU, n).sum(0).std()) for n in (1, 3, 10))
    assert float((biased / TAU).softmax(1).sum(0).std()) > one > three > ten > 0.01
    torch.testing.assert_close(sinkhorn_knopp(biased, TAU, 200), found, rtol=1e-3, atol=1e-6)


def test_sinkhorn_at_its_limits():
    uniform = torch.full((5, 4), 0.25)
    assert torch.equal(sinkhorn_knopp(torch.zeros(5, 4), 0.04), uniform)
    one_cluster = torch.tensor([9.0, 0, -1, 3]).expand(5, 4)
    torch.testing.assert_close(sinkhorn_knopp(one_cluster, 0.04), uniform)
    assert sinkhorn_knopp(torch.zeros(0, 4), 0.04).shape == (0, 4)
    with pytest.raises(ValueError, match="at least 1 iteration, found 0"):
        sinkhorn_knopp(torch.zeros(5, 4), 0.04, 0)


@pytest.mark.parametrize("scale", [10, 1e3, 1e5])
def test_sinkhorn_stays_finite(scale):
    """exp(logits / τ) is far beyond what a float32 can hold, and whole rows and columns of it would be 0."""
    logits = _draw(0, 16, 8, scale=scale).float()
    found = sinkhorn_knopp(logits, 0.04)
    assert found.isfinite().all()
    torch.testing.assert_close(found.sum(1), torch.ones(16))
    assert centred(logits, logits.mean(0), 0.04).isfinite().all()
    assert prototype_cross_entropy(logits, found, TAU).isfinite().all()


# --- halves


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_work_is_in_float32_whatever_autocast_says(dtype):
    """Of the same numbers the results in float32, half and under autocast are equal bit by bit."""
    logits, targets = _draw(0, 4, 3, 6).to(dtype), _probabilities(1, 2, 3, 6).to(dtype)
    tokens, teacher, image = _draw(2, 2, 12, 8).to(dtype), _draw(3, 2, 12, 8).to(dtype), torch.tensor([0, 1, 1])
    many = _draw(4, 200, 3).to(dtype)  # so near to each other that a half would take others for neighbours

    def results(kind):
        s, t, a, b, m = (x.to(kind) for x in (logits, targets, tokens, teacher, many))
        return [
            *dino_loss(s, t, TAU).values(),
            ibot_loss(s[0], t[0], image, 2, TAU),
            koleo(m),
            gram(a, b),
            resize_patches(a, (3, 4), (6, 8)),
            sinkhorn_knopp(s[0], TAU),
            centred(s[0], torch.zeros(6), TAU),
        ]

    expected = results(torch.float32)
    for kind in (torch.float32, dtype):
        with torch.autocast("cpu", dtype):
            found = results(kind)
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == torch.float32 and torch.equal(one, other)


# --- two processes


def _alone_and_together(rank):
    """Of a process with its part of a batch: Sinkhorn-Knopp with parts of unequal sizes, KoLeo with equal ones."""
    logits, few = _draw(0, 7, 5), _draw(1, 3, 5)
    tokens = _draw(2, 8, 3).chunk(2)[rank].requires_grad_()
    with processes.one_batch():
        loss = koleo(tokens)
    loss.backward()
    return {
        "sinkhorn": sinkhorn_knopp(logits[:2] if rank == 0 else logits[2:], TAU),
        "one has none": sinkhorn_knopp(few[:0] if rank == 0 else few, TAU),
        "koleo": loss.detach(),
        "gradient": tokens.grad / 2,  # as DDP averages them
        "koleo of one process": koleo(tokens).detach(),
    }


def test_two_processes_are_one_batch(tmp_path):
    found = in_two(_alone_and_together, tmp_path)
    torch.testing.assert_close(torch.cat([one["sinkhorn"] for one in found]), sinkhorn_knopp(_draw(0, 7, 5), TAU))
    assert found[0]["one has none"].shape == (0, 5)
    torch.testing.assert_close(found[1]["one has none"], sinkhorn_knopp(_draw(1, 3, 5), TAU))
    tokens = _draw(2, 8, 3).requires_grad_()
    loss = koleo(tokens)
    loss.backward()
    torch.testing.assert_close(torch.cat([one["gradient"] for one in found]), tokens.grad)
    for one, part in zip(found, _draw(2, 8, 3).chunk(2), strict=True):
        torch.testing.assert_close(one["koleo"], loss.detach())
        torch.testing.assert_close(one["koleo of one process"], koleo(part))
