"""What a checkpoint loses on corrupted pictures: its scores under every kind and strength, beside the clean ones."""

import csv
import io
import json
import math
import os
import pickle
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import ProgressBar
from rich import box
from rich.console import Console
from rich.table import Table

import e2net
from e2net.datasets.corruptions import STRENGTHS, conditions, corrupt, drawn_for
from e2net.datasets.datamodule import Copies, DenseData
from e2net.evaluation.breakdown import fraction
from e2net.evaluation.inference import check_finite
from e2net.evaluation.module import EvaluationModule, ReadImage
from e2net.evaluation.plots import corruption_figure
from e2net.evaluation.report import SetResult, plain, stems_hash
from e2net.files import write_atomically
from e2net.formats import printable
from e2net.speed import halve_frozen
from e2net.tasks.base import Task

# Images whose copies are scored at one time; each has one result of the image's size for every copy, and all of these
# together have no more pixels than this, but where one image's have.
_AT_ONCE = min(4, os.cpu_count() or 1)
_PIXELS = 1 << 28
# Of one image's target, whose measures all of its copies share.
_KEPT_BYTES = 1 << 30

Values = dict[str, float]
# Kind, strength, score.
Corrupted = dict[str, dict[int, Values]]


class _Pile:
    """What is known of each image under one condition; in a file, as that of all conditions would fill the memory."""

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - it has no name, and goes with this object

    def add(self, index: int, name: str, scored: Any) -> None:
        pickle.dump((index, name, scored), self._file)

    def __iter__(self) -> Iterator[tuple[int, str | None, Any]]:
        end = self._file.seek(0, os.SEEK_END)
        self._file.seek(0)
        while self._file.tell() < end:
            yield pickle.load(self._file)  # our own: nobody else can open it


class CorruptionModule(L.LightningModule):
    """Computes and scores the results of one set's corrupted copies.

    Args:
        tested: model, predictor and task.
        images: reads an image of the set at its own size by position, for scores and second looks.
        batch_size: copies that are one batch of the model.
        piles: for each condition, kind and strength, where the scores of its images go.
    """

    def __init__(
        self,
        tested: EvaluationModule,
        images: ReadImage,
        batch_size: int,
        piles: Mapping[tuple[str, int], _Pile],
    ) -> None:
        super().__init__()
        self.tested, self.images, self.batch_size, self.piles = tested, images, batch_size, piles
        self._pool = ThreadPoolExecutor(max_workers=_AT_ONCE)
        self._pending: list[tuple[int, str, Future]] = []

    def on_test_start(self) -> None:
        halve_frozen(self.tested.model, str(self.trainer.precision), self.device)

    def test_step(self, batch: Copies, batch_idx: int) -> None:
        results: list[Any] = []
        image = cache(partial(self.images, batch.position))
        for part in batch.image.split(self.batch_size):
            probs = self.tested(part, partial(self._copy, image, batch.name, len(results)))
            check_finite(probs, [batch.name] * len(probs))
            results += [self.tested.task.finish(prob, batch.native_target.shape[:2]) for prob in probs]
        work = self._pool.submit(_score, self.tested.task, results, batch.native_target, batch.position, image)
        self._pending.append((batch.position, batch.name, work))
        most = max(1, min(_AT_ONCE, _PIXELS // (len(results) * math.prod(batch.native_target.shape[:2]))))
        while len(self._pending) > most:
            self._keep()

    def _copy(self, image: Callable[[], np.ndarray | None], name: str, first: int, index: int) -> np.ndarray:
        """A corrupted copy at the image's own size, made again: all of them at once would fill the memory."""
        kind, strength = list(self.piles)[first + index]
        original = image()
        assert original is not None, name  # its copies were made of it
        return corrupt(original, kind, strength, drawn_for(name, kind, strength))

    def on_test_epoch_end(self) -> None:
        while self._pending:
            self._keep()
        self._pool.shutdown()

    def _keep(self) -> None:
        position, name, work = self._pending.pop(0)
        for pile, scored in zip(self.piles.values(), work.result(), strict=True):
            pile.add(position, name, scored)


def _score(task: Task, results: Sequence[Any], target: Any, position: int, image: Any) -> list[Any]:
    """What is known of each of an image's results; what depends on its target alone is computed once."""
    scores = task.set_scores(_KEPT_BYTES)
    return [scores.score(result, target, position, image) for result in results]


def score_corrupted(
    module: EvaluationModule,
    trainer: L.Trainer,
    data: DenseData,
    name: str,
    kinds: Sequence[str],
    images: ReadImage,
    folder: Path,
) -> Corrupted:
    """The scores of a test set's corrupted copies, one image after the other, with a progress bar.

    Args:
        module: has been tested on the clean images.
        trainer: of one process; of its callbacks only progress bars are asked.
        data: where the test set comes from.
        name: of the test set.
        kinds: of corruptions.
        images: see :class:`CorruptionModule`.
        folder: for a temporary file of each condition, some 8 kB an image.

    Returns:
        {kind: {strength: {score: value}}}.
    """
    assert trainer.world_size == 1, trainer.world_size  # the piles are one process's
    asked = conditions(kinds)
    folder.mkdir(parents=True, exist_ok=True)
    piles = {condition: _Pile(folder) for condition in asked}
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    others = [c for c in callbacks if not isinstance(c, ProgressBar)]  # they write maps and pictures
    trainer.callbacks = [c for c in callbacks if c not in others]  # type: ignore[attr-defined]
    try:
        trainer.test(
            CorruptionModule(module, images, data.batch_size, piles),
            dataloaders=data.corrupted_dataloader(name, asked),
            verbose=False,
        )
    finally:
        trainer.callbacks = callbacks  # type: ignore[attr-defined]
    found: Corrupted = {}
    for (kind, strength), pile in piles.items():
        found.setdefault(kind, {})[strength] = module.task.tabulate(pile).values()
    return found


def summary(task: Task, clean: Values, corrupted: Corrupted) -> tuple[Values, Values]:
    """Means over all kinds and strengths, and by which part of the clean score they are worse.

    Args:
        task: says which way a score is better.
        clean, corrupted: of one set.

    Returns:
        {score: mean} and {score: relative drop}; a drop is NaN where the clean score is 0 or unknown.
    """
    means, drops = {}, {}
    for score, value in clean.items():
        all_of_it = [values[score] for by_strength in corrupted.values() for values in by_strength.values()]
        means[score] = sum(all_of_it) / len(all_of_it)
        worse = means[score] - value if task.directions.get(score) == "min" else value - means[score]
        drops[score] = worse / abs(value) if value else math.nan
    return means, drops


def report_corruptions(
    folder: Path, results: Sequence[SetResult], found: dict[str, Corrupted], about: dict[str, Any]
) -> None:
    """Prints a table of each set, and writes the curves and all scores, ``corruptions.json`` last.

    Args:
        folder: where to.
        results: of the clean images, one for each set.
        found: {set: {kind: {strength: {score: value}}}}.
        about: what else the JSON file shall hold.
    """
    task = results[0].task
    sets: dict[str, Any] = {}
    for result in results:
        clean, corrupted = result.values(), found[result.name]
        means, drops = summary(task, clean, corrupted)
        sets[result.name] = {
            "images": len(result.scores),
            "file_list_sha256": stems_hash(result.stems),
            "masks_sha256": result.masks_sha256,
            "clean": clean,
            "corrupted": {k: {str(s): values for s, values in one.items()} for k, one in corrupted.items()},
            "mean": means,
            "relative_drop": drops,
        }
        _print(task, result.name, clean, corrupted, means, drops)
    write_atomically(folder / "corruptions.csv", _table(sets))
    score = task.monitor
    curves = {
        printable(name): {
            kind: [one["clean"][score], *(values[score] for values in by.values())] for kind, by in found[name].items()
        }
        for name, one in sets.items()
    }
    write_atomically(folder / "corruptions.png", corruption_figure(curves, score))
    document = {
        "e2net": e2net.__version__,
        **about,
        "score": score,
        "kinds": list(next(iter(found.values()))),
        "strengths": list(STRENGTHS),
        "protocol": results[0].protocol,
        "sets": sets,
    }
    text = json.dumps(plain(document), indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(folder / "corruptions.json", text + "\n")


def _table(sets: dict[str, Any]) -> str:
    """A row for each set's clean scores, and one for each kind and strength."""
    text, columns = io.StringIO(), list(next(iter(sets.values()))["clean"])
    lines = csv.writer(text)
    lines.writerow(["test_set", "kind", "strength", *columns])
    for name, one in sets.items():
        rows = [("clean", "0", one["clean"])]
        rows += [(kind, s, values) for kind, by in one["corrupted"].items() for s, values in by.items()]
        lines.writerows([name, kind, s, *(values[c] for c in columns)] for kind, s, values in rows)
    return text.getvalue()


def _print(task: Task, name: str, clean: Values, corrupted: Corrupted, means: Values, drops: Values) -> None:
    """A row a kind, a column a strength, of the score that chooses checkpoints."""
    score = task.monitor
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(score, no_wrap=True)
    for column in (*map(str, STRENGTHS), "mean", "drop"):
        table.add_column(column, justify="right", no_wrap=True)
    for kind, by_strength in corrupted.items():
        mean, drop = (one[score] for one in summary(task, clean, {kind: by_strength}))
        table.add_row(kind, *(fraction(v[score]) for v in by_strength.values()), fraction(mean), _percent(drop))
    console = Console(highlight=False)
    console.print(f"\n{printable(name)}, corrupted at strengths 1 to {STRENGTHS[-1]}:", markup=False)
    console.print(table)
    for one in task.headline:
        numbers = f"{fraction(means[one])}, clean {fraction(clean[one])}: relative drop {_percent(drops[one])}"
        console.print(f"mean corrupted {one} {numbers}", markup=False)


def _percent(part: float) -> str:
    return "-" if math.isnan(part) else f"{100 * part:.1f} %"
