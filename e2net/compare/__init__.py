"""Comparison of backbones and other variants: ``python -m e2net.compare`` and, in Python, ``compare``."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from e2net.compare.comparison import compare

__all__ = ["compare"]


def __getattr__(name: str) -> Any:
    # Imported when it is asked for: a wrong argument of the command line is answered before torch is loaded.
    if name == "compare":
        from e2net.compare.comparison import compare  # noqa: PLC0415

        return compare
    raise AttributeError(f"module 'e2net.compare' has no attribute {name!r}")
