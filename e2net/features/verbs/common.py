"""What verbs that look at pictures have in common. Imports nothing heavy."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from e2net.arguments import output_folder

if TYPE_CHECKING:
    from e2net.features.extract import Extractor


# What --help of the verbs that draw says of their results.
DRAWN = """\
Writes OUT/pictures/NAME.png, each picture beside its maps, OUT/sheet.png, the first 24 of them, and OUT/gallery.html,
one page in which a click on a patch shows its similarity in all pictures. Several encoders, separated by commas, stand
side by side. sharp=true moves the edges of maps to those of the picture: a guided filter, which needs no training and
suits every encoder.
"""


@dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    """Which features, and where they are computed. A verb's settings inherit from it.

    Raises:
        ValueError: a number is out of its range.
    """

    encoder: Annotated[str, "name in conf/encoder, folder, Hub id or timm/NAME; :random behind it: random weights"]
    size: Annotated[int | None, "short side of a picture for the encoder, pixels; null: 512"] = None
    norm: Annotated[bool, "apply the encoder's final norm"] = True
    device: Annotated[str, "auto (a GPU if there is one), cpu, cuda, cuda:1, mps"] = "auto"
    precision: Annotated[str, "auto, 32-true, bf16-mixed or 16-mixed"] = "32-true"
    batch_size: Annotated[int, "pictures for each step of the network"] = 8

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if not 1 <= self.batch_size <= 65536:
            raise ValueError(f"batch_size={self.batch_size}: expected 1 to 65536")
        if self.size is not None and not 1 <= self.size <= 1 << 15:
            raise ValueError(f"size={self.size}: expected 1 to {1 << 15} pixels")

    def extractor(self, encoder: str | None = None, blocks: list[int] | None = None) -> "Extractor":
        """The extractor of these settings.

        Args:
            encoder: one of several that ``encoder`` names.
            blocks: see :class:`e2net.features.Extractor`.
        """
        from e2net.features.extract import Extractor  # noqa: PLC0415 - torch takes seconds

        return Extractor(encoder or self.encoder, self.size, blocks, self.norm, self.device, self.precision)


def free_output(given: str | None, verb: str, patterns: Iterable[str]) -> Path:
    """Where a verb writes, made sure that it replaces nothing but e2net's own; ``claim`` it before writing.

    Args:
        given: the setting; None: ``runs/features_VERB_<time>``.
        verb: the verb.
        patterns: of the names of what is written, as for ``Path.glob``; see ``e2net.runs.outputs.claim``.

    Raises:
        ValueError: something of these names is there that e2net did not write, or the folder is a file.
    """
    from e2net.runs.outputs import check_free  # noqa: PLC0415 - takes a while

    folder = output_folder(given, f"features_{verb}")
    check_free("output", folder, patterns)
    return folder


@dataclass(frozen=True, kw_only=True)
class DrawingSettings(EncoderSettings):
    """Of a verb that draws maps beside pictures; ``encoder`` may name several, separated by commas."""

    input: Annotated[str, "a picture, a folder (with all below it) or a pattern in quotes"]
    output: Annotated[str | None, "folder for the results; null: runs/features_VERB_<time>"] = None
    blocks: Annotated[list | None, "0-based indices of blocks, as [2,11]; null: the last"] = None
    sharp: Annotated[bool, "sharpen maps by the picture (guided filter), instead of a square a patch"] = False
