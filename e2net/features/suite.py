"""The probe suite: encoders against each other on what is at hand, in one table.

Every probe reads frozen patches of the last block at one number of patches for all encoders. Nothing is trained by
gradient: linear probes are ridge regressions in closed form, so that a table takes minutes and has no learning rate.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import yaml
from torch import Tensor

from e2net.datasets import Source
from e2net.datasets.pairs import read_pair
from e2net.features.dense import Predictor, Ridge, activated, nearest, targets_of
from e2net.features.extract import Extractor, Features, encoder_name, load_encoder
from e2net.features.tracking import Scoring, objects_of, read_objects, track
from e2net.runs.config import conf_folder
from e2net.tasks import Camouflage
from e2net.tasks.base import Task

# The most patches that neighbours are looked for among.
_BANK = 20_000


class Found(NamedTuple):
    """What one probe says of one encoder.

    Attributes:
        probe: its name.
        score: what is measured.
        value: of it, as in reports.
        higher: whether more is better.
        seconds: that it took.
        data: on how much.
        published: what the model's card says on this very data set, with its own protocol; None elsewhere.
    """

    probe: str
    score: str
    value: float
    higher: bool
    seconds: float
    data: str
    published: str | None = None


@dataclass(frozen=True)
class Parts:
    """A set to learn from and one to score on.

    Attributes:
        train, test: the pairs; of both, at most ``most`` evenly over the set.
        task: what the targets mean.
    """

    train: Source
    test: Source
    task: Task
    most: int = 100


@dataclass(frozen=True)
class Film:
    """A sequence: its frames in order, and the true masks of all of them."""

    name: str
    frames: Sequence[Path]
    truth: Sequence[Path]


@dataclass(frozen=True)
class Material:
    """What is at hand; a probe runs where its data is there.

    Attributes:
        masks, semantic, depth: pairs of pictures and targets.
        films: for tracking.
        examples: pictures with masks of one kind of object, for one-shot segmentation.
    """

    masks: Parts | None = None
    semantic: Parts | None = None
    depth: Parts | None = None
    films: Sequence[Film] = ()
    examples: Source | None = None
    draws: int = 5


def probe(encoder: str, material: Material, tokens: int = 32, device: str | None = None) -> Iterator[Found]:
    """Runs all probes that the material allows on an encoder, one after the other.

    Args:
        encoder: see :func:`e2net.features.load_encoder`.
        material: the data.
        tokens: short side of the pictures for the encoder, in patches: the same for all encoders, whatever their patch.
        device: see :class:`e2net.features.Extractor`.

    Raises:
        ValueError, FileNotFoundError: the encoder cannot be loaded, or data is broken.
    """
    loaded = load_encoder(encoder)
    extractor = Extractor(loaded, tokens * loaded.size_multiple, device=device)
    for run in _runs(extractor, material):
        start = time.perf_counter()
        for found in run():
            seconds = time.perf_counter() - start
            published = _published(encoder, found.probe, material)
            yield found._replace(seconds=round(seconds, 1), published=published)
            start = time.perf_counter()


def _runs(extractor: Extractor, material: Material) -> Iterator[Callable[[], Iterable[Found]]]:
    sets = {"mask": material.masks, "semantic": material.semantic, "depth": material.depth}
    for name, parts in sets.items():
        if parts is not None:
            yield lambda name=name, parts=parts: _dense(extractor, name, parts)  # type: ignore[misc]
    if material.examples is not None:
        yield lambda: [_one_shot(extractor, material.examples, material.draws)]  # type: ignore[arg-type]
    if material.films:
        yield lambda: [_tracking(extractor, material.films)]


def _dense(extractor: Extractor, name: str, parts: Parts) -> Iterator[Found]:
    """The linear probe, and on masks and classes the nearest neighbours, of one set; features are taken once."""
    task = parts.task
    train, test = (thinned(len(one), parts.most) for one in (parts.train, parts.test))
    knn = name != "depth"
    share = min(1.0, _BANK / max(1, len(train)) / 256)  # of the patches of a picture, for the neighbours
    ridge: Ridge | None = None
    bank: list[tuple[Tensor, Tensor]] = []
    generator = torch.Generator().manual_seed(0)
    for features, target in _features(extractor, parts.train, train, task):
        y, known = targets_of(task, target, features.patches.shape[:2])
        x = torch.from_numpy(features.patches).flatten(0, 1)
        ridge = ridge or Ridge(x.shape[1], y.shape[1])
        ridge.add(x, y, known)
        if knn:
            kept = torch.nonzero(known > 0.5)[:, 0]
            count = max(1, _BANK // len(train))
            kept = kept[torch.randperm(len(kept), generator=generator)[:count]]
            bank.append((x[kept], y[kept]))
    assert ridge is not None, share
    ways: dict[str, Predictor] = {f"linear {name}": ridge.solve()}
    if knn:
        ways[f"k-NN {name}"] = nearest(torch.cat([x for x, _ in bank]), torch.cat([y for _, y in bank]))
    scored: dict[str, list[tuple[int, str, object]]] = {way: [] for way in ways}
    for index, (features, target) in zip(test, _features(extractor, parts.test, test, task), strict=True):
        grid = features.patches.shape[:2]
        rows = torch.from_numpy(features.patches).flatten(0, 1)
        for way, predict in ways.items():
            result = task.finish(activated(task, predict(rows), grid), target.shape[:2])
            scored[way].append((index, features.name, task.score(result, target)))
    for way in ways:
        values = task.tabulate(scored[way]).values()
        score = "Fw" if "Fw" in values else task.monitor
        data = f"{len(train)} / {len(test)}"
        yield Found(way, score, float(values[score]), task.directions[score] == "max", 0, data)


def _features(
    extractor: Extractor, source: Source, indices: Sequence[int], task: Task
) -> Iterator[tuple[Features, np.ndarray]]:
    """Features and target of each pair in turn."""
    for index in indices:
        image, target = read_pair(source, index, task=task)
        yield next(iter(extractor(image))), target


def _one_shot(extractor: Extractor, source: Source, draws: int) -> Found:
    """The mean IoU of masks from one picture's mean object and mean background, over several such pictures."""
    task = Camouflage()
    pictures = list(_features(extractor, source, range(len(source)), task))
    values = []
    for shown in thinned(len(pictures), draws):
        features, mask = pictures[shown]
        predict = prototypes(features.patches, mask)
        for index, (other, truth) in enumerate(pictures):
            if index != shown:
                values.append(_iou(predict(other.patches, truth.shape), truth))
    return Found("one-shot", "IoU", float(np.mean(values)), True, 0, f"{min(draws, len(pictures))} x 1 / {len(pictures) - 1}")


def _tracking(extractor: Extractor, films: Sequence[Film]) -> Found:
    """J&F, the mean over all objects of all films, as in DAVIS."""
    scores = []
    for film in films:
        mask = read_objects(film.truth[0])
        scoring = Scoring(objects_of(mask))
        for labels, truth in zip(track(extractor, film.frames, mask), film.truth, strict=True):
            scoring.add(labels, read_objects(truth))
        scores += [one.mean for one in scoring.result().values()]
    return Found("tracking", "J&F", float(np.mean(scores)), True, 0, f"{len(films)} films")


def thinned(count: int, most: int) -> list[int]:
    """At most so many of ``count`` indices, evenly over all."""
    return list(range(count)) if count <= most else [i * count // most for i in range(most)]


def _published(encoder: str, name: str, material: Material) -> str | None:
    return None
