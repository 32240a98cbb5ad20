"""Semantic segmentation: one of K classes at every pixel."""

import csv
import dataclasses
import io
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from e2net.drawing import class_colours, confusion_picture, legend, painted, panel_size
from e2net.formats import read_labels, write_labels
from e2net.losses.base import DenseLoss
from e2net.losses.criterion import Criterion
from e2net.losses.semantic import class_weights
from e2net.losses.semantic_loss import SemanticLoss
from e2net.metrics.semantic import HIGHER_IS_BETTER, LabelCounts, LabelProtocol, LabelTable, score_labels
from e2net.metrics.table import SetTable
from e2net.structures import IGNORED, plain
from e2net.tasks.base import About, Array, Sampler, SetScores, Suspicion, Task, resize_nearest

Labels = NDArray[np.uint16]
# Number, names, or names with colours.
Classes = int | Sequence[str] | Mapping[str, Sequence[int] | None]

log = logging.getLogger(__name__)

_STRANGE = 65534  # of no class, and not to ignore


@dataclasses.dataclass(frozen=True)
class Semantic(Task):
    """K logits a pixel; targets and results are label maps (h, w) uint16, 0 to K - 1 or ``IGNORED``.

    Args:
        protocol: how label maps are scored.
        classes: names in the order of their labels, names with colours [red, green, blue] or null, or how many there
            are. They need not all occur in a data set. None: ``resolve`` asks the data.
        ignore: in files, the label of pixels that are not scored and not learned from; None: there is none.
        first_label: in files, the label of the first class; lower ones are ignored too. 1 where 0 is "other", as in
            ADE20k.
        class_weights: of cross-entropy: ``none``, ``auto`` (by how rare the classes are in the training set, see
            :func:`~e2net.losses.semantic.class_weights`), or one for each class.

    Raises:
        ValueError: fewer than two classes, names or colours that are none, or weights of another number.
    """

    protocol: LabelProtocol = dataclasses.field(default_factory=LabelProtocol)
    classes: Classes | None = None
    ignore: int | None = 255
    first_label: int = 0
    class_weights: Literal["auto", "none"] | Sequence[float] = "none"
    out_channels: int = dataclasses.field(init=False, default=0)

    name = "semantic"
    target_name = "label map"
    target_folders = ("GT", "Labels", "Label", "Masks", "Mask")
    silence = "Is task.ignore, or task.first_label, the label of all of them?"
    generated = "labels"
    directions = {score: "max" if up else "min" for score, up in HIGHER_IS_BETTER.items()}  # noqa: RUF012 - a constant
    scores = tuple(HIGHER_IS_BETTER)
    monitor = "mIoU"
    headline = ("mIoU", "aAcc")
    paper_columns = (
        ("mIoU", r"mIoU$\uparrow$", "mIoU ↑"),
        ("aAcc", r"aAcc$\uparrow$", "aAcc ↑"),
        ("mAcc", r"mAcc$\uparrow$", "mAcc ↑"),
    )
    protocol_fields = ("boundary",)
    suspicions = {  # noqa: RUF012
        "foreign labels": "Labels of no class that are not ignored either: training stops at them. Do task.classes, "
        "task.ignore and task.first_label fit?",
        "empty": "All pixels are ignored: nothing to learn or to score.",
        "one class": "All pixels that count are of one class.",
    }
    problems = {"resized": "not of the target's size, resized to the nearest pixel"}  # noqa: RUF012
    of_files = ("ignore", "first_label")
    extra_files = ("per_class.csv", "confusion_*.png")

    def __post_init__(self) -> None:
        if self.classes is None:
            raise ValueError(
                "task.classes: the classes are not known; give their names as task.classes=[NAME, ...], their number,"
                " or a file classes.yaml in data.root"
            )
        object.__setattr__(self, "classes", named(self.classes))
        object.__setattr__(self, "out_channels", len(self.names))
        for key, value in (("ignore", self.ignore or 0), ("first_label", self.first_label)):
            if not 0 <= value <= 65535:
                raise ValueError(f"task.{key}={value}: expected a label from 0 to 65535")
        weights = self.class_weights
        if isinstance(weights, str):
            if weights not in ("auto", "none"):
                raise ValueError(f"task.class_weights={weights}: expected auto, none or a list of numbers")
        elif len(weights) != len(self.names) or min(weights) < 0 or max(weights) <= 0:
            raise ValueError(
                f"task.class_weights: expected auto, none or {len(self.names)} numbers from 0 up, one for each class,"
                f" found {list(weights)}"
            )

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of the classes, by label."""
        return tuple(self.classes)  # type: ignore[arg-type]

    @cached_property
    def colours(self) -> Array:
        """(K + 1, 3) uint8 RGB: of the classes, and of what is ignored."""
        given = self.classes
        assert isinstance(given, Mapping)
        return np.array([*given.values(), (224, 224, 224)], np.uint8)

    @classmethod
    def resolve(cls, settings: Mapping[str, Any], about: About) -> dict[str, Any]:
        classes = settings.get("classes")
        classes = about().get("classes") if classes is None else classes
        return {**settings, "classes": None if classes is None else named(classes)}

    def prepare_loss(self, loss: DenseLoss, targets: Iterable[Array]) -> None:
        if isinstance(loss, Criterion):
            raise ValueError("loss: expected one over classes, such as loss=semantic, found one over binary masks")
        if self.class_weights != "none" and not isinstance(loss, SemanticLoss):
            raise ValueError(f"task.class_weights: {type(loss).__name__} takes none; leave it at none")
        if self.ignore is not None and 0 <= self.ignore - self.first_label < self.out_channels:
            name = self.names[self.ignore - self.first_label]
            log.warning(
                "task.ignore=%d is the label of %s too: none of its pixels is learned from or scored; give "
                "task.ignore=null, or a label of no class",
                self.ignore,
                name,
            )
        counts = np.zeros(self.out_channels, np.int64)
        for target in targets:
            counts += np.bincount(target[target != IGNORED], minlength=self.out_channels)
            if self.class_weights != "auto" and counts.any():
                break  # there is something to learn; that is all that is asked then
        if not counts.any():
            raise ValueError(f"the training set has no pixel of any class. {self.silence}")
        if isinstance(loss, SemanticLoss):
            weights = self.class_weights
            loss.weigh(
                None
                if weights == "none"
                else class_weights(torch.from_numpy(counts))
                if weights == "auto"
                else torch.tensor(weights, dtype=torch.float32)
            )

    def read_target(self, path: Path) -> Labels:
        return self._read(path, ignoring=True)

    def read_result(self, path: Path) -> Labels:
        return self._read(path, ignoring=False)

    def _coding(self, ignoring: bool) -> Labels:
        """(65536,) a file's labels to ours."""
        coding = np.full(65536, _STRANGE, np.uint16)
        coding[self.first_label : self.first_label + self.out_channels] = np.arange(self.out_channels)
        if ignoring:
            coding[: self.first_label] = IGNORED
            if self.ignore is not None:
                coding[self.ignore] = IGNORED
        return coding

    def _read(self, path: Path, ignoring: bool) -> Labels:
        values = read_labels(path)
        labels: Labels = self._coding(ignoring)[values]
        fault = self._strange(values, labels, ignoring)
        if fault is not None:
            raise ValueError(f"{path}: {fault}; see task.classes and task.ignore")
        return labels

    def _strange(self, values: Labels, labels: Labels, ignoring: bool) -> str | None:
        """In words, the labels of a file (h, w) that mean nothing in ours."""
        strange = values[labels == _STRANGE]
        if not strange.size:
            return None
        found = np.unique(strange)
        shown = ", ".join(map(str, found[:5])) + (" and more" if len(found) > 5 else "")
        span = f"{self.first_label} to {self.first_label + self.out_channels - 1}"
        more = f" or {self.ignore} (task.ignore)" if ignoring and self.ignore is not None else ""
        what = "labels" if ignoring else "a class at every pixel of a result:"
        return (
            f"expected {what} {span} ({self.names[0]} to {self.names[-1]}){more}, found {shown} at"
            f" {strange.size} of {values.size} pixels"
        )

    def suspect(self, target: Array) -> list[Suspicion]:
        there = np.bincount(target.ravel(), minlength=IGNORED + 1)[: self.out_channels].nonzero()[0]
        if len(there) == 0:
            return [Suspicion("empty", "warning", "all pixels are ignored")]
        return [Suspicion("one class", "note", f"only {self.names[there[0]]}")] if len(there) == 1 else []

    def inspect_target(self, path: Path) -> tuple[Labels, list[Suspicion]]:
        values = read_labels(path)
        labels: Labels = self._coding(ignoring=True)[values]
        fault = self._strange(values, labels, ignoring=True)
        if fault is None:
            return labels, self.suspect(labels)
        # Shown as ignored, which is what no class has.
        return np.where(labels == _STRANGE, np.uint16(IGNORED), labels), [Suspicion("foreign labels", "error", fault)]

    def canonical(self, target: Array) -> Labels:
        if target.dtype != np.uint16 or target.ndim != 2:
            raise TypeError(f"expected a label map (h, w) uint16, found {target.shape} {target.dtype}")
        return plain(target)

    def resample(self, target: Array, sample: Sampler) -> Labels:
        return sample(target, True)

    def resize_batch(self, target: Tensor, size: Sequence[int]) -> Tensor:
        return resize_nearest(target, size)

    def to_tensor(self, target: Array) -> Tensor:
        return torch.from_numpy(target.astype(np.int64)[None])

    def blank(self, size: Sequence[int]) -> Labels:
        return np.full(tuple(size), IGNORED, np.uint16)

    def packed_bytes(self, size: Sequence[int]) -> int:
        return 2 * size[0] * size[1]

    def pack(self, target: Tensor) -> NDArray[np.uint8]:
        return target.flatten(1).cpu().numpy().astype(np.uint16).view(np.uint8)

    def unpack(self, packed: NDArray[np.uint8], size: Sequence[int]) -> Tensor:
        return torch.from_numpy(np.array(packed).view(np.uint16).astype(np.int64)).view(1, *size)

    def key(self) -> list[Any]:
        return [self.name, self.out_channels, self.ignore, self.first_label]

    def says_anything(self, target: Array) -> bool:
        return bool((target != IGNORED).any())

    def activate(self, prediction: Tensor) -> Tensor:
        return prediction.float().softmax(1)

    def random_targets(self, count: int, size: Sequence[int], device: torch.device) -> Tensor:
        return torch.randint(self.out_channels, (count, 1, *size), device=device)

    def finish(self, activated: Tensor, size: Sequence[int]) -> Labels:
        sized = F.interpolate(activated[None], size=tuple(size), mode="bilinear", align_corners=False)
        return sized[0].argmax(0).int().cpu().numpy().astype(np.uint16)

    def to_file(self, result: Labels) -> Labels:
        return result

    def write(self, path: Path, values: Array) -> None:
        before = [(0, 0, 0)] * self.first_label
        write_labels(path, values + self.first_label, [*before, *self.colours[:-1].tolist()])

    def fit(self, values: Array, size: Sequence[int]) -> Labels:
        if values.shape == tuple(size):
            return values
        return cv2.resize(values, tuple(size)[::-1], interpolation=cv2.INTER_NEAREST_EXACT).astype(np.uint16)

    def shown(self, values: Array) -> Array:
        return painted(values, self.colours)

    def legend(self, values: Array) -> list[tuple[str, list[int]]]:
        """The classes that are there."""
        there = [k for k in np.unique(values).tolist() if k < self.out_channels]
        return [(self.names[k], self.colours[k].tolist()) for k in there]

    def panel(self, image: Array, target: Array, values: Array) -> Array:
        """Image, target, result, the result over the image, and the names of what is in either."""
        size = panel_size(target.shape)
        picture = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        maps = [cv2.resize(x, size, interpolation=cv2.INTER_NEAREST) for x in (target, values)]
        drawn = [self.shown(x) for x in maps]
        overlay = cv2.addWeighted(picture, 0.5, drawn[1], 0.5, 0)
        return cv2.hconcat([picture, *drawn, overlay, legend(self.legend(np.union1d(*maps)), picture.shape[0])])

    def score(self, result: Any, target: Array, image: Array | None = None) -> LabelCounts:
        return score_labels(result, target, self.out_channels, self.protocol)

    def tabulate(self, scored: Iterable[tuple[int, str | None, LabelCounts]]) -> LabelTable:
        return LabelTable.of(self.out_channels, scored)

    def set_scores(self, cache_bytes: int = 0) -> SetScores:
        from e2net.metrics.semantic_modular import LabelScores  # noqa: PLC0415 - scoring files needs no torchmetrics

        return LabelScores(self.out_channels, self.protocol)

    def report_files(self, tables: Mapping[str, SetTable], seed: int) -> dict[str, Callable[[], str | bytes]]:
        """``per_class.csv``, a row a set and class; and ``confusion_<set>.png``."""
        labelled = {name: table for name, table in tables.items() if isinstance(table, LabelTable)}
        return {
            "per_class.csv": partial(self._per_class, labelled, seed),
            **{
                f"confusion_{name}.png": partial(confusion_picture, table.matrix, self.names)
                for name, table in labelled.items()
            },
        }

    def _per_class(self, tables: Mapping[str, LabelTable], seed: int) -> str:
        rows = [{"test_set": name, **row} for name, t in tables.items() for row in t.per_class(self.names, seed)]
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()


def named(classes: Any) -> dict[str, list[int]]:
    """Classes in any of the forms of :class:`Semantic` as names with colours, missing ones chosen.

    Raises:
        ValueError: they are in none of those forms, fewer than two, or more than there are labels.
    """
    if type(classes) is int:
        classes = [f"class {k}" for k in range(classes)]
    if isinstance(classes, Mapping):
        given = [(str(name), colour) for name, colour in classes.items()]
    elif isinstance(classes, list | tuple) and all(isinstance(name, str | int | float | bool) for name in classes):
        given = [(str(name), None) for name in classes]
    else:
        raise ValueError(
            "task.classes: expected a list of names, a mapping of names to [red, green, blue] or null, or a number,"
            f" found {classes!r}"
        )
    twice = sorted({name for name, _ in given if [other for other, _ in given].count(name) > 1})
    if not 2 <= len(given) < 65534 or twice:
        what = f"{twice[0]!r} twice" if twice else len(given)
        raise ValueError(f"task.classes: expected 2 to 65533 different classes, found {what}")
    chosen = class_colours(len(given))
    for name, colour in given:
        valid = isinstance(colour, list | tuple) and len(colour) == 3
        if colour is not None and not (valid and all(type(x) is int and 0 <= x <= 255 for x in colour)):
            raise ValueError(
                f"task.classes: expected {name} as [red, green, blue], 0 to 255, or null, found {colour!r}"
            )
    return {name: chosen[k] if colour is None else list(colour) for k, (name, colour) in enumerate(given)}
