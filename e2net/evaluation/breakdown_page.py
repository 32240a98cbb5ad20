"""The breakdown as one HTML file, with the worst pictures of each kind of error. The HTML is in ``template/``."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e2net.evaluation.breakdown import Breakdown, Estimate, GroupResult, errors_of, fraction, short
from e2net.formats import printable
from e2net.page import charts
from e2net.page.pictures import SIDES, encode_all, shrunk
from e2net.page.render import render
from e2net.page.tables import Cell, Table
from e2net.tasks.base import Grouping

_TEMPLATE = Path(__file__).parent / "template"
# Of each kind of error in each set.
_PICTURES = 6
# A panel is a row of pictures.
_WIDER = 3
# Images of a group whose interval shall be seen whole.
_LARGER = 5
# What there is no value of is sorted by.
_LAST = -1e9

Panels = Callable[[int], NDArray[np.uint8]]


@dataclass(frozen=True)
class _Shot:
    position: int
    caption: str


def page(found: Mapping[str, Breakdown], panels: Mapping[str, Panels], method: str) -> str:
    """The whole file; what file names hold is text.

    Args:
        found: of each set, by its label.
        panels: of the sets whose pictures are at hand, what draws one by its position.
        method: whose maps.
    """
    chosen = [(label, kind, shot) for label in panels for kind, shots in _worst(found[label]) for shot in shots]
    drawn = [[shrunk(panels[label](shot.position), _WIDER * SIDES[0])] for label, _, shot in chosen]
    pictures = encode_all(drawn, [_WIDER * side for side in SIDES])
    shots: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for (label, kind, shot), (picture,) in zip(chosen, pictures, strict=True):
        shots.setdefault((label, kind), []).append({"caption": shot.caption, "picture": picture})
    task = next(iter(found.values())).task
    sets = [
        {
            "name": printable(label),
            "lead": f"{len(one.images)} images. "
            + ", ".join(f"{name} {short(one.whole[name], ' ± ')}" for name in _columns(one)),
            "errors": _table(one, *one.groupings[0]),
            "groupings": [_table(one, grouping, results) for grouping, results in one.groupings[1:]],
            "kinds": [
                {"name": group.name, "meaning": group.meaning, "shots": shots[label, group.name]}
                for group in one.groupings[0][0].groups
                if (label, group.name) in shots
            ],
        }
        for label, one in found.items()
    ]
    kinds = [group.name for group in task.groupings[0].groups]
    return render(_TEMPLATE, {"method": printable(method), "task": task, "sets": sets, "kinds": kinds})


def _columns(one: Breakdown) -> list[str]:
    """The scores of papers, then all others."""
    first = [name for name, _, _ in one.task.paper_columns if name in one.whole]
    return [*first, *(name for name in one.whole if name not in first)]


def _worst(one: Breakdown) -> list[tuple[str, list[_Shot]]]:
    """Of each kind of error the pictures with the worst of the task's first score."""
    by = one.task.monitor
    falling = one.task.directions[by] == "min"
    images = {row["position"]: row for row in one.images}
    found = []
    for result in one.groupings[0][1]:
        scored = [(images[position][by], position) for position in result.positions]
        worst = sorted(scored, key=lambda pair: (-pair[0] if falling else pair[0], pair[1]))[:_PICTURES]
        shots = [
            _Shot(position, f"{printable(str(images[position]['name']))}, {by} {fraction(score)}")
            for score, position in worst
        ]
        found.append((result.group.name, shots))
    return found


def _table(one: Breakdown, grouping: Grouping, results: list[GroupResult]) -> Table:
    kinds = grouping is one.groupings[0][0]
    by = one.task.monitor
    low, high = _scale(one, by)
    head = ["", "images", "share", *([] if kinds else ["kinds of error"]), f"{by}, 95 %", *_columns(one)]
    table = Table(grouping.name, head, note=grouping.meaning)
    scale = (low, one.whole[by].value, high)
    table.rows = [_row(one, result, kinds, scale, i) for i, result in enumerate(results)]
    return table


def _row(
    one: Breakdown, result: GroupResult, kinds: bool, scale: tuple[float, float, float], number: int
) -> list[Cell]:
    """A group; where it is none of the kinds of error with how many of its images have which."""
    share, score, empty = result.share, result.scores[one.task.monitor], not result.positions
    span = charts.span(score.low, score.value, score.high, scale, short(score))
    errors = Cell("–", result.errors[-1] / max(1, sum(result.errors)))
    if not empty:
        errors = dataclasses.replace(errors, picture=charts.shares(errors_of(result.errors, one)))
    return [
        Cell(result.group.name, number),
        Cell(str(len(result.positions)), len(result.positions)),
        Cell(
            f"{100 * share.value:.0f} %",
            share.value,
            minor=f"{100 * share.low:.0f} to {100 * share.high:.0f} %" if kinds else "",
        ),
        *([] if kinds else [errors]),
        Cell("–", _sortable(score.value), picture=None if empty else span),
        *(_score(result.scores[name]) for name in _columns(one)),
    ]


def _score(estimate: Estimate) -> Cell:
    if math.isnan(estimate.value):
        return Cell("–", _LAST)
    return Cell(
        fraction(estimate.value),
        estimate.value,
        minor="" if math.isnan(estimate.low) else f"± {fraction(estimate.half)}",
    )


def _scale(one: Breakdown, score: str) -> tuple[float, float]:
    """From where to where intervals are drawn: all of the larger groups, as those of a few images are very wide."""
    rows = [row for _, results in one.groupings for row in results if row.positions]
    ends = [row.scores[score].value for row in rows]
    ends += [
        end for row in rows if len(row.positions) >= _LARGER for end in (row.scores[score].low, row.scores[score].high)
    ]
    known = [end for end in ends if not math.isnan(end)]
    return min(known, default=0), max(known, default=1)


def _sortable(value: float) -> float:
    return _LAST if math.isnan(value) else value
