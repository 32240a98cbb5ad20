"""Depth from one image: metres at every pixel."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from e2net.drawing import coloured, panel_size, scale_bar
from e2net.formats import EXTENSIONS, read_depth, write_map
from e2net.losses.depth import bins_to_depth
from e2net.metrics.depth import HIGHER_IS_BETTER, DepthProtocol, score_depth
from e2net.metrics.depth_set import DepthTable
from e2net.structures import plain
from e2net.tasks.base import Array, Sampler, SetScores, Suspicion, Task, resize_nearest

Head = Literal["regression", "bins"]

# A file whose median is nearer than a thousandth of the maximum, or farther than ten times it, is in another unit.
_NEAREST, _FARTHEST = 1e-3, 10.0
# Pixels that suffice for the median.
_SAMPLE = 10_000
_LARGEST = 65535
# Of the known depths beyond the range, from where on it is suspect.
_OUTSIDE = 0.05


@dataclasses.dataclass(frozen=True)
class Depth(Task):
    """Metres; targets are (h, w) float32 with 0 where depth is unknown, results 16-bit maps (h, w).

    Args:
        protocol: what is scored; by default all pixels from 0.001 to 10 m.
        head: ``bins``: the decoder gives weights of ``bins`` depths, spaced linearly over the range, as DINO's linear
            probe does; ``regression``: it gives one number, whose sigmoid is a share of the range.
        bins: how many.
        minimum, maximum: metres; the range of predictions. Pixels beyond it are not learned from.
        scale: metres in one unit of target files of whole numbers.
        result_scale: metres in one unit of the result files.
        fixed_camera: all images, those of the test too, are whole images of one camera. A crop that training enlarges
            then looks as if taken from nearer, and its depth is divided by the enlargement (the label transform of
            Metric3D, Yin et al. 2023). Without it a crop keeps its depth.

    Raises:
        ValueError: an empty range, an unknown head, or a range that 16 bits cannot hold.
    """

    protocol: DepthProtocol = dataclasses.field(default_factory=DepthProtocol)
    head: Head = "regression"
    bins: int = 256
    minimum: float = 0.001
    maximum: float = 10.0
    scale: float = 0.001
    result_scale: float = 0.001
    fixed_camera: bool = False

    name = "depth"
    target_name = "depth map"
    target_folders = ("Depth", "Depths")
    extensions = (*EXTENSIONS, ".npy", ".exr")
    silence = "Expected metres between task.minimum and task.maximum: set those, or task.scale."
    pipeline = "depth-estimation"
    generated = "depth"
    directions = {score: "max" if up else "min" for score, up in HIGHER_IS_BETTER.items()}  # noqa: RUF012 - a constant
    scores = tuple(HIGHER_IS_BETTER)
    monitor = "RMSE"
    headline = ("RMSE", "AbsRel")
    paper_columns = (
        ("AbsRel", r"AbsRel$\downarrow$", "AbsRel ↓"),
        ("RMSE", r"RMSE$\downarrow$", "RMSE ↓"),
        ("log10", r"$\log_{10}\downarrow$", "log10 ↓"),
        ("d1", r"$\delta_1\uparrow$", "δ1 ↑"),
    )
    of_files = ("scale", "result_scale")
    protocol_fields = ("minimum", "maximum", "median_scaling", "eigen_crop")
    suspicions = {  # noqa: RUF012
        "empty": "No pixel has a depth that is known and between task.minimum and task.maximum: nothing to learn.",
        "out of range": f"More than {_OUTSIDE:.0%} of the known depths are not between task.minimum and task.maximum: "
        "they are not learned from, and predictions never reach them.",
        "mostly unknown": "More than half of the pixels have no depth.",
        "not finite": "NaN or infinity stands for an unknown depth: e2net reads it so, other tools may not.",
        "negative": "Negative depths: e2net takes them as unknown.",
    }
    problems = {  # noqa: RUF012
        "resized": "not of the target's size, resized bilinearly",
        "holes": "without a depth at some pixels, which count as protocol.minimum",
    }

    def __post_init__(self) -> None:
        if self.head not in get_args(Head):
            raise ValueError(f"task.head={self.head}: expected one of {', '.join(get_args(Head))}")
        if not 0 < self.minimum < self.maximum:
            raise ValueError(
                f"expected 0 < task.minimum < task.maximum in metres, found {self.minimum} and {self.maximum}"
            )
        if self.head == "bins" and self.bins < 2:
            raise ValueError(f"task.bins={self.bins}: expected at least 2")
        for key in ("scale", "result_scale"):
            if not getattr(self, key) > 0:
                raise ValueError(f"task.{key}={getattr(self, key)}: expected metres above 0")
        if self.maximum > _LARGEST * self.result_scale:
            raise ValueError(
                f"task.maximum={self.maximum}: result files hold at most {_LARGEST * self.result_scale:g} m; give"
                f" task.result_scale={self.maximum / _LARGEST:.2g} or more (metres in one of their units)"
            )

    @property
    def out_channels(self) -> int:  # type: ignore[override]
        """Of a decoder: the bins, or one."""
        return self.bins if self.head == "bins" else 1

    # Targets

    def read_target(self, path: Path) -> NDArray[np.float32]:
        return self._canonical(path, read_depth(path, self.scale))

    def _canonical(self, path: Path, metres: Array) -> NDArray[np.float32]:
        target = self.canonical(metres)
        self._check_unit(path, target, "task.scale, the metres in one unit of the file")
        return target

    def suspect(self, target: Array) -> list[Suspicion]:
        if not self.says_anything(target):
            return [Suspicion("empty", "warning", "no known depth in the range")]
        known = target > 0
        count, inside = int(known.sum()), int(((target >= self.minimum) & (target <= self.maximum)).sum())
        found = []
        if inside < (1 - _OUTSIDE) * count:
            share, low, high = 1 - inside / count, float(target[known].min()), float(target.max())
            words = f"{share:.0%} of the known depths, which are {low:.3g} to {high:.3g} m"
            found.append(Suspicion("out of range", "warning", words))
        if count < target.size / 2:
            found.append(Suspicion("mostly unknown", "note", f"{1 - count / target.size:.0%} of the pixels"))
        return found

    def inspect_target(self, path: Path) -> tuple[NDArray[np.float32], list[Suspicion]]:
        metres = read_depth(path, self.scale)
        target = self._canonical(path, metres)
        found = self.suspect(target)
        finite = np.isfinite(metres)
        if not finite.all():
            found.append(Suspicion("not finite", "note", f"{1 - float(finite.mean()):.1%} of the pixels"))
        if (metres[finite] < 0).any():
            found.append(Suspicion("negative", "warning", f"down to {float(metres[finite].min()):.3g} m"))
        return target, found

    def _check_unit(self, path: Path, metres: Array, remedy: str) -> None:
        """Refuses a file whose median depth no scene of this range has."""
        step = max(1, int((metres.size / _SAMPLE) ** 0.5))
        sample = metres[::step, ::step]
        sample = sample[sample > 0]
        median = float(np.median(sample)) if sample.size else None
        if median is not None and not self.maximum * _NEAREST <= median <= self.maximum * _FARTHEST:
            raise ValueError(
                f"{path}: its median depth is {median:.3g} m, far from task.maximum={self.maximum:g} m: in another"
                f" unit? Set {remedy}, or task.maximum."
            )

    def canonical(self, target: Array) -> NDArray[np.float32]:
        if not np.issubdtype(target.dtype, np.floating) or target.ndim != 2:
            raise TypeError(f"expected a depth map (h, w) of metres as floats, found {target.shape} {target.dtype}")
        target = target.astype(np.float32, copy=False)
        known = np.isfinite(target) & (target > 0)
        return plain(target) if known.all() else np.where(known, target, np.float32(0))

    def says_anything(self, target: Array) -> bool:
        return bool(((target >= self.minimum) & (target <= self.maximum)).any())

    def resample(self, target: Array, sample: Sampler) -> NDArray[np.float32]:
        # Between an object and what lies behind it is no depth.
        return sample(target, True)

    def moved(self, target: Array, linear: Array, zoom: float) -> NDArray[np.float32]:
        return (target / zoom).astype(np.float32) if self.fixed_camera else target

    def key(self) -> list[Any]:
        return [self.name, self.minimum, self.maximum, self.scale, self.fixed_camera]

    def resize_batch(self, target: Tensor, size: Sequence[int]) -> Tensor:
        return resize_nearest(target, size)

    def to_tensor(self, target: Array) -> Tensor:
        inside = (target >= self.minimum) & (target <= self.maximum)
        return torch.from_numpy(np.where(inside, target, np.float32(0))[None])

    def blank(self, size: Sequence[int]) -> NDArray[np.float32]:
        return np.zeros(tuple(size), np.float32)

    # The network

    def convert(self, maps: Tensor) -> Tensor:
        """The decoder's maps (B, out_channels, h, w) -> (B, 1, h, w) metres, float32 or better."""
        if self.head == "bins":
            return bins_to_depth(maps, self.minimum, self.maximum)
        return self.minimum + (self.maximum - self.minimum) * maps.float().sigmoid()

    def activate(self, prediction: Tensor) -> Tensor:
        return prediction.float()

    def random_targets(self, count: int, size: Sequence[int], device: torch.device) -> Tensor:
        share = torch.rand(count, 1, *size, device=device)
        return self.minimum + (self.maximum - self.minimum) * share

    # Results

    def finish(self, activated: Tensor, size: Sequence[int]) -> NDArray[np.uint16]:
        return self._units(_resized(activated.float(), size).cpu().numpy())

    def _units(self, metres: Array) -> NDArray[np.uint16]:
        units = np.rint(metres.astype(np.float64) / self.result_scale)
        return units.clip(1, _LARGEST).astype(np.uint16)  # 0 would say that nothing is known

    def _metres(self, values: Array) -> NDArray[np.float64]:
        return values * self.result_scale if values.dtype == np.uint16 else values.astype(np.float64)

    def to_file(self, result: Any) -> Array:
        return result if result.dtype == np.uint16 else self._units(result)

    def write(self, path: Path, values: Array) -> None:
        write_map(path, values)

    def read_result(self, path: Path) -> NDArray[np.float32]:
        """Metres, 0 where the file has no depth."""
        metres = read_depth(path, self.result_scale)
        if not np.isfinite(metres).all():
            raise ValueError(f"{path}: expected metres everywhere, found {(~np.isfinite(metres)).sum()} pixels without")
        self._check_unit(path, metres, "task.result_scale, the metres in one unit of result files")
        return metres

    def fit(self, values: Array, size: Sequence[int]) -> NDArray[np.float64]:
        metres = self._metres(values)
        if metres.shape == tuple(size):
            return metres
        return _resized(torch.from_numpy(metres)[None], size).numpy()

    def oddities(self, path: Path, values: Array, target: Array) -> list[str]:
        return super().oddities(path, values, target) + ["holes"] * bool((values <= 0).any())

    def shown(self, values: Array) -> Array:
        metres = self._metres(values)
        return coloured(metres, *_range(metres, metres))

    def legend(self, values: Array) -> list[tuple[str, list[int]]]:
        """The ends of the scale and its middle."""
        metres = self._metres(values)
        low, high = _range(metres, metres)
        levels = np.array([low, (low + high) / 2, high])
        colours = coloured(np.maximum(levels, 1e-9)[:, None], low, high)[:, 0]
        return [(f"{level:.2f} m", colour.tolist()) for level, colour in zip(levels, colours, strict=True)]

    def side_by_side(self, target: Array, *results: Array) -> list[Array]:
        """In the colours of one scale, that of the target."""
        metres = [self._metres(values) for values in results]
        low, high = _range(target, metres[0])
        return [coloured(x, low, high) for x in (target, *metres)]

    def panel(self, image: Array, target: Array, values: Array) -> Array:
        """Image, target and result in the colours of one scale, which stands beside them; unknown depth is black."""
        size = panel_size(target.shape)
        picture = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        truth = cv2.resize(target, size, interpolation=cv2.INTER_NEAREST)
        predicted = cv2.resize(self._metres(values), size, interpolation=cv2.INTER_LINEAR)
        low, high = _range(truth, predicted)
        shown = [coloured(x, low, high) for x in (truth, predicted)]
        return cv2.hconcat([picture, *shown, scale_bar(size[1], low, high, "m")])

    # Scores

    def score(self, result: Any, target: Array, image: Array | None = None) -> dict[str, float]:
        return score_depth(self._metres(result), target, self.protocol)

    def tabulate(self, scored: Iterable[tuple[int, str | None, Mapping[str, float]]]) -> DepthTable:
        return DepthTable.of(scored)

    def set_scores(self, cache_bytes: int = 0) -> SetScores:
        from e2net.metrics.depth_modular import DepthSetScores  # noqa: PLC0415 - scoring files needs no torchmetrics

        return DepthSetScores(self.score)


def _range(target: Array, predicted: Array) -> tuple[float, float]:
    """Metres at the ends of the colours: of the target where it knows any, its outliers left out."""
    known = target[target > 0] if (target > 0).any() else predicted
    low, high = np.quantile(known, (0.02, 0.98))
    return float(low), float(high)


def _resized(metres: Tensor, size: Sequence[int]) -> Tensor:
    """(1, h, w) -> (*size), bilinear."""
    if metres.shape[-2:] == tuple(size):
        return metres[0]
    return F.interpolate(metres[None], size=tuple(size), mode="bilinear", align_corners=False)[0, 0]
