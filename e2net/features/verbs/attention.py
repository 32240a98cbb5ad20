"""``python -m e2net.features attention``."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from e2net.features.verbs.common import DRAWN, DrawingSettings

if TYPE_CHECKING:
    from pathlib import Path

    from e2net.features.drawing import Drawn
    from e2net.features.extract import Extractor, Features
    from e2net.features.looks import Map

USAGE = f"""\
Draws the attention of the class token and the registers to the patches, from a block's own queries and keys.

  python -m e2net.features attention input=PHOTOS encoder=dinov3_s
  python -m e2net.features attention input=PHOTOS encoder=dinov2_s_reg blocks=[11] heads=true output=OUT

Each token's mean over the heads; heads=true draws every head of the class token too. Colours go from 0 to the largest
of each picture and map: attention is a share, and a larger picture has more to share among.

{DRAWN}"""


@dataclass(frozen=True, kw_only=True)
class Settings(DrawingSettings):
    """All settings of the verb."""

    heads: Annotated[bool, "draw every head of the first token as well"] = False


def run(settings: Settings) -> int:
    """Draws; returns the exit status."""
    from e2net.features.attending import attention, token_names  # noqa: PLC0415
    from e2net.features.drawing import draw  # noqa: PLC0415 - torch takes seconds
    from e2net.features.sheet import shaded  # noqa: PLC0415

    def _shaded(values: "Map") -> "Map":
        return shaded(values, 0, float(values.max()))

    def maps(extractor: "Extractor", files: "list[Path]", levels: "list[list[Features]]") -> "Drawn":
        found: dict = {}
        names = token_names(extractor)
        for block in extractor.blocks:
            seen = attention(extractor, files, block)
            for t, token in enumerate(names):
                found[f"block {block}, {token}"] = [_shaded(one[t].mean(0)) for one in seen]
            for h in range(seen[0].shape[1] if settings.heads else 0):
                found[f"block {block}, {names[0]}, head {h}"] = [_shaded(one[0, h]) for one in seen]
        return found

    return draw("attention", settings, maps)
