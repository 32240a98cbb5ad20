"""Masks of the foreground from the features of each picture alone. Imports nothing heavy."""

from dataclasses import dataclass
from typing import Annotated, Literal

from e2net.features.inputs import Failures
from e2net.features.verbs.common import EncoderSettings, free_output

USAGE = """\
Divides each picture into foreground and background by its features alone: no mask, no training.

  python -m e2net.features foreground encoder=dinov3_s input=DIR output=DIR

input is a picture, a pattern, a folder of pictures, or a folder with Image and GT, which is scored too.

Methods:
  pca        the sign of the first principal component
  spectral   the normalised cut of the graph of patches, after TokenCut

The foreground is the side that has the smaller part of the picture's rim. Every picture gets one, whether there is an
object in it or not.

Writes OUT/maps (grey), OUT/masks (0 and 255), OUT/masks.jpg (a sheet) and OUT/masks.json.
"""


@dataclass(frozen=True, kw_only=True)
class Settings(EncoderSettings):
    """Of ``foreground``.

    Raises:
        ValueError: a value is out of its range.
    """

    input: Annotated[str, "pictures to divide"]
    output: Annotated[str | None, "folder of the results; null: runs/features_foreground_<time>"] = None
    method: Annotated[Literal["pca", "spectral"], "pca or spectral"] = "pca"
    threshold: Annotated[float, "of spectral: cosine from which on two patches belong together"] = 0.0
    largest: Annotated[bool, "keep the connected part alone that holds the strongest patch"] = True
    sharp: Annotated[bool, "let the mask's edges follow those of the picture (guided filter)"] = False

    def __post_init__(self) -> None:
        """Checks the ranges."""
        super().__post_init__()
        if not -1 < self.threshold < 1:
            raise ValueError(f"threshold={self.threshold}: expected a cosine between -1 and 1")


def run(settings: Settings) -> int:
    """Writes the masks."""
    from e2net.features.masks import FILES, files_of, foreground, readable_items, write_masks  # noqa: PLC0415 - torch
    from e2net.runs.folder import owned  # noqa: PLC0415
    from e2net.runs.outputs import claim  # noqa: PLC0415

    output = free_output(settings.output, "foreground", FILES)
    failures = Failures()
    items = readable_items(settings.input, failures)
    extractor = settings.extractor()
    maps = foreground(
        extractor,
        [item.picture for item in items],
        settings.method,
        settings.sharp,
        settings.batch_size,
        threshold=settings.threshold,
        largest=settings.largest,
    )
    about = {"encoder": settings.encoder, "method": settings.method, "threshold": settings.threshold}
    with owned(output):
        claim(output, FILES, files_of(items))
        write_masks(output, items, maps, about)
    return failures.report()
