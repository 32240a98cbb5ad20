"""Prediction maps on disk: found for each mask, read, checked and scored in worker processes."""

import ctypes
import json
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import repeat
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from e2net.datasets import DenseData, FolderData, FolderTargets, Source
from e2net.datasets.corruptions import KINDS, check_kinds
from e2net.datasets.pairs import read_pair
from e2net.evaluation.plots import Pictures
from e2net.evaluation.report import FILES, SetResult, clear_report, masks_hash
from e2net.files import write_atomically
from e2net.formats import find_by_stem, some
from e2net.runs.config import build_data, build_task, resolve_task
from e2net.runs.outputs import claim
from e2net.tasks.base import Placed, Task

log = logging.getLogger(__name__)


class UnusableMapsError(ValueError):
    """Maps are missing, or maps or masks cannot be read; every name is in ``problems.json``."""


class Targets(Protocol):
    """Targets of one set by position, and its images where they are at hand; goes to other processes."""

    def __len__(self) -> int:
        """How many targets there are."""
        ...

    def name(self, index: int) -> str:
        """The stem of target `index`, unique within the set."""
        ...

    def target(self, index: int) -> NDArray[Any]:
        """Target `index`, (h, w) in canonical form."""
        ...

    def image(self, index: int) -> NDArray[np.uint8] | None:
        """The image of target `index`, (h, w, 3) RGB, or None."""
        ...


@dataclass(frozen=True)
class SourceTargets:
    """The targets of a source of pairs, as ``Targets``."""

    source: Source
    task: Task

    def __len__(self) -> int:
        """How many targets there are."""
        return len(self.source)

    def name(self, index: int) -> str:
        """The stem of target `index`."""
        return self.source.name(index)

    def target(self, index: int) -> NDArray[Any]:
        """Target `index`, (h, w) in canonical form."""
        return read_pair(self.source, index, task=self.task)[1]

    def image(self, index: int) -> NDArray[np.uint8] | None:
        """The image of target `index`, (h, w, 3) RGB."""
        return read_pair(self.source, index, task=self.task)[0]


def targets_of(data: DenseData, name: str) -> Targets:
    """The targets of one test set; those of folders need no images.

    Args:
        data: where test sets come from.
        name: one of its ``test_names``.

    Raises:
        FileNotFoundError, ValueError: a folder is missing, or its files are ambiguous.
    """
    folder = data.test_root(name) if isinstance(data, FolderData) else None
    return SourceTargets(data.test_source(name), data.task) if folder is None else FolderTargets(folder, data.task)


@dataclass(frozen=True)
class MapFolder:
    """The results of one set, found for its targets.

    Attributes:
        name: of the set.
        task: what they mean.
        targets: what they are scored against.
        maps: for each target, in the targets' order, its result, or None where it is missing.
        extra: names of maps that belong to no target.
        foreign: names of files that would be a missing map, but for their extension.
    """

    name: str
    task: Task
    targets: Targets
    maps: list[Path | None]
    extra: list[str]
    foreign: list[str]

    @property
    def stems(self) -> list[str]:
        """Of all targets."""
        return [self.targets.name(i) for i in range(len(self.targets))]

    @property
    def missing(self) -> list[str]:
        """Stems of the targets without a map."""
        return [stem for stem, path in zip(self.stems, self.maps, strict=True) if path is None]

    @property
    def problems(self) -> dict[str, list[str]]:
        """What does not match between maps and targets: kind (``report.PROBLEMS``) to names, at least one each."""
        found = {"missing": self.missing, "foreign": self.foreign, "extra": self.extra}
        return {kind: list(names) for kind, names in found.items() if names}

    def image(self, position: int) -> NDArray[np.uint8]:
        """The image of one position, (h, w, 3) RGB, at its target's size.

        Raises:
            ValueError: it is not there, or cannot be decoded.
        """
        image = self.targets.image(position)
        if image is None:
            raise ValueError(
                f"{self.name}: expected an image of {self.task.target_name} {self.targets.name(position)} for the"
                f" scores {', '.join(self.task.image_scores)}, found none; add it beside the {self.task.target_name}s,"
                " or ask for other scores."
            )
        return image

    def pictures(self, position: int) -> Pictures:
        """The image, where it is at hand, target and result of one position, for a contact sheet."""
        image, target, values = self._shown(position)
        shown = self.task.side_by_side(target, values)
        return shown if image is None else [image, *shown]

    def panel(self, position: int) -> NDArray[np.uint8]:
        """The same as one picture, see the task's ``panel``; the image is grey where it is not at hand."""
        image, target, values = self._shown(position)
        return self.task.panel(
            np.full((*target.shape[:2], 3), 128, np.uint8) if image is None else image, target, values
        )

    def _shown(self, position: int) -> tuple[NDArray[np.uint8] | None, NDArray[Any], NDArray[Any]]:
        path = self.maps[position]
        assert path is not None
        return self.targets.image(position), self.targets.target(position), self.task.read_result(path)


def find_maps(folder: Path, name: str, targets: Targets, task: Task) -> MapFolder:
    """Looks up the result for every target in ``<folder>/<name>``; any of the image extensions will do.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: two maps have the same stem, or none belongs to any target.
    """
    place = folder / name
    if not place.is_dir():
        inside = sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else None
        loose = sum(p.suffix.lower() in task.extensions for p in folder.iterdir()) if folder.is_dir() else 0
        found = "no such folder" if inside is None else f"the folders {some(inside, 6)}" if inside else "no folders"
        found += f" and {loose} maps: move them into {place}" if loose else ""
        raise FileNotFoundError(
            f"predictions={folder}: expected the maps of {name} in {place}, found {found}. A set's maps lie in a"
            " folder of its name."
        )
    files = find_by_stem(place, task.extensions)
    stems = [targets.name(i) for i in range(len(targets))]
    known = set(stems)
    if known.isdisjoint(files):
        seen = some(sorted(path.name for path in place.iterdir())) or "nothing"
        raise ValueError(
            f"{place}: no map belongs to any of the {len(stems)} {task.target_name}s ({some(stems)}), found {seen};"
            f" a map has its {task.target_name}'s stem and ends in {', '.join(task.extensions)}"
        )
    extra = [path.name for stem, path in files.items() if stem not in known]
    lacking = known - files.keys()  # once: for each of thousands of files it would take seconds
    foreign = sorted(path.name for path in place.iterdir() if path.stem in lacking)
    return MapFolder(name, task, targets, [files.get(stem) for stem in stems], extra, foreign)


@dataclass(frozen=True)
class _Scored:
    """What a worker sends back about one target: by each task its scores and its place, or why there are none."""

    scores: list[Any]
    placed: Sequence[Placed] = ()
    digest: str = ""
    problems: tuple[str, ...] = ()
    fault: str | None = None


@dataclass(frozen=True)
class _Work:
    """What all maps of a set have in common."""

    found: MapFolder
    tasks: Sequence[Task]
    breakdown: bool = False


def _score_one(work: _Work, position: int) -> _Scored:
    """Decodes, resizes and scores one map; a file that cannot be used is a result, not an exception."""
    found = work.found
    path = found.maps[position]
    try:
        target = found.targets.target(position)
        values = None if path is None else found.task.read_result(path)
        wanted = values is not None and set(found.task.scores) & set(found.task.image_scores)
        image = found.image(position) if wanted else None
        if image is not None and image.shape[:2] != target.shape[:2]:
            raise ValueError(
                f"{found.name}: expected the image of {found.task.target_name} {found.targets.name(position)} at its"
                f" size {target.shape[1]}x{target.shape[0]}, found {image.shape[1]}x{image.shape[0]}; export both at"
                " one size."
            )
        if image is None and values is not None and work.breakdown:
            image = found.targets.image(position)  # of any size, or none
    except (ValueError, OSError) as error:
        return _Scored([], fault=str(error))
    digest = found.task.digest(target)
    if values is None or path is None:
        return _Scored([], digest=digest)
    results = [task.fit(values, target.shape[:2]) for task in work.tasks]
    each = list(zip(work.tasks, results, strict=True))
    scores = [task.score(result, target, image) for task, result in each]
    placed = [task.place(result, target, image) for task, result in each] if work.breakdown else ()
    return _Scored(scores, placed, digest, tuple(found.task.oddities(path, values, target)))


# Of malloc.h. Blocks from the second threshold up would bypass the heap; 32 MiB is the most that it accepts.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 32 << 20

# Sent once, when a worker starts.
_shared: _Work | None = None


def _start_worker(work: _Work) -> None:
    global _shared  # noqa: PLW0603 - the only way to hand a process pool's workers something once
    _shared = work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; one of them is to answer it
    # The workers are the parallelism. Also, a forked process inherits thread pools without their threads.
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    _keep_memory()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this worker once its parent is gone: killed, it cannot tell its workers, who would wait for work forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _keep_memory() -> None:
    """Has glibc's allocator reuse what a map leaves behind.

    By default it returns arrays of a map's size to the system, and a seventh of a worker's time goes into fetching the
    same pages again. Elsewhere than under glibc nothing changes.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no such function; Windows refuses the None
        return
    for option in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
        mallopt(option, _KEPT_BYTES)


def _work(position: int) -> _Scored:
    assert _shared is not None
    return _score_one(_shared, position)


@contextmanager
def _results(work: _Work, workers: int, start: str | None) -> Iterator[Iterator[_Scored]]:
    """One result per target, in the targets' order."""
    count = len(work.found.maps)
    workers = min(workers, count)
    if workers == 0:
        yield map(_score_one, repeat(work), range(count))
        return
    if start is None:
        # A forked worker is there at once, a spawned one first imports everything again.
        start = "fork" if "fork" in multiprocessing.get_all_start_methods() and os.name == "posix" else "spawn"
    cv2.setNumThreads(1)  # before the fork, see e2net.datasets.datamodule
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context(start), initializer=_start_worker, initargs=(work,))
    try:
        yield pool.map(_work, range(count), chunksize=max(1, min(8, count // (4 * workers))))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def score_maps(
    found: MapFolder,
    tasks: Sequence[Task] | None = None,
    num_workers: int | None = None,
    start_method: str | None = None,
    breakdown: bool = False,
) -> tuple[list[SetResult], list[str]]:
    """Scores the maps of one set, with a progress bar.

    Args:
        found: targets and their maps.
        tasks: that of ``found`` in variants, each of which gives a result; from the second on they count as binarised.
            None: as it is.
        num_workers: processes; None takes one for each usable core, 0 none but this one.
        start_method: of the processes; None forks where possible.
        breakdown: also find where each image belongs in the task's groupings.

    Returns:
        One result per task, and what is wrong with files that cannot be used; where that is not empty, the results are
        not to be reported.
    """
    tasks = [found.task] if tasks is None else tasks
    workers = _cores() if num_workers is None else num_workers
    collected: list[list[tuple[int, str | None, Any]]] = [[] for _ in tasks]
    placed: list[dict[int, Placed]] = [{} for _ in tasks]
    problems = found.problems
    faults: list[str] = []
    digests: dict[str, str] = {}
    stems = found.stems
    with _results(_Work(found, tasks, breakdown), workers, start_method) as results:
        bar = tqdm(results, total=len(stems), desc=found.name, unit=" images", dynamic_ncols=True, disable=None)
        for position, (stem, scored) in enumerate(zip(stems, bar, strict=True)):
            if scored.fault is not None:
                faults.append(scored.fault)
                continue
            digests[stem] = scored.digest
            for kind in scored.problems:
                problems.setdefault(kind, []).append(stem)
            for images, one in zip(collected, scored.scores, strict=False):
                images.append((position, stem, one))
            for places, place in zip(placed, scored.placed, strict=False):
                places[position] = place
    return [
        SetResult(
            name=found.name,
            task=task,
            scores=task.tabulate(images),
            stems=stems,
            masks_sha256=masks_hash(digests),
            problems=problems,
            binarised=number > 0,
            pictures=found.pictures if number == 0 else None,
            panel=found.panel if number == 0 else None,
            placed=places if breakdown else None,
        )
        for number, (task, images, places) in enumerate(zip(tasks, collected, placed, strict=True))
    ], faults


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _refuse(output: Path, task: Task, faults: dict[str, Any], message: Callable[[str], str]) -> None:
    """Writes all faults to ``<output>/problems.json``, removes an older score file, and raises."""
    claim(output, evaluation_files(maps=False, extra=task.extra_files))
    clear_report(output, extra=task.extra_files)
    file = output / "problems.json"
    write_atomically(file, json.dumps(faults, indent=2, ensure_ascii=False) + "\n")
    raise UnusableMapsError(message(str(file)))


def evaluation_files(maps: bool, extra: Iterable[str] = ()) -> list[str]:
    """Patterns of what an evaluation leaves in its folder.

    Args:
        maps: whether it computes them, and pictures, itself.
        extra: the task's own, its ``extra_files``.
    """
    return [*FILES, *extra, "problems.json", "eval_environment.json", *(("maps", "samples") if maps else ())]


def check_task(config: Any) -> None:
    """Makes sure that an evaluation is about a checkpoint or about maps.

    Raises:
        ValueError: both or neither are given.
    """
    given = [f"{key}={config[key]}" for key in ("ckpt", "predictions") if config[key] is not None]
    if len(given) != 1:
        raise ValueError(
            f"expected exactly one of ckpt=... (a run or checkpoint) and predictions=... (a folder of maps), found "
            f"{' and '.join(given) or 'neither'}"
        )


@dataclass(frozen=True)
class ReportOptions:
    """What an evaluation reports beside the scores.

    Attributes:
        method: its name in the paper's table; None takes that of the folder of maps or of the run.
        binarised_too: score every map a second time, as its decision at 0.5.
        breakdown: also by groups of images, see ``e2net.evaluation.breakdown``.
        bootstrap_seed: of the confidence intervals, at least 0.
        num_workers: processes that score maps on disk; None: one for each core, 0: none.
        corruptions: whether a checkpoint is scored on corrupted pictures too; or a list of their kinds.

    Raises:
        ValueError: an option is out of its range.
    """

    method: str | None = None
    binarised_too: bool = False
    breakdown: bool = False
    bootstrap_seed: int = 0
    num_workers: int | None = None
    corruptions: bool | Sequence[str] = False

    def __post_init__(self) -> None:
        _ = self.kinds  # raises an error where they are none
        for key, valid, expected in (
            ("method", self.method is None or str(self.method).strip() != "", "a name, or null"),
            ("binarised_too", isinstance(self.binarised_too, bool), "true or false"),
            ("breakdown", isinstance(self.breakdown, bool), "true or false"),
            ("bootstrap_seed", _is_count(self.bootstrap_seed), "a seed of 0 or more"),
            ("num_workers", self.num_workers is None or _is_count(self.num_workers), "0 or more, or null (by cores)"),
        ):
            if not valid:
                raise ValueError(f"expected {key} as {expected}, found {getattr(self, key)!r}")

    @classmethod
    def of(cls, config: dict[str, Any]) -> "ReportOptions":
        """From a resolved ``conf/eval.yaml``."""
        return cls(**{field.name: config[field.name] for field in fields(cls)})

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of corruptions that are asked for, see :mod:`e2net.datasets.corruptions`; none: only clean pictures."""
        if isinstance(self.corruptions, bool):
            return tuple(KINDS) if self.corruptions else ()
        return check_kinds("corruptions (true, false, or some)", self.corruptions)

    def check(self, task: Task) -> None:
        """Refuses what means nothing for a task, while it costs nothing.

        Raises:
            ValueError: it cannot be binarised, or has no groups of images.
        """
        self.variants(task)
        if self.breakdown and not task.groupings:
            raise ValueError(f"breakdown=true: task={task.name} has no groups of images to score apart; leave it out")

    def variants(self, task: Task) -> list[Task]:
        """The tasks by which maps are scored: as it is, and perhaps binarised.

        Raises:
            ValueError: it cannot be binarised.
        """
        if not self.binarised_too:
            return [task]
        again = task.binarised()
        if again is None:
            raise ValueError(f"binarised_too=true means nothing for task={task.name}; leave it out")
        return [task, again]


def scored_task(config: dict[str, Any]) -> Task:
    """The task of a resolved ``conf/eval.yaml``, with the scores that were asked for.

    Raises:
        ValueError: it has no such scores.
    """
    return build_task(resolve_task(config)).with_scores(config["scores"])


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


@dataclass
class PredictionJob:
    """Maps on disk and the masks they belong to, found and checked; nothing is read yet."""

    folder: Path
    sets: list[MapFolder]
    task: Task
    options: ReportOptions
    output: Path

    @property
    def method(self) -> str:
        """The method's name in tables."""
        return self.options.method or self.folder.resolve().name

    def score(self) -> list[SetResult]:
        """Scores all sets.

        Raises:
            UnusableMapsError: a map or a mask cannot be read; all sets were gone through, and nothing is reported.
        """
        tasks = self.options.variants(self.task)
        results, faults = [], {}
        for found in self.sets:
            scored, wrong = score_maps(found, tasks, self.options.num_workers, breakdown=self.options.breakdown)
            results += scored
            if wrong:
                faults[found.name] = wrong
        if faults:
            flat = [fault for wrong in faults.values() for fault in wrong]
            _refuse(
                self.output,
                self.task,
                faults,
                lambda file: (
                    f"{len(flat)} files cannot be used, so nothing is reported. {' '.join(flat[:3])}"
                    f"{f' And {len(flat) - 3} more.' if len(flat) > 3 else ''} All are named in {file}."
                ),
            )
        return results


def prepare_predictions(config: dict[str, Any], task: Task) -> PredictionJob:
    """Finds the map of every mask of the test sets.

    Args:
        config: a resolved ``conf/eval.yaml`` with ``predictions``.
        task: by which they are scored, see :func:`scored_task`.

    Raises:
        FileNotFoundError, ValueError: a setting or a folder is wrong.
        UnusableMapsError: maps are missing and ``allow_missing`` is not set.
    """
    options = ReportOptions.of(config)
    options.check(task)
    if options.kinds:
        raise ValueError("corruptions: maps on disk are of clean pictures alone; give ckpt=..., or leave it out")
    if not isinstance(config["allow_missing"], bool):
        raise ValueError(f"expected allow_missing as true or false, found {config['allow_missing']!r}")
    folder, output = Path(config["predictions"]), Path(config["output"])
    # No network runs here, so there is nothing that its input size could change.
    data = build_data({**config["data"], "size": config["size"] or 1}, task)
    if not data.test_names:
        raise ValueError("no test sets are named: name at least one with data.test=[NAME]")
    if output.resolve() in [(folder / name).resolve() for name in data.test_names]:
        raise ValueError(f"output={output} is a folder of maps, where pictures would be taken for maps; choose another")
    sets = [find_maps(folder, name, targets_of(data, name), task) for name in data.test_names]
    incomplete = [found for found in sets if found.missing]
    if incomplete and not config["allow_missing"]:
        counts = "; ".join(_mismatch(found) for found in incomplete)
        _refuse(
            output,
            task,
            {found.name: found.problems for found in incomplete},
            lambda file: (
                f"{counts}. Expected a map of every {task.target_name} in {folder}/<set>, with its stem and one of the"
                f" extensions {', '.join(task.extensions)}; add them, or score the others with allow_missing=true. All"
                f" are named in {file}."
            ),
        )
    if set(task.scores) & set(task.image_scores):
        for found in sets:
            found.image(0)  # without a folder of images every target would be at fault
    return PredictionJob(folder, sets, task, options, output)


def _mismatch(found: MapFolder) -> str:
    """What is missing, and what lies there instead."""
    others = [*found.foreign, *found.extra]
    instead = f", these files are no mask's or have another extension: {some(others)}" if others else ""
    return f"{found.name}: {len(found.missing)} of {len(found.maps)} maps are missing ({some(found.missing)}){instead}"
