"""Camouflaged and salient objects: one soft mask an image."""

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from e2net.drawing import GREEN, RED, panel_size, tinted
from e2net.formats import is_jpeg, read_header, read_map, read_mask, read_mask_levels, write_map
from e2net.losses.base import DenseLoss
from e2net.metrics.calibration import Calibration
from e2net.metrics.functional import pair
from e2net.metrics.protocol import MaskProtocol, to_map
from e2net.metrics.scoring import (
    ALL_SCORES,
    DEFAULT_SCORES,
    EXTRA_SCORES,
    IMAGE_SCORES,
    ImageScores,
    OwnScores,
    check_scores,
    score_map,
)
from e2net.metrics.table import ScoreTable, SetTable
from e2net.structures import canonical_mask
from e2net.tasks.base import Array, Placed, Sampler, SetScores, Suspicion, Task
from e2net.tasks.objects import GROUPINGS, place_object

# Scores of which less is better.
_LOWER = frozenset({"MAE", "BER", "bMAE"})
# Of the border and of all pixels: an object that takes more of both is rare, an inverted mask seldom has less. (Of 996
# masks of CAMO none has, inverted 99 %; of 200 of salient objects 1 %.)
_INVERTED_BORDER, _INVERTED_AREA = 0.8, 0.5
# Of all pixels that are neither black nor white: more than what smooth edges have.
_GREY = 0.05


@dataclasses.dataclass(frozen=True)
class Camouflage(Task):
    """One logit a pixel; targets are masks (h, w) bool, results 8-bit maps (h, w).

    Args:
        protocol: how a map is prepared before it is scored; by default as published tables.
        scores: out of ``e2net.metrics.ALL_SCORES`` and ``own_scores``.
    """

    protocol: MaskProtocol = dataclasses.field(default_factory=MaskProtocol)
    scores: tuple[str, ...] = DEFAULT_SCORES

    out_channels = 1
    name = "camouflage"
    target_name = "mask"
    target_folders = ("GT", "Mask", "Masks")
    generated = "mask"
    directions = {score: "min" if score in _LOWER else "max" for score in ALL_SCORES}  # noqa: RUF012 - a constant
    monitor = "S"
    headline = ("S", "MAE")
    paper_columns = (
        ("S", r"$S_\alpha\uparrow$", "S ↑"),
        ("Emean", r"$E_\phi\uparrow$", "E ↑"),
        ("wF", r"$F_\beta^w\uparrow$", "wF ↑"),
        ("MAE", r"$M\downarrow$", "MAE ↓"),
    )
    protocol_fields = ("quantise", "normalize", "binarise")
    suspicions = {  # noqa: RUF012
        "empty": "No object in the mask. Right for pictures without one, but such a mask teaches that there is none.",
        "full": "The object is the whole picture.",
        "inverted": "The object covers most of the border and of the picture: black and white exchanged? By a rule of "
        f"thumb, more than {_INVERTED_BORDER:.0%} of the border and {_INVERTED_AREA:.0%} of all pixels.",
        "not binary": f"More than {_GREY:.0%} of the pixels are neither black nor white. What is above half counts as "
        "object.",
        "grey edges": "Some pixels are neither black nor white, as smooth edges or JPEG leave them. What is above half "
        "counts as object.",
        "mask file": "Not 8-bit or bilevel grey: e2net reads it right, other tools may not.",
    }
    problems = {  # noqa: RUF012
        "resized": "not of the mask's size, resized bilinearly",
        "lossy": "JPEG: compression has changed the values",
        "dark": "no value above 1 of 255: saved as 0/1 instead of 0 to 255?",
    }
    image_scores = IMAGE_SCORES
    # Further ones of a subclass, whose ``directions`` have them too.
    own_scores: ClassVar[OwnScores] = {}
    # Maxima over mean curves.
    set_scores_only = ("Fmax", "Emax", "FmaxPR")
    objects = True
    groupings = GROUPINGS
    panel_caption = "picture, mask, map; then found in green, missing in red"

    def read_target(self, path: Path) -> NDArray[np.bool_]:
        return read_mask(path)

    def canonical(self, target: Array) -> NDArray[np.bool_]:
        if target.dtype != np.bool_ or target.ndim != 2:
            raise TypeError(f"expected a mask (h, w) bool, found {target.shape} {target.dtype}")
        return canonical_mask(target)

    def resample(self, target: Array, sample: Sampler) -> NDArray[np.bool_]:
        return sample(target.astype(np.uint8) * 255, False) > 127

    def resize_batch(self, target: Tensor, size: Sequence[int]) -> Tensor:
        resized = F.interpolate(target, size=tuple(size), mode="bilinear", align_corners=False, antialias=True)
        return (resized > 0.5).to(target.dtype)

    def to_tensor(self, target: Array) -> Tensor:
        return torch.from_numpy(target.astype(np.float32)[None])

    def foreground(self, target: Array) -> NDArray[np.bool_] | None:
        return target

    def blank(self, size: Sequence[int]) -> NDArray[np.bool_]:
        return np.zeros(tuple(size), np.bool_)

    def packed_bytes(self, size: Sequence[int]) -> int:
        return -(-size[0] * size[1] // 8)

    def pack(self, target: Tensor) -> NDArray[np.uint8]:
        return np.packbits(target.flatten(1).cpu().numpy() > 0.5, axis=1)

    def unpack(self, packed: NDArray[np.uint8], size: Sequence[int]) -> Tensor:
        bits = np.unpackbits(packed, count=size[0] * size[1])
        return torch.from_numpy(bits.astype(np.float32)).view(1, *size)

    def digest(self, target: Array) -> str:
        shape = f"{target.shape[0]}x{target.shape[1]}".encode()
        return hashlib.sha256(shape + np.packbits(target).tobytes()).hexdigest()

    def prepare_loss(self, loss: DenseLoss, targets: Iterable[Array]) -> None:
        if not any(target.any() for target in targets):
            raise ValueError(
                "the training set has no object: all of its masks are empty. Is an object 255 in them? See "
                "data/README.md."
            )

    def suspect(self, target: Array) -> list[Suspicion]:
        area = float(target.mean())
        if area in (0, 1):
            return [Suspicion("full" if area else "empty", "warning", "all pixels are object" if area else "no object")]
        border = float(np.concatenate([target[0], target[-1], target[1:-1, 0], target[1:-1, -1]]).mean())
        if border > _INVERTED_BORDER and area > _INVERTED_AREA:
            return [
                Suspicion("inverted", "warning", f"object on {border:.0%} of the border and {area:.0%} of the picture")
            ]
        return []

    def inspect_target(self, path: Path) -> tuple[NDArray[np.bool_], list[Suspicion]]:
        target, between, doubtful = read_mask_levels(path)
        found = self.suspect(target)
        if doubtful > _GREY:
            found.append(Suspicion("not binary", "warning", f"{doubtful:.0%} of the pixels are grey"))
        elif between > 0:
            found.append(Suspicion("grey edges", "note", f"{between:.1%} of the pixels are neither black nor white"))
        header = read_header(path)
        if header is not None and (traps := [*header.traps(), *["JPEG"] * (header.format == "JPEG")]):
            found.append(Suspicion("mask file", "note", ", ".join(traps)))
        return target, found

    def activate(self, prediction: Tensor) -> Tensor:
        return prediction.float().sigmoid()

    def sharpened(self, activated: Tensor, factor: float) -> Tensor:
        prob = activated.clamp(0, 1)  # a sum of weights may end a rounding error above 1
        object_, rest = prob**factor, (1 - prob) ** factor
        return object_ / (object_ + rest)

    def random_targets(self, count: int, size: Sequence[int], device: torch.device) -> Tensor:
        return (torch.rand(count, 1, *size, device=device) > 0.5).float()

    def finish(self, activated: Tensor, size: Sequence[int]) -> Tensor:
        return self.protocol.resize_map(activated[0], (size[0], size[1])).cpu()

    def soft(self, activated: Tensor, size: Sequence[int]) -> Tensor:
        # At the device, as evaluation does it: the same rounding.
        native = F.interpolate(activated[None], size=tuple(size), mode="bilinear", align_corners=False)
        # A sum of weights may end a rounding error above 1.
        return native[0, 0].clamp_(0, 1).cpu()

    def to_file(self, result: Tensor) -> NDArray[np.uint8]:
        return (result if result.dtype == torch.uint8 else to_map(result, (result.shape[0], result.shape[1]))).numpy()

    def write(self, path: Path, values: Array) -> None:
        write_map(path, values)

    def read_result(self, path: Path) -> NDArray[np.uint8]:
        return read_map(path)

    def fit(self, values: Array, size: Sequence[int]) -> Array | Tensor:
        if values.shape == tuple(size):
            return values
        return self.protocol.resize_map(torch.from_numpy(values).double() / 255, (size[0], size[1]))

    def oddities(self, path: Path, values: Array, target: Array) -> list[str]:
        found = super().oddities(path, values, target)
        return found + ["lossy"] * is_jpeg(path) + ["dark"] * (int(values.max()) == 1)

    def panel(self, image: Array, target: Array, values: Array) -> Array:
        """Image, mask, map and overlay: what is predicted is green, and what the mask has outside of it red."""
        size = panel_size(target.shape)
        picture = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        truth = cv2.resize(target.astype(np.uint8) * 255, size, interpolation=cv2.INTER_NEAREST)
        predicted = cv2.resize(values, size, interpolation=cv2.INTER_LINEAR)
        found = predicted > 127
        overlay = picture.copy()
        for where, colour in ((found, GREEN), ((truth > 127) & ~found, RED)):
            overlay[where] = (0.5 * overlay[where] + 0.5 * np.array(colour)).astype(np.uint8)
        grey = [cv2.cvtColor(x, cv2.COLOR_GRAY2RGB) for x in (truth, predicted)]
        return cv2.hconcat([picture, *grey, overlay])

    def overlay(self, image: Array, values: Array) -> Array:
        return tinted(image, values > 127)

    def target_overlay(self, image: Array, target: Array) -> Array:
        return tinted(image, target)

    def score(self, result: Any, target: Array, image: Array | None = None) -> ImageScores:
        return score_map(result, target, protocol=self.protocol, scores=self.scores, image=image, own=self.own_scores)

    def place(self, result: Any, target: Array, image: Array | None = None) -> Placed:
        prepared, geometry = pair(result, target, self.protocol, None)
        return place_object(prepared.decision(), geometry.mask, image)

    def tabulate(self, scored: Iterable[tuple[int, str | None, ImageScores]]) -> ScoreTable:
        return ScoreTable.of(self.scores, scored)

    def set_scores(self, cache_bytes: int = 0) -> SetScores:
        from e2net.metrics.modular import MapScores  # noqa: PLC0415 - scoring files needs no torchmetrics

        return MapScores(self.protocol, self.scores, cache_bytes, self.own_scores)

    def calibration(self, table: SetTable) -> Calibration | None:
        assert isinstance(table, ScoreTable)
        return None if self.protocol.binarise else table.calibration()

    def with_scores(self, extra: Sequence[str]) -> Self:
        listed = isinstance(extra, (list, tuple))
        if not listed or len(set(extra) & set(EXTRA_SCORES)) != len(extra):
            raise ValueError(
                f"expected scores as a list of further scores, each once, out of {', '.join(EXTRA_SCORES)}"
                f" ({', '.join(DEFAULT_SCORES)} are always there), found {extra!r}"
            )
        own = [score for score in self.own_scores if score in self.scores]
        return dataclasses.replace(self, scores=check_scores((*DEFAULT_SCORES, *own, *extra), own))

    def binarised(self) -> Self | None:
        if self.protocol.binarise:
            raise ValueError("binarised_too=true beside protocol.binarise=true would score the same twice; drop one")
        return dataclasses.replace(self, protocol=dataclasses.replace(self.protocol, binarise=True))
