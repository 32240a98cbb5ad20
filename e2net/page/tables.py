"""Tables of a page, which ``table`` in ``template/parts.html`` draws."""

from dataclasses import dataclass, field

from markupsafe import Markup


@dataclass(frozen=True)
class Cell:
    """A cell.

    Attributes:
        text: what stands in it.
        value: what it is sorted by; None: its text.
        best: of its column, or otherwise to be seen first.
        minor: what follows the text and matters less.
        picture: an SVG instead of the text.
        variant: position of the variant that it names, see :func:`~e2net.page.render.colour`.
        code: whether the text is a path or a setting.
    """

    text: str
    value: float | None = None
    best: bool = False
    minor: str = ""
    picture: Markup | None = None
    variant: int | None = None
    code: bool = False


@dataclass
class Table:
    """A table with a title; ``note`` goes below it. The first column is text."""

    title: str
    head: list[str]
    rows: list[list[Cell]] = field(default_factory=list)
    note: str = ""
    numeric: bool = True
