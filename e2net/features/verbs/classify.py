"""Classes of whole pictures from folders of pictures. Imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from e2net.features.verbs.common import EncoderSettings, free_output

if TYPE_CHECKING:
    import numpy as np

    from e2net.features.extract import Extractor
    from e2net.features.inputs import Failures
    from e2net.features.whole import Classify

USAGE = """\
Classifies whole pictures by those of labelled folders, without training the encoder.

  python -m e2net.features classify encoder=dinov3_s examples=DIR input=DIR output=DIR
  python -m e2net.features classify encoder=dinov3_s examples=DIR folds=5 output=DIR

Below examples each picture lies in a folder that is named as its class. input is a picture, a pattern or a folder; its
pictures are scored where all of them lie in folders named as the classes. Without input, examples are divided into
folds, each of which is classified by the others.

Writes OUT/classes.json.
"""
FILES = ("classes.json",)


@dataclass(frozen=True, kw_only=True)
class Settings(EncoderSettings):
    """Of ``classify``.

    Raises:
        ValueError: a value is out of its range.
    """

    examples: Annotated[str, "folder of folders, one a class"]
    input: Annotated[str | None, "pictures to classify; null: folds of the examples"] = None
    output: Annotated[str | None, "folder of the results; null: runs/features_classify_<time>"] = None
    method: Annotated[Literal["knn", "linear"], "knn or linear"] = "knn"
    descriptor: Annotated[Literal["class", "patches", "both"], "class token, mean of the patches, or both"] = "class"
    neighbours: Annotated[int, "of knn: pictures that vote"] = 20
    temperature: Annotated[float, "of knn: of the votes' weights"] = 0.07
    c: Annotated[float, "of linear: weight of the examples against the penalty, scikit-learn's C"] = 1.0
    folds: Annotated[int, "without input: parts of the examples"] = 5

    def __post_init__(self) -> None:
        """Checks the ranges."""
        super().__post_init__()
        if self.neighbours < 1 or self.folds < 2:
            raise ValueError(f"neighbours={self.neighbours}, folds={self.folds}: expected at least 1, and 2")
        if not self.temperature > 0 or not self.c > 0:
            raise ValueError(f"temperature={self.temperature}, c={self.c}: expected more than 0")


def run(settings: Settings) -> int:
    """Writes the classes, and prints the accuracy where it can be known."""
    from e2net.features.inputs import Failures, find_pictures  # noqa: PLC0415
    from e2net.runs.folder import owned  # noqa: PLC0415

    output = free_output(settings.output, "classify", FILES)
    failures = Failures()
    examples = find_pictures(settings.examples, "examples", failures)
    if len({file.parent.name for file in examples}) < 2:
        raise ValueError(f"examples={settings.examples}: expected pictures in folders of at least 2 classes, found 1")
    files = find_pictures(settings.input, failures=failures) if settings.input else []
    extractor = settings.extractor()
    with owned(output):
        _classify(settings, output, extractor, examples, files, failures)
    return failures.report()


def _classify(
    settings: Settings,
    output: Path,
    extractor: "Extractor",
    examples: list[Path],
    files: list[Path],
    failures: "Failures",
) -> None:
    import json  # noqa: PLC0415

    import numpy as np  # noqa: PLC0415

    from e2net.features.store import vectors_of  # noqa: PLC0415 - torch takes seconds
    from e2net.files import write_atomically  # noqa: PLC0415
    from e2net.runs.outputs import claim  # noqa: PLC0415

    claim(output, FILES, FILES)
    how = (failures, settings.descriptor, settings.batch_size)
    examples, vectors = vectors_of(extractor, examples, *how)
    names = sorted({file.parent.name for file in examples})
    labels = np.array([names.index(file.parent.name) for file in examples])
    if settings.input:
        files, wanted = vectors_of(extractor, files, *how)
        shares = _fitted(settings, vectors, labels, len(names))(wanted)
    else:
        files, shares = examples, _by_folds(settings, vectors, labels)
    found = [names[i] for i in shares.argmax(1)]
    document: dict[str, object] = {"encoder": settings.encoder, "method": settings.method, "classes": names}
    if all(file.parent.name in names for file in files):
        right = [file.parent.name == one for file, one in zip(files, found, strict=True)]
        document["accuracy"] = float(np.mean(right))
        print(f"accuracy {np.mean(right):.3f} of {len(files)} pictures, {len(names)} classes")
    document["pictures"] = [
        {"picture": str(file), "class": one, "share": float(share.max())}
        for file, one, share in zip(files, found, shares, strict=True)
    ]
    write_atomically(output / "classes.json", json.dumps(document, indent=1) + "\n")
    print(f"written: {output / 'classes.json'}")


def _fitted(settings: Settings, vectors: "np.ndarray", labels: "np.ndarray", classes: int) -> "Classify":
    from e2net.features.whole import fit_classes  # noqa: PLC0415

    how = (settings.neighbours, settings.temperature, settings.c)
    return fit_classes(settings.method, vectors, labels, classes, *how)


def _by_folds(settings: Settings, vectors: "np.ndarray", labels: "np.ndarray") -> "np.ndarray":
    """Shares (n, classes) of examples, each part's from the others."""
    import numpy as np  # noqa: PLC0415

    from e2net.features.whole import folds_of  # noqa: PLC0415

    classes = int(labels.max()) + 1
    shares = np.zeros((len(labels), classes), np.float32)
    parts = folds_of(labels, settings.folds)
    for part in range(settings.folds):
        inside = parts == part
        if inside.any():
            shares[inside] = _fitted(settings, vectors[~inside], labels[~inside], classes)(vectors[inside])
    return shares
