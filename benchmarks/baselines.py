"""Scores of three predictions that look at no image, on a data set of the Python API: what any model has to beat.

All-zero, all-0.5 and the mean of the training masks, on the generated test set of the default run. Prints one table.

    python benchmarks/baselines.py
"""

import argparse

import numpy as np
import torch

from e2net.datasets import ProceduralData, Resize
from e2net.metrics import MapScores, score_map, to_map


def main() -> None:
    """Prints S, weighted F and MAE of the three predictions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128, help="pixels a side at which masks are averaged")
    parser.add_argument("--difficulty", type=float, default=0.2, help="of the generated pictures, 0 to 1")
    options = parser.parse_args()
    size = (options.size, options.size)
    data = ProceduralData(options.size, difficulty=options.difficulty)
    train, test = data.train_source(), data.test_source("procedural")
    masks = [Resize(size)(*train.read(i))[1] for i in range(len(train))]
    predictions = {
        "all-zero": torch.zeros(size),
        "all-0.5": torch.full(size, 0.5),
        "mean mask": torch.from_numpy(np.mean(masks, axis=0, dtype=np.float32)),
    }
    for name, prediction in predictions.items():
        scores = MapScores()
        for i in range(len(test)):
            mask = test.read(i)[1]
            scores.add(i, score_map(to_map(prediction, mask.shape), mask))
        values = scores.compute()
        print(f"{name:<10}" + "  ".join(f"{key} {float(values[key]):.3f}" for key in ("S", "wF", "MAE")))


if __name__ == "__main__":
    main()
