"""Sizes that may be symbols: while a model is exported, an image may be of any height and width.

A comparison of two symbols is decided by the example at hand and becomes a condition on all images to come. What is
here decides without; plain numbers are as they were.
"""

from collections.abc import Sequence

import torch

# Releases before 2.7 cannot tell.
_is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)


def is_exporting() -> bool:
    """Whether a model is being exported, by ``torch.export``."""
    return bool(_is_exporting())


def same(size: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two sizes are equal; of symbols, whether they are at every size of image."""
    if not is_exporting():
        return tuple(size) == tuple(other)
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # noqa: PLC0415 - seconds

    return all(statically_known_true(a == b) for a, b in zip(size, other, strict=True))


def typical(side: int) -> int:
    """A number for a symbol, that of the example: for choices between ways to the same result."""
    return int(side.node.hint) if isinstance(side, torch.SymInt) else side
