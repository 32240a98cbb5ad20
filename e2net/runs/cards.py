"""What the cards of models and of encoders share: values in a table of Markdown."""

from collections.abc import Mapping
from typing import Any


def cell(value: Any) -> str:
    """A value in a table of Markdown: mappings as "a 1, b 2", lists by commas, numbers with four digits."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {cell(one)}" for name, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(cell, value))
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", "\\|")
