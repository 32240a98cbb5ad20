"""Finished runs on disk: read, grouped into variants over seeds, checked for being comparable, and how they differ."""

import contextlib
import csv
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e2net.files import read_yaml, unescaped
from e2net.formats import printable, some
from e2net.runs.checkpoint import of_today
from e2net.runs.config import build_task, flatten
from e2net.runs.folder import CHECKPOINTS, METRICS
from e2net.runs.provenance import config_hash, file_hash
from e2net.tasks.base import Task

SCORES, PER_IMAGE = "test_scores.json", "test_per_image.csv"
# Says where a run is, not what it is; the last four change nothing about a result.
_PLACES = {
    *("run_dir", "resume"),
    *("num_samples", "data.num_workers", "trainer.log_every_n_steps", "checkpoint_every_n_steps"),
}
# Neither does what these groups begin with: where curves go, and what is shown meanwhile.
_SHOWN = ("logger.", "callbacks.progress.", "callbacks.learning_rate.")
_SEEDS = {"seed", "data.seed"}
# What a variant is named after first, if it differs.
_TELLING = ("encoder", "tuning", "neck", "decoder", "loss", "optim", "data")
_NAME_LENGTH = 40


@dataclass(frozen=True)
class Run:
    """One finished run: its folder, resolved config, and the document with its test scores."""

    folder: Path
    config: dict[str, Any]
    document: dict[str, Any]

    @property
    def seed(self) -> int:
        """Of weights and data order."""
        return self.config["seed"]

    @cached_property
    def task(self) -> Task:
        """What it was trained for.

        Raises:
            ValueError: the config names no task that is known here.
        """
        return build_task(self.config)

    @property
    def sets(self) -> list[str]:
        """Names of the test sets."""
        return list(self.document["scores"])

    @cached_property
    def images(self) -> dict[str, dict[str, dict[str, float]]]:
        """{test set: {stem: {score: value}}}, fractions."""
        found: dict[str, dict[str, dict[str, float]]] = {}
        with _rows(self.folder / PER_IMAGE) as rows:
            for row in rows:
                name, stem = row.pop("test_set"), unescaped(row.pop("name"))
                found.setdefault(name, {})[stem] = {k: float(v) for k, v in row.items()}
        return found

    def curves(self) -> dict[str, list[tuple[float, float]]]:
        """Training loss and validation scores, {column: [(epoch, value)]}.

        The loss is the mean over an epoch's logged steps, those that were skipped as not finite left out; an epoch
        counts as the time at which it ends.
        """
        file = self.folder / METRICS
        values: dict[str, dict[int, list[float]]] = {}
        if file.is_file():
            with _rows(file) as rows:
                for row in rows:
                    for key, text in row.items():
                        if key in ("epoch", "step") or not text or not row.get("epoch"):
                            continue
                        if math.isfinite(value := float(text)):
                            values.setdefault(key, {}).setdefault(int(float(row["epoch"])), []).append(value)
        return {k: [(e + 1, float(np.mean(v))) for e, v in sorted(epochs.items())] for k, epochs in values.items()}


@dataclass(frozen=True)
class Variant:
    """One of the things compared: runs of one config that differ in nothing but the seed."""

    name: str
    runs: list[Run]

    @property
    def config(self) -> dict[str, Any]:
        """Of its first run."""
        return self.runs[0].config

    @property
    def seeds(self) -> list[int]:
        """Of its runs, in their order."""
        return [run.seed for run in self.runs]

    def values(self, name: str, score: str) -> list[float]:
        """A score of a test set, one value a run."""
        return [run.document["scores"][name][score] for run in self.runs]

    def per_image(self, name: str, score: str, stems: Sequence[str]) -> NDArray[np.float64]:
        """A score of each image, averaged over the runs."""
        return np.mean([[run.images[name][stem][score] for stem in stems] for run in self.runs], axis=0)


@contextlib.contextmanager
def _rows(file: Path) -> Iterator[Iterable[dict[str, str]]]:
    """The rows of a table; what cannot be read of it is a ValueError that names the file."""
    with file.open(newline="", encoding="utf-8") as stream:
        try:
            yield csv.DictReader(stream)
        except (ValueError, KeyError, TypeError, OverflowError, csv.Error) as error:
            raise ValueError(f"{file}: expected a table of numbers, found what cannot be read ({error})") from error


def sign(task: Task, score: str) -> int:
    """1 if more of a score is better, -1 if less is."""
    return -1 if task.directions.get(score) == "min" else 1


def read_run(folder: str | Path) -> Run:
    """Reads a run folder.

    Raises:
        FileNotFoundError: there is no such folder, or it holds no finished run.
        ValueError: its files are not those of a run.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"run {folder}: expected a run folder, found no such folder; check runs=[...]")
    if not (folder / "config.yaml").is_file():
        inside = some(sorted(p.name for p in folder.iterdir())) or "nothing"
        raise FileNotFoundError(f"run {folder}: expected a run folder with config.yaml, found {inside}")
    for name in (SCORES, PER_IMAGE):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"run {folder} is not finished: expected {name}, found none; continue it with e2net train "
                f"resume={folder} and its own overrides, or leave it out"
            )
    try:
        config = read_yaml(folder / "config.yaml")
        document = json.loads((folder / SCORES).read_text(encoding="utf-8"))
        run = Run(folder, of_today(config), document)
        # Score files of before this was recorded have none.
        if document.get("config_sha256", config_hash(config)) != config_hash(config):
            raise ValueError(
                f"{SCORES} is of other settings than config.yaml; continue the run with e2net train "
                f"resume={folder} and its own overrides"
            )
        checkpoint = folder / CHECKPOINTS / Path(document.get("checkpoint", "")).name
        tested = document.get("checkpoint_sha256")
        if tested and checkpoint.is_file() and file_hash(checkpoint) != tested:
            raise ValueError(
                f"{SCORES} is of another {checkpoint.name} than lies there; test the run again with e2net train "
                f"resume={folder} and its own overrides"
            )
        complete = isinstance(run.seed, int) and run.sets and document["protocol"]
        _check_sets(run)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        fault = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"run {folder}: config.yaml or {SCORES} cannot be read ({fault})") from error
    if not complete:
        raise ValueError(f"run {folder}: {SCORES} holds no scores; test it again with the present version")
    return run


def _check_sets(run: Run) -> None:
    """Raises an error unless each test set has scores, the rules and files behind them, and scores of its images."""
    for name, scores in run.document["scores"].items():
        about = run.document["sets"][name]
        if not scores or not all(type(value) in (int, float) for value in scores.values()):
            raise ValueError(f"expected numbers as scores of {name}, found others")
        digests = (about["file_list_sha256"], about["masks_sha256"])
        if not isinstance(about["protocol"], dict) or not all(isinstance(one, str | None) for one in digests):
            raise ValueError(f"expected a protocol and two digests of {name}, found others")
        if name not in run.images:
            raise ValueError(f"expected images of {name} in {PER_IMAGE}, found none")


def identity(config: dict[str, Any], seeds: bool = False) -> dict[str, Any]:
    """What a result depends on: the flattened config without places and, unless asked for, without seeds."""
    left_out = _PLACES if seeds else _PLACES | _SEEDS
    return {k: v for k, v in flatten(config).items() if k not in left_out and not k.startswith(_SHOWN)}


def config_key(config: dict[str, Any]) -> str:
    """A short hash of everything, seeds included, that a run's result depends on."""
    text = json.dumps(identity(config, seeds=True), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def differing_keys(configs: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """What differs between configs, seeds and places apart: flattened key to each one's value, or ABSENT."""
    flat = [identity(config) for config in configs]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    rows = {key: [one.get(key, ABSENT) for one in flat] for key in keys}
    return {key: row for key, row in rows.items() if any(value != row[0] for value in row[1:])}


class _Absent:
    def __str__(self) -> str:
        return "–"


ABSENT = _Absent()


def group(runs: Sequence[Run], names: Sequence[str] | None = None) -> list[Variant]:
    """Runs of the same config are one variant, in the order in which they were given.

    If all have the same config, each run is a variant of its own: how much two seeds differ is a question as well.

    Raises:
        ValueError: fewer than two runs, one given twice, or names that do not fit.
    """
    if len(runs) < 2:
        found = f"only {runs[0].folder}" if runs else "none"
        raise ValueError(f"expected at least two finished runs to compare, found {found}; give runs=[A,B]")
    folders = [run.folder.resolve() for run in runs]
    twice = sorted({str(f) for f in folders if folders.count(f) > 1})
    if twice:
        raise ValueError(f"runs: {twice[0]} is given twice; leave one of them out")
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(json.dumps(identity(run.config), sort_keys=True, default=str), []).append(run)
    if len(groups) == 1:
        groups = {str(run.folder): [run] for run in runs}
        fallback = [run.folder.name for run in runs]
    else:
        for members in groups.values():
            seeds = [run.seed for run in members]
            if len(set(seeds)) < len(seeds):
                raise ValueError(
                    f"runs {members[0].folder} and {members[-1].folder} have the same config and seeds {seeds}; "
                    "expected one run for each seed: leave one of them out"
                )
        fallback = _names([members[0].config for members in groups.values()])
    chosen = check_names(names, len(groups)) or fallback
    return [
        Variant(name, sorted(members, key=lambda run: run.seed))
        for name, members in zip(unique(chosen), groups.values(), strict=True)
    ]


def check_names(names: Sequence[Any] | None, count: int) -> list[str] | None:
    """The names given by the user as text.

    Raises:
        ValueError: too few, too many, or the same twice.
    """
    if names is None:
        return None
    given = [str(name) for name in names]
    if len(given) != count or len(set(given)) != count:
        raise ValueError(f"names={given}: expected {count} different names, one for each variant")
    return given


def unique(names: Sequence[str]) -> list[str]:
    """Names with a number behind those that come again."""
    return [f"{name} ({names[:i].count(name) + 1})" if name in names[:i] else name for i, name in enumerate(names)]


def _names(configs: Sequence[dict[str, Any]]) -> list[str]:
    """A short name for each config, from what differs."""
    rows = differing_keys(configs)
    order = {word: i for i, word in enumerate(_TELLING)}
    keys = sorted(rows, key=lambda key: (order.get(key.split(".")[0], len(order)), not key.endswith("_target_")))
    used: list[str] = []
    for key in keys:
        # The options of another decoder differ as well; the decoder's name says enough.
        if any(other.endswith("_target_") and key.split(".")[0] == other.split(".")[0] for other in used):
            continue
        used.append(key)
        parts = [", ".join(_part(k, rows[k][i]) for k in used) for i in range(len(configs))]
        if len(set(parts)) == len(parts):
            break
    parts = [printable(part) for part in parts]
    return [part if len(part) <= _NAME_LENGTH else part[: _NAME_LENGTH - 1] + "…" for part in parts]


def _part(key: str, value: Any) -> str:
    last = key.rpartition(".")[2]
    if last == "_target_":
        return str(value).removesuffix(".from_pretrained").removesuffix(".from_config").rpartition(".")[2]
    if last in ("path", "root"):
        return Path(str(value)).name
    return str(value) if last == "weights" else f"{last}={value}"


def common_seeds(variants: Sequence[Variant]) -> tuple[list[Variant], list[str]]:
    """Only runs of seeds that every variant has, if there are such seeds, and what is to be said about it."""
    shared = set.intersection(*(set(v.seeds) for v in variants))
    if all(set(v.seeds) == shared for v in variants):
        return list(variants), []
    had = "; ".join(f"{v.name}: {', '.join(map(str, v.seeds))}" for v in variants)
    if not shared:
        return list(variants), [f"The variants have no seed in common ({had}): chance differs between them as well."]
    kept = [Variant(v.name, [run for run in v.runs if run.seed in shared]) for v in variants]
    return kept, [f"Seeds differ ({had}); only those that all have are used: {', '.join(map(str, sorted(shared)))}."]


def check_comparable(variants: Sequence[Variant]) -> None:
    """Makes sure that all runs were scored on the same images under the same protocol.

    Raises:
        ValueError: they were not; the line says which and how.
    """
    first, *others = [run for variant in variants for run in variant.runs]
    for run in others:
        pair = f"runs {first.folder} and {run.folder} cannot be compared"
        if run.task.name != first.task.name:
            raise ValueError(f"{pair}: task={first.task.name} against task={run.task.name}; give runs of one task")
        remedy = "train or test them on the same sets"
        if set(run.sets) != set(first.sets):
            raise ValueError(f"{pair}: test sets {', '.join(first.sets)} against {', '.join(run.sets)}; {remedy}")
        for name in first.sets:
            one, other = first.document["sets"][name], run.document["sets"][name]
            if one["protocol"] != other["protocol"]:
                both = [(k, v, other["protocol"].get(k)) for k, v in one["protocol"].items()]
                what = [f"{k}: {a} against {b}" for k, a, b in both if a != b]
                raise ValueError(f"{pair}: they were scored by different protocols ({'; '.join(what)}); {remedy}")
            for key, about in (("file_list_sha256", "images"), ("masks_sha256", f"{first.task.target_name}s")):
                if None not in (one[key], other[key]) and one[key] != other[key]:
                    raise ValueError(f"{pair}: the {about} of test set {name} are not the same; {remedy}")
            if run.images[name].keys() != first.images[name].keys():
                raise ValueError(f"{pair}: not the same images of test set {name} were scored; {remedy}")
        if set(run.document["scores"][first.sets[0]]) != set(first.document["scores"][first.sets[0]]):
            raise ValueError(f"{pair}: they have different scores; {remedy} with one version of e2net")
