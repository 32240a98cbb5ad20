"""Scores of a checkpoint as eval.py has them, without the report: for benchmarks that score dozens of them."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from e2net.evaluation.inference import predictor_of
from e2net.evaluation.predictions import Targets, targets_of
from e2net.evaluation.test import choose_precision
from e2net.model import DenseModel
from e2net.runs.config import build_data
from e2net.training.step import precision_of


@torch.inference_mode()
def score(model: DenseModel, config: dict[str, Any], size: Sequence[int] | None = None) -> dict[str, float]:
    """Scores of the test set of a run, looked at as its own test does, in the same precision.

    Args:
        model: of the run, on the CPU.
        config: of the run.
        size: [H, W], pixels; None: that of training.

    Raises:
        ValueError: the run has no test set, or several.
    """
    task, settings = model.task, config["data"] if size is None else {**config["data"], "size": list(size)}
    data = build_data(settings, task)
    if len(data.test_names) != 1:
        raise ValueError(f"expected one test set, found {', '.join(data.test_names) or 'none'}")
    data.check("test")
    data.setup("test")
    predictor, targets = predictor_of(config), targets_of(data, data.test_names[0])
    precision = precision_of(choose_precision(config["trainer"]["precision"], "cpu"), torch.device("cpu"))
    (loader,), scores = data.test_dataloader(), task.set_scores()
    for batch in loader:
        pictures = partial(_picture, targets, batch.positions)
        with precision.forward_context():
            maps = predictor(model.eval(), batch.image, pictures)
        for position, name, prob, target in zip(batch.positions, batch.names, maps, batch.native_targets, strict=True):
            scores.add(position, scores.score(task.finish(prob, target.shape[:2]), target, position, None), name)
    return {name: float(value) for name, value in scores.compute().items()}


def _picture(targets: Targets, positions: Sequence[int], index: int) -> np.ndarray:
    """The picture that an image of a batch was made from."""
    picture = targets.image(positions[index])
    assert picture is not None
    return picture
