"""From images to what a task averages: mirror images, several scales and sliding windows around one model."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from e2net.datasets.transforms import Size
from e2net.evaluation.scales import check_scales, resize, scaled_size
from e2net.evaluation.zoom import check_zoom, found_box
from e2net.formats import some
from e2net.model import DenseModel
from e2net.structures import Images, NotFiniteError, unit_range
from e2net.tasks.base import Task

Forward = Callable[[Images], Tensor]
# Of a mean of two looks, the second's part.
SECOND = 0.5


def check_finite(activated: Tensor, names: Sequence[str]) -> None:
    """Refuses results that are no result: a class map or a file made of them would not show it.

    Args:
        activated: (B, C, H, W), of so many images.
        names: of the images.

    Raises:
        NotFiniteError: there is a NaN or an infinity.
    """
    finite = activated.isfinite().flatten(1).all(1).tolist()
    if not all(finite):
        named = [name for name, fine in zip(names, finite, strict=True) if not fine]
        raise NotFiniteError(
            f"expected finite results, found others for {some(named)}: compute with more range (precision=32-true or "
            "bf16-mixed), or take a checkpoint of before the training went wrong (a lower optim.lr keeps it right)"
        )


class Predictor:
    """How a model's activated prediction for a batch of images is computed. Without arguments: in one pass.

    Those of all passes, brought back to the image's size, are averaged with equal weights. The cost is
    that of the number of scales (each by its square), times two for ``flip``, times the pixels of all windows over
    those of the image.

    Args:
        flip: also look at the mirror image.
        scales: factors on the image's size; each scaled size is rounded to what the encoder takes.
        window: [H, W] or a number (square), pixels: look at windows of this size one by one, each at full resolution,
            instead of at the whole image. Best the size of training. A side of the image that is not longer than the
            window's is not divided; an image that fits into one window is predicted as without windows.
        overlap: of neighbouring windows, at least, as a fraction of their side, 0 to below 1.
        windows_at_once: how many windows are one batch of the model; bounds the memory.
        zoom: of a task with objects: look again at the box of what was found, its sides times this and enlarged to the
            image's size, and average both looks there; 0: don't. Up to twice the cost.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        flip: bool = False,
        scales: Sequence[float] = (1.0,),
        window: int | Sequence[int] | None = None,
        overlap: float = 0.5,
        windows_at_once: int = 8,
        zoom: float = 0.0,
    ) -> None:
        sides = (window, window) if isinstance(window, int) else tuple(window or ())
        if window is not None and (len(sides) != 2 or not all(isinstance(s, int) and s > 0 for s in sides)):
            raise ValueError(
                f"window: expected a positive number of pixels, [H, W] or null (whole image), got {window}"
            )
        if not 0 <= overlap < 1:
            raise ValueError(f"window_overlap: expected a fraction from 0 to below 1, got {overlap}")
        if windows_at_once < 1:
            raise ValueError(f"windows_at_once: expected at least 1, got {windows_at_once}")
        self.flip, self.scales = flip, check_scales("test_scales", scales)
        self.window: Size | None = (sides[0], sides[1]) if sides else None
        self.overlap, self.windows_at_once, self.zoom = overlap, windows_at_once, zoom

    def check(self, multiple: int, task: Task) -> None:
        """Raises ValueError unless ``multiple`` divides the window's sides (pixels), and a zoom suits the task."""
        check_zoom(self.zoom, task)
        if self.window is not None and any(side % multiple for side in self.window):
            raise ValueError(
                f"window: expected sides that are multiples of the encoder's {multiple} pixels, got"
                f" {self.window[0]}x{self.window[1]} (height x width)"
            )

    def __call__(self, model: DenseModel, image: Images) -> Tensor:
        """The task's activated prediction (B, C, H, W), float32, for uint8 RGB images (B, 3, H, W).

        Encoded images are looked at in one scale and without windows.

        Raises:
            ValueError: image or window is of a size that the encoder does not take.
        """
        image = unit_range(image)
        first = self._passes(model, image)
        return self._look_again(model, image, first) if self.zoom else first

    def _look_again(self, model: DenseModel, image: Images, first: Tensor) -> Tensor:
        """The first look's results (B, C, H, W), averaged with those of a second one in the box of what was found."""
        assert isinstance(image, Tensor)
        size = (image.shape[-2], image.shape[-1])
        boxes = [found_box(model.task.soft(one, size), self.zoom) for one in first]
        # One that is the whole image would show nothing new.
        smaller = [b for b, (top, low, left, right) in enumerate(boxes) if (low - top, right - left) != size]
        if not smaller:
            return first
        result = first.clone()
        crops = [image[b : b + 1, :, boxes[b][0] : boxes[b][1], boxes[b][2] : boxes[b][3]] for b in smaller]
        for b, one in zip(smaller, self._passes(model, torch.cat([resize(crop, size) for crop in crops])), strict=True):
            top, low, left, right = boxes[b]
            there = result[b : b + 1, :, top:low, left:right]
            there += SECOND * (resize(one[None], (low - top, right - left)) - there)
        return result

    def _passes(self, model: DenseModel, image: Images) -> Tensor:
        """One look: the mean over scales and mirror images, for floats in [0, 1]."""

        def forward(pixels: Images) -> Tensor:
            return model.task.activate(model(pixels).prediction)

        passes = []
        for scale in self.scales:
            size = scaled_size(image.shape[-2:], scale, model.encoder.size_multiple)
            same = size == tuple(image.shape[-2:])
            scaled = image if same else resize(image, size)
            prob = self._windows(forward, scaled)
            if self.flip:
                prob = (prob + model.task.mirrored(self._windows(forward, scaled.flip(-1)))) / 2
            passes.append(prob if same else resize(prob, (image.shape[-2], image.shape[-1])))
        return passes[0] if len(passes) == 1 else torch.stack(passes).mean(0)

    def _windows(self, forward: Forward, image: Images) -> Tensor:
        """(B, 3, H, W) float -> (B, C, H, W), window by window where windows are asked for and smaller than the image.

        Every pixel is the mean over all windows that it lies in, weighted by sin² over the window's sides: windows
        count most where they see most of the surroundings, and none ends in a visible edge.
        """
        height, width = image.shape[-2:]
        if self.window is None:
            return forward(image)
        h, w = min(height, self.window[0]), min(width, self.window[1])
        corners = [(y, x) for y in starts(height, h, self.overlap) for x in starts(width, w, self.overlap)]
        if len(corners) == 1:
            return forward(image)
        assert isinstance(image, Tensor)
        weight = _bump(h, image.device)[:, None] * _bump(w, image.device)
        weights = image.new_zeros(height, width)
        crops = [(b, y, x) for y, x in corners for b in range(len(image))]
        for first in range(0, len(crops), self.windows_at_once):
            chunk = crops[first : first + self.windows_at_once]
            probs = forward(torch.stack([image[b, :, y : y + h, x : x + w] for b, y, x in chunk]))
            if first == 0:
                total = image.new_zeros(len(image), probs.shape[1], height, width)
            for (b, y, x), prob in zip(chunk, probs, strict=True):
                total[b, :, y : y + h, x : x + w] += weight * prob
        for y, x in corners:
            weights[y : y + h, x : x + w] += weight
        return total / weights


def starts(length: int, window: int, overlap: float) -> list[int]:
    """Where windows begin along a side: evenly spread from 0 to ``length - window``, as few as the overlap allows.

    Args:
        length: of the image's side, pixels; at least ``window``.
        window: of the window's side, pixels.
        overlap: of neighbours, at least, as a fraction of ``window``, 0 to below 1.
    """
    stride = max(1, math.floor(window * (1 - overlap)))
    steps = math.ceil((length - window) / stride)
    return [round(i * (length - window) / max(1, steps)) for i in range(steps + 1)]


def _bump(length: int, device: torch.device) -> Tensor:
    """sin² over ``length`` pixel centres, (length,): above 0 everywhere, 1 in the middle."""
    return torch.sin(torch.pi * (torch.arange(length, device=device) + 0.5) / length).square()
