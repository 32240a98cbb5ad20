"""Score reports: confidence intervals, tables for the terminal and for papers, and every file beside them."""

import csv
import hashlib
import io
import json
import logging
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

import e2net
from e2net.datasets.io import printable, some
from e2net.engine.plots import Picture, curve_figure, extremes_sheet
from e2net.files import write_atomically
from e2net.metrics import CURVES, ScoreTable
from e2net.metrics.functional import f_of

log = logging.getLogger(__name__)

Scores = dict[str, dict[str, float]]
Interval = tuple[float, float]

RESAMPLES = 1000
LEVEL = 0.95
# The columns of a paper's table: score, its heading in LaTeX and in Markdown.
PAPER_COLUMNS = (
    ("S", r"$S_\alpha\uparrow$", "S ↑"),
    ("Emean", r"$E_\phi\uparrow$", "E ↑"),
    ("wF", r"$F_\beta^w\uparrow$", "wF ↑"),
    ("MAE", r"$M\downarrow$", "MAE ↓"),
)
# Of a protocol, what tables name; the JSON file has all of it.
PROTOCOL_FIELDS = ("quantise", "normalize", "binarise")
# What can be odd about a set's maps without stopping the evaluation.
PROBLEMS = {
    "missing": "not there, left out",
    "foreign": "of another file type than maps have, ignored",
    "extra": "belong to no mask, ignored",
    "resized": "not of the mask's size, resized bilinearly",
    "lossy": "JPEG: compression has changed the values",
    "dark": "no value above 1 of 255: saved as 0/1 instead of 0 to 255?",
    "pictures": "could not be drawn",
}
_NAMES_SHOWN = 3
_TABLE_WIDTH = 78  # rich keeps a margin of a letter on either side
_NAME_WIDTH = len("  binarised")  # the least that a set's name gets
# Of a report's files, less what stands before "scores" in its name; "*" is a set's name. That of the scores comes last.
FILES = (
    *("scores.csv", "intervals.csv", "per_image.csv", "curves.csv", "curves.png", "table.tex", "table.md"),
    *("worst_best_*.png", "scores.json"),
)


@dataclass
class SetResult:
    """All that is known about one scored set under one protocol.

    Attributes:
        name: of the set.
        scores: of its images.
        stems: of all its masks, scored or not.
        protocol: how maps were prepared, as ``Protocol.describe`` gives it.
        masks_sha256: of the masks' contents, see ``masks_hash``; None where they were not at hand.
        problems: kind (``PROBLEMS``) to names.
        binarised: whether this is the second, binarised scoring of a set.
        picture: reads what a contact sheet shows of an image, by its position among ``stems``; None: no sheet.
    """

    name: str
    scores: ScoreTable
    stems: list[str]
    protocol: dict[str, Any]
    masks_sha256: str | None = None
    problems: dict[str, list[str]] = field(default_factory=dict)
    binarised: bool = False
    picture: Callable[[int], Picture] | None = None

    @property
    def label(self) -> str:
        """The set's name, which says so where the maps were binarised on top."""
        return f"{self.name} (binarised)" if self.binarised else self.name

    def values(self) -> dict[str, float]:
        """Score name to value, fractions."""
        return self.scores.values()


def bootstrap_intervals(
    names: Sequence[str],
    rows: NDArray[np.float64],
    curves: NDArray[np.float64],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Interval]:
    """Percentile bootstrap intervals of 95 % over the images of a set.

    Images are drawn with replacement, as many as there are, and each score of the data set is computed anew from
    what was drawn. Fmax, Fmean, Emax, Emean and FmaxPR are taken on the mean curves of each draw. Draw i is
    row i of ``np.random.default_rng(seed).integers(0, n, (resamples, n))``.

    Args:
        names: of the scores, in the order of the columns of ``rows``.
        rows: (n, len(names)) scores of each image, fractions; NaN where a score is undefined.
        curves: (n, 4, 256), in the order of ``CURVES``.
        seed: of the draws.
        resamples: how many draws.

    Returns:
        Score name to its 2.5 % and 97.5 % quantile over the draws.

    Raises:
        ValueError: there is no image, or shapes don't fit.
    """
    n = len(rows)
    if n == 0 or rows.shape != (n, len(names)) or curves.shape != (n, len(CURVES), 256):
        raise ValueError(
            f"expected rows (n, {len(names)}) and curves (n, {len(CURVES)}, 256) of at least one image, got "
            f"{rows.shape} and {curves.shape}"
        )
    # Relative to the first image, so that what is the same for all images stays exactly the same in every draw.
    origin = np.nan_to_num(rows[0])
    defined = ~np.isnan(rows)
    shifted = np.where(defined, rows - origin, 0.0)
    flat = curves.reshape(n, -1)
    moved = flat - flat[0]
    drawn = np.empty((resamples, len(names)))
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, 100):  # a block of draws at a time bounds the memory
        draws = rng.integers(0, n, (min(100, resamples - start), n))
        counts = np.stack([np.bincount(draw, minlength=n) for draw in draws]).astype(np.float64)
        block = slice(start, start + len(draws))
        with np.errstate(invalid="ignore"):
            drawn[block] = origin + (counts @ shifted) / (counts @ defined)
        means = (flat[0] + counts @ moved / n).reshape(-1, len(CURVES), 256)
        f, e, precision, recall = means.transpose(1, 0, 2)
        over_curves = {"Fmax": f.max(1), "Fmean": f.mean(1), "Emax": e.max(1), "Emean": e.mean(1)}
        over_curves["FmaxPR"] = f_of(precision, recall).max(1)
        for i, name in enumerate(names):
            if name in over_curves:
                drawn[block, i] = over_curves[name]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice")  # a score that is defined for no image has no interval
        low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return {name: (float(a), float(b)) for name, a, b in zip(names, low, high, strict=True)}


def stems_hash(stems: Iterable[str]) -> str:
    """SHA-256 of a set's sorted mask stems, one a line: which images a score is about."""
    return hashlib.sha256("\n".join(sorted(stems)).encode("utf-8", "surrogateescape")).hexdigest()


def mask_digest(mask: NDArray[np.bool_]) -> str:
    """SHA-256 of one mask (h, w) bool: its size and its pixels, whatever its file's format."""
    return hashlib.sha256(f"{mask.shape[0]}x{mask.shape[1]}".encode() + np.packbits(mask).tobytes()).hexdigest()


def masks_hash(digests: dict[str, str]) -> str:
    """SHA-256 of all masks of a set, from stem to ``mask_digest``."""
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
    rows = [{k: _short(v) for k, v in r.values().items()} for r in results]
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
            table.add_row("  binarised" if result.binarised else result.name, count, *(row[k] for k in columns))
            halves = ((high - low) / 2 for low, high in (intervals[result.label][k] for k in columns))
            table.add_row("  ± (95 %)", "", *map(_short, halves), style="dim")
        console.print(table)
    described = {k: v for k, v in results[0].protocol.items() if k != "binarise" or not results[-1].binarised}
    console.print(", ".join(f"{k}: {v}" for k, v in described.items()), style="dim", markup=False)
    for result in results:
        if not result.binarised:
            for kind, names in result.problems.items():
                count = f"{len(names)} of {len(result.stems)}" if kind == "missing" else str(len(names))
                shown = f"{result.name}: {count} {kind} ({PROBLEMS[kind]}): {some(names, _NAMES_SHOWN)}"
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


def _short(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def latex_rows(method: str, results: Sequence[SetResult]) -> str:
    """A LaTeX row of the method, with comments that say what its columns and the scores behind them are.

    Columns as papers on camouflaged objects have them: for each set S-measure, mean E-measure, weighted F-measure
    and MAE. A second row where the maps were scored binarised too.
    """
    sets = [r for r in results if not r.binarised]
    headings = " & ".join(heading for _, heading, _ in PAPER_COLUMNS)
    lines = [f"% {line}" for line in _about(sets)] + [f"% columns of {r.name}: {headings}" for r in sets]
    for name, cells in _paper_rows(method, results):
        lines.append(" & ".join([_latex(name), *cells]) + r" \\")
    return "\n".join(lines) + "\n"


def _about(sets: Sequence[SetResult]) -> list[str]:
    """What a table must name to be reproduced: the protocol, and of each set how much of which file list."""
    protocol = ", ".join(f"{k}: {sets[0].protocol[k]}" for k in PROTOCOL_FIELDS)
    return [f"e2net {e2net.__version__}, {protocol}"] + [
        f"{r.name}: {len(r.scores)} of {len(r.stems)} maps, file list {stems_hash(r.stems)}" for r in sets
    ]


def _latex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, "\\" + c if c in "&%$#_{}" else c) for c in text)


def markdown_rows(method: str, results: Sequence[SetResult]) -> str:
    """The same row as ``latex_rows`` gives, as a Markdown table with its headings, and the same as comments."""
    sets = [r for r in results if not r.binarised]
    head = ["Method", *(f"{r.name} {heading}" for r in sets for _, _, heading in PAPER_COLUMNS)]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)]
    lines += [[name, *cells] for name, cells in _paper_rows(method, results)]
    table = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    return "\n".join([*(f"<!-- {line} -->" for line in _about(sets)), *table]) + "\n"


def _paper_rows(method: str, results: Sequence[SetResult]) -> list[tuple[str, list[str]]]:
    rows = []
    for binarised, name in ((False, method), (True, f"{method} (binarised)")):
        values = [r.values() for r in results if r.binarised == binarised]
        cells = [_short(v[score]) if score in v else "-" for v in values for score, _, _ in PAPER_COLUMNS]
        if values:
            rows.append((name, cells))
    return rows


def clear_report(folder: Path, name: str = "scores") -> None:
    """Removes the report of an earlier evaluation (see ``write_report``), and its list of problems.

    Called where scoring begins. As ``<name>.json`` is written last, its presence means that all others are of the
    same, finished evaluation.
    """
    prefix = name.removesuffix("scores")
    for pattern in reversed(("problems.json", *(prefix + file for file in FILES))):
        for old in folder.glob(pattern):
            old.unlink(missing_ok=True)


def write_report(
    folder: Path,
    results: Sequence[SetResult],
    intervals: dict[str, dict[str, Interval]],
    method: str,
    about: dict[str, Any],
    name: str = "scores",
) -> None:
    """Writes all files of a report, each of them whole or not at all, ``<name>.json`` last.

    ``<name>.csv`` (a row a set), ``intervals.csv``, ``per_image.csv``, ``curves.csv``, ``curves.png``, ``table.tex``,
    ``table.md``, and ``worst_best_<set>.png`` where maps are at hand; what stands before "scores" in ``name`` stands
    before theirs too. A picture that cannot be drawn is a problem in the report, not the end of it.

    Args:
        folder: where to.
        results: at least one, all with the same scores.
        intervals: of every result, by its label.
        method: the name in the paper's table.
        about: what else the JSON file shall hold: where maps came from, the bootstrap's seed.
        name: of the score files; ends in "scores".
    """
    prefix = name.removesuffix("scores")
    values = {r.label: r.values() for r in results}
    columns = list(next(iter(values.values())))
    images = {r.label: r.scores.per_image() for r in results}
    curves = {r.label: {k: v.numpy() for k, v in r.scores.mean_curves().items()} for r in results}

    def write(file: str, content: str | bytes) -> None:
        write_atomically(folder / (prefix + file), content)

    tables: dict[str, list[list[Any]]] = {
        "scores.csv": [
            ["test_set", *columns, "maps", "masks", *PROTOCOL_FIELDS, "file_list_sha256"],
            *(
                [r.label, *values[r.label].values(), len(images[r.label]), len(r.stems)]
                + [r.protocol[k] for k in PROTOCOL_FIELDS]
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
        "curves.csv": [
            ["test_set", "threshold", *CURVES],
            *([label, t, *(c[k][t] for k in CURVES)] for label, c in curves.items() for t in range(256)),
        ],
    }
    for file, lines in tables.items():
        text = io.StringIO()
        csv.writer(text).writerows(lines)
        write(file, text.getvalue())
    write("table.tex", latex_rows(method, results))
    write("table.md", markdown_rows(method, results))

    problems = {r.label: {k: list(v) for k, v in r.problems.items()} for r in results}
    pictures: list[tuple[str, str, Callable[[], bytes]]] = [
        (results[0].label, "curves.png", lambda: curve_figure(curves))
    ]
    for result in results:
        if result.picture is not None:
            scored = [(row["S"], row["index"], printable(row["name"])) for row in images[result.label] if "S" in row]
            if scored:
                pictures.append((result.label, f"worst_best_{result.name}.png", _Sheet(scored, result.picture)))
    for label, file, draw in pictures:
        try:
            write(file, draw())
        except Exception as error:  # the scores are worth more than a picture of them
            log.warning("%s%s could not be drawn: %s", prefix, file, error)
            problems[label].setdefault("pictures", []).append(f"{file}: {error}")

    document = {
        "e2net": e2net.__version__,
        "method": method,
        **about,
        "protocol": results[0].protocol,
        "scores": values,
        "intervals": intervals,
        "sets": {
            r.label: {
                "data_set": r.name,
                "maps": len(images[r.label]),
                "masks": len(r.stems),
                "file_list_sha256": stems_hash(r.stems),
                "masks_sha256": r.masks_sha256,
                "protocol": r.protocol,
                "problems": problems[r.label],
            }
            for r in results
        },
    }
    write("scores.json", json.dumps(_plain(document), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    """The same, with None for NaN, which JSON does not have: boundary scores of masks without a contour."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value


@dataclass
class _Sheet:
    scored: list[tuple[float, int, str]]
    picture: Callable[[int], Picture]

    def __call__(self) -> bytes:
        return extremes_sheet(self.scored, self.picture)


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
    intervals = {
        r.label: bootstrap_intervals(r.scores.scores, r.scores.rows.numpy(), r.scores.curves.numpy(), seed=seed)
        for r in results
    }
    print_scores(results, intervals)
    about = {**about, "bootstrap": {"level": LEVEL, "resamples": RESAMPLES, "seed": seed, "over": "images"}}
    write_report(folder, results, intervals, method, about, name)
    return {r.label: r.values() for r in results}
