"""Score reports: confidence intervals, tables for the terminal and for papers, and every file beside them."""

import csv
import hashlib
import io
import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

import e2net
from e2net.datasets.datamodule import check_set_names
from e2net.evaluation import breakdown
from e2net.evaluation.breakdown import Breakdown, as_document, break_down, fraction, print_breakdown
from e2net.evaluation.plots import Pictures, calibration_figure, curve_figure, extremes_sheet
from e2net.files import remove_file, write_atomically
from e2net.formats import printable, some
from e2net.metrics.calibration import BINS, Calibration
from e2net.metrics.table import LEVEL, RESAMPLES, Interval, SetTable
from e2net.runs.folder import SAMPLES
from e2net.tasks.base import Placed, Task

log = logging.getLogger(__name__)

Scores = dict[str, dict[str, float]]

# What can be odd about a set's maps without stopping the evaluation.
# A task adds its own.
PROBLEMS = {
    "missing": "not there, left out",
    "foreign": "of another file type than maps have, ignored",
    "extra": "belong to no mask, ignored",
    "pictures": "could not be drawn",
}
_NAMES_SHOWN = 3
_TABLE_WIDTH = 78  # rich keeps a margin of a letter on either side
_NAME_WIDTH = len("  binarised")  # the least that a set's name gets
# Of a report's files, less what stands before "scores" in its name; "*" is a set's name. That of the scores comes last.
FILES = (
    *("scores.csv", "intervals.csv", "per_image.csv", "curves.csv", "curves.png", "table.tex", "table.md"),
    *("calibration.csv", "calibration.png", "corruptions.csv", "corruptions.png", "corruptions.json"),
    *("worst_best_*.png", *breakdown.FILES, "scores.json"),
)


@dataclass
class SetResult:
    """All that is known about one scored set under one protocol.

    Attributes:
        name: of the set.
        task: what was scored, and how.
        scores: of its images.
        stems: of all its masks, scored or not.
        masks_sha256: of the masks' contents, see ``masks_hash``; None where they were not at hand.
        problems: kind (``PROBLEMS``) to names.
        binarised: whether this is the second, binarised scoring of a set.
        pictures: reads what a contact sheet shows of an image, by its position among ``stems``; None: no sheet.
        panel: reads the same as one picture, see the task's ``panel``; None: it is not shown.
        placed: where each scored image belongs in the task's groupings, by its position; None: not asked for.
    """

    name: str
    task: Task
    scores: SetTable
    stems: list[str]
    masks_sha256: str | None = None
    problems: dict[str, list[str]] = field(default_factory=dict)
    binarised: bool = False
    pictures: Callable[[int], Pictures] | None = None
    panel: Callable[[int], NDArray[np.uint8]] | None = None
    placed: dict[int, Placed] | None = None

    @property
    def label(self) -> str:
        """The set's name, which says so where the maps were binarised on top."""
        return f"{self.name} (binarised)" if self.binarised else self.name

    @property
    def protocol(self) -> dict[str, Any]:
        """How results were prepared, in plain values."""
        return self.task.protocol.describe()

    def values(self) -> dict[str, float]:
        """Score name to value."""
        return self.scores.values()


def stems_hash(stems: Iterable[str]) -> str:
    """SHA-256 of a set's sorted mask stems, one a line: which images a score is about."""
    return hashlib.sha256("\n".join(sorted(stems)).encode("utf-8", "surrogateescape")).hexdigest()


def masks_hash(digests: dict[str, str]) -> str:
    """SHA-256 of all masks of a set, from stem to the task's ``digest``."""
    return hashlib.sha256(
        "\n".join(f"{k} {v}" for k, v in sorted(digests.items())).encode("utf-8", "surrogateescape")
    ).hexdigest()


def print_scores(results: Sequence[SetResult], intervals: dict[str, dict[str, Interval]]) -> None:
    """Prints the table: a row a set, and below it half the width of each 95 % interval.

    No wider than 80 columns: scores that don't fit follow in further tables. They are fractions. Problems come last,
    with a few names each.

    Args:
        results: at least one, all with the same scores.
        intervals: of every result, by its label.
    """
    counts = [_count(len(r.scores), len(r.stems)) for r in results]
    rows = [{k: fraction(v) for k, v in r.values().items()} for r in results]
    widths = {k: 2 + max(len(k), *(len(row[k]) for row in rows)) for k in rows[0]}
    fixed = 2 + max(4, *map(len, counts))
    console = Console(highlight=False)
    for columns in _side_by_side(widths, _TABLE_WIDTH - fixed - _NAME_WIDTH):
        room = _TABLE_WIDTH - fixed - sum(widths[k] for k in columns)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("test set", no_wrap=True, max_width=max(room, _NAME_WIDTH), overflow="ellipsis")
        for column in ("maps", *columns):
            table.add_column(column, justify="right", no_wrap=True)
        for result, count, row in zip(results, counts, rows, strict=True):
            name = Text("  binarised" if result.binarised else printable(result.name))  # as it is, no markup
            table.add_row(name, count, *(row[k] for k in columns))
            halves = ((high - low) / 2 for low, high in (intervals[result.label][k] for k in columns))
            table.add_row("  ± (95 %)", "", *map(fraction, halves), style="dim")
        console.print(table)
    described = {k: v for k, v in results[0].protocol.items() if k != "binarise" or not results[-1].binarised}
    console.print(", ".join(f"{k}: {v}" for k, v in described.items()), style="dim", markup=False)
    for label, calibration in _calibrations(results).items():
        found = f"F {fraction(calibration.best_f)} at threshold {fraction(calibration.threshold)}"
        shown = f"{label}: calibration error (ECE) {fraction(calibration.error)}; best unstretched {found}"
        console.print(shown, style="dim", markup=False)
    for result in results:
        if not result.binarised:
            for kind, names in result.problems.items():
                count = f"{len(names)} of {len(result.stems)}" if kind == "missing" else str(len(names))
                known = {**PROBLEMS, **result.task.problems}
                shown = f"{result.name}: {count} {kind} ({known[kind]}): {some(names, _NAMES_SHOWN)}"
                console.print(shown, style="yellow", markup=False)


def _side_by_side(widths: dict[str, int], room: int) -> list[list[str]]:
    """Columns in their order, as many to a table as fit."""
    tables: list[list[str]] = [[]]
    for name, width in widths.items():
        if tables[-1] and sum(widths[k] for k in tables[-1]) + width > room:
            tables.append([])
        tables[-1].append(name)
    return tables


def _count(n: int, whole: int) -> str:
    return str(n) if n == whole else f"{n}/{whole}"


def latex_rows(method: str, results: Sequence[SetResult]) -> str:
    """A LaTeX row of the method, with comments that say what its columns and the scores behind them are.

    Columns as papers on camouflaged objects have them: for each set S-measure, mean E-measure, weighted F-measure
    and MAE. A second row where the maps were scored binarised too.
    """
    sets = [r for r in results if not r.binarised]
    headings = " & ".join(heading for _, heading, _ in results[0].task.paper_columns)
    lines = [f"% {line}" for line in _about(sets)] + [f"% columns of {r.name}: {headings}" for r in sets]
    for name, cells in _paper_rows(method, results):
        lines.append(" & ".join([_latex(name), *cells]) + r" \\")
    return "\n".join(lines) + "\n"


def _about(sets: Sequence[SetResult]) -> list[str]:
    """What a table must name to be reproduced: the protocol, and of each set how much of which file list."""
    protocol = ", ".join(f"{k}: {sets[0].protocol[k]}" for k in sets[0].task.protocol_fields)
    return [f"e2net {e2net.__version__}, {protocol}"] + [
        f"{r.name}: {len(r.scores)} of {len(r.stems)} maps, file list {stems_hash(r.stems)}" for r in sets
    ]


def _latex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, "\\" + c if c in "&%$#_{}" else c) for c in text)


def markdown_rows(method: str, results: Sequence[SetResult]) -> str:
    """The same row as ``latex_rows`` gives, as a Markdown table with its headings, and the same as comments."""
    sets = [r for r in results if not r.binarised]
    head = ["Method", *(f"{r.name} {heading}" for r in sets for _, _, heading in results[0].task.paper_columns)]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)]
    lines += [[name, *cells] for name, cells in _paper_rows(method, results)]
    table = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    return "\n".join([*(f"<!-- {line} -->" for line in _about(sets)), *table]) + "\n"


def _paper_rows(method: str, results: Sequence[SetResult]) -> list[tuple[str, list[str]]]:
    rows = []
    for binarised, name in ((False, method), (True, f"{method} (binarised)")):
        values = [r.values() for r in results if r.binarised == binarised]
        cells = [
            fraction(v[score]) if score in v else "-" for v in values for score, _, _ in results[0].task.paper_columns
        ]
        if values:
            rows.append((name, cells))
    return rows


def clear_report(folder: Path, name: str = "scores", extra: Iterable[str] = ()) -> None:
    """Removes the report of an earlier evaluation (see ``write_report``), its list of problems and its samples.

    Only what that report says it is of, as anything may lie beside it. Called where scoring begins. As ``<name>.json``
    is written last, its presence means that all others are of the same, finished evaluation.

    Args:
        folder: where it lies.
        name: see ``write_report``.
        extra: patterns of the task's own files, its ``extra_files``.
    """
    prefix = name.removesuffix("scores")
    sets = _sets_of(folder / f"{name}.json")
    for one in sets:
        remove_file(folder / SAMPLES / f"test_{one}.png")
    problems = () if prefix else ("problems.json",)  # of maps alone
    for pattern in reversed((*problems, *(prefix + file for file in (*extra, *FILES)))):
        for file in [pattern.replace("*", one) for one in sets] if "*" in pattern else [pattern]:
            (folder / file).unlink(missing_ok=True)


def _sets_of(document: Path) -> list[str]:
    """The test sets that a report is of, by its JSON file."""
    try:
        sets = json.loads(document.read_text(encoding="utf-8"))["sets"]
        check_set_names({name: name for name in sets})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or none of ours
        return []
    return list(sets)


def write_report(
    folder: Path,
    results: Sequence[SetResult],
    intervals: dict[str, dict[str, Interval]],
    method: str,
    about: dict[str, Any],
    name: str = "scores",
    breakdowns: Mapping[str, Breakdown] | None = None,
) -> None:
    """Writes all files of a report, each of them whole or not at all, ``<name>.json`` last.

    ``<name>.csv`` (a row a set), ``intervals.csv``, ``per_image.csv``, ``curves.csv``, ``curves.png``,
    ``calibration.csv`` and ``.png`` where results are probabilities, ``table.tex``, ``table.md``,
    ``worst_best_<set>.png`` where maps are at hand, breakdowns, and the task's own; what stands before "scores" in
    ``name`` stands before theirs too. A picture that cannot be drawn is a problem in the report, not the end of it.

    Args:
        folder: where to.
        results: at least one, all with the same scores.
        intervals: of every result, by its label.
        method: the name in the paper's table.
        about: what else the JSON file shall hold: where maps came from, the bootstrap's seed.
        name: of the score files; ends in "scores".
        breakdowns: of the sets that were broken down, by their labels.
    """
    prefix = name.removesuffix("scores")
    breakdowns = breakdowns or {}

    def write(file: str, content: str | bytes) -> None:
        write_atomically(folder / (prefix + file), content)

    for file, lines in _tables(results, intervals).items():
        text = io.StringIO()
        csv.writer(text).writerows(lines)
        write(file, text.getvalue())
    write("table.tex", latex_rows(method, results))
    write("table.md", markdown_rows(method, results))
    if breakdowns:
        write("breakdown.json", _json(as_document(breakdowns, method, about)))
    problems = {r.label: {k: list(v) for k, v in r.problems.items()} for r in results}
    drawings = _pictures(results, about.get("bootstrap", {}).get("seed", 0))
    if breakdowns:
        drawings.append((results[0].label, "breakdown.html", lambda: _breakdown_page(results, breakdowns, method)))
    for label, file, draw in drawings:
        try:
            write(file, draw())
        except Exception as error:  # the scores are worth more than a picture of them
            log.warning("%s%s could not be drawn: %s", prefix, file, error)
            problems[label].setdefault("pictures", []).append(f"{file}: {error}")
    write("scores.json", _json(_document(results, intervals, method, about, problems)))


def _document(
    results: Sequence[SetResult],
    intervals: dict[str, dict[str, Interval]],
    method: str,
    about: dict[str, Any],
    problems: dict[str, dict[str, list[str]]],
) -> dict[str, Any]:
    """The content of the JSON file; see ``write_report``, ``problems`` being those of every result by its label."""
    return {
        "e2net": e2net.__version__,
        "method": method,
        **about,
        "protocol": results[0].protocol,
        "scores": {r.label: r.values() for r in results},
        "intervals": intervals,
        "calibration": {
            label: {"ECE": one.error, "threshold": one.threshold, "F": one.best_f}
            for label, one in _calibrations(results).items()
        },
        "sets": {
            r.label: {
                "data_set": r.name,
                "maps": len(r.scores),
                "masks": len(r.stems),
                "file_list_sha256": stems_hash(r.stems),
                "masks_sha256": r.masks_sha256,
                "protocol": r.protocol,
                "problems": problems[r.label],
            }
            for r in results
        },
    }


def _breakdown_page(results: Sequence[SetResult], breakdowns: Mapping[str, Breakdown], method: str) -> str:
    from e2net.evaluation.breakdown_page import page  # noqa: PLC0415 - not every evaluation needs templates

    panels = {r.label: r.panel for r in results if r.panel is not None and r.label in breakdowns}
    return page(breakdowns, panels, method)


def _tables(results: Sequence[SetResult], intervals: dict[str, dict[str, Interval]]) -> dict[str, list[list[Any]]]:
    """The lines of each CSV file."""
    values = {r.label: r.values() for r in results}
    columns = list(next(iter(values.values())))
    images = {r.label: r.scores.per_image() for r in results}
    tables: dict[str, list[list[Any]]] = {
        "scores.csv": [
            ["test_set", *columns, "maps", "masks", *results[0].task.protocol_fields, "file_list_sha256"],
            *(
                [r.label, *values[r.label].values(), len(images[r.label]), len(r.stems)]
                + [r.protocol[k] for k in r.task.protocol_fields]
                + [stems_hash(r.stems)]
                for r in results
            ),
        ],
        "intervals.csv": [
            ["test_set", "score", "value", "low", "high"],
            *([label, k, row[k], *intervals[label][k]] for label, row in values.items() for k in columns),
        ],
        "per_image.csv": [
            ["test_set", "name", *columns],
            *([label, row["name"], *(row[k] for k in columns)] for label, rows in images.items() for row in rows),
        ],
    }
    curves = _curves(results)
    if any(curves.values()):
        names = list(next(iter(curves.values())))
        tables["curves.csv"] = [
            ["test_set", "threshold", *names],
            *([label, t, *(c[k][t] for k in names)] for label, c in curves.items() for t in range(256)),
        ]
    calibrations = _calibrations(results)
    if calibrations:
        tables["calibration.csv"] = [
            ["test_set", "low", "high", "pixels", "probability", "frequency"],
            *(
                [label, i / BINS, (i + 1) / BINS, *row]
                for label, one in calibrations.items()
                for i, row in enumerate(zip(*(column.tolist() for column in one.reliability), strict=True))
            ),
        ]
    return tables


def _calibrations(results: Sequence[SetResult]) -> dict[str, Calibration]:
    found = {r.label: r.task.calibration(r.scores) for r in results}
    return {label: calibration for label, calibration in found.items() if calibration is not None}


def _curves(results: Sequence[SetResult]) -> dict[str, dict[str, Any]]:
    return {r.label: {k: v.numpy() for k, v in r.scores.mean_curves().items()} for r in results}


def _pictures(results: Sequence[SetResult], seed: int) -> list[tuple[str, str, Callable[[], str | bytes]]]:
    """Whose problem it is if it fails, the file's name, and what draws it: pictures, and the task's own files."""
    curves = _curves(results)
    found: list[tuple[str, str, Callable[[], str | bytes]]] = []
    if any(curves.values()):
        found.append((results[0].label, "curves.png", lambda: curve_figure(curves)))
    if calibrations := _calibrations(results):
        found.append((results[0].label, "calibration.png", lambda: calibration_figure(calibrations)))
    for result in results:
        if result.pictures is not None:
            by = result.task.monitor
            rows = [row for row in result.scores.per_image() if not math.isnan(row.get(by, math.nan))]
            scored = [(row[by], row["index"], printable(row["name"])) for row in rows]
            if scored:
                sheet = _Sheet(scored, result.pictures, by, result.task.directions[by] == "min")
                found.append((result.label, f"worst_best_{result.name}.png", sheet))
    own = results[0].task.report_files({r.label: r.scores for r in results}, seed)
    return [*found, *((results[0].label, file, draw) for file, draw in own.items())]


def _json(document: dict[str, Any]) -> str:
    return json.dumps(plain(document), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """The same, with None for what JSON does not have: such as scores of masks without a contour, or infinite ones."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass
class _Sheet:
    scored: list[tuple[float, int, str]]
    pictures: Callable[[int], Pictures]
    by: str
    falling: bool

    def __call__(self) -> bytes:
        return extremes_sheet(self.scored, self.pictures, self.by, self.falling)


def report(
    folder: Path,
    results: Sequence[SetResult],
    method: str,
    about: dict[str, Any],
    seed: int = 0,
    name: str = "scores",
) -> Scores:
    """Prints the table and writes all files; see ``print_scores`` and ``write_report``.

    Returns:
        {test set: {score: value}}, fractions.
    """
    intervals = {r.label: r.scores.intervals(seed) for r in results}
    print_scores(results, intervals)
    breakdowns = {r.label: break_down(r.task, r.scores, r.placed) for r in results if r.placed is not None}
    print_breakdown(breakdowns)
    about = {**about, "bootstrap": {"level": LEVEL, "resamples": RESAMPLES, "seed": seed, "over": "images"}}
    write_report(folder, results, intervals, method, about, name, breakdowns)
    return {r.label: r.values() for r in results}
