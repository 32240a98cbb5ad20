"""The settings of ``python -m e2net.demo``: a typed schema, filled from key=value arguments."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import yaml

from e2net.predict.settings import THRESHOLD, Device, EncoderPath, Flip, Precision, Size, check_values

USAGE = """\
A page in the browser to try models on pictures and films: an extra, pip install "e2net[demo]".

  python -m e2net.demo ckpt=RUN
  python -m e2net.demo ckpt=[RUN1,RUN2] examples=PHOTOS

Drop pictures or films there: overlay, map, cut-out, what the encoder sees and the objects with their scores, of
several checkpoints side by side, and all of it to download. Only this machine can open the page, unless host says
otherwise: it knows no password. Nothing is sent elsewhere, and all files are gone when the program ends (Ctrl-C).
"""
# Of the settings that are whole numbers.
_RANGES = {
    "port": (1, 65535),
    "max_files": (1, 256),
    "max_mb": (1, 1024),
    "max_megapixels": (1, 178),
    "max_frames": (1, 10000),
    "queue": (1, 4096),
    "memory_mb": (64, 1 << 20),
}


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """All settings of one page, checked for type and range.

    Raises:
        ValueError: a value is of another type or out of its range.
    """

    ckpt: Annotated[
        str, "a run folder (its best checkpoint), a checkpoint file, a saved model or a name on the Hub; [A,B]: several"
    ]
    examples: Annotated[str | None, "a folder of pictures and films to choose from; null: generated pictures"] = None
    host: Annotated[str, "the address to listen at; 0.0.0.0: everybody who can reach this machine"] = "127.0.0.1"
    port: Annotated[int, "the port to listen at"] = 7860
    features: Annotated[bool, "show what the encoder sees: its features' principal components as colours"] = True
    max_files: Annotated[int, "files that may be dropped at once, and that a visitor can go back to"] = 16
    max_mb: Annotated[int, "MB of a file, at most"] = 32
    max_megapixels: Annotated[int, "millions of pixels of a picture, at most"] = 25
    max_frames: Annotated[int, "frames of a film that are looked at; the others are left out"] = 150
    queue: Annotated[int, "visitors' requests that may wait; more are refused"] = 16
    memory_mb: Annotated[int, "MB of results that are kept for all visitors; the oldest go first"] = 1024
    threshold: Annotated[
        float | Literal["auto"],
        "where the slider stands at first: above it a pixel belongs to an object; auto: of the best F in validation",
    ] = THRESHOLD
    size: Size = None
    flip: Flip = None
    device: Device = "auto"
    precision: Precision = "auto"
    encoder_path: EncoderPath = None

    def __post_init__(self) -> None:
        """Checks every value."""
        check_values(self, _RANGES)
        _ = self.checkpoints

    @property
    def checkpoints(self) -> list[str]:
        """The places that ``ckpt`` names: one, or those of a list in brackets.

        Raises:
            ValueError: a list that is none, is empty, or names a place twice.
        """
        if not self.ckpt.startswith("[") or Path(self.ckpt).exists():
            return [self.ckpt]
        try:
            found = yaml.safe_load(self.ckpt)
        except yaml.YAMLError:
            found = None
        places = [str(one) for one in found] if isinstance(found, list) else []
        if not places or len(set(places)) < len(places):
            raise ValueError(f"ckpt={self.ckpt}: expected different checkpoints as [RUN1,RUN2]")
        return places


def short_names(places: list[str]) -> list[str]:
    """What to call checkpoints on the page: the last parts of their paths, as many as tell them apart."""
    parts = [[part for part in Path(place).parts if part != "checkpoints"] for place in places]
    most = max(map(len, parts))
    for count in range(1, most + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return places
