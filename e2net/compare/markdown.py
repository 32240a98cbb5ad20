"""The report as Markdown, for pull requests and notes: its tables and words, without charts and pictures."""

from e2net.compare import tables
from e2net.compare.result import Comparison
from e2net.page.tables import Cell, Table


def markdown(found: Comparison) -> str:
    """The whole file."""
    names = [v.name for v in found.variants]
    parts = [f"# {_text(tables.title(names))}", f"{found.written}. Charts and pictures are in report.html."]
    parts += [f"**Failed:** {_text(line)}" for line in found.failures]
    parts += [f"**Note:** {_text(line)}" for line in found.warnings]
    others = range(1, len(names))
    verdicts = [f"- {_text(name)}: {_text(tables.verdict(found, name, i)[0])}" for name in found.sets for i in others]
    parts += [f"## Result ({_text(found.score)})", "\n".join(verdicts), "## What differs"]
    parts.append(_table(tables.differing_table(found)) if found.differing else "Nothing but the seeds.")
    parts.append("## Scores")
    for name in found.sets:
        parts.append(_table(tables.score_table(found, name)))
    parts.append("## Differences")
    for name in found.sets:
        parts += [_table(tables.difference_table(found, name, i, {})) for i in others]
    if found.corruptions:
        parts.append("## Corrupted pictures")
        parts += [_table(tables.corruption_table(found, name)) for name in found.corruptions]
    if found.costs:
        parts += ["## Cost", _table(tables.cost_table(found))]
    if found.examples:
        parts += ["## Where they disagree most", _table(_examples(found))]
    parts += ["## Runs", _table(tables.run_table(found)), "## Method", *(_text(line) for line in tables.method(found))]
    return "\n\n".join(parts) + "\n"


def _examples(found: Comparison) -> Table:
    table = Table("", ["image", "test set", "variants", f"{found.score} of the first", "of the other", "difference"])
    for e in found.examples:
        pair = f"{found.variants[e.first].name}; {found.variants[e.second].name}"
        change = e.means[1] - e.means[0]
        numbers = [*map(tables.fraction, e.means), tables.signed(change)]
        table.rows.append([Cell(e.stem), Cell(e.test_set), Cell(pair), *map(Cell, numbers)])
    return table


def _table(table: Table) -> str:
    lines = [table.head, ["---", *(["---:" if table.numeric else "---"] * (len(table.head) - 1))]]
    drawn = [_text(cell) for cell in lines[0]]
    body = ["| " + " | ".join(drawn) + " |", "| " + " | ".join(lines[1]) + " |"]
    body += ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in table.rows]
    title = [f"**{_text(table.title)}**"] if table.title else []
    return "\n\n".join([*title, "\n".join(body), *([_text(table.note)] if table.note else [])])


def _cell(cell: Cell) -> str:
    if cell.code and "`" not in cell.text:
        return f"`{_line(cell.text)}`".replace("|", "\\|")
    text = _text(cell.text)
    return (f"**{text}**" if cell.best else text) + (f" {_text(cell.minor)}" if cell.minor else "")


def _text(text: str) -> str:
    """Names are shown as they are, whatever Markdown would make of them."""
    text = _line(text).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{c}" if c in "\\`*_[]|" else c for c in text)


def _line(text: str) -> str:
    """Without any of the characters that end a line somewhere: after one, a table would be over."""
    return " ".join(text.splitlines())
