"""Where a method fails: its scores by groups of images, and what is wrong with each result.

Groups are the task's ``groupings``, with fixed bounds, so that the tables of two evaluations can be laid side by side.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

import e2net
from e2net.formats import printable
from e2net.metrics.table import LEVEL, SetTable
from e2net.tasks.base import Group, Grouping, Placed, Task

FILES = ("breakdown.json", "breakdown.html")
INTERVALS = {
    "level": LEVEL,
    "scores": "Student's t over the images of the group",
    "shares": "Wilson's, over the images of the set",
}


@dataclass(frozen=True)
class Estimate:
    """A mean or share with the ends of its 95 % interval, which are NaN where one image alone tells nothing of it."""

    value: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half the interval's width."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class GroupResult:
    """The images of one group.

    Attributes:
        group: which.
        positions: of its images in the set, ascending.
        share: of all images of the set.
        scores: means of the images' own scores; NaN without an image.
        errors: how many of them are in each group of the task's first grouping.
    """

    group: Group
    positions: list[int]
    share: Estimate
    scores: dict[str, Estimate]
    errors: tuple[int, ...]


@dataclass(frozen=True)
class Breakdown:
    """One set's images, told apart.

    Attributes:
        task: by whose ``groupings``.
        whole: means over all images.
        groupings: the groups of each, in the task's order.
        images: a row an image: its position, name and first score, and under each grouping's name its group, and its
            measure where there is one.
    """

    task: Task
    whole: dict[str, Estimate]
    groupings: list[tuple[Grouping, list[GroupResult]]]
    images: list[dict[str, Any]]


def break_down(task: Task, table: SetTable, placed: Mapping[int, Placed]) -> Breakdown:
    """Groups the images of a set.

    Args:
        task: by whose groupings.
        table: the images' scores.
        placed: of each image in ``table``, by its index.
    """
    rows = table.per_image()
    names = [name for name in table.scores if name not in task.set_scores_only]
    scores = np.array([[row[name] for name in names] for row in rows], np.float64).reshape(len(rows), len(names))
    groups = np.array([placed[row["index"]].groups for row in rows]).reshape(len(rows), len(task.groupings))

    def result(chosen: np.ndarray, group: Group) -> GroupResult:
        errors = np.bincount(groups[chosen, 0], minlength=len(task.groupings[0].groups))
        means = {name: mean_of(scores[chosen, i]) for i, name in enumerate(names)}
        positions = [rows[i]["index"] for i in np.flatnonzero(chosen)]
        return GroupResult(group, positions, share_of(len(positions), len(rows)), means, tuple(errors.tolist()))

    return Breakdown(
        task,
        {name: mean_of(scores[:, i]) for i, name in enumerate(names)},
        [
            (grouping, [result(groups[:, column] == i, group) for i, group in enumerate(grouping.groups)])
            for column, grouping in enumerate(task.groupings)
        ],
        [_image(task, row, placed[row["index"]]) for row in rows],
    )


def _image(task: Task, row: Mapping[str, Any], place: Placed) -> dict[str, Any]:
    found: dict[str, Any] = {"position": row["index"], "name": row["name"], task.monitor: row[task.monitor]}
    for grouping, group, value in zip(task.groupings, place.groups, place.values, strict=True):
        found[grouping.name] = {"group": grouping.groups[group].name}
        if not math.isnan(value):
            found[grouping.name]["value"] = value
    return found


def mean_of(values: np.ndarray) -> Estimate:
    """The mean of (n,) scores, those that are NaN left out, with Student's t interval: mean ± t s / √n.

    A percentile bootstrap, as whole sets have it, is too narrow for a handful of images: of 5, drawn from the scores of
    92 real ones, it held their mean in 82 to 84 % of the draws, t in 91 to 93 %; of 10 in 90 and 94 %.
    """
    known = values[~np.isnan(values)]
    if len(known) == 0:
        return Estimate(math.nan, math.nan, math.nan)
    mean = float(known.mean())
    if len(known) == 1:
        return Estimate(mean, math.nan, math.nan)
    half = student_quantile(len(known) - 1) * float(known.std(ddof=1)) / math.sqrt(len(known))
    return Estimate(mean, mean - half, mean + half)


def share_of(count: int, whole: int) -> Estimate:
    """A share of images with Wilson's interval, which is none of zero width where the share is 0 or 1."""
    z = student_quantile(None)
    share, spread = count / whole, z * z / whole
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / whole + spread / (4 * whole)) / (1 + spread)
    return Estimate(share, max(0.0, centre - half), min(1.0, centre + half))


@functools.cache
def student_quantile(freedom: int | None, level: float = LEVEL) -> float:
    """The t beyond which lies (1 - level) / 2 of Student's distribution.

    Args:
        freedom: degrees of freedom, at least 1; None: the normal distribution.
        level: of a two-sided interval.
    """
    low, high = 0.0, 1.0
    while _student_within(high, freedom) < level:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_within(middle, freedom) < level else (low, middle)
    return high


def _student_within(t: float, freedom: int | None) -> float:
    """The probability of -t to t (Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4)."""
    if freedom is None:
        return math.erf(t / math.sqrt(2))
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    # Factor after factor: 1, 2/3 cos², 4/5 cos², ... or 1, 1/2 cos², 3/4 cos², ...
    steps = np.arange(1, (freedom - odd) // 2) * 2.0
    factors = (steps / (steps + 1) if odd else (steps - 1) / steps) * math.cos(angle) ** 2
    series = 1 + float(np.cumprod(factors).sum())
    if not odd:
        return math.sin(angle) * series
    return 2 / math.pi * (angle + math.sin(angle) * math.cos(angle) * series * (freedom > 1))


def print_breakdown(found: Mapping[str, Breakdown]) -> None:
    """Prints a table for each set, no wider than 80 columns: a row a group, its images, and the scores of papers.

    Groups without an image are left out but for kinds of error.
    """
    console = Console(highlight=False)
    for label, one in found.items():
        columns = [name for name, _, _ in one.task.paper_columns if name in one.whole]
        console.print(Text(f"{printable(label)}: means by group, ± 95 %"))
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("", no_wrap=True)
        for heading in ("images", "share", *columns):
            table.add_column(heading, justify="right", no_wrap=True)
        for number, (grouping, results) in enumerate(one.groupings):
            table.add_row(grouping.name, style="bold")
            for result in results:
                if result.positions or number == 0:
                    cells = [short(result.scores[name]) for name in columns]
                    share = f"{100 * result.share.value:.0f} %"
                    table.add_row(f"  {result.group.name}", str(len(result.positions)), share, *cells)
        table.add_row("all", str(len(one.images)), "", *(short(one.whole[name]) for name in columns), style="bold")
        console.print(table)


def short(estimate: Estimate, sign: str = "±") -> str:
    """Such as ".744±.017"; without an interval where there is none, and a dash without an image."""
    if math.isnan(estimate.value):
        return "–"
    value = fraction(estimate.value)
    return value if math.isnan(estimate.low) else f"{value}{sign}{fraction(estimate.half)}"


def fraction(value: float) -> str:
    """Three digits, no zero before the point."""
    return f"{value:.3f}".removeprefix("0")


def as_document(found: Mapping[str, Breakdown], method: str, about: Mapping[str, Any]) -> dict[str, Any]:
    """All of it in plain values; NaN where something is not defined.

    Args:
        found: of each set, by its label.
        method: whose maps.
        about: what was evaluated.
    """
    task = next(iter(found.values())).task
    return {
        "e2net": e2net.__version__,
        "method": method,
        **about,
        "protocol": task.protocol.describe(),
        "intervals": INTERVALS,
        "groupings": [
            {"name": one.name, "meaning": one.meaning, "groups": [group._asdict() for group in one.groups]}
            for one in task.groupings
        ],
        "sets": {label: _as_values(one) for label, one in found.items()},
    }


def _as_values(one: Breakdown) -> dict[str, Any]:
    kinds = [group.name for group in one.task.groupings[0].groups]
    return {
        "scores": {name: asdict(estimate) for name, estimate in one.whole.items()},
        "groups": {
            grouping.name: {
                result.group.name: {
                    "images": len(result.positions),
                    "share": asdict(result.share),
                    "scores": {name: asdict(estimate) for name, estimate in result.scores.items()},
                    one.task.groupings[0].name: dict(zip(kinds, result.errors, strict=True)),
                }
                for result in results
            }
            for grouping, results in one.groupings
        },
        "images": one.images,
    }


def errors_of(counts: Sequence[int], one: Breakdown) -> list[tuple[str, int]]:
    """The kinds of error with how many images have them."""
    return [(group.name, count) for group, count in zip(one.task.groupings[0].groups, counts, strict=True)]
