"""``python -m e2net.features track``: masks that follow a film."""

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from e2net.features.inputs import find_pictures
from e2net.features.verbs.common import EncoderSettings, free_output
from e2net.trees import FILMS

if TYPE_CHECKING:
    import numpy as np

    from e2net.features.extract import Extractor
    from e2net.features.tracking import Scoring

USAGE = """\
Carries the mask of a film's first frame through the film, by what the patches look like; nothing is trained.

  python -m e2net.features track input=film.mp4 mask=first.png encoder=dinov3_s output=OUT
  python -m e2net.features track input=FRAMES mask=first.png encoder=dinov3_s truth=MASKS

Every number in the mask but 0 is an object. Writes
  OUT/masks/FRAME.png   the objects of each frame; one object white, several with their numbers and a palette
  OUT/overlay.mp4       the film with its objects tinted and outlined
  OUT/tracking.json     how long it took, and with truth=... J, F and J&F, as the DAVIS benchmark defines them
A film that cannot be read to its end is an error, and leaves no result.
"""

_RESULTS = ("masks", "overlay.mp4", "tracking.json")


@dataclass(frozen=True, kw_only=True)
class Settings(EncoderSettings):
    """All settings; see the base for the encoder's.

    Raises:
        ValueError: a number is out of its range.
    """

    input: Annotated[str, "a film, or a folder of frames"]
    mask: Annotated[str, "picture of the first frame's objects: 0 is background, every other number an object"]
    output: Annotated[str | None, "folder for the results; null: runs/features_track_TIME"] = None
    truth: Annotated[str | None, "folder with the true mask of every frame, to score against"] = None
    context: Annotated[int, "how many of the last frames vote beside the first"] = 7
    radius: Annotated[float | None, "how far an object moves between frames at most, patches; null: anywhere"] = 12
    top: Annotated[int, "how many patches vote"] = 5
    temperature: Annotated[float, "of their votes"] = 0.2
    stretch: Annotated[bool, "bring each object's map to 0..1 before the largest wins: small objects are kept"] = True
    rate: Annotated[float, "frames a second of the overlay where the input is a folder"] = 24
    size: Annotated[int | None, "short side of a frame for the encoder, pixels; null: 512"] = 480
    batch_size: Annotated[int, "frames for each step of the network"] = 4

    def __post_init__(self) -> None:
        """Checks the ranges."""
        super().__post_init__()
        if self.context < 0 or self.top < 1:
            raise ValueError(f"expected context from 0 and top from 1, found {self.context} and {self.top}")
        if not self.temperature > 0 or not 0 < self.rate <= 1000 or (self.radius is not None and self.radius < 0):
            raise ValueError(
                "expected a temperature above 0, a rate above 0 and at most 1000, and a radius from 0 (or null), found "
                f"{self.temperature}, {self.rate} and {self.radius}"
            )


class _Frames:
    """The frames of a film or a folder, in order, (h, w, 3) uint8.

    Attributes:
        rate: a second.
        count: as far as that is known beforehand.
    """

    def __init__(self, text: str, rate: float) -> None:
        from e2net.features.tracking import in_order  # noqa: PLC0415 - torch takes seconds
        from e2net.film import FilmReader  # noqa: PLC0415 - OpenCV

        path = Path(text).expanduser()
        self._film = FilmReader(path) if path.suffix.lower() in FILMS and not path.is_dir() else None
        self._files = [] if self._film else in_order(find_pictures(text))
        self.rate = self._film.rate if self._film else rate
        self.count = self._film.announced if self._film else len(self._files)

    def name(self, index: int) -> str:
        """Of a frame's file, without extension."""
        return f"{index:06d}" if self._film else self._files[index].stem

    def __iter__(self) -> Iterator["np.ndarray"]:
        """Each frame, read when it is asked for; a film's end is checked."""
        from e2net.formats import read_image  # noqa: PLC0415

        if self._film is None:
            yield from map(read_image, self._files)
            return
        yield from self._film.frames()
        self._film.check_end()


def run(settings: Settings) -> int:
    """Tracks, writes, scores; see ``USAGE``."""
    from e2net.features.tracking import read_objects  # noqa: PLC0415 - torch takes seconds
    from e2net.runs.folder import owned  # noqa: PLC0415

    output = free_output(settings.output, "track", _RESULTS)
    frames = _Frames(settings.input, settings.rate)
    mask = read_objects(Path(settings.mask).expanduser())
    truth = _truth(settings.truth, frames)
    extractor = settings.extractor()
    with owned(output):
        _track(settings, output, extractor, frames, mask, truth)
    return 0


def _track(
    settings: Settings,
    output: Path,
    extractor: "Extractor",
    frames: _Frames,
    mask: "np.ndarray",
    truth: dict[str, Path],
) -> None:
    import cv2  # noqa: PLC0415
    from tqdm import tqdm  # noqa: PLC0415

    from e2net.features.tracking import Scoring, objects_of, read_objects, track  # noqa: PLC0415
    from e2net.files import write_atomically  # noqa: PLC0415
    from e2net.film import FilmWriter, FrameFolder  # noqa: PLC0415
    from e2net.runs.outputs import claim  # noqa: PLC0415

    cv2.setNumThreads(1)
    ours, shown = tee(frames)
    found = track(
        extractor, ours, mask, settings.context, settings.radius, settings.top, settings.temperature,
        settings.stretch, settings.batch_size,
    )  # fmt: skip
    scoring = Scoring(objects_of(mask))
    start = time.perf_counter()
    count = 0
    with FrameFolder(output / "masks") as folder, FilmWriter(output / "overlay.mp4", frames.rate) as film:
        bar = tqdm(found, total=frames.count or None, unit="frame", disable=None)
        for labels, picture in zip(bar, shown, strict=False):
            film.write(overlay(picture, labels, scoring.objects))
            _write(folder.file(frames.name(count)), labels, scoring.objects)
            if truth:
                scoring.add(labels, read_objects(truth[frames.name(count)]))
            count += 1
        masks = [f"masks/{frames.name(index)}.png" for index in range(count)]
        claim(output, _RESULTS, [*masks, *_RESULTS[1:]])  # until here nothing has its name
    seconds = time.perf_counter() - start
    document: dict[str, Any] = {
        "encoder": extractor.name, "input": settings.input, "frames": count, "size": extractor.size,
        "context": settings.context, "radius": settings.radius, "top": settings.top,
        "temperature": settings.temperature, "stretch": settings.stretch, "norm": settings.norm,
        "seconds": round(seconds, 2), "frames_per_second": round(count / seconds, 3), "objects": scoring.objects,
    }  # fmt: skip
    if truth:
        document["scores"] = _scores(scoring)
    write_atomically(output / "tracking.json", json.dumps(document, indent=1) + "\n")
    print(f"{count} frames, {count / seconds:.2f} a second: {output}")


def overlay(picture: "np.ndarray", labels: "np.ndarray", objects: list[int]) -> "np.ndarray":
    """A frame (H, W, 3) uint8 with its objects, by their numbers in ``labels`` (H, W), tinted and outlined."""
    from e2net.drawing import GREEN, class_colours, tinted  # noqa: PLC0415

    colours = [GREEN] if len(objects) == 1 else class_colours(len(objects))
    for number, colour in zip(objects, colours, strict=True):
        picture = tinted(picture, labels == number, tuple(colour))  # type: ignore[arg-type]
    return picture


def _truth(text: str | None, frames: _Frames) -> dict[str, Path]:
    """The true masks by name."""
    if text is None:
        return {}
    found = {file.stem: file for file in find_pictures(text, "truth")}
    missing = [name for name in map(frames.name, range(frames.count)) if name not in found]
    if missing:
        raise ValueError(
            f"truth={text}: expected a mask for every frame, under its name, found none for {missing[0]} "
            f"({len(missing)} of {frames.count} are missing)"
        )
    return found


def _write(file: Path, labels: "np.ndarray", objects: list[int]) -> None:
    from e2net.drawing import class_colours  # noqa: PLC0415
    from e2net.formats import write_labels, write_map  # noqa: PLC0415

    if len(objects) == 1:
        write_map(file, ((labels > 0) * 255).astype("uint8"))
    else:
        write_labels(file, labels, [[0, 0, 0], *class_colours(max(objects))])


def _scores(scoring: "Scoring") -> dict[str, Any]:
    result = scoring.result()
    means = {name: _mean([getattr(one, name) for one in result.values()]) for name in ("j_mean", "f_mean", "mean")}
    print(f"J {means['j_mean']:.3f}, F {means['f_mean']:.3f}, J&F {means['mean']:.3f}")
    objects = {str(number): {**one._asdict(), "mean": one.mean} for number, one in result.items()}
    return {**means, "objects": objects}


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)
