"""What was found, as a table for the terminal and as JSON."""

import json
from dataclasses import asdict

from rich import box
from rich.console import Console
from rich.table import Table

import e2net
from e2net.check.findings import MEANINGS, Finding
from e2net.check.survey import Part, Survey
from e2net.formats import printable, some
from e2net.tasks.base import Severity

FILES = ("check.json", "check.html")
_COLOURS: dict[Severity, str] = {"error": "red", "warning": "yellow", "note": "dim"}
_WIDTH = 78  # rich keeps a margin of a letter on either side


def summary(found: Survey) -> str:
    """One sentence."""
    pairs, sets = sum(len(part.source) for part in found.parts), len(found.parts)
    counts = ", ".join(_count(found.count(severity), severity) for severity in _COLOURS)
    return f"{_count(pairs, 'pair')} in {_count(sets, 'set')}: {counts}"


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def meaning(found: Survey, kind: str) -> str:
    """What a kind of finding is about."""
    return found.task.suspicions.get(kind) or MEANINGS[kind]


def in_parts(found: Survey, findings: list[Finding]) -> dict[str, int]:
    """How many pairs of each set the findings are about; also of sets that were not read."""
    names = [part.name for part in found.parts]
    names += sorted({place.part for one in findings for place in one.places} - set(names))
    pairs = {(place.part, place.title) for one in findings for place in one.places}
    return {name: sum(part == name for part, _ in pairs) for name in names}


def print_findings(found: Survey) -> None:
    """Prints a row for each kind, with the number of pairs in each set, then a few names, and the sum; 80 columns."""
    console = Console(highlight=False)
    kinds = found.by_kind()
    if kinds:
        console.print(_table(found, kinds))
    for (severity, kind), findings in kinds.items():
        if severity != "note":
            # Of a group of pictures the two that make it so severe.
            names = [" and ".join(place.title for place in one.places[:2] if place.name) for one in findings]
            words = some(names) if names[0] else printable(findings[0].words)
            console.print(f"{kind}: {words}", style=_COLOURS[severity], markup=False)
    console.print(summary(found), markup=False)


def _table(found: Survey, kinds: dict[tuple[Severity, str], list[Finding]]) -> Table:
    parts = found.parts if _fits(found.parts) else []
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("", "found"):
        table.add_column(heading, no_wrap=True)
    for heading in (*(printable(part.name) for part in parts), "all"):
        table.add_column(heading, justify="right", no_wrap=True)
    for (severity, kind), findings in kinds.items():
        counts = in_parts(found, findings)
        row = [*(counts[part.name] for part in parts), sum(counts.values())]
        table.add_row(severity, kind, *(str(n) if n else "" for n in row), style=_COLOURS[severity])
    return table


def _fits(parts: list[Part]) -> bool:
    """Whether a column for each set fits beside the kinds."""
    return sum(len(part.name) + 2 for part in parts) + 10 + max(map(len, MEANINGS)) + 8 <= _WIDTH


def as_json(found: Survey) -> str:
    """Everything; a byte of a name that is no UTF-8 is an escape, which Python reads back as it has it."""
    kinds = found.by_kind()
    return json.dumps(
        {
            "e2net": e2net.__version__,
            "task": found.task.name,
            "sets": [{"name": p.name, "role": p.role, "pairs": len(p.source)} for p in found.parts],
            "counts": {severity: found.count(severity) for severity in _COLOURS},
            "kinds": [
                {"severity": severity, "kind": kind, "meaning": meaning(found, kind), "pairs": in_parts(found, one)}
                for (severity, kind), one in kinds.items()
            ],
            "findings": [asdict(one) for one in found.findings],
        },
        indent=1,
    )
