"""The settings of ``python -m e2net.predict``: a typed schema, filled from key=value arguments."""

import difflib
import math
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from numbers import Integral, Real
from typing import Any, get_args, get_type_hints

from e2net.arguments import read_value

USAGE = """\
Predicts a map for every picture and every frame of every film; no masks needed.

  python -m e2net.predict ckpt=RUN input=PHOTOS output=OUT
  python -m e2net.predict ckpt=RUN input=frog.jpg output=OUT cutouts=true
  python -m e2net.predict ckpt=RUN input='PHOTOS/**/frog_*.jpg' output=OUT rle=true
  python -m e2net.predict ckpt=RUN input=film.mp4 output=OUT

Writes, with the folders of the input kept:
  OUT/maps/NAME.png       8-bit grey at the picture's own size, 255 where the object is certain
  OUT/overlays/NAME.jpg   the picture with the object tinted and outlined
  OUT/cutouts/NAME.png    the object alone, the map as its alpha (cutouts=true)
  OUT/objects.json        COCO format: box, RLE and score of each connected object (rle=true)
Of a film, maps and overlays are films (.mp4, no sound) of the same mean frame rate, cutouts one file a frame.

Results replace files of the same names there; nothing else in OUT is touched. Of the input nothing is.

Exit status: 0 everything was written, 1 some files failed (they are listed), 2 a setting or the input is wrong.

Settings (key=value):
"""

# The longest side of a network's input, pixels; beyond it a wrong digit is more likely than a plan.
LARGEST = 32768
# Smallest and largest value of the settings that are whole numbers.
_RANGES = {"batch_size": (1, 65536), "threads": (1, 256), "min_area": (1, 2**62), "size": (1, LARGEST)}
_RANGES["window"] = _RANGES["size"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of one prediction job, checked for type and range; what each is for stands in `ABOUT`.

    Raises:
        ValueError: a number is out of its range.
    """

    ckpt: str
    input: str
    output: str
    overlays: bool = True
    cutouts: bool = False
    rle: bool = False
    min_area: int = 1
    threshold: float = 0.5
    size: int | list | None = None
    keep_aspect: bool = False
    flip: bool | None = None
    scales: list | None = None
    window: int | list | None = None
    batch_size: int = 8
    threads: int | None = None
    device: str = "auto"
    precision: str = "auto"
    encoder_path: str | None = None

    def __post_init__(self) -> None:
        """Checks every value."""
        for key in fields(self):
            check_value(key.name, getattr(self, key.name))


def check_value(key: str, value: Any) -> None:
    """Makes sure that a value is one for a setting; in Python too, where anything may have been given.

    Args:
        key: a name of :class:`Settings`.
        value: for it. A tuple is as good as a list, and NumPy's numbers are as good as Python's.

    Raises:
        ValueError: another type, or out of its range.
    """
    hint = get_type_hints(Settings)[key]
    kinds = get_args(hint) or (hint,)
    if value is None and type(None) in kinds:
        return
    said = f"{key}={value!r:.60}"
    if not any(_is(value, kind) for kind in kinds):
        names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
        raise ValueError(f"{said}: expected {names}")
    if key == "threshold" and not 0 < value < 1:
        raise ValueError(f"{said}: expected a probability between 0 and 1, both excluded")
    if key in _RANGES:
        low, high = _RANGES[key]
        sides = value if _is(value, list) else [value, value]
        if len(sides) != 2 or not all(_is(v, int) for v in sides):
            raise ValueError(f"{said}: expected a number of pixels or [height,width]")
        if not all(low <= v <= high for v in sides):
            raise ValueError(f"{said}: expected at least {low} and at most {high}")
    if key == "scales" and not (value and all(_is(v, float) and 0 < v <= 100 for v in value)):
        raise ValueError(f"{said}: expected a list of factors on size, above 0 and at most 100, as [0.75,1,1.25]")


def _is(value: Any, kind: type) -> bool:
    if isinstance(value, bool) or kind is bool:  # bool is a kind of int, but "batch_size=true" is a mistake
        return isinstance(value, bool) and kind is bool
    if kind is list:
        return isinstance(value, Sequence) and not isinstance(value, str | bytes)
    if kind is float:
        return isinstance(value, Real) and math.isfinite(value)
    return isinstance(value, Integral if kind is int else kind)


ABOUT = {
    "ckpt": "a run folder (its best checkpoint) or a checkpoint file",
    "input": "a picture, a film, a folder (with all folders inside) or a pattern in quotes",
    "output": "folder for the results; may lie inside the input folder",
    "overlays": "write overlays",
    "cutouts": "write cut-outs",
    "rle": "write objects.json",
    "min_area": "objects of fewer pixels are left out of objects.json",
    "threshold": "the probability above which a pixel belongs to the object",
    "size": "pixels a side or [height,width] of the network's input; null: as in training",
    "keep_aspect": "resize the longer side to size and keep the picture's proportions",
    "flip": "average the maps of image and mirror image; null: as in the run's test",
    "scales": "average the maps at these factors on size, as [0.75,1,1.25]; null: as in the run's test",
    "window": "look at windows of this size one by one, where size is much larger than in training",
    "batch_size": "pictures for each step of the network",
    "threads": "that read, and as many that write; null: one less than the cores, 8 at most",
    "device": "auto (a GPU if there is one), cpu, cuda, cuda:1, mps",
    "precision": "auto, 32-true, bf16-mixed or 16-mixed",
    "encoder_path": "where the pretrained encoder lies now, if it has moved since training",
}


def describe() -> str:
    """The text of ``--help``."""
    lines = []
    for key in fields(Settings):
        default = "" if key.default is MISSING else str(key.default).lower().replace("none", "null")
        lines.append(f"  {f'{key.name}={default}':<20} {ABOUT[key.name]}")
    return USAGE + "\n".join(lines)


def parse(arguments: list[str]) -> Settings:
    """Reads key=value arguments; text is taken as it stands, everything else as YAML.

    (Text as YAML, as in Hydra, would turn ``input=*.jpg`` into a syntax error.)

    Raises:
        ValueError: an argument is no key=value, a key is unknown, missing or given twice, a value is of another type
            or out of its range.
    """
    hints = get_type_hints(Settings)
    values: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals:
            raise ValueError(f"expected key=value, found {argument!r}; --help lists all keys")
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            raise ValueError(f"unknown setting {key!r}; " + (f"did you mean {near[0]}?" if near else "see --help"))
        if key in values:
            raise ValueError(f"{key} is given twice")
        values[key] = read_value(key, text, hints[key])
    missing = [key.name for key in fields(Settings) if key.default is MISSING and not values.get(key.name)]
    if missing:
        raise ValueError(f"{missing[0]} has no value; give it as {missing[0]}=... (--help lists all keys)")
    return Settings(**values)
