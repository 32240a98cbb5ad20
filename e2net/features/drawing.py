"""What the verbs that draw have in common: settings to pictures, a sheet and a gallery."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from e2net.features.extract import Extractor, Features, encoder_names
from e2net.features.gallery import Shown, gallery
from e2net.features.inputs import find_pictures
from e2net.features.sheet import column, enlarged, row
from e2net.features.verbs.common import DrawingSettings, free_output
from e2net.files import write_atomically
from e2net.formats import printable
from e2net.runs.outputs import claim

SHEET, GALLERY, PICTURES = "sheet.png", "gallery.html", "pictures"
_HEIGHT = 224
# Of the sheet and of the page; beyond it there are only the single pictures.
_ROWS = 24

# Colours (h, w, 3) in [0, 1] of each picture, by the title of the map.
Drawn = dict[str, list[NDArray[np.float32]]]
Maps = Callable[[Extractor, list[Path], list[list[Features]]], Drawn]


def draw(verb: str, settings: DrawingSettings, maps: Maps) -> int:
    """Runs a verb that draws maps: for each encoder, of all pictures.

    Args:
        verb: its name.
        settings: of it.
        maps: from an extractor, the files, and each file's levels, what to draw.

    Returns:
        The exit status, 0.

    Raises:
        ValueError, OSError: a setting or a picture is at fault.
    """
    patterns = (SHEET, GALLERY, PICTURES)
    output = free_output(settings.output, verb, patterns)
    files = find_pictures(settings.input)
    names = encoder_names(settings.encoder)
    drawn: Drawn = {}
    features: list[list[Features]] = []
    for name in names:
        extractor = settings.extractor(name, settings.blocks)
        levels = list(extractor.levels(files, settings.batch_size))
        features.append([one[-1] for one in levels])
        prefix = f"{extractor.name} " if len(names) > 1 else ""
        drawn |= {f"{prefix}{title}": found for title, found in maps(extractor, files, levels).items()}
    claim(output, patterns)
    titles = _titles([one.name for one in features[0]])
    shown = []
    for k, title in enumerate(titles):
        picture = features[0][k].picture
        pictures = [(name, enlarged(found[k], picture, settings.sharp)) for name, found in drawn.items()]
        _write(output / PICTURES / f"{title}.png", row([(title, picture), *pictures], picture.shape[0]))
        if k < _ROWS:
            shown.append(Shown(title, picture, pictures, [one[k] for one in features]))
    _write(output / SHEET, column([row([(s.name, s.picture), *s.drawn], _HEIGHT) for s in shown]))
    facts = f"{len(titles)} pictures" + (f", of which the first {_ROWS} are here" if len(titles) > _ROWS else "")
    write_atomically(output / GALLERY, gallery(f"{verb}: {', '.join(map(printable, names))}", names, shown, facts))
    print(f"page: {output / GALLERY}")
    return 0


def _titles(names: list[str]) -> list[str]:
    """The names, each once: with its number behind it where it is there already."""
    seen: set[str] = set()
    titles = []
    for k, name in enumerate(names):
        title = name if name.casefold() not in seen else f"{name}~{k + 1}"
        seen.add(title.casefold())
        titles.append(title)
    return titles


def _write(path: Path, picture: NDArray[np.uint8]) -> None:
    done, data = cv2.imencode(".png", picture[..., ::-1])
    if not done:
        raise ValueError(f"{path}: OpenCV could not encode a picture of shape {picture.shape} as PNG")
    write_atomically(path, data.tobytes())
