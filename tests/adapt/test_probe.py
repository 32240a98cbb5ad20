"""The probe: classifiers against plain ones, and encoders of which it is known what they know."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from conftest import encoder_config
from torch import nn

from e2net.adapt.probe import Probe
from e2net.datasets import ProceduralPairs
from e2net.encoders import Encoder, Full, ViTEncoder
from e2net.structures import IGNORED, Tokens
from e2net.tasks import Camouflage, Depth, Semantic


class Blocks:
    """Pictures of blocks of 8 pixels, each of its class's colour, a little noise on it."""

    def __init__(self, n=16, classes=2, ignored=0.0):
        self.n, self.classes, self.ignored = n, classes, ignored

    def __len__(self):
        return self.n

    def name(self, index):
        return f"blocks_{index}"

    def read(self, index, at_least=None):
        draw = np.random.default_rng(index)
        labels = draw.integers(0, self.classes, (4, 4)).repeat(16, 0).repeat(16, 1).astype(np.uint16)
        colours = np.random.default_rng(77).integers(60, 200, (self.classes, 3))
        image = (colours[labels] + draw.integers(-20, 20, (*labels.shape, 3))).astype(np.uint8)
        if self.classes == 2:
            return image, labels == 1
        return image, np.where(draw.random(labels.shape) < self.ignored, IGNORED, labels).astype(np.uint16)

    def identity(self):
        return [self.n, self.classes, self.ignored]

    def check(self):
        pass


class Means(Encoder):
    """Patches are their mean colours: all that there is to know of ``Blocks``."""

    blocks, channels, strides = (0,), (3,), (8,)

    def __init__(self, gain=1.0):
        super().__init__(nn.Linear(1, 1), (0.0,) * 3, (1.0,) * 3, 8, False)
        self.gain = gain

    def encode_tokens(self, pixels, masked, blocks, norm):
        patches = nn.functional.avg_pool2d(pixels, 8).flatten(2).transpose(1, 2) * self.gain
        return [Tokens(None, patches[:, :0], patches)]


@pytest.mark.parametrize("method", ["linear", "knn"])
def test_what_patches_say_is_found(method):
    masks: dict[str, Any] = {"method": method, "size": 64, "task": Camouflage(scores=("S", "MAE"))}
    knows, nothing = (Probe(Blocks(), **masks)(Means(gain)) for gain in (1.0, 0.0))
    assert knows["MAE"] < 0.2 and nothing["MAE"] > 0.4
    assert knows["S"] > nothing["S"] + 0.3
    classes = Probe(Blocks(classes=5, ignored=0.3), Semantic(classes=5), method, 64)(Means())
    assert classes["mIoU"] > 0.85


@pytest.mark.parametrize("method", ["linear", "knn"])
def test_an_encoder_has_one_score_and_stays_as_it_was(method):
    torch.manual_seed(0)
    encoder = ViTEncoder.from_config(encoder_config("dinov3"))
    Full().apply(encoder)
    state = copy.deepcopy(encoder.state_dict())
    probe = Probe(ProceduralPairs(12), method=method, size=64, patches=60)
    before = torch.get_rng_state()
    assert probe(encoder) == Probe(ProceduralPairs(12), method=method, size=64, patches=60, batch_size=3)(encoder)
    assert torch.equal(before, torch.get_rng_state())
    assert encoder.training and encoder.backbone.training
    assert all(torch.equal(value, state[name]) for name, value in encoder.state_dict().items())
    assert all(p.grad is None for p in encoder.parameters())
    assert set(probe(encoder)) == {"S", "MAE"} and probe.monitor == "S"


def test_held_out_labels_are_not_looked_at():
    class Wrong(Blocks):
        def read(self, index, at_least=None):
            image, mask = super().read(index)
            return image, mask ^ (index in held)

    probe = Probe(Blocks(), size=64)
    held = set(probe.test)
    assert held.isdisjoint(probe.train) and len(held) + len(probe.train) == 16
    right, wrong = probe(Means()), Probe(Wrong(), size=64)(Means())
    # The maps are the same, so an inverted mask turns the error into its complement.
    assert wrong["MAE"] == pytest.approx(1 - right["MAE"], abs=0.01)


def test_linear_is_at_the_optimum_of_its_loss():
    """Against Newton's method in float64, of a problem whose classes overlap."""
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(400, 6, generator=draw)
    y = torch.rand(400, 1, generator=draw).lt((x[:, :1] - x[:, 1:2]).sigmoid()).float()
    probe = Probe(Blocks(), size=64, penalty=0.05)
    found = probe._linear(3 * x + 5, torch.cat((1 - y, y), 1))(3 * x + 5)[:, 1]
    z = ((x - x.mean(0)) / x.std(0, correction=0)).double()
    z, t = torch.cat((z, torch.ones(400, 1, dtype=torch.float64)), 1), y[:, 0].double()
    # Two classes' weights w and -w: both are penalised, so the difference 2 w is, by half of it.
    penalty = torch.diag(torch.tensor([0.05 / 2] * 6 + [0.0], dtype=torch.float64))
    w = torch.zeros(7, dtype=torch.float64)
    for _ in range(30):
        p = (z @ w).sigmoid()
        gradient = z.T @ (p - t) / 400 + penalty @ w
        w -= torch.linalg.solve((z.T * (p * (1 - p))) @ z / 400 + penalty, gradient)
    torch.testing.assert_close(found.double(), (z @ w).sigmoid(), rtol=0, atol=2e-3)


def test_bad_input_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"probe.task=depth: expected a task of masks or label maps"):
        Probe(Blocks(), Depth())
    with pytest.raises(ValueError, match=r"found \d and \d of 1; give more, or another probe.held_out than 0.5"):
        Probe(Blocks(1))
    with pytest.raises(ValueError, match=r"probe.method=svm: expected one of linear, knn"):
        Probe(Blocks(), method="svm")  # type: ignore[arg-type]  # what is refused
    with pytest.raises(ValueError, match="held_out between 0 and 1"):
        Probe(Blocks(), held_out=1)
    with pytest.raises(ValueError, match=r"probe.patches=0: expected at least 1"):
        Probe(Blocks(), patches=0)
    with pytest.raises(FileNotFoundError, match="no folder"):
        Probe(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"60x60 .* is not a multiple of 8"):
        Probe(Blocks(), size=60).check(Means())

    class Empty(Blocks):
        def read(self, index, at_least=None):
            image, mask = super().read(index)
            return image, mask & False

    with pytest.raises(ValueError, match=r"all \d+ masks to learn from are of one class"):
        Probe(Empty(), size=64).check(Means())
