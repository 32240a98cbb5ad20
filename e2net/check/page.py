"""The report as one HTML file, with thumbnails of what is suspect. The HTML is in ``template/``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from e2net.check.findings import SAME, Finding, shown
from e2net.check.report import in_parts, meaning, summary
from e2net.check.survey import Survey
from e2net.formats import printable
from e2net.page.pictures import SIDES, Picture, encode_all, shrunk
from e2net.page.render import render
from e2net.page.tables import Cell, Table

_TEMPLATE = Path(__file__).parent / "template"
# Of a group of pictures.
_MEMBERS = 6


@dataclass(frozen=True)
class _Figure:
    """A picture with what stands below it."""

    caption: str
    picture: Picture


def page(found: Survey, images: int = 12) -> str:
    """The whole file; what file names hold is text.

    Args:
        found: to show.
        images: how many findings of each kind are shown with pictures.
    """
    kinds = found.by_kind()
    chosen = [one for findings in kinds.values() for one in findings[:images]]
    drawn = [_figures(found, one) for one in chosen]
    encoded = encode_all([[picture for _, picture in row] for row in drawn])
    figures = {
        id(one): [_Figure(caption, picture) for (caption, _), picture in zip(row, pictures, strict=True)]
        for one, row, pictures in zip(chosen, drawn, encoded, strict=True)
    }
    sections = [
        {
            "severity": severity,
            "kind": kind,
            "meaning": meaning(found, kind),
            "shots": [_shot(one, figures.get(id(one), [])) for one in findings[:images]],
            "rest": len(findings) - len(findings[:images]),
        }
        for (severity, kind), findings in kinds.items()
    ]
    return render(
        _TEMPLATE,
        {"summary": summary(found), "task": found.task, "overview": _overview(found), "sections": sections},
    )


def _shot(one: Finding, figures: list[_Figure]) -> dict[str, Any]:
    several = len(one.places) > 1
    title = f"{len(one.places)} pictures" if several else one.places[0].title
    sets = ", ".join(dict.fromkeys(printable(place.part) for place in one.places))
    return {"title": title, "sets": sets, "words": printable(one.words), "figures": figures}


def _figures(found: Survey, one: Finding) -> list[tuple[str, NDArray[np.uint8]]]:
    """Captions and pictures: of one pair its picture and target, of a group of pictures these."""
    sources = {part.name: part.source for part in found.parts}
    places = [place for place in one.places[:_MEMBERS] if place.index is not None]
    drawn = []
    for place in places:
        assert place.index is not None
        seen = shown(sources[place.part], place.index, found.task)
        if len(one.places) > 1:
            seen = seen[-1:] if one.kind in SAME else seen[:1]
            seen = [(f"{printable(place.part)}: {place.title}", picture) for _, picture in seen]
        drawn += [(caption, shrunk(picture, SIDES[0])) for caption, picture in seen]  # not all of them whole in memory
    return drawn


def _overview(found: Survey) -> Table:
    kinds = found.by_kind()
    counts = [in_parts(found, findings) for findings in kinds.values()]
    names = list(dict.fromkeys([*(part.name for part in found.parts), *(name for one in counts for name in one)]))
    table = Table("What was found", ["found", "", *map(printable, names)])
    for ((severity, kind), _), one in zip(kinds.items(), counts, strict=True):
        numbers = [Cell(str(one.get(name, 0) or "–"), one.get(name, 0)) for name in names]
        table.rows.append([Cell(kind), Cell(severity), *numbers])
    sizes = {part.name: len(part.source) for part in found.parts}
    table.rows.append([Cell("pairs"), Cell(""), *(Cell(f"{sizes.get(n, 0):,}", sizes.get(n, 0)) for n in names)])
    table.note = "How many pairs of each set."
    return table
