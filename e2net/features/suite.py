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
from torch import Tensor
from torch.nn.functional import interpolate

from e2net.datasets import Source
from e2net.datasets.pairs import read_pair
from e2net.features.dense import Ridge, activated, targets_of
from e2net.features.extract import Extractor, Features, load_encoder
from e2net.features.few import fit
from e2net.features.index import describe, leave_one_out
from e2net.features.inputs import find_pictures
from e2net.features.published import published
from e2net.features.tracking import Scoring, in_order, objects_of, read_objects, track
from e2net.metrics.tracking import region_similarity
from e2net.neighbours import Predictor, nearest
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
        labelled: pictures and their classes, for retrieval.
        draws: pictures that are the one shot in turn.
    """

    masks: Parts | None = None
    semantic: Parts | None = None
    depth: Parts | None = None
    films: Sequence[Film] = ()
    examples: Source | None = None
    labelled: Sequence[tuple[Path, str]] = ()
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
            seconds = round(time.perf_counter() - start, 1)
            yield found._replace(seconds=seconds, published=_published(encoder, found.probe, material))
            start = time.perf_counter()


def _runs(extractor: Extractor, material: Material) -> Iterator[Callable[[], Iterable[Found]]]:
    sets = {"mask": material.masks, "semantic": material.semantic, "depth": material.depth}
    for name, parts in sets.items():
        if parts is not None:
            yield lambda name=name, parts=parts: _dense(extractor, name, parts)  # type: ignore[misc]
    if material.examples is not None:
        yield lambda: [_one_shot(extractor, material.examples, material.draws)]  # type: ignore[arg-type]
    if material.labelled:
        yield lambda: [_retrieval(extractor, material.labelled)]
    if material.films:
        yield lambda: [_tracking(extractor, material.films)]


def _dense(extractor: Extractor, name: str, parts: Parts) -> Iterator[Found]:
    """The linear probe, and on masks and classes the nearest neighbours, of one set; features are taken once."""
    task = parts.task
    train, test = (thinned(len(one), parts.most) for one in (parts.train, parts.test))
    knn = name != "depth"
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
    assert ridge is not None, "a set has a pair"
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
        data = f"{len(train)} / {len(test)}"
        yield Found(way, task.monitor, float(values[task.monitor]), task.directions[task.monitor] == "max", 0, data)


def _features(
    extractor: Extractor, source: Source, indices: Sequence[int], task: Task
) -> Iterator[tuple[Features, np.ndarray]]:
    """Features and target of each pair in turn."""
    for index in indices:
        image, target = read_pair(source, index, task=task)
        yield next(iter(extractor(image))), target


def _one_shot(extractor: Extractor, source: Source, draws: int) -> Found:
    """The mean IoU of masks from one picture's mean object and mean background, over several such pictures."""
    pictures = list(_features(extractor, source, range(len(source)), Camouflage()))
    shown = thinned(len(pictures), draws)
    values = []
    for one in shown:
        features, mask = pictures[one]
        segment = fit("prototypes", [features.patches], [mask], count=1)
        for index, (other, truth) in enumerate(pictures):
            if index != one:
                share = segment(torch.from_numpy(other.patches))[None, None]
                large = interpolate(share, truth.shape, mode="bilinear", align_corners=False)[0, 0]
                values.append(region_similarity((large > 0.5).numpy(), truth))
    return Found("one-shot", "IoU", float(np.mean(values)), True, 0, f"{len(shown)} x 1 / {len(pictures) - 1}")


def _retrieval(extractor: Extractor, labelled: Sequence[tuple[Path, str]]) -> Found:
    """Of each picture's nearest other one, whether it is of the same class; by class token and mean patch together."""
    vectors = []
    for features in extractor([file for file, _ in labelled]):
        # The mean patch alone, where there is no class token.
        vectors.append(describe(features, "patches" if features.class_token is None else "both"))
    scores = leave_one_out(np.stack(vectors), [label for _, label in labelled], ks=(1,))
    return Found("retrieval", "P@1", scores["P@1"], True, 0, f"{len(labelled)}")


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


def find_films(folder: Path) -> list[Film]:
    """The sequences of a folder, each a folder with Image and GT, or of DAVIS's own layout.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: no sequence, or a frame without a mask.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"films={folder}: expected a folder of sequences, found none there")
    pairs = [(one, one / "Image", one / "GT") for one in sorted(folder.iterdir()) if (one / "Image").is_dir()]
    for pictures in sorted(folder.glob("JPEGImages/*")):
        subsets = (
            [pictures] if any(pictures.glob("*.jpg")) else sorted(one for one in pictures.iterdir() if one.is_dir())
        )
        pairs += [(one, one, folder / "Annotations" / one.relative_to(folder / "JPEGImages")) for one in subsets]
    if not pairs:
        raise ValueError(f"films={folder}: expected folders with Image and GT in each, or JPEGImages and Annotations")
    return [_film(name.name, pictures, truth) for name, pictures, truth in pairs]


def _film(name: str, pictures: Path, truth: Path) -> Film:
    frames = in_order(find_pictures(str(pictures), "films"))
    masks = {file.stem: file for file in find_pictures(str(truth), "films")}
    missing = [frame.stem for frame in frames if frame.stem not in masks]
    if missing:
        raise ValueError(
            f"films: {truth}: expected a mask for every frame, found none for {missing[0]} ({len(missing)} of "
            f"{len(frames)} are missing)"
        )
    return Film(name, frames, [masks[frame.stem] for frame in frames])


def find_labelled(folder: Path) -> list[tuple[Path, str]]:
    """The pictures of a folder with a folder for each class.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: fewer than two classes.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"labelled={folder}: expected a folder of classes, found none there")
    classes = sorted(one for one in folder.iterdir() if one.is_dir() and not one.name.startswith("."))
    if len(classes) < 2:
        raise ValueError(f"labelled={folder}: expected a folder for each of at least two classes, found {len(classes)}")
    return [(file, one.name) for one in classes for file in find_pictures(str(one), "labelled")]


def _published(encoder: str, name: str, material: Material) -> str | None:
    """See :func:`e2net.features.published.published`; of all pictures of a set, however many are scored here."""
    semantic, depth = material.semantic, material.depth
    label_maps = (len(semantic.test), semantic.task.out_channels) if semantic else (0, 0)
    films = (film.name for film in material.films)
    return published(encoder, name, label_maps, len(depth.test) if depth else 0, films)
