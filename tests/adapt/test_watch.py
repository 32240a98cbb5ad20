"""The watch on dense features, against plain loops and where its limits are known."""

import math

import pytest
import torch
from torch.nn import functional as F

from e2net.adapt.watch import Collapse, CollapseError, dense_watch, effective_rank
from e2net.structures import Tokens


def _tokens(patches, class_token=None):
    return Tokens(class_token, patches[:, :0], patches)


def _random(images=3, count=16, width=8, seed=0):
    draw = torch.Generator().manual_seed(seed)
    patches = torch.randn(images, count, width, generator=draw)
    return _tokens(patches, torch.randn(images, width, generator=draw))


def _loop(tokens, reference, k):
    """The same in float64, one patch at a time."""
    cosines, shared = [], []
    for image in range(len(tokens.patches)):
        sets = []
        for one in (tokens, reference):
            patches = one.patches[image].double()
            near = []
            for i in range(len(patches)):
                others = [j for j in range(len(patches)) if j != i]
                others.sort(key=lambda j: -float(F.cosine_similarity(patches[i], patches[j], dim=0)))
                near.append(set(others[:k]))
            sets.append(near)
        shared += [len(a & b) / k for a, b in zip(*sets, strict=True)]
        for patch in tokens.patches[image].double():
            cosines.append(float(F.cosine_similarity(patch, tokens.class_token[image].double(), dim=0)))
    rows = torch.cat([p / p.norm() for p in tokens.patches.double().flatten(0, 1)[:, None]])
    values = torch.linalg.svdvals(rows)
    shares = [float(v / values.sum()) for v in values]
    rank = math.exp(-sum(s * math.log(s) for s in shares if s > 0))
    return {
        "class_cosine": sum(cosines) / len(cosines),
        "effective_rank": rank,
        "neighbour_agreement": sum(shared) / len(shared),
    }


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("count", [9, 40])  # fewer and more patches than channels, over all images
def test_equal_to_a_plain_loop(k, count):
    tokens, reference = _random(2, count, 24), _random(2, count, 12, seed=1)
    found = dense_watch(tokens, reference, k)
    for name, value in _loop(tokens, reference, k).items():
        assert found[name] == pytest.approx(value, abs=1e-5), name


def test_limits():
    tokens = _random()
    assert dense_watch(tokens, tokens)["neighbour_agreement"] == 1
    # Length and turning change nothing of it, half precision little.
    turn = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(5)))[0]
    turned = _tokens(3 * tokens.patches @ turn, 7 * tokens.class_token @ turn)
    assert dense_watch(turned, tokens) == pytest.approx(dense_watch(tokens, tokens), abs=1e-5)
    half = _tokens(tokens.patches.bfloat16(), tokens.class_token.bfloat16())
    assert dense_watch(half, tokens) == pytest.approx(dense_watch(tokens, tokens), abs=0.1)
    whole = _tokens(tokens.class_token[:, None].repeat(1, 16, 1), tokens.class_token)
    found = dense_watch(whole, tokens)
    assert found["class_cosine"] == pytest.approx(1)
    same = _tokens(torch.ones(2, 16, 8))
    assert dense_watch(same, same) == {
        "effective_rank": pytest.approx(1),
        "neighbour_agreement": 1,
    }, "no class token, no cosine to it"
    assert effective_rank(torch.eye(7).repeat(3, 1)) == pytest.approx(7)
    assert effective_rank(torch.zeros(5, 3)) == 0


def test_agreement_of_strangers_is_chance():
    tokens, reference = _random(50, 21), _random(50, 21, seed=9)
    assert dense_watch(tokens, reference)["neighbour_agreement"] == pytest.approx(5 / 20, abs=0.03)


def test_what_cannot_be_compared():
    with pytest.raises(ValueError, match=r"of the same images, 3 of 16 patches, found \(3, 9\)"):
        dense_watch(_random(), _random(count=9))
    with pytest.raises(ValueError, match=r"more than 6 patches an image, found 6; take larger images"):
        dense_watch(_random(count=6), _random(count=6))


def test_collapse_stops_with_one_line():
    collapse = Collapse(rank=1.5, information=0.01)
    collapse.check(1, 1.5, 0.01)
    collapse.check(2)
    for values, name in (
        ({"effective_rank": 1.2}, "rank of the patches is 1.2, below 1.5"),
        ({"effective_rank": math.nan}, "is nan"),
        ({"effective_rank": 9, "information": 0.002}, "information of the prototypes is 0.002, below 0.01"),
    ):
        with pytest.raises(CollapseError, match=rf"collapsed at step 30: .*{name}.*") as error:
            collapse.check(30, **values)
        assert "\n" not in str(error.value)
    Collapse(rank=1, information=0).check(3, 1.0, 0.0)
    with pytest.raises(ValueError, match=r"expected rank from 1 .* found 0.5 and 1e-05"):
        Collapse(rank=0.5)
