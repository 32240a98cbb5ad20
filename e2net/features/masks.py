"""Maps of pictures as verbs write and score them: segment and foreground."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from e2net.datasets.pairs import IMAGE_FOLDERS, FolderPairs
from e2net.drawing import PANEL, contact_sheet, panel_size, tinted
from e2net.features.cut import Cut, foreground_of
from e2net.features.extract import Extractor, Features
from e2net.features.few import fit
from e2net.features.inputs import Failures, find_pictures
from e2net.features.looks import Map, sharpened
from e2net.files import write_atomically
from e2net.formats import encoded, printable, read_image, read_mask, verify_image, write_map
from e2net.metrics.scoring import score_map
from e2net.metrics.table import ScoreTable
from e2net.pictures import Picture

# A part of the scores that tables of the field report, and the overlap that few-shot work reports.
SCORES = ("S", "wF", "Fmean", "Emean", "MAE", "IoU")
FILES = ("maps", "masks", "masks.json", "masks.jpg")
_SHEET = 24  # pictures of it


class Item(NamedTuple):
    """A picture of a verb's input.

    Attributes:
        picture: its file.
        name: unique among all, with ``/`` for folders, without extension.
        mask: the file of its mask, where there is one.
    """

    picture: Path
    name: str
    mask: Path | None


def find_items(text: str, key: str = "input", failures: Failures | None = None) -> list[Item]:
    """Pictures with masks of a folder with Image and GT, or pictures alone of anything else.

    Args:
        text: of the setting.
        key: its name, for messages.
        failures: see ``find_pictures``.

    Raises:
        FileNotFoundError, ValueError: as ``find_pictures`` and ``FolderPairs``; or two pictures have one name.
    """
    folder = Path(text).expanduser()
    images = {name.lower() for name in IMAGE_FOLDERS}
    if folder.is_dir() and any(one.is_dir() and one.name.lower() in images for one in folder.iterdir()):
        pairs = FolderPairs(folder)
        return [Item(pairs.files(i)[0], pairs.name(i), pairs.files(i)[1]) for i in range(len(pairs))]
    found = find_pictures(text, key, failures)
    base = folder if folder.is_dir() else None
    names = [(file.relative_to(base) if base else Path(file.name)).with_suffix("").as_posix() for file in found]
    twins = sorted({name for name in names if names.count(name) > 1})
    if twins:
        raise ValueError(f"{key}={text}: expected one picture of each name, found several of {printable(twins[0])}")
    return [Item(file, name, None) for file, name in zip(found, names, strict=True)]


def readable_items(text: str, failures: Failures) -> list[Item]:
    """As :func:`find_items` of the input, without those whose picture or mask cannot be read, which are noted.

    Raises:
        FileNotFoundError, ValueError: see there; or nothing can be read.
    """

    def check(item: Item) -> None:
        verify_image(item.picture)
        if item.mask is not None:
            read_mask(item.mask)

    return failures.some(failures.without_fault(find_items(text, failures=failures), check, lambda item: item.picture))


def masked_items(text: str, key: str) -> list[Item]:
    """As :func:`find_items`, all of them with masks.

    Raises:
        ValueError: there are none.
    """
    items = find_items(text, key)
    if any(item.mask is None for item in items):
        raise ValueError(
            f"{key}={text}: expected a folder with {IMAGE_FOLDERS[0]} and GT, found pictures without masks"
        )
    return items


def as_map(features: Features, values: NDArray[Any], sharp: bool) -> Map:
    """A map (h, w) of patches at the size that the picture came in, (H, W) float32 in [0, 1]."""
    given = np.ascontiguousarray(values, np.float32)
    if sharp:
        given = sharpened(given, features.picture, features.picture.shape[0] // features.patches.shape[0])
    # Bilinearly from the middles of the patches, as a decoder's maps become large.
    return np.clip(cv2.resize(given, features.size[::-1], interpolation=cv2.INTER_LINEAR), 0, 1)


def segment(
    extractor: Extractor,
    examples: Sequence[tuple[Picture, NDArray[np.bool_]]],
    pictures: Iterable[Picture] | Picture,
    method: str = "knn",
    sharp: bool = False,
    batch_size: int = 8,
    **options: Any,
) -> Iterator[Map]:
    """Finds in pictures what examples show; the examples are encoded at once, each picture when its map is taken.

    Args:
        extractor: of the features.
        examples: pictures, each with its mask (H, W) bool.
        pictures: to find masks of.
        method: see :data:`e2net.features.few.METHODS`.
        sharp: let edges follow those of the picture.
        batch_size: of the extractor.
        options: of the method.

    Returns:
        For each picture (H, W) float32 probabilities at its own size; above 0.5 is the object.

    Raises:
        ValueError: the examples have no object, or no background, or a mask is not of its picture's size.
    """
    taught = list(extractor([picture for picture, _ in examples], batch_size))
    masks = [mask for _, mask in examples]
    for one, mask in zip(taught, masks, strict=True):
        if mask.shape != one.size:
            raise ValueError(
                f"example {one.name}: expected a mask of its picture's size {one.size}, found {mask.shape}"
            )
    found = fit(method, [one.patches for one in taught], masks, **options)
    return (as_map(one, found(torch.from_numpy(one.patches)).numpy(), sharp) for one in extractor(pictures, batch_size))


def foreground(
    extractor: Extractor,
    pictures: Iterable[Picture] | Picture,
    method: Cut = "pca",
    sharp: bool = False,
    batch_size: int = 8,
    **options: Any,
) -> Iterator[Map]:
    """The foreground of pictures by their features alone: (H, W) float32 for each, above 0.5 is foreground.

    Args:
        extractor: of the features.
        pictures: to divide.
        method: ``pca`` or ``spectral``.
        sharp: let edges follow those of the picture.
        batch_size: of the extractor.
        options: see :func:`e2net.features.cut.foreground_of`.
    """
    for one in extractor(pictures, batch_size):
        yield as_map(one, foreground_of(one.patches, method, **options), sharp)


def table_of(maps: Iterable[tuple[str, Map]], masks: Iterable[NDArray[np.bool_]]) -> ScoreTable:
    """The scores of maps (H, W) in [0, 1], by name, against masks (H, W)."""
    scored = (
        (i, name, score_map(values, mask, scores=SCORES))
        for i, ((name, values), mask) in enumerate(zip(maps, masks, strict=True))
    )
    return ScoreTable.of(SCORES, scored)


def files_of(items: Sequence[Item]) -> list[str]:
    """All that :func:`write_masks` writes of these, relative to the output."""
    return ["masks.json", "masks.jpg", *(f"{place}/{item.name}.png" for place in ("maps", "masks") for item in items)]


def write_masks(output: Path, items: Sequence[Item], maps: Iterator[Map], about: dict[str, Any]) -> None:
    """Writes maps, masks, a sheet of the first pictures, and ``masks.json`` with scores where there are masks.

    Args:
        output: claimed already.
        items: what the maps are of.
        maps: (H, W) float32 in [0, 1] of each, made as they are written.
        about: what the document begins with.
    """
    panels: list[NDArray[np.uint8]] = []
    rows = []
    for i, (item, values) in enumerate(zip(items, maps, strict=True)):
        levels = np.rint(values * 255).astype(np.uint8)
        write_map(output / "maps" / f"{item.name}.png", levels)
        found = values > 0.5
        write_map(output / "masks" / f"{item.name}.png", found.astype(np.uint8) * 255)
        if item.mask is not None:
            rows.append((i, item.name, score_map(values, read_mask(item.mask), scores=SCORES)))
        if len(panels) < _SHEET:
            panels.append(_panel(item, found))
    write_atomically(output / "masks.jpg", encode(contact_sheet(panels, 4)))
    document: dict[str, Any] = {**about, "pictures": [item.name for item in items]}
    if rows:
        table = ScoreTable.of(SCORES, rows)
        document |= {"scores": table.values(), "intervals": table.intervals(), "rows": table.per_image()}
        print(line(f"{len(rows)} pictures", table.values()))
    write_atomically(output / "masks.json", json.dumps(document, indent=1) + "\n")
    print(f"masks: {output / 'masks'}, sheet: {output / 'masks.jpg'}")


def line(name: str, scores: dict[str, float]) -> str:
    """A line of a table."""
    return f"{name:<36}" + "".join(f"  {score} {value:.3f}" for score, value in scores.items())


def encode(picture: NDArray[np.uint8]) -> bytes:
    """(h, w, 3) uint8 RGB as a JPEG."""
    return encoded(picture, ".jpg", 88)


def panel(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture (h, w, 3) at the height of a sheet's panels."""
    size = panel_size(picture.shape[:2])
    way = cv2.INTER_AREA if picture.shape[0] > PANEL else cv2.INTER_LINEAR
    return cv2.resize(picture, size, interpolation=way)  # type: ignore[return-value]


def _panel(item: Item, found: NDArray[np.bool_]) -> NDArray[np.uint8]:
    small = panel(read_image(item.picture))
    mask = cv2.resize(found.astype(np.uint8), small.shape[1::-1], interpolation=cv2.INTER_NEAREST).astype(bool)
    return tinted(small, mask)
