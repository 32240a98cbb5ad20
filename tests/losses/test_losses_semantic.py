import math

import pytest
import torch
import torch.nn.functional as F

from e2net.losses.semantic import class_weights, cross_entropy, dice, lovasz

TERMS = {"cross_entropy": cross_entropy, "dice": dice, "lovasz": lovasz}
# (batch, classes, height, width): odd sizes, a row, one pixel.
SHAPES = [(2, 4, 5, 7), (1, 2, 3, 3), (3, 5, 1, 6), (1, 3, 1, 1)]


def _pair(shape, ignore=255, known=None, dtype=torch.float64, seed=0):
    """Logits, and labels of which a fifth is to ignore; those of the ``known`` classes only, by default all but one."""
    generator = torch.Generator().manual_seed(seed)
    batch, classes, *size = shape
    logits = 2 * torch.randn(batch, classes, *size, generator=generator, dtype=dtype)
    known = torch.tensor([k for k in range(classes) if k != 1] if known is None else known)
    labels = known[torch.randint(len(known), (batch, 1, *size), generator=generator)]
    ignored = torch.rand(labels.shape, generator=generator) < 0.2
    return logits, labels.where(~ignored, ignore)


def _pixels(logits, labels, ignore):
    """[(label, probabilities)] of the pixels that count, as plain numbers."""
    found = []
    for one, truth in zip(logits.tolist(), labels.tolist(), strict=True):
        for y, row in enumerate(truth[0]):
            for x, label in enumerate(row):
                if label != ignore:
                    powers = [math.exp(one[k][y][x]) for k in range(len(one))]
                    found.append((label, [p / sum(powers) for p in powers]))
    return found


def _cross_entropy_loop(pixels, weights=None, smoothing=0.0):
    total = weight = 0.0
    for label, prob in pixels:
        w = weights or [1.0] * len(prob)
        target = [(1 - smoothing) * (k == label) + smoothing / len(prob) for k in range(len(prob))]
        total += sum(-w[k] * target[k] * math.log(prob[k]) for k in range(len(prob)))
        weight += w[label]
    return total / weight if weight else 0.0


def _dice_loop(pixels):
    losses = []
    for k in {label for label, _ in pixels}:
        both = sum(prob[k] for label, prob in pixels if label == k)
        losses.append(1 - 2 * both / (sum(prob[k] + (label == k) for label, prob in pixels)))
    return sum(losses) / len(losses) if losses else 0.0


def _lovasz_loop(pixels):
    """By the definition of the extension: Σ m_π(i) (J(first i wrong) - J(first i - 1 wrong)), J from sets of pixels."""
    losses = []
    for k in {label for label, _ in pixels}:
        truth = {i for i, (label, _) in enumerate(pixels) if label == k}
        errors = [1 - prob[k] if label == k else prob[k] for label, prob in pixels]
        worst = sorted(range(len(pixels)), key=lambda i: -errors[i])

        def jaccard(wrong, truth=truth):
            predicted = truth.symmetric_difference(wrong)
            return 1 - len(truth & predicted) / len(truth | predicted)

        losses.append(sum(errors[i] * (jaccard(worst[: n + 1]) - jaccard(worst[:n])) for n, i in enumerate(worst)))
    return sum(losses) / len(losses) if losses else 0.0


LOOPS = {"cross_entropy": _cross_entropy_loop, "dice": _dice_loop, "lovasz": _lovasz_loop}


@pytest.mark.parametrize("ignore", [255, -1, 65535, 0])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("term", TERMS)
def test_term_equals_a_loop_written_from_its_definition(term, shape, ignore):
    logits, labels = _pair(shape, ignore)
    found = TERMS[term](logits, labels, ignore)
    assert found.shape == ()
    assert float(found) == pytest.approx(LOOPS[term](_pixels(logits, labels, ignore)), abs=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 0.0, 3.0]])
def test_weights_and_smoothing(weights, smoothing):
    logits, labels = _pair((2, 4, 5, 7))
    expected = _cross_entropy_loop(_pixels(logits, labels, 255), weights, smoothing)
    # Weights in float32, as class_weights gives them.
    given = None if weights is None else torch.tensor(weights)
    assert float(cross_entropy(logits, labels, 255, given, smoothing)) == pytest.approx(expected, abs=1e-12)
    torch_mean = F.cross_entropy(
        logits, labels[:, 0], None if given is None else given.double(), ignore_index=255, label_smoothing=smoothing
    )
    assert float(torch_mean) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("term", TERMS)
def test_gradient(term, shape):
    logits, labels = _pair(shape, seed=1)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: TERMS[term](x, labels, 255), (logits,))


def test_gradient_with_weights_and_smoothing():
    logits, labels = _pair((2, 3, 3, 5))
    weights = torch.tensor([0.5, 1.0, 2.0])
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, labels, 255, weights, 0.1), (logits,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("term", TERMS)
def test_limits(term, dtype):
    _, labels = _pair((2, 4, 9, 11), dtype=dtype)
    perfect = 200 * F.one_hot(labels[:, 0].where(labels[:, 0] < 4, 0), 4).movedim(-1, 1).to(dtype)
    perfect.requires_grad_()
    right = TERMS[term](perfect, labels)
    right.backward()
    assert float(right.detach()) == pytest.approx(0, abs=1e-6)
    assert perfect.grad.isfinite().all()
    wrong = TERMS[term](perfect.detach().roll(1, dims=1), labels)
    assert float(wrong) == pytest.approx(200 if term == "cross_entropy" else 1, abs=1e-4)
    if term == "cross_entropy":
        assert float(cross_entropy(torch.zeros_like(perfect.detach()), labels)) == pytest.approx(math.log(4), abs=1e-6)


def test_dice_and_lovasz_of_one_wrong_pixel_are_those_of_sets():
    labels = torch.tensor([0, 0, 0, 1, 1]).view(1, 1, 1, 5)
    taken = torch.tensor([0, 0, 1, 1, 1])
    logits = 1000 * F.one_hot(taken, 2).T.double().view(1, 2, 1, 5)
    # Class 0: 2 shared of 3 and 2. Class 1: 2 shared of 2 and 3.
    assert float(dice(logits, labels)) == pytest.approx(1 - 4 / 5)
    assert float(lovasz(logits, labels)) == pytest.approx(1 - 2 / 3)


@pytest.mark.parametrize("term", TERMS)
def test_nothing_that_counts_is_a_loss_of_0_with_a_gradient_of_0(term):
    logits = torch.randn(2, 3, 4, 5, requires_grad=True)
    loss = TERMS[term](logits, torch.full((2, 1, 4, 5), 255), 255)
    loss.backward()
    assert float(loss.detach()) == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_only_classes_that_weigh_nothing(smoothing):
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = cross_entropy(logits, torch.zeros(1, 1, 2, 2, dtype=torch.int64), 255, torch.tensor([0.0, 1, 1]), smoothing)
    loss.backward()
    assert float(loss.detach()) == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("term", TERMS)
def test_what_is_ignored_does_not_matter(term):
    logits, labels = _pair((2, 4, 5, 7))
    changed = torch.where(labels == 255, 100.0 * torch.randn(2, 4, 5, 7, dtype=torch.float64), logits)
    assert not torch.equal(changed, logits)
    torch.testing.assert_close(TERMS[term](changed, labels), TERMS[term](logits, labels), rtol=0, atol=1e-12)


@pytest.mark.parametrize("term", ["dice", "lovasz"])
def test_classes_are_taken_over_the_batch(term):
    logits, _ = _pair((2, 3, 4, 4))
    labels = torch.zeros(2, 1, 4, 4, dtype=torch.int64)
    labels[1] = 2
    together = TERMS[term](logits, labels)
    # As one wide image, and unlike the mean over two.
    wide = TERMS[term](torch.cat(logits.unbind(), -1)[None], torch.cat(labels.unbind(), -1)[None])
    apart = torch.stack([TERMS[term](logits[[i]], labels[[i]]) for i in (0, 1)]).mean()
    torch.testing.assert_close(together, wide)
    assert abs(float(together - apart)) > 0.01


def test_float32_sums_many_pixels():
    # A class with 2**21 pixels at probability about 0.1: a running float32 sum would be off by more.
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, 2, 512, 512, generator=generator)
    labels = (torch.rand(8, 1, 512, 512, generator=generator) < 0.001).long()
    exact = {term: float(TERMS[term](logits.double(), labels)) for term in ("cross_entropy", "dice")}
    for term, value in exact.items():
        assert float(TERMS[term](logits, labels)) == pytest.approx(value, abs=2e-5)


def test_lovasz_in_float32_keeps_its_digits():
    logits, labels = _pair((1, 2, 300, 301), known=[0, 1], dtype=torch.float32)
    assert float(lovasz(logits, labels)) == pytest.approx(float(lovasz(logits.double(), labels)), abs=1e-6)


def test_class_weights():
    counts = [700_000, 250_000, 49_990, 10, 0]
    found = class_weights(torch.tensor(counts))
    shares = [c / 1_000_000 for c in counts]
    raw = [1 / math.log(1.02 + share) for share in shares]
    mean = sum(share * weight for share, weight in zip(shares, raw, strict=True))
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx([*(weight / mean for weight in raw[:4]), 1], rel=1e-6)
    assert list(found[:4]) == sorted(found[:4])
    assert float(found.max() / found.min()) < 36
    # The mean over pixels is 1, so that a loss keeps its size.
    assert float((found.double() * torch.tensor(shares)).sum()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("counts", "expected"), [([5, 5], [1, 1]), ([7], [1]), ([0, 3], [1, 1]), ([2**40, 2**40], [1, 1])]
)
def test_class_weights_at_their_limits(counts, expected):
    assert class_weights(torch.tensor(counts)).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("counts", [[0, 0], [3, -1], [[1, 2]]])
def test_class_weights_refuse_what_are_no_counts(counts):
    with pytest.raises(ValueError, match=r"expected pixel counts \(K,\)"):
        class_weights(torch.tensor(counts))
