"""The figures of an export, for people and for JSON."""

from collections.abc import Sequence
from typing import Any

from e2net.export.cost import Cost
from e2net.export.parity import Parity
from e2net.tasks.base import Task


def markdown(name: str, results: Sequence[Parity], sizes: Sequence[int], costs: Sequence[Cost], task: Task) -> str:
    """A table in Markdown: a row each for the model and the file.

    Args:
        name: of the file.
        results: of each test set.
        sizes: bytes of the model's weights and of the file.
        costs: of the model and of the file; empty where they were not measured.
        task: whose scores these are.
    """
    columns = task.paper_columns
    head = ["", *(f"{r.name} {heading}" for r in results for _, _, heading in columns), "largest difference", "MB"]
    rows = []
    for i, row in enumerate(("PyTorch", name)):
        scores = [r.reference if i == 0 else r.exported for r in results]
        cells = [row, *(f"{one[key]:.4f}" for one in scores for key, _, _ in columns)]
        cells.append("" if i == 0 else f"{max(r.difference for r in results):.1e}")
        rows.append([*cells, f"{sizes[i] / 1e6:.1f}"])
    if costs:
        head += ["ms p50", "ms p95", "pictures/s", "memory MB"]
        for cells, cost in zip(rows, costs, strict=True):
            memory = "" if cost.memory is None else f"{cost.memory / 1e6:.0f}"
            cells += [f"{cost.p50:.0f}", f"{cost.p95:.0f}", f"{cost.throughput:.1f}", memory]
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


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
