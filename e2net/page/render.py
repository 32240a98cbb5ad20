"""From a template to the one HTML file: nothing in it is fetched from anywhere, and whatever is put in is escaped."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

import e2net

_SHARED = Path(__file__).parent / "template"
_MAX_SERIES = 6


def colour(position: int) -> str:
    """The CSS class of a variant's colour."""
    return f"s{position % _MAX_SERIES}"


def render(folder: Path, values: Mapping[str, Any], filters: Mapping[str, Callable[..., str]] | None = None) -> str:
    """The whole file.

    Args:
        folder: holds ``page.html``, which extends ``frame.html`` of this package and may use its ``parts.html``.
        values: for the template; what is no ``Markup`` is text, whatever it looks like.
        filters: for the template, by name.
    """
    environment = Environment(
        loader=FileSystemLoader([folder, _SHARED]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"colour": colour, "version": e2net.__version__}
    environment.filters |= filters or {}
    return environment.get_template("page.html").render(values)
