"""Classes of whole pictures from vectors of pictures with classes."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from e2net.features.extract import Extractor
from e2net.features.index import Descriptor, describe, unit
from e2net.features.logistic import fit_logistic
from e2net.neighbours import nearest
from e2net.pictures import Picture

Method = Literal["knn", "linear"]
Classify = Callable[[NDArray[Any]], NDArray[np.float32]]


def fit_classes(
    method: Method,
    vectors: NDArray[Any],
    labels: NDArray[np.int64],
    classes: int,
    neighbours: int = 20,
    temperature: float = 0.07,
    c: float = 1.0,
) -> Classify:
    """Learns classes from vectors.

    Args:
        method: ``knn``: a vote of the nearest by cosine, each weighing exp(cosine / temperature), as DINO has it;
            ``linear``: logistic regression on vectors of length 1.
        vectors: (n, D), made of length 1.
        labels: (n,) from 0 to ``classes`` - 1.
        classes: how many there are, at least 2.
        neighbours, temperature: of ``knn``; fewer vote where there are fewer.
        c: of ``linear``, scikit-learn's C.

    Returns:
        Vectors (m, D) to probabilities (m, classes).

    Raises:
        ValueError: ``linear``, and a class has no vector.
    """
    rows, numbers = torch.from_numpy(unit(vectors)), torch.from_numpy(np.asarray(labels, np.int64))
    if method == "linear":
        fitted = fit_logistic(rows, numbers, classes, c)

        def linear(new: NDArray[Any]) -> NDArray[np.float32]:
            found = fitted.probability(torch.from_numpy(unit(new)))
            return (torch.stack([1 - found, found], 1) if classes == 2 else found).numpy()

        return linear

    vote = nearest(rows, torch.nn.functional.one_hot(numbers, classes).float(), neighbours, temperature)
    return lambda new: vote(torch.from_numpy(np.asarray(new, np.float32))).numpy()


def classify(
    extractor: Extractor,
    examples: Iterable[Picture],
    labels: Sequence[int],
    pictures: Iterable[Picture] | Picture,
    method: Method = "knn",
    descriptor: Descriptor = "class",
    batch_size: int = 8,
    **options: Any,
) -> NDArray[np.float32]:
    """Classifies pictures by examples with labels from 0 on: (m, classes) float32 probabilities.

    Args:
        extractor: of the features.
        examples: pictures of known classes.
        labels: of each.
        pictures: to classify.
        method, options: see :func:`fit_classes`.
        descriptor: see :func:`e2net.features.index.describe`.
        batch_size: of the extractor.
    """
    vectors = np.stack([describe(one, descriptor) for one in extractor(examples, batch_size)])
    found = fit_classes(method, vectors, np.asarray(labels), max(labels) + 1, **options)
    return found(np.stack([describe(one, descriptor) for one in extractor(pictures, batch_size)]))


def folds_of(labels: NDArray[np.int64], folds: int, seed: int = 0) -> NDArray[np.int64]:
    """The fold (n,) of each vector, each class spread evenly over all."""
    rng = np.random.default_rng(seed)
    found = np.empty(len(labels), np.int64)
    for one in np.unique(labels):
        places = rng.permutation(np.flatnonzero(labels == one))
        found[places] = np.arange(len(places)) % folds
    return found
