"""Score tables: for the terminal, as JSON and as CSV."""

import csv
import json
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

Scores = dict[str, dict[str, float]]


def print_scores(scores: Scores, protocol: dict[str, Any]) -> None:
    """Prints one row per test set, no wider than 80 columns for names of up to 14 letters; scores are fractions."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("test set", no_wrap=True)
    for column in next(iter(scores.values())):
        table.add_column(column, justify="right", no_wrap=True)
    for name, row in scores.items():
        table.add_row(name, *(f"{value:.3f}".removeprefix("0") for value in row.values()))
    console = Console()
    console.print(table)
    console.print(", ".join(f"{k}: {v}" for k, v in protocol.items()), style="dim")


def write_scores(stem: Path, scores: Scores, about: dict[str, Any]) -> None:
    """Writes ``<stem>.json`` (scores and ``about``: protocol, counts) and ``<stem>.csv`` (one row per test set)."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps({**about, "scores": scores}, indent=2) + "\n")
    with stem.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["test_set", *next(iter(scores.values()))])
        writer.writerows([name, *row.values()] for name, row in scores.items())
