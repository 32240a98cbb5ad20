"""From images to what a task averages: mirror images, several scales and sliding windows around one model."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from e2net.datasets.transforms import Resize, Size
from e2net.evaluation.scales import check_scales, resize, scaled_size
from e2net.evaluation.zoom import check_zoom, cut_out, found_box
from e2net.formats import some
from e2net.model import DenseModel
from e2net.runs.checkpoint import trained_with
from e2net.structures import Images, NotFiniteError, unit_range
from e2net.tasks.base import Task

Forward = Callable[[Images], Tensor]
# The pictures (h, w, 3) uint8 RGB, each at its own size, that a batch of images was made from, by their place in it.
Pictures = Callable[[int], np.ndarray]
# Of a mean of two looks, the second's part: it sees more, and the first knows the surroundings.
SECOND = 0.7
# Beyond it powers of probabilities leave the range of float32.
_SHARPEST = 100
# Predictor's arguments that are settings of a run, and their names there.
_SETTINGS = {"flip": "flip_test", "scales": "test_scales", "zoom": "zoom_test", "sharpen": "sharpen"}


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
        scales: factors on the image's size; each scaled size is rounded to what the encoder takes, and made from the
            picture.
        window: [H, W] or a number (square), pixels: look at windows of this size one by one, each at full resolution,
            instead of at the whole image. Best the size of training. A side of the image that is not longer than the
            window's is not divided; an image that fits into one window is predicted as without windows.
        overlap: of neighbouring windows, at least, as a fraction of their side, 0 to below 1.
        windows_at_once: how many windows are one batch of the model; bounds the memory.
        zoom: of a task with objects: look again at the box of what was found, its sides times this and cut out of the
            picture, and average both looks there; 0: do not. Twice the cost.
        sharpen: the averaged log-odds times this, where the task has objects; above 1 sharper, 1 as they are.

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
        sharpen: float = 1.0,
    ) -> None:
        sides = (window, window) if isinstance(window, int) else tuple(window or ())
        if window is not None and (len(sides) != 2 or not all(isinstance(s, int) and s > 0 for s in sides)):
            raise ValueError(
                f"window: expected a positive number of pixels, [H, W] or null (whole image), found {window}"
            )
        if not 0 <= overlap < 1:
            raise ValueError(f"window_overlap: expected a fraction from 0 to below 1, found {overlap}")
        if windows_at_once < 1:
            raise ValueError(f"windows_at_once: expected at least 1, found {windows_at_once}")
        if not 0 < sharpen <= _SHARPEST:
            raise ValueError(f"sharpen: expected a factor above 0 and at most {_SHARPEST}, found {sharpen}")
        self.sharpen = sharpen
        self.flip, self.scales = flip, check_scales("test_scales", scales)
        self.window: Size | None = (sides[0], sides[1]) if sides else None
        self.overlap, self.windows_at_once, self.zoom = overlap, windows_at_once, zoom

    def check(self, multiple: int, task: Task) -> None:
        """Raises ValueError unless ``multiple`` divides a window's sides (pixels) and the task can do what is asked."""
        check_zoom(self.zoom, task)
        if self.sharpen != 1 and not task.objects:
            raise ValueError(f"sharpen={self.sharpen:g}: task={task.name} has no probability of objects; leave it out")
        if self.window is not None and any(side % multiple for side in self.window):
            raise ValueError(
                f"window: expected sides that are multiples of the encoder's {multiple} pixels, found"
                f" {self.window[0]}x{self.window[1]} (height x width)"
            )

    def __call__(self, model: DenseModel, image: Images, pictures: Pictures | None = None) -> Tensor:
        """The task's activated prediction (B, C, H, W), float32, for uint8 RGB images (B, 3, H, W).

        Encoded images are looked at in one scale and without windows.

        Args:
            model: in evaluation mode.
            image: the batch.
            pictures: what it was resized from, asked for where ``reads_pictures``: other scales and a second look find
                detail there that the images have lost. None: the images are all there is.

        Raises:
            ValueError: image or window is of a size that the encoder does not take.
        """
        pictures = pictures or partial(_picture, image)
        mean = self._look(model, image, pictures)
        if self.zoom:
            mean = self._look_again(model, image, pictures, mean)
        return mean if self.sharpen == 1 else model.task.sharpened(mean, self.sharpen)

    @property
    def reads_pictures(self) -> bool:
        """Whether ``pictures`` are asked for."""
        return bool(self.zoom) or any(scale != 1 for scale in self.scales)

    def _look_again(self, model: DenseModel, image: Images, pictures: Pictures, first: Tensor) -> Tensor:
        """The first look's results (B, C, H, W), averaged with those of a second one in the box of what was found.

        Images of which the box is all are looked at again too: processes that share one model make equally many passes.
        """
        size = (image.shape[-2], image.shape[-1])
        boxes = [found_box(model.task.soft(one, size), self.zoom) for one in first]
        parts = [cut_out(pictures(b), box, size) for b, box in enumerate(boxes)]
        result = first.clone()
        for b, second in enumerate(self._look(model, _fitted(parts, size).to(first.device), parts.__getitem__)):
            top, low, left, right = boxes[b]
            there = result[b : b + 1, :, top:low, left:right]
            there += SECOND * (resize(second[None], (low - top, right - left)) - there)
        return result

    def _look(self, model: DenseModel, image: Images, pictures: Pictures) -> Tensor:
        """The mean over scales and mirror images, of the whole image or window by window."""

        def forward(pixels: Images) -> Tensor:
            return model.task.activate(model(pixels).prediction)

        base, total = (image.shape[-2], image.shape[-1]), None
        for scale in self.scales:
            size, scaled = scaled_size(base, scale, model.encoder.size_multiple), image
            if size != base:
                assert isinstance(image, Tensor)
                scaled = _fitted([pictures(b) for b in range(len(image))], size).to(image.device)
            one = self._by_windows if self.divides(size) else self._whole
            prob = one(forward, model.task, scaled)
            prob = prob if size == base else resize(prob, base)
            total = prob if total is None else total + prob
        assert total is not None
        return total / len(self.scales) if len(self.scales) > 1 else total

    def divides(self, size: Size) -> bool:
        """Whether an image of (H, W) pixels is looked at in windows."""
        return self.window is not None and (size[0] > self.window[0] or size[1] > self.window[1])

    def _whole(self, forward: Forward, task: Task, image: Images) -> Tensor:
        """(B, C, H, W) of the whole image, and of its mirror image."""
        image = unit_range(image)
        prob = forward(image)
        return (prob + task.mirrored(forward(image.flip(-1)))) / 2 if self.flip else prob

    def _by_windows(self, forward: Forward, task: Task, image: Images) -> Tensor:
        """The same, window by window; of floating point there is the result and a band of windows, no image."""
        assert isinstance(image, Tensor)
        found: Tensor | None = None
        for mirror in (False, True) if self.flip else (False,):
            for top, band in self._bands(forward, image, mirror):
                if found is None:
                    found = band.new_empty(*band.shape[:2], *image.shape[-2:])
                part = found[:, :, top : top + band.shape[2]]
                if mirror:
                    part.add_(task.mirrored(band)).div_(2)
                else:
                    part.copy_(band)
        assert found is not None
        return found

    def _bands(self, forward: Forward, image: Tensor, mirror: bool) -> Iterator[tuple[int, Tensor]]:
        """The blended result from top to bottom, as first row and (B, C, n, W) that no further window changes.

        Every pixel is the mean over all windows that it lies in, weighted by sin² over the window's sides: windows
        count most where they see most of the surroundings, and none ends in a visible edge.
        """
        assert self.window is not None
        (height, width), (h, w) = image.shape[-2:], self.window
        h, w = min(height, h), min(width, w)
        tops, lefts = starts(height, h, self.overlap), starts(width, w, self.overlap)
        weight = _bump(h, image.device)[:, None] * _bump(w, image.device)
        weights = weight.new_zeros(h, width)
        total: Tensor | None = None
        of_a_row = len(lefts) * len(image)
        tops_after = iter([*tops[1:], height])
        for count, (b, y, x, prob) in enumerate(self._windows(forward, image, mirror, tops, lefts, (h, w)), 1):
            if total is None:
                total = prob.new_zeros(len(image), len(prob), h, width)
            total[b, :, :, x : x + w] += weight * prob
            if b == 0:
                weights[:, x : x + w] += weight
            if count % of_a_row == 0:
                done = next(tops_after) - y
                yield y, total[:, :, :done] / weights[:done]
                for sums in (total, weights):
                    sums[..., : h - done, :] = sums[..., done:, :].clone()
                    sums[..., h - done :, :] = 0

    def _windows(
        self, forward: Forward, images: Tensor, mirror: bool, tops: list[int], lefts: list[int], window: Size
    ) -> Iterator[tuple[int, int, int, Tensor]]:
        """Each window's image, corner (y, x) and result (C, *window), row by row; some at once go through the model."""
        chunk: list[tuple[int, int, int, Tensor]] = []
        for y in tops:
            strip = unit_range(images[:, :, y : y + window[0]])
            assert isinstance(strip, Tensor)
            strip = strip.flip(-1) if mirror else strip
            for x in lefts:
                for b, image in enumerate(strip):
                    chunk.append((b, y, x, image[..., x : x + window[1]]))
                    if len(chunk) == self.windows_at_once or (y, x, b) == (tops[-1], lefts[-1], len(strip) - 1):
                        probs = forward(torch.stack([pixels for *_, pixels in chunk]))
                        yield from ((*place, prob) for (*place, _), prob in zip(chunk, probs, strict=True))
                        chunk.clear()


def _picture(images: Images, index: int) -> np.ndarray:
    """One of the images (B, 3, H, W), as a picture (H, W, 3)."""
    assert isinstance(images, Tensor)
    return images[index].permute(1, 2, 0).cpu().numpy()


def _fitted(pictures: Sequence[np.ndarray], size: Size) -> Tensor:
    """Pictures (h, w, 3) uint8 of any sizes as images (B, 3, *size) uint8, resized as in every evaluation."""
    fit = Resize(size).image
    return torch.from_numpy(np.stack([fit(one) for one in pictures]).transpose(0, 3, 1, 2).copy())


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


def predictor_of(config: dict[str, Any], **chosen: Any) -> Predictor:
    """How a run's images are looked at in its test.

    Args:
        config: of the run.
        chosen: arguments of `Predictor` that go instead; None leaves one as the run has it, or as it is by default.

    Raises:
        ValueError: an argument is out of its range.
    """
    looks = {name: trained_with(config, key) for name, key in _SETTINGS.items() if chosen.get(name) is None}
    return Predictor(**looks, **{name: value for name, value in chosen.items() if value is not None})
