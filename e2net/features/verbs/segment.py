"""Masks of pictures from a few pictures with masks, without training. Imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from e2net.features.inputs import Failures
from e2net.features.verbs.common import EncoderSettings, free_output

if TYPE_CHECKING:
    import numpy as np

    from e2net.features.extract import Extractor
    from e2net.features.masks import Item

USAGE = """\
Finds in a folder of pictures what a few pictures with masks show, without training the encoder.

  python -m e2net.features segment encoder=dinov3_s examples=DIR input=DIR output=DIR
  python -m e2net.features segment encoder=dinov3_s examples=DIR shots=1,5,9 draws=5 method=knn,logistic,linear

examples is a folder with Image and GT. input is a picture, a pattern, a folder of pictures, or a folder with Image and
GT, which is scored too. With shots, so many examples are drawn, several times over, and a table of mean scores is
printed: of all of input, or without input of the examples that were not drawn.

Methods:
  prototypes   the nearest of some mean features of object and of background, by cosine
  knn          a vote of the nearest patches of the examples
  logistic     logistic regression on the patches of the examples
  linear       a linear probe (BatchNorm, 1x1 convolution) trained on the examples, for comparison

Writes OUT/maps (probabilities, grey), OUT/masks (0 and 255), OUT/masks.jpg (a sheet) and OUT/masks.json; with shots
OUT/shots.json alone.
"""
METHODS = ("prototypes", "knn", "logistic", "linear")
_SHOTS = ("shots.json",)


@dataclass(frozen=True, kw_only=True)
class Settings(EncoderSettings):
    """Of ``segment``.

    Raises:
        ValueError: a value is out of its range, or does not fit another.
    """

    examples: Annotated[str, "folder with Image and GT: the pictures to learn from"]
    input: Annotated[str | None, "pictures to find masks of; with shots, what is scored"] = None
    output: Annotated[str | None, "folder of the results; null: runs/features_segment_<time>"] = None
    method: Annotated[str, "prototypes, knn, logistic or linear; with shots several, separated by commas"] = "knn"
    sharp: Annotated[bool, "let the mask's edges follow those of the picture (guided filter)"] = False
    prototypes: Annotated[int, "of prototypes: mean features of the object, and as many of the background"] = 16
    neighbours: Annotated[int, "of knn: patches that vote"] = 20
    c: Annotated[float, "of logistic: weight of the examples against the penalty, scikit-learn's C"] = 1.0
    steps: Annotated[int, "of linear: steps of its training"] = 100
    shots: Annotated[str | None, "numbers of examples to draw, such as 1,5,9; null: take all and write masks"] = None
    draws: Annotated[int, "with shots: how often each number is drawn"] = 5
    seed: Annotated[int, "with shots: of the draws"] = 0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        super().__post_init__()
        for name in ("prototypes", "neighbours", "steps", "draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        if not self.c > 0:
            raise ValueError(f"c={self.c}: expected more than 0")
        unknown = [one for one in self.methods if one not in METHODS]
        if unknown or len(set(self.methods)) < len(self.methods):
            raise ValueError(f"method={self.method}: expected some of {', '.join(METHODS)}, each once")
        if self.shots is None and (len(self.methods) > 1 or self.input is None):
            raise ValueError("expected input=... and one method, or shots=... for a table of several")
        self.counts  # noqa: B018 - raises

    @property
    def methods(self) -> list[str]:
        """The method, or several."""
        return [one.strip() for one in self.method.split(",")]

    @property
    def counts(self) -> list[int]:
        """The numbers of ``shots``."""
        if self.shots is None:
            return []
        try:
            found = [int(one) for one in self.shots.split(",")]
        except ValueError:
            found = []
        if not found or min(found) < 1:
            raise ValueError(f"shots={self.shots}: expected whole numbers from 1 on, separated by commas")
        return found

    def options(self, method: str) -> dict[str, Any]:
        """What ``few.fit`` takes for a method."""
        options: dict[str, dict[str, Any]] = {
            "prototypes": {"count": self.prototypes},
            "knn": {"neighbours": self.neighbours},
            "logistic": {"c": self.c},
            "linear": {"steps": self.steps},
        }
        return options[method]


def run(settings: Settings) -> int:
    """Writes masks, or the table of several draws."""
    from e2net.features.masks import (  # noqa: PLC0415 - torch takes seconds
        FILES,
        files_of,
        masked_items,
        readable_items,
        segment,
        write_masks,
    )
    from e2net.formats import read_mask  # noqa: PLC0415
    from e2net.runs.folder import owned  # noqa: PLC0415
    from e2net.runs.outputs import claim  # noqa: PLC0415

    output = free_output(settings.output, "segment", _SHOTS if settings.shots else FILES)
    examples = masked_items(settings.examples, "examples")
    if settings.shots:
        tested = masked_items(settings.input, "input") if settings.input else None
        most = len(examples) - (tested is None)
        if max(settings.counts) > most:
            raise ValueError(f"shots={settings.shots}: expected at most {most}, as there are {len(examples)} examples")
        extractor = settings.extractor()
        with owned(output):
            return _table(settings, output, _Draws(settings, extractor, examples, tested))
    failures = Failures()
    items = readable_items(str(settings.input), failures)
    taught = [(item.picture, read_mask(item.mask)) for item in examples if item.mask is not None]
    extractor = settings.extractor()
    with owned(output):
        maps = segment(
            extractor,
            taught,
            [item.picture for item in items],
            settings.method,
            settings.sharp,
            settings.batch_size,
            **settings.options(settings.method),
        )
        claim(output, FILES, files_of(items))
        about = {"encoder": settings.encoder, "method": settings.method, "examples": [item.name for item in examples]}
        write_masks(output, items, maps, about)
    return failures.report()


def _table(settings: Settings, output: Path, draws: "_Draws") -> int:
    import json  # noqa: PLC0415

    import numpy as np  # noqa: PLC0415

    from e2net.features.masks import line  # noqa: PLC0415
    from e2net.files import write_atomically  # noqa: PLC0415
    from e2net.runs.outputs import claim  # noqa: PLC0415

    claim(output, _SHOTS, _SHOTS)
    rows = []
    for method in settings.methods:
        for count in settings.counts:
            scores = [draws.scores(method, count, draw) for draw in range(settings.draws)]
            mean = {name: float(np.mean([one[name] for one in scores])) for name in scores[0]}
            spread = {name: float(np.std([one[name] for one in scores])) for name in scores[0]}
            print(line(f"{method}, {count} of {draws.examples}, {settings.draws} draws", mean), flush=True)
            rows.append({"method": method, "shots": count, "mean": mean, "std": spread, "draws": scores})
    about = {"encoder": settings.encoder, "examples": settings.examples, "input": settings.input, "rows": rows}
    write_atomically(output / "shots.json", json.dumps(about, indent=1) + "\n")
    print(f"written: {output / 'shots.json'}")
    return 0


class _Draws:
    """Scores of draws, each picture that one of them needs encoded once."""

    def __init__(
        self, settings: Settings, extractor: "Extractor", examples: "list[Item]", tested: "list[Item] | None"
    ) -> None:
        from e2net.formats import read_mask  # noqa: PLC0415

        self.settings = settings
        self.items = [*examples, *(tested or [])]
        self.examples, self.separate = len(examples), tested is not None
        drawn = {int(i) for draw in range(settings.draws) for i in self._order(draw)[: max(settings.counts)]}
        needed = [i for i in range(len(self.items)) if not self.separate or i >= self.examples or i in drawn]
        pictures = [self.items[i].picture for i in needed]
        self.features = dict(zip(needed, extractor(pictures, settings.batch_size), strict=True))
        self.masks = [read_mask(item.mask) for item in self.items if item.mask is not None]

    def _order(self, draw: int) -> "np.ndarray":
        """The examples' numbers as one draw shuffles them."""
        import numpy as np  # noqa: PLC0415

        return np.random.default_rng([self.settings.seed, draw]).permutation(self.examples)

    def scores(self, method: str, count: int, draw: int) -> dict[str, float]:
        """Of one draw; the draws of one number are the same for all methods and encoders."""
        import torch  # noqa: PLC0415

        from e2net.features.few import fit  # noqa: PLC0415
        from e2net.features.masks import as_map, table_of  # noqa: PLC0415

        order = self._order(draw)
        taught = order[:count]
        rest = range(self.examples, len(self.items)) if self.separate else sorted(order[count:])
        found = fit(
            method,
            [self.features[i].patches for i in taught],
            [self.masks[i] for i in taught],
            **self.settings.options(method),
        )
        maps = (
            (self.items[i].name, as_map(self.features[i], found(torch.from_numpy(self.features[i].patches)).numpy(),
                                        self.settings.sharp))
            for i in rest
        )  # fmt: skip
        return table_of(maps, (self.masks[i] for i in rest)).values()
