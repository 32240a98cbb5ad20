"""The settings of ``python -m e2net.export``: our own keys; ``data`` is an override of ``conf/eval.yaml``."""

import importlib.metadata
import importlib.util
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from e2net.arguments import is_a, nearest_key
from e2net.export.formats import FORMATS, Format, find_format

USAGE = """\
Writes a trained model as a file that runs without e2net, and shows on the test pictures that it scores the same.

  python -m e2net.export ckpt=RUN                            model.onnx, for onnxruntime and most others
  python -m e2net.export ckpt=RUN precision=int8             model_int8.onnx, a quarter of the size
  python -m e2net.export ckpt=RUN format=openvino            model.xml and model.bin
  python -m e2net.export ckpt=RUN format=torch               model.pt2, of torch.export
  python -m e2net.export ckpt=RUN format=safetensors         model.safetensors and config.json, for e2net.load
  python -m e2net.export ckpt=RUN data=folder data.root=DIR data.test=[NAME]

What goes in is "image", (batch, 3, height, width) uint8, RGB: any number of pictures of any size in steps of the
encoder's patch. What comes out is "map", (batch, channels, height, width) float32: what the task averages, such as the
probability of the object. Normalisation and activation are inside, and so is sharpen. Mirror images, several scales and
the second look are not: the file looks once.

Both then predict the test pictures, those of the run unless data.* says others. Writes OUT/model.* and
OUT/model.*.json, with all figures. Where the file's scores or maps differ by more than max_loss or max_difference
nothing is written. Nothing else in OUT is touched.

Exit status: 0 written, 1 the file differed and was not kept, 2 a setting, a file or the data is wrong.
"""

# With 2.6 ONNX of a size left open fails, and torch.export fixes the number of pictures.
OLDEST_TORCH = (2, 14)
# The packages of the extra "export".
_EXTRA = frozenset({"onnx", "onnxscript", "onnxruntime"})
# By precision: the largest difference of a map, of the map's range or of 1, and the largest loss of the task's score.
TOLERANCES: dict[str, tuple[float | None, float]] = {"fp32": (1e-3, 1e-3), "fp16": (0.05, 2e-3), "int8": (None, 5e-3)}


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """All settings of one export, checked for their ranges.

    Attributes:
        overrides: of ``conf/eval.yaml``, in Hydra's syntax; of ``data`` alone.

    Raises:
        ValueError: a value is out of its range, a package is missing, or an override is not of the data.
    """

    ckpt: Annotated[str, "a run folder (its best checkpoint), a checkpoint file, a saved model or its name on the Hub"]
    format: Annotated[str, f"{', '.join(FORMATS)}, or MODULE.CLASS of your own (E2NET_TRUST=MODULE)"] = "onnx"
    precision: Annotated[Literal["fp32", "fp16", "int8"], "fp32, fp16, or int8 by static quantisation"] = "fp32"
    output: Annotated[str | None, "folder for the file; null: runs/export_<time>"] = None
    size: Annotated[
        int | list | None, "null: pictures of any size; else of this one alone, pixels a side or [height,width]"
    ] = None
    sharpen: Annotated[float | None, "the map's log-odds times this, 1: as it is; null: as in the run's test"] = None
    calibration: Annotated[
        str | None, "of int8: a folder of pictures like those to come; null: training pictures of the data"
    ] = None
    calibration_pictures: Annotated[int, "how many of them, evenly spread"] = 64
    pictures: Annotated[int | None, "of each test set, the first so many alone; null: all"] = None
    max_difference: Annotated[
        float | None, "of a map, as a share of its range; null: .001 of fp32, .05 of fp16, any of int8"
    ] = None
    max_loss: Annotated[float | None, "of the task's first score; null: .001, .002 and .005 of int8"] = None
    measure: Annotated[bool, "also measure time and memory"] = True
    threads: Annotated[int | None, "to compute with; null: one for each core"] = None
    encoder_path: Annotated[str | None, "where the pretrained encoder lies now, if it has moved since training"] = None
    overrides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Checks every value."""
        for override in self.overrides:
            key = override.partition("=")[0].lstrip("+~")
            if key != "data" and not key.startswith(("data.", "hydra.searchpath")):
                near = nearest_key(type(self), key)
                raise ValueError(f"unknown setting {key!r}; " + (f"did you mean {near}?" if near else "see --help"))
        kind = self.kind()
        fixed = self.precision != "fp32" or self.size is not None or self.sharpen is not None
        if kind.whole and fixed:
            raise ValueError(
                f"format={self.format} is the trained model itself, in fp32, at any size, with its run's sharpen; "
                "leave precision, size and sharpen out"
            )
        if self.precision not in kind.precisions:
            raise ValueError(
                f"format={self.format} has no precision={self.precision}; expected {' or '.join(kind.precisions)}, or "
                "another format"
            )
        for key, low, high in (
            ("calibration_pictures", 1, 65536),
            ("pictures", 1, 2**31),
            ("threads", 1, 1024),
            ("max_difference", 0, 1e9),
            ("max_loss", 0, 1e9),
        ):
            value = getattr(self, key)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{key}={value}: expected from {low} to {high:g}")
        if self.sharpen is not None and not 0 < self.sharpen <= 100:
            raise ValueError(f"sharpen={self.sharpen}: expected a factor above 0 and at most 100")
        for key in ("calibration", "calibration_pictures"):
            if self.precision != "int8" and getattr(self, key) != getattr(type(self), key):  # its default
                raise ValueError(f"{key}=... is for precision=int8; leave it out")
        _check_size(self.size)

    def kind(self) -> Format:
        """What is written."""
        return find_format(self.format)

    def sides(self) -> tuple[int, int] | None:
        """Height and width of the one size, pixels; None: any."""
        if self.size is None:
            return None
        height, width = self.size if isinstance(self.size, list) else (self.size, self.size)
        return height, width

    def tolerances(self) -> tuple[float | None, float]:
        """The largest difference of a map and the largest loss."""
        difference, loss = TOLERANCES[self.precision]
        return (
            difference if self.max_difference is None else self.max_difference,
            loss if self.max_loss is None else self.max_loss,
        )

    def file_name(self) -> str:
        """Of what is written, with its ending."""
        stem = "model" if self.precision == "fp32" else f"model_{self.precision}"
        return stem + self.kind().suffix

    def check_packages(self) -> None:
        """Raises ValueError, with what to do, where a package is missing or torch is too old."""
        kind = self.kind()
        needed = (*kind.needs, *(["onnxruntime"] if self.precision == "int8" else []))
        missing = [name for name in needed if importlib.util.find_spec(name) is None]
        if missing:
            extra = ["'e2net[export]'"] if not _EXTRA.isdisjoint(missing) else []
            names = " ".join([*extra, *(name for name in missing if name not in _EXTRA)])
            raise ValueError(
                f"format={self.format}: expected the packages {', '.join(needed)}, found no {', '.join(missing)}; "
                f"install them by: pip install {names}"
            )
        found = importlib.metadata.version("torch")
        if kind.traced and not torch_suffices(found):
            oldest = ".".join(map(str, OLDEST_TORCH))
            raise ValueError(
                f"format={self.format}: expected torch {oldest} or newer, as older ones do not follow models of any "
                f"size, found {found}; update it, or give format=safetensors"
            )


def torch_suffices(version: str) -> bool:
    """Whether a version of torch is one with which exports of any size were tested."""
    return tuple(map(int, version.split(".")[:2])) >= OLDEST_TORCH


def _check_size(size: Any) -> None:
    sides = [size, size] if isinstance(size, int) else size
    if sides is not None and (len(sides) != 2 or not all(is_a(v, int) and 0 < v <= 32768 for v in sides)):
        raise ValueError(f"size={size}: expected pixels a side or [height,width], from 1 to 32768")
