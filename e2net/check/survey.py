"""All of a data set, read once: its parts, what is wrong with their pairs, and which pictures come again."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from e2net.check.findings import Examined, Finding, Place, examine, relative, without_root
from e2net.check.hashing import Link, Repeat, find_repeats
from e2net.datasets import DenseData, Source
from e2net.datasets.datamodule import VALIDATION
from e2net.datasets.pairs import PartOf, find_strays
from e2net.runs.config import build_data, build_task, check_part, resolve_task
from e2net.tasks.base import Severity, Task

Role = Literal["train", "val", "test"]

_RANK: dict[Severity, int] = {"error": 0, "warning": 1, "note": 2}
# Of groups of pictures, from the worst on. Two test sets are one side: what they share is scored twice, no more.
_LEVELS: tuple[tuple[Severity, str], ...] = (
    ("error", "same picture across sets"),
    ("warning", "similar picture across sets"),
    ("warning", "same picture twice"),
    ("note", "similar pictures"),
)
# So many pairs a thread are asked for at a time: all at once would take memory for each.
_AHEAD = 64
# Links of a group that are put in words.
_WORDS = 3


@dataclass(frozen=True)
class Part:
    """One set of pairs.

    Attributes:
        name: of the set, or train or val.
        role: what it is for.
    """

    name: str
    role: Role
    source: Source


@dataclass
class Survey:
    """Everything that a report says.

    Attributes:
        task: what the targets mean.
        parts: that were read.
        findings: the worst first, in the order of the sets.
        root: the folder of the data, None where there is none.
    """

    task: Task
    parts: list[Part] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    root: Path | None = None

    def count(self, severity: Severity) -> int:
        """How many findings are so severe."""
        return sum(one.severity == severity for one in self.findings)

    def by_kind(self) -> dict[tuple[Severity, str], list[Finding]]:
        """The findings of each kind, the worst kinds first."""
        found: dict[tuple[Severity, str], list[Finding]] = {}
        for one in self.findings:
            found.setdefault((one.severity, one.kind), []).append(one)
        return found


def data_of(config: dict[str, Any]) -> DenseData:
    """The data of a resolved ``conf/train.yaml``, of which no file has been looked at.

    Raises:
        ValueError, FileNotFoundError: a setting of the task or the data is wrong.
    """
    check_part(config, "data")
    config = resolve_task(config)
    # Nothing is made into batches; what stands for a number of the program's own is not known here.
    return build_data({**config["data"], "batch_size": 1, "num_workers": 0}, build_task(config))


def check_data(data: DenseData, threads: int | None = None) -> Survey:
    """Reads every file of a data set once.

    Args:
        data: whose files have not been listed yet.
        threads: that read; None: one for each core.

    Raises:
        FileNotFoundError, ValueError: nothing of it is there.
    """
    data.strict = False
    root = getattr(data, "root", None)
    found = Survey(data.task, root=root)
    found.parts, found.findings = _parts(data, root)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(threads or cores, "e2net-check") as pool:
        examined = list(_examined(found, pool, _AHEAD * (threads or cores)))
        found.findings += [one for pair in examined for one in pair.findings]
        found.findings += _repeats(examined, {part.name: part.role for part in found.parts}, data.task, pool)
    found.findings.sort(key=lambda one: _RANK[one.severity])  # stable
    kinds = {key: place for place, key in enumerate(found.by_kind())}
    found.findings.sort(key=lambda one: kinds[one.severity, one.kind])
    return found


def _parts(data: DenseData, root: Path | None) -> tuple[list[Part], list[Finding]]:
    """The sets that can be listed, and what is wrong with the others."""
    parts: list[Part] = []
    found: list[Finding] = []
    faults: list[Exception] = []
    jobs: list[tuple[Role, str]] = [("train", ""), *(("test", name) for name in data.test_names if name != VALIDATION)]
    names = Counter(name for _, name in jobs)
    for role, name in jobs:
        # A test set may be called train or val.
        shown = f"test {name}" if name in ("train", "val") or names[name] > 1 else name or role
        try:
            source = data.source(role, name)
        except (ValueError, OSError) as error:
            faults.append(error)
            absent = isinstance(error, FileNotFoundError)
            severity: Severity = ("warning" if role == "train" else "note") if absent else "error"
            kind = "not there" if absent else "set"
            found.append(Finding(severity, kind, without_root(str(error), root), (Place(shown),)))
            continue
        for stray in find_strays(source):
            place = Place(shown, stray.path.stem, relative(stray.path, root))
            found.append(Finding("error", stray.kind, stray.words, (place,)))
        parts += _split(data, source, found) if role == "train" else [Part(shown, role, source)]
    if not parts:
        raise faults[0] if faults else ValueError("there is nothing to check")
    return parts, found


def _split(data: DenseData, source: Source, found: list[Finding]) -> list[Part]:
    """The training and the validation part of a training set; all of it for training where it cannot be split."""
    try:
        train, val = data.split()
    except ValueError as error:
        found.append(Finding("error", "set", str(error), (Place("train"),)))
        return [Part("train", "train", source)]
    parts = [Part("train", "train", PartOf(source, train))]
    return [*parts, Part("val", "val", PartOf(source, val))] if val else parts


def _examined(found: Survey, pool: Executor, ahead: int) -> Iterator[Examined]:
    jobs = [(part, index) for part in found.parts for index in range(len(part.source))]
    with tqdm(total=len(jobs), unit=" pairs", disable=None) as bar:
        for start in range(0, len(jobs), ahead):
            for one in pool.map(partial(_examine, found), jobs[start : start + ahead]):
                bar.update()
                yield one


def _examine(found: Survey, job: tuple[Part, int]) -> Examined:
    part, index = job
    return examine(part.source, index, found.task, part.name, found.root)


def _repeats(examined: Sequence[Examined], roles: dict[str, Role], task: Task, pool: Executor) -> list[Finding]:
    """Groups of pictures that are the same or similar."""
    prints = [(one.place, one.print) for one in examined if one.print is not None]
    places = [place for place, _ in prints]
    of = [roles[place.part] for place in places]
    return [
        _repeat(repeat, places, of, [known.target for _, known in prints], task)
        for repeat in find_repeats([known for _, known in prints], of, pool)
    ]


def _repeat(
    repeat: Repeat, places: Sequence[Place], roles: Sequence[Role], targets: Sequence[str | None], task: Task
) -> Finding:
    """The finding of one group: as severe as the worst of its links, and led by it."""
    levels = [_level(link, roles) for link in repeat.links]
    order = sorted(range(len(levels)), key=lambda i: (levels[i], -repeat.links[i].similarity))
    severity, kind = _LEVELS[levels[order[0]]]
    said = []
    for link in (repeat.links[i] for i in order[:_WORDS]):
        how = "similar" if link.how == "similar" else f"the same {link.how}"
        how += f" ({link.similarity:.2f})" if link.how == "similar" else ""
        both = targets[link.first], targets[link.second]
        same = link.how != "similar" and None not in both and both[0] != both[1]
        more = ", mirrored" * link.mirrored + f", another {task.target_name}" * same
        said.append(f"{places[link.first].title} and {places[link.second].title}: {how}{more}")
    rest = len(levels) - len(said)
    words = "; ".join(said) + (f"; and {rest} more" if rest else "")
    worst = repeat.links[order[0]]
    members = dict.fromkeys((worst.first, worst.second, *repeat.members))
    return Finding(severity, kind, words, tuple(places[i] for i in members))


def _level(link: Link, roles: Sequence[Role]) -> int:
    across, same = roles[link.first] != roles[link.second], link.how != "similar"
    return {(True, True): 0, (True, False): 1, (False, True): 2, (False, False): 3}[across, same]
