"""``python -m e2net.features match``: which patches of two pictures belong together."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from e2net.features.inputs import find_pictures
from e2net.features.verbs.common import EncoderSettings, free_output

if TYPE_CHECKING:
    from e2net.features.extract import Extractor
    from e2net.features.matching import Matched

USAGE = """\
Finds the patches of two pictures that are each other's most similar, and draws them.

  python -m e2net.features match input=a.jpg to=b.jpg encoder=dinov3_s output=OUT
  python -m e2net.features match input=a.jpg to=b.jpg encoder=dinov3_s points=points.json

points.json: {"first": [[x, y], ...], "second": [[x, y], ...], "box": [x, y, x, y]}, pixels; the box is the object's in
the second picture, and may be left out. Writes
  OUT/match.png    both pictures, with lines between the most similar patches that lie apart
  OUT/match.json   all pairs, and PCK, the share of key points found to within .05, .1 and .15 of the box's longer side
                   (of the picture's without a box)
  OUT/points.png   the key points where they were found; red is further away than .1
"""

_RESULTS = ("match.png", "match.json", "points.png")


@dataclass(frozen=True, kw_only=True)
class Settings(EncoderSettings):
    """All settings; see the base for the encoder's.

    Raises:
        ValueError: a number is out of its range.
    """

    input: Annotated[str, "a picture"]
    to: Annotated[str, "another one"]
    output: Annotated[str | None, "folder for the results; null: runs/features_match_TIME"] = None
    points: Annotated[str | None, "file with key points of both pictures, to score against"] = None
    count: Annotated[int, "how many pairs are drawn"] = 40

    def __post_init__(self) -> None:
        """Checks the ranges."""
        super().__post_init__()
        if not 1 <= self.count <= 10000:
            raise ValueError(f"count={self.count}: expected 1 to 10000")


def run(settings: Settings) -> int:
    """Matches, draws, scores; see ``USAGE``."""
    from e2net.features.matching import match  # noqa: PLC0415 - torch takes seconds
    from e2net.formats import read_image  # noqa: PLC0415
    from e2net.runs.folder import owned  # noqa: PLC0415

    output = free_output(settings.output, "match", _RESULTS)
    files = [_one(settings.input, "input"), _one(settings.to, "to")]
    pictures = [read_image(file) for file in files]
    points = read_points(settings.points, [p.shape[:2] for p in pictures]) if settings.points else None
    extractor = settings.extractor()
    with owned(output):
        found = match(extractor, *pictures)
        _write(settings, output, extractor, pictures, found, points)
    return 0


def _write(
    settings: Settings,
    output: Path,
    extractor: "Extractor",
    pictures: list[Any],
    found: "Matched",
    points: dict[str, Any] | None,
) -> None:
    from e2net.features.matching import drawn  # noqa: PLC0415
    from e2net.files import write_atomically  # noqa: PLC0415
    from e2net.formats import encoded  # noqa: PLC0415
    from e2net.runs.outputs import claim  # noqa: PLC0415

    document: dict[str, Any] = {
        "encoder": extractor.name, "input": settings.input, "to": settings.to, "size": extractor.size,
        "norm": settings.norm, "pairs": [
            {"first": [round(v, 1) for v in a], "second": [round(v, 1) for v in b], "similarity": round(float(s), 4)}
            for a, b, s in zip(found.first.tolist(), found.second.tolist(), found.similarity, strict=True)
        ],
    }  # fmt: skip
    claim(output, _RESULTS, [name for name in _RESULTS if points or name != "points.png"])
    if points:
        document["points"] = _score(points, found, pictures, output)
    write_atomically(output / "match.png", encoded(drawn(found, pictures, settings.count)))
    write_atomically(output / "match.json", json.dumps(document, indent=1) + "\n")
    print(f"{len(found.first)} pairs: {output / 'match.png'}")


def read_points(text: str, sizes: list[tuple[int, ...]]) -> dict[str, Any]:
    """Key points from a file, see ``USAGE``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else, or points outside the pictures.
    """
    path = Path(text).expanduser()
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"points={text}: expected JSON, found what cannot be read ({error})") from None
    form = 'expected {"first": [[x, y], ...], "second": [[x, y], ...]}, as many points in both'
    if not isinstance(document, dict) or set(document) - {"first", "second", "box"}:
        raise ValueError(f"points={text}: {form}, found other keys")
    parts = [document.get("first"), document.get("second")]
    if not all(isinstance(part, list) and part and all(_is_row(p, 2) for p in part) for part in parts):
        raise ValueError(f"points={text}: {form}")
    if len(parts[0]) != len(parts[1]):  # type: ignore[arg-type]
        raise ValueError(f"points={text}: {form}, found {len(parts[0])} and {len(parts[1])}")  # type: ignore[arg-type]
    for part, size in zip(parts, sizes, strict=True):
        for x, y in part:  # type: ignore[union-attr]
            if not (0 <= x <= size[1] and 0 <= y <= size[0]):
                raise ValueError(f"points={text}: expected points within {size[1]}x{size[0]} pixels, found {x}, {y}")
    box = document.get("box")
    if box is not None and not (_is_row(box, 4) and box[0] < box[2] and box[1] < box[3]):
        raise ValueError(f"points={text}: expected a box [x, y, x, y] of left, top, right, bottom, found {box}")
    return document


def _is_row(value: Any, length: int) -> bool:
    numbers = isinstance(value, list) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
    return numbers and len(value) == length


def _score(points: dict[str, Any], found: Any, pictures: list[Any], output: Path) -> dict[str, Any]:
    import numpy as np  # noqa: PLC0415

    from e2net.features.matching import find_points, joined, score_points  # noqa: PLC0415
    from e2net.files import write_atomically  # noqa: PLC0415
    from e2net.formats import encoded  # noqa: PLC0415

    first, truth = np.array(points["first"], float), np.array(points["second"], float)
    there = find_points(first, *found.features)
    box = points.get("box")
    extent = max(box[2] - box[0], box[3] - box[1]) if box else max(pictures[1].shape[:2])
    scores = score_points(there, truth, extent)
    right = np.hypot(*(there - truth).T) <= 0.1 * extent
    sizes = [p.shape[:2] for p in pictures]
    write_atomically(output / "points.png", encoded(joined(pictures, first, there, sizes, right.tolist())))
    print(", ".join(f"{name} {value:.3f}" for name, value in scores.items()))
    return {"found": there.round(1).tolist(), "extent": extent, **scores}


def _one(text: str, key: str) -> Path:
    found = find_pictures(text, key)
    if len(found) != 1:
        raise ValueError(f"{key}={text}: expected one picture, found {len(found)}")
    return found[0]
