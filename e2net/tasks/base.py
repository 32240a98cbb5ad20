"""What a map means: the contract between a task and everything that trains, scores, shows and writes."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, Self

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from e2net.drawing import as_rgb
from e2net.formats import EXTENSIONS
from e2net.losses.base import DenseLoss
from e2net.metrics.calibration import Calibration
from e2net.metrics.protocol import ResultProtocol
from e2net.metrics.table import SetTable

Array = NDArray[Any]
Direction = Literal["max", "min"]
# Samples (h, w) or (h, w, C) uint8 anew, by the nearest pixel where it says so, else bilinearly.
Sampler = Callable[[Array, bool], Array]


# What is said of the targets beside the data, such as {"classes": [...]}; read when it is called.
About = Callable[[], Mapping[str, Any]]


# What is wrong stops a training or makes its results wrong; what is suspect may; a note is worth knowing.
Severity = Literal["error", "warning", "note"]


class Suspicion(NamedTuple):
    """Something about a target that can be read and may be wrong all the same.

    Attributes:
        kind: of the task's ``suspicions``.
        words: what was found.
    """

    kind: str
    severity: Severity
    words: str


class Group(NamedTuple):
    """Images that have something in common.

    Attributes:
        name: short, unique among those of its grouping.
        meaning: when an image is in it.
    """

    name: str
    meaning: str


class Grouping(NamedTuple):
    """A way to tell images apart: each is in exactly one of the groups, whatever other images there are.

    Attributes:
        name: short, unique.
        meaning: what is measured, and how.
        groups: in their order.
    """

    name: str
    meaning: str
    groups: tuple[Group, ...]


class Placed(NamedTuple):
    """Where an image belongs.

    Attributes:
        groups: its place among the groups of each of the task's ``groupings``.
        values: the measure behind each, NaN where there is none.
    """

    groups: tuple[int, ...]
    values: tuple[float, ...]


class SetScores(Protocol):
    """Collects the scores of one set's images, in one process or several; a torchmetrics class."""

    def score(
        self, result: Any, target: Array, index: int | None = None, image: Callable[[], Array | None] | None = None
    ) -> Any:
        """What is known of one image, for ``add``; runs beside the network, in another thread."""
        ...

    def add(self, index: int | None, scored: Any, name: str | None = None) -> None:
        """Collects one image."""
        ...

    def compute(self) -> dict[str, Tensor]:
        """Score name to value; in several processes a collective call."""
        ...

    def table(self) -> SetTable:
        """A row an image; in several processes a collective call."""
        ...

    def reset(self) -> None:
        """Forgets all images."""
        ...

    def forget(self) -> None:
        """Drops what is kept of targets: the indices will mean others from here on."""
        ...


class Task(ABC):
    """One kind of dense prediction; all that training, evaluation, prediction and comparison know of it.

    A target is what a file holds, at its own size, in one canonical form, (h, w) or with channels (h, w, C); a result
    is what is scored, shown and written, at the target's size, of such a shape as well. In a batch targets are
    (B, 1, H, W), or with channels (B, C, H, W).

    Attributes:
        protocol: how a result is prepared before it is scored.
        out_channels: K of the network's prediction (B, K, H, W).
        scores: names of the scores in their columns' order.
    """

    # In folders, file names and messages.
    name: ClassVar[str]
    # What a target is called in messages.
    target_name: ClassVar[str]
    # Folders of targets beside the images, in any case.
    target_folders: ClassVar[tuple[str, ...]]
    # How the files of targets and of results may end.
    extensions: ClassVar[tuple[str, ...]] = EXTENSIONS
    # What to do where no target of a set says anything.
    silence: ClassVar[str] = ""
    # What the Hugging Face Hub calls such models, for the card of one.
    pipeline: ClassVar[str] = "image-segmentation"
    # What ``ProceduralPairs`` draws for it.
    generated: ClassVar[str]
    # Of all scores that there may be, which way is better.
    directions: ClassVar[Mapping[str, Direction]]
    # The score that chooses the checkpoint, and those in the progress bar.
    monitor: ClassVar[str]
    headline: ClassVar[tuple[str, ...]]
    # The columns of a paper's table: score, its heading in LaTeX and in Markdown.
    paper_columns: ClassVar[tuple[tuple[str, str, str], ...]]
    # Of the protocol, what tables name; the JSON file has all of it.
    protocol_fields: ClassVar[tuple[str, ...]] = ()
    # What can be suspect about a target: kind, and what it means.
    suspicions: ClassVar[Mapping[str, str]] = {}
    # What can be odd about a result on disk without stopping the evaluation: kind, in words.
    problems: ClassVar[Mapping[str, str]] = {"resized": "not of the target's size, resized"}
    # Settings that say how files are read, not what a network has learned: an evaluation may have others.
    of_files: ClassVar[tuple[str, ...]] = ()
    # Of what ``report_files`` writes, patterns of the names.
    extra_files: ClassVar[tuple[str, ...]] = ()
    # Scores that look at the image.
    image_scores: ClassVar[tuple[str, ...]] = ()
    # Scores of a set that are no mean of its images' scores, and so in no bootstrap of their differences.
    set_scores_only: ClassVar[tuple[str, ...]] = ()
    # Whether a result is of objects before a background, ``soft`` being how certain each pixel is of an object, (h, w)
    # in [0, 1]: then there are masks by a threshold, cut-outs, and lists of objects.
    objects: ClassVar[bool] = False
    # How ``place`` tells images apart: first by the kind of error of their results, whose last is none. Empty: it does
    # not.
    groupings: ClassVar[tuple[Grouping, ...]] = ()
    # What a ``panel`` shows, from left to right.
    panel_caption: ClassVar[str] = "image, target, result"

    protocol: ResultProtocol
    out_channels: int
    scores: tuple[str, ...]

    # Targets

    @abstractmethod
    def read_target(self, path: Path) -> Array:
        """The target in a file, (h, w) in canonical form.

        Raises:
            ValueError: the file cannot be decoded, or is no such target.
        """

    @abstractmethod
    def canonical(self, target: Array) -> Array:
        """A target that some source gives, in the one form that all other code relies on.

        Raises:
            TypeError: it has another type or shape.
        """

    @abstractmethod
    def resample(self, target: Array, sample: Sampler) -> Array:
        """A target moved with its image: by the nearest pixel, or between pixels, as its meaning asks for."""

    @abstractmethod
    def resize_batch(self, target: Tensor, size: Sequence[int]) -> Tensor:
        """Targets (B, 1, H, W) of a batch at another size."""

    def moved(self, target: Array, linear: Array, zoom: float) -> Array:
        """A target that ``resample`` has moved, where its values themselves depend on how the image lies.

        Args:
            target: moved.
            linear: (2, 2), by which (x, y) in the moved target becomes (x, y) in the original.
            zoom: how many times larger (a side) things are than in the whole image at the same size.
        """
        return target

    def mirrored(self, values: Tensor) -> Tensor:
        """Targets or activated predictions (B, C, H, W) as those of the mirror images."""
        return values.flip(-1)

    @abstractmethod
    def to_tensor(self, target: Array) -> Tensor:
        """(H, W) canonical -> (1, H, W), what the loss takes."""

    def foreground(self, target: Array) -> NDArray[np.bool_] | None:
        """(h, w) bool, what a random crop should keep at least half of; None: any crop is good."""
        return None

    def packed_bytes(self, size: Sequence[int]) -> int:
        """How many bytes ``pack`` makes of one target of (H, W)."""
        return self.to_tensor(self.resample(self.blank(size), lambda array, _: array)).nbytes

    @abstractmethod
    def blank(self, size: Sequence[int]) -> Array:
        """A target of (H, W) that says nothing, for images without one."""

    def pack(self, target: Tensor) -> NDArray[np.uint8]:
        """Targets (B, 1, H, W) -> (B, n) bytes, for the feature cache."""
        return target.cpu().contiguous().numpy().reshape(len(target), -1).view(np.uint8)

    def unpack(self, packed: NDArray[np.uint8], size: Sequence[int]) -> Tensor:
        """What ``pack`` made of one target, (1, H, W), or with channels (C, H, W)."""
        like = self.to_tensor(self.blank((1, 1)))
        return torch.from_numpy(np.array(packed)).view(like.dtype).view(len(like), *size)

    def digest(self, target: Array) -> str:
        """SHA-256 of a target: its size and its values, whatever its file's format."""
        return hashlib.sha256(f"{target.shape[0]}x{target.shape[1]}".encode() + target.tobytes()).hexdigest()

    def says_anything(self, target: Array) -> bool:
        """Whether a target (h, w) holds anything to learn or to score; a set in which none does is refused."""
        return True

    def suspect(self, target: Array) -> list[Suspicion]:
        """What is suspect about a target in canonical form; cheap, as training asks it of every target."""
        return []

    def inspect_target(self, path: Path) -> tuple[Array, list[Suspicion]]:
        """The target in a file, in canonical form, and all that is suspect about it: what the file alone shows, too.

        Raises:
            ValueError: see :meth:`read_target`.
        """
        target = self.canonical(self.read_target(path))
        return target, self.suspect(target)

    def key(self) -> Any:
        """What the canonical targets depend on beside their files, for JSON."""
        return self.name

    # The network

    def convert(self, maps: Tensor) -> Tensor:
        """What a decoder's last layer gives, (B, out_channels, h, w) at any resolution, as its prediction."""
        return maps

    @abstractmethod
    def activate(self, prediction: Tensor) -> Tensor:
        """The prediction (B, K, H, W) as what may be averaged over scales, windows and mirror images, (B, C, H, W)."""

    def sharpened(self, activated: Tensor, factor: float) -> Tensor:
        """Activated predictions of a task with ``objects``, their log-odds times a factor from 0 to 100."""
        raise NotImplementedError

    @classmethod
    def resolve(cls, settings: Mapping[str, Any], about: About) -> dict[str, Any]:
        """A task's settings with what they leave to the data filled in, as a checkpoint stores them.

        Args:
            settings: the ``task`` group of a resolved config.
            about: gives what the data say of their targets.

        Raises:
            ValueError: the data say something else than such a task asks.
        """
        return dict(settings)

    def prepare_loss(self, loss: DenseLoss, targets: Iterable[Array]) -> None:  # noqa: B027 - most need nothing
        """Gives a loss what it needs to know of the training set.

        Args:
            loss: of the run.
            targets: all training targets, one by one; read only where they are looked at.
        """

    def random_targets(self, count: int, size: Sequence[int], device: torch.device) -> Tensor:
        """Targets (B, 1, H, W) as a training batch has them, of no meaning: for trials of memory and time."""
        one = self.to_tensor(self.blank(size)).to(device)
        return one.expand(count, *one.shape).contiguous()

    # Results

    @abstractmethod
    def finish(self, activated: Tensor, size: Sequence[int]) -> Any:
        """The result of one image: (C, H, W) on any device -> what is scored, (h, w) on the CPU."""

    def soft(self, activated: Tensor, size: Sequence[int]) -> Any:
        """The same for people, before any rounding or threshold that is for scoring only; ``to_file`` takes it too."""
        return self.finish(activated, size)

    @abstractmethod
    def to_file(self, result: Any) -> Array:
        """A result as it stands in a file, (h, w)."""

    @abstractmethod
    def write(self, path: Path, values: Array) -> None:
        """Writes what ``to_file`` gave, whole or not at all."""

    @abstractmethod
    def read_result(self, path: Path) -> Array:
        """A result that any method has written, (h, w).

        Raises:
            ValueError: the file cannot be decoded, or is no such result.
        """

    @abstractmethod
    def fit(self, values: Array, size: Sequence[int]) -> Any:
        """A result as it was read, at the target's size (h, w), as it is scored."""

    def oddities(self, path: Path, values: Array, target: Array) -> list[str]:
        """Which of ``problems`` a result on disk has."""
        return ["resized"] if values.shape[:2] != target.shape[:2] else []

    @abstractmethod
    def panel(self, image: Array, target: Array, values: Array) -> Array:
        """Image (H, W, 3) uint8 RGB, target and result (as in a file) side by side, (PANEL, w, 3) uint8 RGB."""

    def shown(self, values: Array) -> Array:
        """A target, or a result as in a file, as a picture: (h, w) bool or uint8, or (h, w, 3) uint8 RGB."""
        return values

    def legend(self, values: Array) -> list[tuple[str, list[int]]]:
        """What the colours of ``shown`` mean: names and [red, green, blue], 0 to 255; empty where nobody needs to ask.

        Args:
            values: what is shown.
        """
        return []

    def side_by_side(self, target: Array, *results: Array) -> list[Array]:
        """A target and results, as in files, as pictures (h, w, 3) uint8 RGB in which equal colours mean the same."""
        return [as_rgb(self.shown(values)) for values in (target, *results)]

    def overlay(self, image: Array, values: Array) -> Array:
        """Image (h, w, 3) uint8 RGB with a result, as in a file and of the same size, drawn over it; RGB as well."""
        return cv2.addWeighted(image, 0.5, as_rgb(self.shown(values)), 0.5, 0)

    def target_overlay(self, image: Array, target: Array) -> Array:
        """Image (h, w, 3) uint8 RGB with a target of the same size drawn over it; RGB as well."""
        return cv2.addWeighted(image, 0.5, as_rgb(self.shown(target)), 0.5, 0)

    # Scores

    @abstractmethod
    def score(self, result: Any, target: Array, image: Array | None = None) -> Any:
        """What is known of one image; goes between processes."""

    def place(self, result: Any, target: Array, image: Array | None = None) -> Placed:
        """Where an image belongs in each of ``groupings``, by its target, its result as it is scored, and itself.

        Args:
            result: as for ``score``.
            target: as for ``score``.
            image: (h, w, 3) uint8 RGB of any size; None where it is not at hand.
        """
        raise NotImplementedError(f"task={self.name} has no groupings")

    @abstractmethod
    def tabulate(self, scored: Iterable[tuple[int, str | None, Any]]) -> SetTable:
        """The table of a set from index, name and ``score`` of its images."""

    @abstractmethod
    def set_scores(self, cache_bytes: int = 0) -> SetScores:
        """A new collector for one set, which is a torchmetrics class.

        Args:
            cache_bytes: memory for what depends on targets alone, which come again in every validation.
        """

    def calibration(self, table: SetTable) -> Calibration | None:
        """How far a set's results are probabilities of objects; None where they are none."""
        return None

    def report_files(self, tables: Mapping[str, SetTable], seed: int) -> dict[str, Callable[[], str | bytes]]:
        """What a report has beside what every task's has: file names, of ``extra_files``, and what makes their content.

        Args:
            tables: of all sets, by name.
            seed: of intervals.
        """
        return {}

    def with_scores(self, extra: Sequence[str]) -> Self:
        """The same task with more scores.

        Raises:
            ValueError: it has no such scores.
        """
        if extra:
            raise ValueError(
                f"scores={list(extra)}: task={self.name} has its own alone, {', '.join(self.scores)}; leave it out"
            )
        return self

    def binarised(self) -> Self | None:
        """The same task, scoring each result's decision instead; None where that means nothing."""
        return None


def resize_nearest(target: Tensor, size: Sequence[int]) -> Tensor:
    """Targets (B, 1, H, W) of any type at another size, each pixel that of the nearest old one."""
    if target.shape[-2:] == tuple(size):
        return target
    return F.interpolate(target.double(), size=tuple(size), mode="nearest-exact").to(target.dtype)
