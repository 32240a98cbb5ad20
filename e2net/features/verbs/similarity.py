"""``python -m e2net.features similarity``."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from e2net.features.verbs.common import DRAWN, DrawingSettings

if TYPE_CHECKING:
    from pathlib import Path

    from e2net.features.drawing import Drawn
    from e2net.features.extract import Extractor, Features

USAGE = f"""\
Draws the cosine of all patches to those of a place in the first picture.

  python -m e2net.features similarity input=PHOTOS encoder=dinov3_s point=120,80
  python -m e2net.features similarity input=PHOTOS encoder=dinov2_s,dinov3_s box=40,30,120,90

Pixels are those of the first picture, by path, as its file has them. Yellow is 1, dark the least cosine of all.

{DRAWN}"""


@dataclass(frozen=True, kw_only=True)
class Settings(DrawingSettings):
    """All settings of the verb."""

    point: Annotated[str | None, "x,y in pixels of the first picture"] = None
    box: Annotated[str | None, "left,top,right,bottom in pixels of the first picture"] = None

    def place(self) -> list[int]:
        """The numbers of the point or the box."""
        text = str(self.point or self.box)
        return [int(number) for number in text.split(",")]

    def __post_init__(self) -> None:
        """Checks that there is one place."""
        super().__post_init__()
        if (self.point is None) == (self.box is None):
            raise ValueError("expected either point=x,y or box=left,top,right,bottom")
        key, text, count = ("point", self.point, 2) if self.box is None else ("box", self.box, 4)
        numbers = str(text).split(",")
        if len(numbers) != count or not all(number.strip().isdecimal() for number in numbers):
            raise ValueError(f"{key}={text}: expected {count} whole numbers of pixels, separated by commas")


def run(settings: Settings) -> int:
    """Draws; returns the exit status."""
    from e2net.features.drawing import draw  # noqa: PLC0415 - torch takes seconds
    from e2net.features.looks import similarities  # noqa: PLC0415
    from e2net.features.sheet import shaded  # noqa: PLC0415

    def maps(extractor: "Extractor", files: "list[Path]", levels: "list[list[Features]]") -> "Drawn":
        found = {}
        for i, block in enumerate(extractor.blocks):
            maps = similarities([one[i] for one in levels], settings.place())
            low = min(float(one.min()) for one in maps)
            found[f"block {block}, {low:.2f} to 1"] = [shaded(one, low, 1) for one in maps]
        return found

    return draw("similarity", settings, maps, from_first=True)
