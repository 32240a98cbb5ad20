"""Whether a file does as its model did: the same pictures through both, maps and scores side by side."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from e2net.datasets import DenseData
from e2net.evaluation.inference import check_finite
from e2net.export.formats import Run
from e2net.tasks.base import Task


@dataclass(frozen=True)
class Parity:
    """Of one test set.

    Attributes:
        name: of the set.
        pictures: how many of it were looked at.
        reference, exported: scores of the model and of the file.
        difference: the largest of a map's value, as a share of the model's largest value or of 1.
    """

    name: str
    pictures: int
    reference: Mapping[str, float]
    exported: Mapping[str, float]
    difference: float

    def loss(self, task: Task) -> float:
        """Of the task's first score, above 0 where the file's is worse."""
        gained = self.exported[task.monitor] - self.reference[task.monitor]
        return -gained if task.directions[task.monitor] == "max" else gained

    def faults(self, task: Task, max_difference: float | None, max_loss: float) -> list[str]:
        """What is beyond the tolerances, in words."""
        found = []
        # Not "greater": a NaN is a fault too.
        if max_difference is not None and not self.difference <= max_difference:
            found.append(f"{self.name}: a map differs by {self.difference:.2g}, expected at most {max_difference:g}")
        if not self.loss(task) <= max_loss:
            found.append(
                f"{self.name}: {task.monitor} is {self.exported[task.monitor]:.4f} of the file and "
                f"{self.reference[task.monitor]:.4f} of the model, expected a loss of at most {max_loss:g}"
            )
        return found


def compare_runs(reference: Run, exported: Run, data: DenseData, task: Task, pictures: int | None) -> list[Parity]:
    """Scores both on every test set, picture by picture, as evaluation does; the last two also go in as one batch.

    Args:
        reference: the model's one pass in float32.
        exported: the file's.
        data: of the test sets.
        task: by which they are scored.
        pictures: of each set, the first so many; None: all.

    Raises:
        NotFiniteError: a map has a NaN or an infinity.
        ValueError: a picture or target cannot be read.
    """
    results = []
    for name, loader in zip(data.test_names, data.test_dataloader(), strict=True):
        scored: tuple[list[Any], list[Any]] = ([], [])
        largest, difference = 1.0, 0.0
        samples: Any = loader.dataset
        recent: list[tuple[np.ndarray, torch.Tensor]] = []
        for position in range(min(len(samples), pictures or len(samples))):
            sample = samples[position]
            image = np.ascontiguousarray(sample.image[None].numpy())
            maps = [torch.from_numpy(run(image)) for run in (reference, exported)]
            check_finite(torch.cat(maps), [f"{sample.name} ({kind})" for kind in ("model", "file")])
            largest = max(largest, float(maps[0].max()))
            difference = max(difference, float((maps[0] - maps[1]).abs().max()))
            recent = [*recent[-1:], (image, maps[0])]
            for found, one in zip(scored, maps, strict=True):
                result = task.finish(one[0], sample.native_target.shape[:2])
                found.append((sample.position, sample.name, task.score(result, sample.native_target)))
        images, expected = zip(*recent, strict=True)
        together = torch.from_numpy(exported(np.concatenate(images)))
        check_finite(together, [f"{sample.name} (file, two at once)" for _ in recent])
        difference = max(difference, float((together - torch.cat(expected)).abs().max()))
        values = [task.tabulate(one).values() for one in scored]
        results.append(Parity(name, len(scored[0]), values[0], values[1], difference / largest))
    return results
