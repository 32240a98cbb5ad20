"""``python -m e2net.features norms``."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from e2net.features.verbs.common import DRAWN, DrawingSettings

if TYPE_CHECKING:
    from pathlib import Path

    from e2net.features.drawing import Drawn
    from e2net.features.extract import Extractor, Features

USAGE = f"""\
Draws the lengths of the patches' vectors.

  python -m e2net.features norms input=PHOTOS encoder=dinov2_l,dinov2_l_reg norm=false

A few patches that are many times as long as the rest are artefacts, which registers are there to prevent. The final
norm makes all lengths alike: give norm=false. Colours go
from 0 to the largest of all pictures.

{DRAWN}"""


@dataclass(frozen=True, kw_only=True)
class Settings(DrawingSettings):
    """All settings of the verb."""


def run(settings: Settings) -> int:
    """Draws; returns the exit status."""
    from e2net.features.drawing import draw  # noqa: PLC0415 - torch takes seconds
    from e2net.features.looks import lengths  # noqa: PLC0415
    from e2net.features.sheet import shaded  # noqa: PLC0415

    def maps(extractor: "Extractor", files: "list[Path]", levels: "list[list[Features]]") -> "Drawn":
        found = {}
        for i, block in enumerate(extractor.blocks):
            maps = [lengths(one[i].patches) for one in levels]
            high = max(float(one.max()) for one in maps)
            found[f"block {block}, 0 to {high:.3g}"] = [shaded(one, 0, high) for one in maps]
        return found

    return draw("norms", settings, maps)
