"""What the verbs that draw have in common: settings to pictures, a sheet and a gallery."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from e2net.features.extract import Extractor, Features, encoder_names, short_names
from e2net.features.gallery import Shown, gallery
from e2net.features.inputs import Failures, find_pictures
from e2net.features.sheet import column, enlarged, row
from e2net.features.verbs.common import DrawingSettings, free_output
from e2net.files import write_atomically
from e2net.formats import encoded, printable
from e2net.runs.folder import owned
from e2net.runs.outputs import claim
from e2net.trees import distinct

SHEET, GALLERY, PICTURES = "sheet.png", "gallery.html", "pictures"
_HEIGHT = 224
# Of the sheet and of the page; beyond it there are only the single pictures.
_ROWS = 24

# Colours (h, w, 3) in [0, 1] of each picture, by the title of the map.
Drawn = dict[str, list[NDArray[np.float32]]]
Maps = Callable[[Extractor, list[Path], list[list[Features]]], Drawn]


def draw(verb: str, settings: DrawingSettings, maps: Maps, from_first: bool = False) -> int:
    """Runs a verb that draws maps: for each encoder, of all pictures.

    Args:
        verb: its name.
        settings: of it.
        maps: from an extractor, the files, and each file's levels, what to draw.
        from_first: the first picture has a part of its own: it is an error where it cannot be read.

    Returns:
        The exit status, 1 where pictures that cannot be read were left out, else 0.

    Raises:
        ValueError, OSError: a setting is at fault, or all pictures are.
    """
    patterns = (SHEET, GALLERY, PICTURES)
    output = free_output(settings.output, verb, patterns)
    failures = Failures()
    found = find_pictures(settings.input, failures=None if from_first else failures)
    files = failures.readable(found)
    if from_first and files[0] != found[0]:
        failures.some([])
    names = encoder_names(settings.encoder)
    extractor = settings.extractor(names[0], settings.blocks)
    with owned(output):
        drawn: Drawn = {}
        features: list[list[Features]] = []
        short = short_names(names)
        for name, encoder in zip(names, short, strict=True):
            if features:
                extractor = settings.extractor(name, settings.blocks)
            levels = list(extractor.levels(files, settings.batch_size))
            features.append([one[-1] for one in levels])
            prefix = f"{encoder} " if len(names) > 1 else ""
            drawn |= {f"{prefix}{title}": found for title, found in maps(extractor, files, levels).items()}
        titles = distinct(one.name for one in features[0])
        claim(output, patterns, [SHEET, GALLERY, *(f"{PICTURES}/{title}.png" for title in titles)])
        heading = f"{verb}: {', '.join(map(printable, short))}"
        _write_all(output, heading, short, titles, features, drawn, settings.sharp)
    return failures.report()


def _write_all(
    output: Path,
    heading: str,
    encoders: list[str],
    titles: list[str],
    features: list[list[Features]],
    drawn: Drawn,
    sharp: bool,
) -> None:
    shown = []
    for k, title in enumerate(titles):
        picture = features[0][k].picture
        pictures = [(name, enlarged(found[k], picture, sharp)) for name, found in drawn.items()]
        _write(output / PICTURES / f"{title}.png", row([(title, picture), *pictures], picture.shape[0]))
        if k < _ROWS:
            shown.append(Shown(title, picture, pictures, [one[k] for one in features]))
    _write(output / SHEET, column([row([(s.name, s.picture), *s.drawn], _HEIGHT) for s in shown]))
    facts = f"{len(titles)} pictures" + (f", of which the first {_ROWS} are here" if len(titles) > _ROWS else "")
    write_atomically(output / GALLERY, gallery(heading, encoders, shown, facts))
    print(f"page: {output / GALLERY}")


def _write(path: Path, picture: NDArray[np.uint8]) -> None:
    write_atomically(path, encoded(picture))
