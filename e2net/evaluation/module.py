"""The LightningModule that tests: images in, results scored at each target's own size."""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, partial
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from torch import Tensor

from e2net.evaluation.inference import Pictures, Predictor, check_finite
from e2net.model import DenseModel
from e2net.processes import gather_objects
from e2net.speed import halve_frozen
from e2net.structures import Batch, Images
from e2net.tasks.base import Placed, SetScores, Task

# Maps that may wait to be scored, and their pixels: where scoring is slower than the network, they bound the memory.
_WAITING, _WAITING_PIXELS = 64, 1 << 26
_READERS = 4

# An image (h, w, 3) uint8 RGB at its own size by its position within its set; None where there is none.
ReadImage = Callable[[int], np.ndarray | None]


class EvaluationModule(L.LightningModule):
    """Scores a model's results at each target's own size.

    Args:
        model: what is tested.
        config: the resolved config of its training.
        test_names: names of the test sets, in the order of their data loaders.
        predictor: how maps are computed; None: in one pass.
        task: by which test sets are scored; None: the model's.
        breakdown: also find where each image belongs in the task's groupings, see ``placed``.

    Attributes:
        test_images: for each test set, reads an image (h, w, 3) uint8 RGB at its own size by position. Scores of the
            image need it, and other scales and a second look see the more by it.
    """

    def __init__(
        self,
        model: DenseModel,
        config: dict[str, Any],
        test_names: tuple[str, ...] = (),
        predictor: Predictor | None = None,
        task: Task | None = None,
        breakdown: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.task = task or model.task
        self.test_names = test_names
        self.predictor = predictor or Predictor()
        # Registered, so that the scores' states follow the module to its device.
        self._test_scores = torch.nn.ModuleList(cast(torch.nn.Module, self.task.set_scores()) for _ in test_names)
        self.test_images: Sequence[ReadImage] = ()
        # Scoring runs beside the next batch: NumPy and OpenCV release the interpreter lock.
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._readers = ThreadPoolExecutor(max_workers=_READERS)
        self._pending: list[tuple[int, str, Future]] = []
        self._breakdown = breakdown
        self._placed: list[dict[int, Placed]] = [{} for _ in test_names]
        self._sizes: deque[int] = deque()  # pixels of the last of them

    def forward(self, image: Images, pictures: Pictures | None = None) -> Tensor:
        """The task's activated prediction (B, C, H, W), float32, for uint8 RGB images (B, 3, H, W).

        Args:
            image: the batch.
            pictures: what it was resized from, see :class:`~e2net.evaluation.inference.Predictor`.
        """
        return self.predictor(self.model, image, pictures)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, list[np.ndarray]]:
        if batch_idx == 0 and dataloader_idx > 0:
            self.drain(self.test_scores[dataloader_idx - 1])
        image = self.test_images[dataloader_idx] if self.test_images else None
        places = self._placed[dataloader_idx] if self._breakdown else None
        return self._score(batch, self.test_scores[dataloader_idx], image, places)

    def on_test_epoch_end(self) -> None:
        self.drain(self.test_scores[-1])

    @property
    def test_scores(self) -> list[SetScores]:
        """One for each of ``test_names``."""
        return cast(list[SetScores], list(self._test_scores))

    def test_results(self) -> dict[str, dict[str, float]]:
        """{test set: {score: value}} of the last test run."""
        return {
            name: {k: float(v) for k, v in scores.compute().items()}
            for name, scores in zip(self.test_names, self.test_scores, strict=True)
        }

    def placed(self, number: int) -> dict[int, Placed]:
        """Where each image of a test set belongs, by position; in several processes a collective call."""
        return {position: place for part in gather_objects(self._placed[number]) for position, place in part.items()}

    def on_test_start(self) -> None:
        halve_frozen(self.model, str(self.trainer.precision), self.device)
        for scores in self.test_scores:
            scores.reset()
        for places in self._placed:
            places.clear()

    def _score(
        self,
        batch: Batch,
        scores: SetScores,
        read_image: ReadImage | None = None,
        places: dict[int, Placed] | None = None,
    ) -> dict[str, list[np.ndarray]]:
        """Queues one result per image for scoring, and returns them as ``maps``: (h, w), as in a file."""
        maps = []
        # Each is read once, if at all.
        images = [None if read_image is None else cache(partial(read_image, position)) for position in batch.positions]
        probs = self(batch.image, self._pictures(images))
        check_finite(probs, batch.names)
        each = zip(batch.positions, batch.names, probs, batch.native_targets, images, strict=True)
        for position, name, prob, target, image in each:
            result = self.task.finish(prob, target.shape[:2])
            work = self._pool.submit(self._examine, scores, result, target, position, image, places)
            self._pending.append((position, name, work))
            self._sizes.append(target.shape[0] * target.shape[1])
            while len(self._sizes) > _WAITING or (len(self._sizes) > 1 and sum(self._sizes) > _WAITING_PIXELS):
                self._pending[-len(self._sizes)][2].result()
                self._sizes.popleft()
            maps.append(self.task.to_file(result))
        return {"maps": maps}

    def _pictures(self, images: Sequence[Callable[[], np.ndarray | None] | None]) -> Pictures | None:
        """A batch's pictures at their own sizes where they are looked at; read while the first look goes on."""
        if not self.predictor.reads_pictures or not images or images[0] is None:
            return None
        reading = [self._readers.submit(_there, image) for image in images]
        return lambda index: reading[index].result()

    def _examine(
        self,
        scores: SetScores,
        result: Any,
        target: np.ndarray,
        position: int,
        image: Callable[[], np.ndarray | None] | None,
        places: dict[int, Placed] | None,
    ) -> Any:
        if places is not None:
            places[position] = self.task.place(result, target, None if image is None else image())
        return scores.score(result, target, position, image)

    def drain(self, scores: SetScores) -> None:
        """Waits for all maps that are being scored."""
        for position, name, future in self._pending:
            scores.add(position, future.result(), name)
        self._pending.clear()
        self._sizes.clear()


def _there(image: Callable[[], np.ndarray | None] | None) -> np.ndarray:
    """The image of a pair, which was read before."""
    found = None if image is None else image()
    assert found is not None
    return found
