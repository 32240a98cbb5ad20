"""What frozen patch features of an encoder know of a small labelled set, in seconds: k-NN or a linear classifier."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from e2net.datasets import FolderPairs, Resize, Source, in_validation
from e2net.datasets.pairs import read_pair
from e2net.encoders import Encoder
from e2net.neighbours import Predictor, nearest
from e2net.structures import IGNORED
from e2net.tasks.base import Array, Task
from e2net.tasks.camouflage import Camouflage

Method = Literal["linear", "knn"]

# Iterations of L-BFGS at most.
_ITERATIONS = 100


class _Pair(NamedTuple):
    """One pair, prepared once for all encoders: image (3, H, W) uint8, and both sizes of its target."""

    image: Tensor
    target: Array
    native_target: Array


class Probe:
    """Scores an encoder by what a simple classifier makes of its frozen patches; labels are of the probe's set only.

    A part of the pairs is held out, by their stems alone. The classifier learns from patches of the others, each with
    the shares of its area that are of each class, gives each patch of the held-out pictures its probabilities, and
    these maps are scored at the targets' own sizes, as any result is. The same encoder and set give the same scores.

    Args:
        root: a folder with images and targets, such as Image/ and GT/; or a source of pairs.
        task: what the targets mean, masks or label maps; None: masks, scored by S-measure and MAE.
        method: ``linear``: multinomial logistic regression on standardised features, with an L2 penalty as samples are
            few, by L-BFGS from zero; ``knn``: the ``neighbours`` nearest patches by cosine, weighted as in DINO.
        size: side of the pictures for the encoder, pixels; a multiple of what it asks for.
        held_out: share of the pairs to score on.
        pictures: the most to learn from, and the most to score on; more are thinned out evenly.
        patches: the most to learn from, chosen at random but always alike.
        neighbours: k of ``knn``.
        penalty: of ``linear``, per weight and sample.
        batch_size: pictures in one forward pass.

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: an argument is out of its range, a task without classes, or too few pairs.
    """

    def __init__(
        self,
        root: str | Path | Source,
        task: Task | None = None,
        method: Method = "linear",
        size: int = 224,
        held_out: float = 0.5,
        pictures: int = 100,
        patches: int = 10_000,
        neighbours: int = 20,
        penalty: float = 1e-3,
        batch_size: int = 8,
    ) -> None:
        if method not in get_args(Method):
            raise ValueError(f"probe.method={method}: expected one of {', '.join(get_args(Method))}")
        if not 0 < held_out < 1 or not penalty > 0:
            raise ValueError(
                f"probe: expected held_out between 0 and 1 and a penalty above 0, found {held_out} and {penalty}"
            )
        counts = {"size": size, "pictures": pictures, "patches": patches, "neighbours": neighbours}
        for name, value in {**counts, "batch_size": batch_size}.items():
            if value < 1:
                raise ValueError(f"probe.{name}={value}: expected at least 1")
        self.task = task or Camouflage(scores=("S", "MAE"))
        self.classes = _classes(self.task)
        self.source: Source = FolderPairs(root, self.task) if isinstance(root, str | Path) else root
        self.method, self.size, self.patches, self.neighbours = method, size, patches, neighbours
        self.penalty, self.batch_size = penalty, batch_size
        held = [in_validation(self.source.name(i), held_out) for i in range(len(self.source))]
        self.train = _thinned([i for i, out in enumerate(held) if not out], pictures)
        self.test = _thinned([i for i, out in enumerate(held) if out], pictures)
        if not self.train or not self.test:
            raise ValueError(
                f"probe.root={root}: expected pairs to learn from and to score on, found {len(self.train)} and "
                f"{len(self.test)} of {len(held)}; give more, or another probe.held_out than {held_out}"
            )
        self._pairs: dict[int, _Pair] = {}

    @property
    def monitor(self) -> str:
        """The score that compares encoders; ``task.directions`` says which way is better."""
        return self.task.monitor

    def check(self, encoder: Encoder) -> None:
        """Reads all pairs that are used, and sees whether an encoder takes them; before a long training.

        Raises:
            ValueError: a file cannot be decoded, targets without any pixel of a class to learn from, or an encoder that
                does not take images of ``size``.
        """
        encoder.check_size(self.size, self.size)
        for index in (*self.train, *self.test):
            self._pair(index)
        whole = sum(self._shares(self._pair(i).target, 1, 1).sum((0, 1)) for i in self.train)
        if int((torch.as_tensor(whole) > 0).sum()) < min(2, self.classes):
            raise ValueError(
                f"probe: all {len(self.train)} {self.task.target_name}s to learn from are of one class; "
                f"{self.task.silence or 'give targets with at least two'}"
            )

    def __call__(self, encoder: Encoder) -> dict[str, float]:
        """The held-out part's scores by name, fractions as in reports; the encoder is left as it was.

        Raises:
            ValueError: see :meth:`check`.
        """
        self.check(encoder)
        training = encoder.training
        encoder.train(False)
        try:
            with torch.no_grad():
                features, shares = self._samples(encoder)
            if self.method == "knn":
                classifier = nearest(features, shares / shares.sum(1, keepdim=True), self.neighbours)
            else:
                classifier = self._linear(features, shares)
            with torch.no_grad():
                scored = [
                    (i, self.source.name(index), self._score(classifier(features), index))
                    for i, (index, features) in enumerate(self._features(encoder, self.test))
                ]
        finally:
            encoder.train(training)
        return {name: float(value) for name, value in self.task.tabulate(scored).values().items()}

    def _pair(self, index: int) -> _Pair:
        if index not in self._pairs:
            image, native = read_pair(self.source, index, task=self.task)
            image, target = Resize((self.size, self.size), self.task)(image, native)
            pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
            self._pairs[index] = _Pair(pixels, target, native)
        return self._pairs[index]

    def _features(self, encoder: Encoder, indices: list[int]) -> Iterator[tuple[int, Tensor]]:
        """Patches (h·w, D) float32 of each picture, of the last block behind F1..F4."""
        for start in range(0, len(indices), self.batch_size):
            chosen = indices[start : start + self.batch_size]
            images = torch.stack([self._pair(i).image for i in chosen]).to(encoder.mean.device).float() / 255
            patches = encoder.tokens(images, blocks=encoder.blocks[-1:])[0].patches.float()
            yield from zip(chosen, patches, strict=True)

    def _samples(self, encoder: Encoder) -> tuple[Tensor, Tensor]:
        """Features (n, D) and shares of the classes (n, K) of patches with anything that counts."""
        features, shares = [], []
        for index, patches in self._features(encoder, self.train):
            side = round(len(patches) ** 0.5)
            features.append(patches)
            shares.append(self._shares(self._pair(index).target, side, side).flatten(0, 1))
        x, y = torch.cat(features), torch.cat(shares)
        kept = torch.nonzero(y.sum(1) > 0)[:, 0]
        order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(0))[: self.patches]
        kept = kept[order.sort().values]
        return x[kept.to(x.device)], y[kept].to(x.device)

    def _shares(self, target: Array, height: int, width: int) -> Tensor:
        """(h, w, K) float32: the share of each patch's area that is of each class; they sum to what is not ignored."""
        labels = self.task.to_tensor(target)[0].long()
        labels = torch.where(labels == IGNORED, self.classes, labels)
        share = F.one_hot(labels, self.classes + 1)[..., : self.classes].permute(2, 0, 1).float()
        return F.adaptive_avg_pool2d(share, (height, width)).permute(1, 2, 0)

    def _score(self, probabilities: Tensor, index: int) -> object:
        native = self._pair(index).native_target
        side = round(len(probabilities) ** 0.5)
        activated = probabilities.T.reshape(-1, side, side)
        if self.task.out_channels == 1:
            activated = activated[1:]
        return self.task.score(self.task.finish(activated, native.shape[:2]), native)

    def _linear(self, features: Tensor, shares: Tensor) -> Predictor:
        """Logistic regression with soft targets: a convex problem, so its optimum is one whatever the path to it."""
        mean, std = features.mean(0), features.std(0, correction=0)
        # A channel without any variance says nothing, and is no reason to divide by zero.
        scale = torch.where(std > 1e-6, 1 / std.clamp(min=1e-6), 0)
        x = ((features - mean) * scale).double()
        y, size = shares.double(), len(features)
        with torch.enable_grad():
            weight = x.new_zeros(x.shape[1], self.classes).requires_grad_()
            bias = x.new_zeros(self.classes).requires_grad_()
            solver = torch.optim.LBFGS([weight, bias], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

            def closure() -> Tensor:
                solver.zero_grad()
                fit = -(y * (x @ weight + bias).log_softmax(1)).sum() / size
                loss = fit + self.penalty * weight.square().sum() / 2
                loss.backward()
                return loss

            solver.step(closure)
        slope, offset = weight.detach().float(), bias.detach().float()
        return lambda queries: (((queries - mean) * scale) @ slope + offset).softmax(1)


def _classes(task: Task) -> int:
    """How many classes there are, object and background being two."""
    if task.objects and task.out_channels == 1:
        return 2
    kind = task.to_tensor(task.blank((1, 1)))
    if kind.is_floating_point():
        raise ValueError(f"probe.task={task.name}: expected a task of masks or label maps, found one without classes")
    return task.out_channels


def _thinned(indices: list[int], most: int) -> list[int]:
    """At most so many, evenly over the list."""
    if len(indices) <= most:
        return indices
    return [indices[i * len(indices) // most] for i in range(most)]
