"""Pictures of the images on which two variants disagree most: image, target, and each one's result, as data URIs."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from e2net.compare.runs import Run, Variant, sign
from e2net.compare.sweep import evaluation_config
from e2net.datasets import DenseData, Source
from e2net.datasets.pairs import PartOf, read_pair
from e2net.evaluation import EvaluationJob, prepare_evaluation
from e2net.evaluation.data import DataModule
from e2net.evaluation.predictions import targets_of
from e2net.page.pictures import Picture, encode_all
from e2net.runs.checkpoint import find_checkpoint
from e2net.runs.config import build_data
from e2net.runs.outputs import claim


@dataclass(frozen=True)
class Example:
    """One image on which two variants disagree.

    Attributes:
        test_set, stem: which image.
        first, second: positions of the two variants.
        scores: of the first's and of the second's map as shown.
        means: the same, averaged over seeds.
        pictures: image, target, result of the first, result of the second.
    """

    test_set: str
    stem: str
    first: int
    second: int
    scores: tuple[float, float]
    means: tuple[float, float]
    pictures: tuple[Picture, ...] = ()


def choose(variants: Sequence[Variant], sets: Sequence[str], score: str, count: int) -> list[Example]:
    """The images with the largest differences, first gains and then losses of each variant against the first.

    Args:
        variants: the first is what others are compared to.
        sets: test sets.
        score: whose difference, averaged over seeds.
        count: for each test set and pair; half of them on either side where there are as many.
    """
    chosen = []
    for name in sets:
        stems = list(variants[0].runs[0].images[name])
        means = [variant.per_image(name, score, stems) for variant in variants]
        shown = [[variant.runs[0].images[name][stem][score] for stem in stems] for variant in variants]
        for other in range(1, len(variants)):
            change = sign(variants[0].runs[0].task, score) * (means[other] - means[0])
            order = np.argsort(-change, kind="stable")
            gains = [i for i in order if change[i] > 0]
            losses = [i for i in order[::-1] if change[i] < 0]
            half = count // 2
            few = min(len(losses), count - min(len(gains), count - half))
            for i in [*gains[: count - few], *losses[:few]]:
                scores, both = (shown[0][i], shown[other][i]), (float(means[0][i]), float(means[other][i]))
                chosen.append(Example(name, stems[i], 0, other, scores, both))
    return chosen


def draw(examples: Sequence[Example], variants: Sequence[Variant], output: Path, device: str) -> list[Example]:
    """The same examples with their pictures; maps are computed by each variant's first run, and kept in ``output``.

    Raises:
        ValueError, OSError: a checkpoint, an encoder or the data are not where they were.
    """
    maps: dict[int, Path] = {}
    for position, variant in enumerate(variants):
        wanted: dict[str, list[str]] = {}
        for example in examples:
            if position in (example.first, example.second) and example.stem not in wanted.get(example.test_set, []):
                wanted.setdefault(example.test_set, []).append(example.stem)
        maps[position] = _write_maps(variant.runs[0], wanted, output / "maps", device)
    task = variants[0].runs[0].task
    data = build_data(variants[0].config["data"], task)
    sources = {name: data.test_source(name) for name in dict.fromkeys(e.test_set for e in examples)}
    positions = {name: {s.name(i): i for i in range(len(s))} for name, s in sources.items()}
    loaded = []
    for e in examples:
        image, target = read_pair(sources[e.test_set], positions[e.test_set][e.stem], task=task)
        both = [task.read_result(maps[i] / e.test_set / f"{e.stem}.png") for i in (e.first, e.second)]
        loaded.append([image, *task.side_by_side(target, *both)])
    pictures = encode_all(loaded)
    return [
        Example(e.test_set, e.stem, e.first, e.second, e.scores, e.means, shown)
        for e, shown in zip(examples, pictures, strict=True)
    ]


def _write_maps(run: Run, wanted: dict[str, list[str]], output: Path, device: str) -> Path:
    """Computes the maps that are not there yet, as a test of the checkpoint on these images alone."""
    checkpoint = find_checkpoint(run.folder)
    facts = checkpoint.stat()
    known = f"{checkpoint.resolve()} {facts.st_size} {facts.st_mtime_ns}"
    folder = output / hashlib.sha256(known.encode()).hexdigest()[:12]
    missing = {
        name: [stem for stem in stems if not (folder / "maps" / name / f"{stem}.png").is_file()]
        for name, stems in wanted.items()
    }
    if any(missing.values()):
        job = prepare_evaluation(evaluation_config(checkpoint, folder, device))
        assert isinstance(job, EvaluationJob)
        claim(folder, ["maps"])
        # A set that lacks nothing still needs an image: the model's sets and the loader's are matched by position.
        chosen = {name: missing.get(name) or [job.data.test_source(name).name(0)] for name in job.data.test_names}
        data = _ChosenData(job.data, chosen)
        # Other scales and a second look read the pictures, as in the run's own test.
        job.module.test_images = [targets_of(data, name).image for name in data.test_names]
        job.trainer.test(job.module, datamodule=DataModule(data), verbose=False)
    return folder / "maps"


class _ChosenData(DenseData):
    """Some images of each test set of other data."""

    def __init__(self, data: DenseData, chosen: dict[str, list[str]]) -> None:
        super().__init__(data.size, data.batch_size, num_workers=0, task=data.task)
        self.test_names = data.test_names
        self._data, self._chosen = data, chosen

    def test_source(self, name: str) -> Source:
        source = self._data.test_source(name)
        return PartOf(source, [i for i in range(len(source)) if source.name(i) in self._chosen[name]])
