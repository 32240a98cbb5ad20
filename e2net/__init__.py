"""e2net: dense prediction on DINO features, first of all camouflaged-object segmentation."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from e2net.predict.segmenter import load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    # Imported when it is asked for: torch and the rest take seconds, and `import e2net` shall take none.
    if name == "load":
        from e2net.predict.segmenter import load  # noqa: PLC0415

        return load
    raise AttributeError(f"module 'e2net' has no attribute {name!r}")
