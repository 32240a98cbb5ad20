"""The settings of ``python -m e2net.predict``: a typed schema, filled from key=value arguments."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

from e2net.arguments import is_a, type_names

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

USAGE = """\
Predicts a map for every picture and every frame of every film; what it means, the model's task says.

  python -m e2net.predict ckpt=RUN input=PHOTOS output=OUT
  python -m e2net.predict ckpt=RUN input=frog.jpg output=OUT cutouts=true
  python -m e2net.predict ckpt=RUN input='PHOTOS/**/frog_*.jpg' output=OUT rle=true
  python -m e2net.predict ckpt=RUN input=film.mp4 output=OUT

Writes, with the folders of the input kept:
  OUT/maps/NAME.png       the task's result at the picture's own size; of objects 8-bit grey, 255 where one is certain
  OUT/overlays/NAME.jpg   the picture with the result drawn over it; objects are tinted and outlined
and where the task is one of objects
  OUT/cutouts/NAME.png    the object alone, the map as its alpha (cutouts=true)
  OUT/objects.json        COCO format: box, RLE and score of each connected object (rle=true)
Of a film, maps (as pictures) and overlays are films (.mp4, no sound) of the same mean frame rate, cutouts a file a
frame.

Results replace those of an earlier prediction there; a file of such a name that e2net did not write is an error.
Nothing else in OUT is touched, and nothing of the input.

Exit status: 0 everything was written, 1 some files failed (they are listed), 2 a setting or the input is wrong.
"""

# The longest side of a network's input, pixels; beyond it a wrong digit is more likely than a plan.
LARGEST = 32768
# The probability above which a pixel belongs to an object.
THRESHOLD = 0.5
# Instead of one: the one that a checkpoint holds, the best on its run's validation part.
AUTO = "auto"
# Smallest and largest value of the settings that are whole numbers.
_RANGES = {"batch_size": (1, 65536), "threads": (1, 256), "min_area": (1, 2**62), "size": (1, LARGEST)}
_RANGES["window"] = _RANGES["size"]

# Settings that other programs with a trained model have too.
Checkpoint = Annotated[
    str, "a run folder (its best checkpoint), a checkpoint file, a saved model or its name on the Hub"
]
Threshold = Annotated[
    float | Literal["auto"],
    "the probability above which a pixel belongs to the object; auto: of the best F in validation",
]
Size = Annotated[int | list | None, "pixels a side or [height,width] of the network's input; null: as in training"]
Flip = Annotated[bool | None, "average the maps of image and mirror image; null: as in the run's test"]
Device = Annotated[str, "auto (a GPU if there is one), cpu, cuda, cuda:1, mps"]
Precision = Annotated[str, "auto, 32-true, bf16-mixed or 16-mixed"]
EncoderPath = Annotated[str | None, "where the pretrained encoder lies now, if it has moved since training"]


@dataclass(frozen=True, kw_only=True)
class PredictSettings:
    """All settings of one prediction job, checked for type and range.

    Raises:
        ValueError: a number is out of its range.
    """

    ckpt: Checkpoint
    input: Annotated[str, "a picture, a film, a folder (with all folders inside) or a pattern in quotes"]
    output: Annotated[str, "folder for the results; may lie inside the input folder"]
    overlays: Annotated[bool, "write overlays"] = True
    cutouts: Annotated[bool, "write cut-outs"] = False
    rle: Annotated[bool, "write objects.json"] = False
    min_area: Annotated[int, "objects of fewer pixels are left out of objects.json"] = 1
    threshold: Threshold = THRESHOLD
    size: Size = None
    keep_aspect: Annotated[bool, "resize the longer side to size and keep the picture's proportions"] = False
    flip: Flip = None
    scales: Annotated[
        list | None, "average the maps at these factors on size, as [0.75,1,1.25]; null: as in the run's test"
    ] = None
    sharpen: Annotated[
        float | None, "the averaged map's log-odds times this, 1: as it is; null: as in the run's test"
    ] = None
    zoom: Annotated[
        float | None, "a second look at what was found, as zoom_test in training; 0: off, null: as in the run's test"
    ] = None
    window: Annotated[
        int | list | None, "look at windows of this size one by one, where size is much larger than in training"
    ] = None
    batch_size: Annotated[int, "pictures for each step of the network"] = 8
    threads: Annotated[int | None, "that read, and as many that write; null: one less than the cores, 8 at most"] = None
    device: Device = "auto"
    precision: Precision = "auto"
    encoder_path: EncoderPath = None

    def __post_init__(self) -> None:
        """Checks every value."""
        for key in fields(self):
            check_value(key.name, getattr(self, key.name))


def check_values(settings: "DataclassInstance", ranges: Mapping[str, tuple[int, int]]) -> None:
    """Makes sure of all values of another program's settings: those that predict has too, and its own.

    Args:
        settings: of the program.
        ranges: smallest and largest value of its own that are whole numbers.

    Raises:
        ValueError: a value is of another type or out of its range.
    """
    shared, hints = get_type_hints(PredictSettings), get_type_hints(type(settings))
    for key, hint in hints.items():
        value = getattr(settings, key)
        if key in shared:
            check_value(key, value)
        elif not is_a(value, hint):
            raise ValueError(f"{key}={value!r:.60}: expected {type_names(hint)}")
        elif key in ranges and not ranges[key][0] <= value <= ranges[key][1]:
            raise ValueError(f"{key}={value}: expected at least {ranges[key][0]} and at most {ranges[key][1]}")


def check_value(key: str, value: Any) -> None:
    """Makes sure that a value is one for a setting; in Python too, where anything may have been given.

    Args:
        key: a name of :class:`PredictSettings`.
        value: for it. A tuple is as good as a list, and NumPy's numbers are as good as Python's.

    Raises:
        ValueError: another type, or out of its range.
    """
    hint = get_type_hints(PredictSettings)[key]
    said = f"{key}={value!r:.60}"
    if not is_a(value, hint):
        raise ValueError(f"{said}: expected {type_names(hint)}")
    if value is None:
        return
    if key == "threshold" and value != AUTO and not 0 < value < 1:
        raise ValueError(f"{said}: expected a probability between 0 and 1, both excluded, or {AUTO}")
    if key == "sharpen" and not 0 < value <= 100:
        raise ValueError(f"{said}: expected a factor above 0 and at most 100")
    if key == "zoom" and value and not 1 <= value <= 100:
        raise ValueError(f"{said}: expected 0 (off), or from 1 to 100")
    if key in _RANGES:
        low, high = _RANGES[key]
        sides = value if is_a(value, list) else [value, value]
        if len(sides) != 2 or not all(is_a(v, int) for v in sides):
            raise ValueError(f"{said}: expected a number of pixels or [height,width]")
        if not all(low <= v <= high for v in sides):
            raise ValueError(f"{said}: expected at least {low} and at most {high}")
    if key == "scales" and not (value and all(is_a(v, float) and 0 < v <= 100 for v in value)):
        raise ValueError(f"{said}: expected a list of factors on size, above 0 and at most 100, as [0.75,1,1.25]")
