"""torchmetrics classes over the pure functions: accumulate over images, reduce over processes."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from e2net.metrics.collect import Collector
from e2net.metrics.context import camouflage_degree, check_weights, context_of
from e2net.metrics.functional import (
    Prepared,
    boundary_of,
    e_from,
    f_from,
    overlap_from,
    pair,
    s_from,
    statistics_of,
    weighted_f_of,
)
from e2net.metrics.geometry import GeometryCache, MaskGeometry
from e2net.metrics.protocol import MaskProtocol
from e2net.metrics.scoring import (
    CURVES,
    DEFAULT_SCORES,
    IMAGE_SCORES,
    ImageScores,
    OwnScores,
    check_scores,
    score_map,
)
from e2net.metrics.table import ScoreTable

Array = NDArray[Any]
Maps = Tensor | Array | Sequence[Tensor | Array]
Reduction = Literal["max", "mean", "adaptive"]


def _one_by_one(pred: Maps, mask: Maps) -> list[tuple[Tensor | Array, Tensor | Array]]:
    """Pair up one map and mask, or equally many of them."""
    for what, given in (("pred", pred), ("mask", mask)):
        if not isinstance(given, Iterable):
            raise TypeError(f"{what}: expected (h, w), or a list or stack of such, found {type(given).__name__}")
    preds, masks = ([x] if getattr(x, "ndim", 3) == 2 else list(x) for x in (pred, mask))
    if len(preds) != len(masks):
        raise ValueError(f"expected as many masks as maps, found {len(preds)} maps and {len(masks)} masks")
    return list(zip(preds, masks, strict=True))


class _MeanOverImages(Metric):
    """Mean over images of a vector of per-image scores.

    Args:
        width: length of the vector.
        protocol: what happens to each map first; by default 8-bit and stretched, as published tables.
    """

    is_differentiable = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, width: int, protocol: MaskProtocol | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.protocol = protocol or MaskProtocol()
        self.add_state("total", torch.zeros(width, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(width, dtype=torch.float64), dist_reduce_fx="sum")

    def _scores(self, prepared: Prepared, geometry: MaskGeometry) -> Sequence[float] | NDArray[np.float64]:
        raise NotImplementedError

    def update(self, pred: Maps, mask: Maps) -> None:
        """Add one image or several, each of its own size.

        Args:
            pred: (h, w) uint8 or floating point in [0, 1], or a list (or a (B, h, w) stack) of such.
            mask: (h, w) bool, or as many of them.

        Raises:
            TypeError: if a map or a mask has the wrong type.
            ValueError: if numbers or sizes differ, or a map leaves [0, 1].
        """
        for one, other in _one_by_one(pred, mask):
            scores = self._scores(*pair(one, other, self.protocol, None))
            values = torch.from_numpy(np.array(scores, dtype=np.float64))
            defined = ~values.isnan()
            self.total += values.nan_to_num(0.0).to(self.total.device)
            self.count += defined.to(self.count)

    def compute(self) -> Tensor:
        """() float64, mean over the images; NaN if there were none for which the score is defined."""
        return self._mean()[0]

    def _mean(self) -> Tensor:
        return self.total / self.count


class SMeasure(_MeanOverImages):
    """Structure measure, mean over images; see ``functional.s_measure``.

    Args:
        alpha: weight of the object part, in [0, 1].
        protocol: by default 8-bit and stretched, as published tables.

    Raises:
        ValueError: if ``alpha`` leaves [0, 1].
    """

    higher_is_better = True

    def __init__(self, alpha: float = 0.5, protocol: MaskProtocol | None = None, **kwargs: Any) -> None:
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha: expected a weight in [0, 1], found {alpha}")
        super().__init__(1, protocol, **kwargs)
        self.alpha = alpha

    def _scores(self, prepared: Prepared, geometry: MaskGeometry) -> Sequence[float]:
        return [s_from(statistics_of(prepared, geometry), self.alpha)]


class WeightedFMeasure(_MeanOverImages):
    """Weighted F-measure, mean over images; see ``functional.weighted_f_measure``.

    Args:
        beta2: beta², the weight of precision; 1 in the field.
        protocol: by default 8-bit and stretched, as published tables.

    Raises:
        ValueError: if ``beta2`` is not positive.
    """

    higher_is_better = True

    def __init__(self, beta2: float = 1.0, protocol: MaskProtocol | None = None, **kwargs: Any) -> None:
        if not beta2 > 0:
            raise ValueError(f"beta2: expected a positive weight (beta squared), found {beta2}")
        super().__init__(1, protocol, **kwargs)
        self.beta2 = beta2

    def _scores(self, prepared: Prepared, geometry: MaskGeometry) -> Sequence[float]:
        return [weighted_f_of(prepared, geometry, self.beta2)]


class MapAbsoluteError(_MeanOverImages):
    """Mean absolute error per image, mean over images (every image counts alike, whatever its size).

    Args:
        protocol: by default 8-bit and stretched, as published tables.
    """

    higher_is_better = False

    def __init__(self, protocol: MaskProtocol | None = None, **kwargs: Any) -> None:
        super().__init__(1, protocol, **kwargs)

    def _scores(self, prepared: Prepared, geometry: MaskGeometry) -> Sequence[float]:
        s = statistics_of(prepared, geometry)
        return [s.absolute_error / s.size]


class _Overlap(_MeanOverImages):
    _which: str

    def __init__(self, protocol: MaskProtocol | None = None, **kwargs: Any) -> None:
        super().__init__(1, protocol, **kwargs)

    def _scores(self, prepared: Prepared, geometry: MaskGeometry) -> Sequence[float]:
        return [getattr(overlap_from(statistics_of(prepared, geometry)), self._which)]


class IoU(_Overlap):
    """Intersection over union of the decision at 0.5, mean over images; see ``functional.iou``.

    Args:
        protocol: by default 8-bit and stretched, as published tables.
    """

    higher_is_better = True
    _which = "iou"


class Dice(_Overlap):
    """Dice coefficient of the decision at 0.5, mean over images; see ``functional.dice``.

    Args:
        protocol: by default 8-bit and stretched, as published tables.
    """

    higher_is_better = True
    _which = "dice"


class BalancedErrorRate(_Overlap):
    """Balanced error rate of the decision at 0.5, a fraction, mean over images; see ``functional.ber``.

    Args:
        protocol: by default 8-bit and stretched, as published tables.
    """

    higher_is_better = False
    _which = "ber"


class BoundaryMeasure(_MeanOverImages):
    """MAE and weighted F within 15 px of the contour, over the images that have one; see
    ``functional.boundary_scores``.

    Args:
        protocol: by default 8-bit and stretched, as published tables.
    """

    def __init__(self, protocol: MaskProtocol | None = None, **kwargs: Any) -> None:
        super().__init__(2, protocol, **kwargs)

    def _scores(self, prepared: Prepared, geometry: MaskGeometry) -> Sequence[float]:
        return boundary_of(prepared, geometry)

    def compute(self) -> dict[str, Tensor]:  # type: ignore[override]
        """() float64 each, under the names "bMAE" and "bwF"."""
        error, weighted = self._mean()
        return {"bMAE": error, "bwF": weighted}


class PrecisionRecall(_MeanOverImages):
    """Precision and recall curves, mean over images; see ``functional.precision_recall``.

    Args:
        protocol: by default 8-bit and stretched, as published tables.
    """

    def __init__(self, protocol: MaskProtocol | None = None, **kwargs: Any) -> None:
        super().__init__(512, protocol, **kwargs)

    def _scores(self, prepared: Prepared, geometry: MaskGeometry) -> NDArray[np.float64]:
        _, precision, recall, _ = f_from(statistics_of(prepared, geometry))
        return np.append(precision, recall)

    def compute(self) -> dict[str, Tensor]:  # type: ignore[override]
        """(256,) float64 each, for thresholds 0..255, under the names "precision" and "recall"."""
        precision, recall = self._mean().reshape(2, 256)
        return {"precision": precision, "recall": recall}


class ContextMeasure(_MeanOverImages):
    """Context measure, mean over images; see ``context.context_measure``.

    Args:
        camouflage: weight by the degree of camouflage; ``update`` then takes the images too.
        beta2: weight of forward inference; by default 1, and 1.2 with ``camouflage``.
        alpha: extent of the Gaussian context in pixels.
        protocol: by default 8-bit and stretched, as published tables.

    Raises:
        ValueError: if ``beta2`` or ``alpha`` is not positive.
    """

    higher_is_better = True

    def __init__(
        self,
        camouflage: bool = False,
        beta2: float | None = None,
        alpha: float = 6.0,
        protocol: MaskProtocol | None = None,
        **kwargs: Any,
    ) -> None:
        check_weights(beta2, alpha)
        super().__init__(1, protocol, **kwargs)
        self.camouflage, self.beta2, self.alpha = camouflage, beta2, alpha

    def update(self, pred: Maps, mask: Maps, image: Maps | None = None) -> None:
        """Add one image or several, each of its own size.

        Args:
            pred: (h, w) uint8 or floating point in [0, 1], or a list (or a (B, h, w) stack) of such.
            mask: (h, w) bool, or as many of them.
            image: (h, w, 3) uint8, RGB, or as many of them; with ``camouflage`` only.

        Raises:
            TypeError: if a map, a mask or an image has the wrong type.
            ValueError: if numbers or sizes differ, a map leaves [0, 1], or images are missing or not wanted.
        """
        if (image is not None) != self.camouflage:
            wanted = "the images" if self.camouflage else "no images"
            raise ValueError(f"image: ContextMeasure(camouflage={self.camouflage}) expects {wanted}")
        pairs = _one_by_one(pred, mask)
        images: list[Any] = [None] * len(pairs)
        if image is not None:
            images = [image] if getattr(image, "ndim", 4) == 3 else list(image)
        if len(images) != len(pairs):
            raise ValueError(f"expected as many images as maps, found {len(pairs)} maps and {len(images)} images")
        for (one, other), rgb in zip(pairs, images, strict=True):
            prepared, geometry = pair(one, other, self.protocol, None)
            degree = None if rgb is None else camouflage_degree(rgb, geometry.mask)
            self.total += context_of(prepared, geometry, degree, self.beta2, self.alpha)
            self.count += 1


class _OverThresholds(_MeanOverImages):
    """A 256-point curve and an adaptive value per image."""

    higher_is_better = True

    def __init__(self, reduction: Reduction, protocol: MaskProtocol | None, **kwargs: Any) -> None:
        if reduction not in ("max", "mean", "adaptive"):
            raise ValueError(f"reduction: expected 'max', 'mean' or 'adaptive', found {reduction!r}")
        super().__init__(257, protocol, **kwargs)
        self.reduction = reduction

    def compute(self) -> Tensor:
        """() float64: greatest value or mean of the images' mean curve, or mean of their adaptive scores."""
        mean = self._mean()
        if self.reduction == "adaptive":
            return mean[256]
        return mean[:256].max() if self.reduction == "max" else mean[:256].mean()


class FMeasure(_OverThresholds):
    """F-measure of a data set; see ``functional.f_measure``.

    Args:
        reduction: "max" or "mean" of the mean F curve over images, or mean of the "adaptive" F.
        beta2: beta²; 0.3 in the field.
        protocol: by default 8-bit and stretched, as published tables.

    Raises:
        ValueError: if ``reduction`` is unknown or ``beta2`` not positive.
    """

    def __init__(
        self,
        reduction: Reduction = "max",
        beta2: float = 0.3,
        protocol: MaskProtocol | None = None,
        **kwargs: Any,
    ) -> None:
        if not beta2 > 0:
            raise ValueError(f"beta2: expected a positive weight (beta squared), found {beta2}")
        super().__init__(reduction, protocol, **kwargs)
        self.beta2 = beta2

    def _scores(self, prepared: Prepared, geometry: MaskGeometry) -> NDArray[np.float64]:
        curve, _, _, adaptive = f_from(statistics_of(prepared, geometry), self.beta2)
        return np.append(curve, adaptive)


class EMeasure(_OverThresholds):
    """E-measure of a data set; see ``functional.e_measure``.

    Args:
        reduction: "max" or "mean" of the mean E curve over images, or mean of the "adaptive" E.
        protocol: by default 8-bit and stretched, as published tables.

    Raises:
        ValueError: if ``reduction`` is unknown.
    """

    def __init__(self, reduction: Reduction = "max", protocol: MaskProtocol | None = None, **kwargs: Any) -> None:
        super().__init__(reduction, protocol, **kwargs)

    def _scores(self, prepared: Prepared, geometry: MaskGeometry) -> NDArray[np.float64]:
        return np.append(*e_from(statistics_of(prepared, geometry)))


class MapScores(Collector):
    """All scores of a data set, with a row per image.

    An image is identified by its index in the data set. Images that several processes have scored, as
    happens when a distributed sampler pads its last round with repeats, count once. Use one instance per
    data set.

    Scores are either computed here (``update``) or elsewhere, say in a pool of processes (``score_map``), and
    collected (``add``).

    Args:
        protocol: by default 8-bit and stretched, as published tables.
        scores: which of ``ALL_SCORES`` and ``own`` to report.
        cache_bytes: memory for the geometry of masks met before, in bytes; pays off from the second epoch
            on, at about 3 bytes per pixel and mask. 0 keeps none. Geometries outlive ``reset``, not ``forget``.
        own: further scores, by name.

    Raises:
        ValueError: if a score is unknown.
    """

    def __init__(
        self,
        protocol: MaskProtocol | None = None,
        scores: Sequence[str] = DEFAULT_SCORES,
        cache_bytes: int = 0,
        own: OwnScores | None = None,
        **kwargs: Any,
    ) -> None:
        names = check_scores(scores, own or ())
        # Index, then scores. Curves one after the other.
        widths = {"rows": (1 + len(names), torch.float64), "curves": (len(CURVES) * 256, torch.float64)}
        widths["levels"] = (2 * 256, torch.int32)
        super().__init__(widths, **kwargs)
        self.protocol = protocol or MaskProtocol()
        self.scores = names
        self._own = dict(own or {})
        self._geometries = GeometryCache(cache_bytes) if cache_bytes else None

    def update(
        self,
        pred: Maps,
        mask: Maps,
        index: int | Sequence[int] | Tensor | None = None,
        name: str | Sequence[str] | None = None,
        image: Maps | None = None,
    ) -> None:
        """Score one image or several, each of its own size.

        Args:
            pred: (h, w) uint8 or floating point in [0, 1], or a list (or a (B, h, w) stack) of such.
            mask: (h, w) bool, or as many of them.
            index: of each image in the data set. Without it images are numbered as they come, which can't be
                told apart from repeats when several processes score.
            name: of each image, for ``per_image``.
            image: (h, w, 3) uint8, RGB, or as many of them; for those scores that need it.

        Raises:
            TypeError: if a map, a mask or an image has the wrong type.
            ValueError: if numbers or sizes differ, a map leaves [0, 1], or a score needs images that are missing.
        """
        pairs = _one_by_one(pred, mask)
        images: list[Any] = [None] * len(pairs)
        if image is not None:
            images = [image] if getattr(image, "ndim", 4) == 3 else list(image)
        indices: list[int | None] = [None] * len(pairs)
        if index is not None:
            indices = np.atleast_1d(index.cpu() if isinstance(index, Tensor) else index).tolist()
        names = [None] * len(pairs) if name is None else [name] if isinstance(name, str) else list(name)
        if not len(indices) == len(names) == len(images) == len(pairs):
            raise ValueError(
                f"expected one index, name and image per map, found {len(pairs)} maps, {len(indices)} indices, "
                f"{len(names)} names, {len(images)} images"
            )
        for (one, other), number, label, rgb in zip(pairs, indices, names, images, strict=True):
            self.add(number, self.score(one, other, number, rgb), label)

    def score(
        self,
        pred: Tensor | Array,
        mask: Tensor | Array,
        index: int | None = None,
        image: Tensor | Array | Callable[[], Array | None] | None = None,
    ) -> ImageScores:
        """Score one image and keep its geometry, but not yet the scores: for a thread beside, ``add`` takes them.

        Args:
            pred: (h, w) uint8 or floating point in [0, 1].
            mask: (h, w) bool.
            index: under which the geometry is kept; None keeps none.
            image: (h, w, 3) uint8, RGB, or a function that reads it; for those scores that need it.

        Raises:
            TypeError, ValueError: as ``score_map``.
        """
        geometry = None
        if self._geometries is not None and index is not None:
            geometry = self._geometries.get(index, mask)
        if callable(image):
            image = image() if set(self.scores) & set(IMAGE_SCORES) else None
        return score_map(
            pred, mask, protocol=self.protocol, geometry=geometry, scores=self.scores, image=image, own=self._own
        )

    def forget(self) -> None:
        """Drop the kept geometries: the indices will mean other masks from here on."""
        if self._geometries is not None:
            self._geometries.clear()

    def add(self, index: int | None, scored: ImageScores, name: str | None = None) -> None:
        """Collect the scores of one image.

        Args:
            index: of the image in the data set, at least 0; None to number it.
            scored: from ``score_map``, under this instance's protocol and with at least its scores.
            name: of the image, for ``per_image``.

        Raises:
            ValueError: if scores are missing, the index is negative, the name exceeds 255 bytes, or numbered
                and unnumbered images are mixed.
        """
        missing = [s for s in self.scores if s not in scored.values]
        if missing:
            raise ValueError(f"scored: {missing} missing; ask score_map for scores={self.scores}")
        place = self._place(index)
        row = np.array([place, *(scored.values[s] for s in self.scores)], dtype=np.float64)
        curves, levels = scored.curves.reshape(1, -1), scored.levels.reshape(1, -1)
        self._append(name, index is None, rows=row[None], curves=curves, levels=levels)

    def _tabulate(self, indices: list[int], names: list[str | None], first: Array, states: dict[str, Tensor]) -> Any:
        keep = torch.from_numpy(first)
        curves = states["curves"][keep].reshape(-1, len(CURVES), 256)
        levels = states["levels"][keep].reshape(-1, 2, 256)
        return ScoreTable(self.scores, indices, names, states["rows"][keep, 1:], curves, levels)

    def table(self) -> ScoreTable:
        """All rows, ordered by index; in several processes a collective call.

        Raises:
            ValueError: if no image was scored.
        """
        table: ScoreTable = super().table()
        return table

    def per_image(self) -> list[dict[str, Any]]:
        """See ``ScoreTable.per_image``; in several processes a collective call."""
        return self.table().per_image()

    def compute_curves(self) -> dict[str, Tensor]:
        """See ``ScoreTable.mean_curves``; in several processes a collective call."""
        return self.table().mean_curves()
