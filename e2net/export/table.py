"""The figures of an export, for people and for JSON."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from e2net.export.cost import Cost
from e2net.export.parity import Parity
from e2net.formats import printable
from e2net.tasks.base import Task


def print_table(name: str, results: Sequence[Parity], sizes: Sequence[int], costs: Sequence[Cost], task: Task) -> None:
    """Prints a table: a row each for a figure, a column each for the model and the file.

    Args:
        name: of the file.
        results: of each test set.
        sizes: bytes of the model's weights and of the file.
        costs: of the model and of the file; empty where they were not measured.
        task: whose scores these are.
    """
    found = Table("", "PyTorch", name, box=box.SIMPLE_HEAD, pad_edge=False)
    for column in found.columns[1:]:
        column.justify = "right"
    for r in results:
        for key, _, heading in task.paper_columns:
            found.add_row(Text(printable(f"{r.name} {heading}")), f"{r.reference[key]:.4f}", f"{r.exported[key]:.4f}")
    found.add_row("largest difference of a map", "", f"{max(r.difference for r in results):.1e}", end_section=True)
    found.add_row("size, MB", *(f"{size / 1e6:.1f}" for size in sizes))
    if costs:
        for words, key in (("one picture, ms, median", "p50"), ("95 % within", "p95")):
            found.add_row(words, *(f"{getattr(cost, key):.0f}" for cost in costs))
        found.add_row("pictures a second", *(f"{cost.throughput:.1f}" for cost in costs))
        found.add_row("memory, MB", *("" if cost.memory is None else f"{cost.memory / 1e6:.0f}" for cost in costs))
    Console(highlight=False).print(found)


def document(results: Sequence[Parity], sizes: Sequence[int], costs: Sequence[Cost]) -> dict[str, Any]:
    """The same for JSON, with all scores."""
    return {
        "sets": {
            r.name: {
                "pictures": r.pictures,
                "model": dict(r.reference),
                "file": dict(r.exported),
                "largest_difference": r.difference,
            }
            for r in results
        },
        "bytes": dict(zip(("weights", "file"), sizes, strict=True)),
        "cost": {name: vars(cost) for name, cost in zip(("model", "file"), costs, strict=bool(costs))},
    }
