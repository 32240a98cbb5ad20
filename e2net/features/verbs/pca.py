"""``python -m e2net.features pca``."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from e2net.features.verbs.common import DRAWN, DrawingSettings

if TYPE_CHECKING:
    from pathlib import Path

    from e2net.features.drawing import Drawn
    from e2net.features.extract import Extractor, Features

USAGE = f"""\
Draws the first three principal components of patches as red, green and blue.

  python -m e2net.features pca input=PHOTOS encoder=dinov3_s
  python -m e2net.features pca input=PHOTOS encoder=dinov2_s,dinov3_s blocks=[2,11] output=OUT

One basis for all pictures: alike patches have one colour everywhere. The first component of all patches tells the
foreground, whose own components are drawn; foreground=false draws those of all patches.

{DRAWN}"""


@dataclass(frozen=True, kw_only=True)
class Settings(DrawingSettings):
    """All settings of the verb."""

    foreground: Annotated[bool, "components of the foreground alone, the rest black"] = True


def run(settings: Settings) -> int:
    """Draws; returns the exit status."""
    from e2net.features.drawing import draw  # noqa: PLC0415 - torch takes seconds
    from e2net.features.looks import components  # noqa: PLC0415

    def maps(extractor: "Extractor", files: "list[Path]", levels: "list[list[Features]]") -> "Drawn":
        return {
            f"block {block}": components([one[i].patches for one in levels], settings.foreground)
            for i, block in enumerate(extractor.blocks)
        }

    return draw("pca", settings, maps)
