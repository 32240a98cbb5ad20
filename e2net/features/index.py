"""Vectors of pictures, and which of them are nearest to one."""

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

from e2net.features.codes import Codes
from e2net.features.extract import Features

Descriptor = Literal["class", "patches", "both"]
_ROWS = 4096  # at once, of similarities between all
_SPARSE = 16  # of so many vectors at most one is taken out to be compared; more are compared where they lie
_MANY = 1 << 16  # vectors from which on codes of 8 bits are kept beside them


def describe(features: Features, descriptor: Descriptor = "class") -> NDArray[np.float32]:
    """One vector (D,) of length 1 for a picture, float32; (2 D,) for ``both``.

    Args:
        features: of the picture.
        descriptor: the class token, the mean of the patches, or both, each of the same weight.

    Raises:
        ValueError: the class token is asked for, and the encoder has none.
    """
    if descriptor != "patches" and features.class_token is None:
        raise ValueError(f"descriptor={descriptor}: this encoder has no class token; take descriptor=patches")
    parts = []
    if features.class_token is not None and descriptor != "patches":
        parts.append(features.class_token)
    if descriptor != "class":
        parts.append(features.patches.mean((0, 1)))
    return unit(np.concatenate([unit(part) for part in parts]))


def unit(vectors: NDArray[Any]) -> NDArray[np.float32]:
    """Vectors (..., D) at length 1, float32."""
    return normalize(torch.from_numpy(np.ascontiguousarray(vectors, np.float32)), dim=-1).numpy()


class Found(NamedTuple):
    """The nearest rows of an index.

    Attributes:
        rows: (k,) int64, the nearest first; of equal ones the lower.
        cosines: (k,) float32.
    """

    rows: NDArray[np.int64]
    cosines: NDArray[np.float32]


class Index:
    """All vectors in memory, each compared: exact.

    Of very many, 8 bits of each number are compared first, and the vectors themselves where these cannot tell, so that
    a query finds the same in less time; see :class:`e2net.features.codes.Codes`.

    Args:
        vectors: (n, D), made float32 of length 1.

    Raises:
        ValueError: another shape, or no vector.
    """

    def __init__(self, vectors: NDArray[Any]) -> None:
        if vectors.ndim != 2 or 0 in vectors.shape:
            raise ValueError(f"expected vectors (n, D), at least one, found {vectors.shape}")
        self.vectors = torch.from_numpy(unit(vectors))
        self._codes = Codes(self.vectors) if len(self) >= _MANY else None

    def __len__(self) -> int:
        """How many vectors there are."""
        return len(self.vectors)

    def query(self, vector: NDArray[Any], k: int) -> Found:
        """The ``k`` nearest of a vector (D,) by cosine, or all where there are fewer."""
        query, k = torch.from_numpy(unit(vector)), min(k, len(self))
        rows = self._codes.candidates(query, k) if self._codes is not None else None
        if rows is None or len(rows) > len(self) // _SPARSE:
            rows, cosines = torch.arange(len(self)), self.vectors @ query
        else:
            cosines = self.vectors[rows] @ query
        kept = torch.nonzero(cosines >= cosines.topk(k).values[-1])[:, 0]  # all that are equal to the last one too
        found = _ordered(rows[kept].numpy(), cosines[kept].numpy())
        return Found(found.rows[:k], found.cosines[:k])

    def pairs(self, least: float) -> list[tuple[int, int, float]]:
        """All pairs of rows (i < j) whose cosine is at least so much, the most alike first."""
        found = []
        for start in range(0, len(self), _ROWS):
            cosines = self.vectors[start : start + _ROWS] @ self.vectors.T
            first, second = torch.nonzero(cosines >= least, as_tuple=True)
            values = cosines[first, second]
            rows = zip((first + start).tolist(), second.tolist(), values.tolist(), strict=True)
            found += [(i, j, cosine) for i, j, cosine in rows if i < j]
        return sorted(found, key=lambda pair: (-pair[2], pair[:2]))


def load_faiss() -> Any:
    """FAISS, an extra.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import faiss  # noqa: PLC0415
    except ImportError as error:
        raise ValueError("index=faiss: FAISS is not installed; pip install 'e2net[search]'") from error
    return faiss


class ApproximateIndex:
    """An inverted file of FAISS: only the cells next to a query are compared. For hundreds of thousands of pictures.

    Args:
        vectors: see :class:`Index`.
        probes: cells that a query looks into; more finds more of the true nearest, and takes longer.

    Raises:
        ValueError: FAISS is not installed, or see :class:`Index`.
    """

    def __init__(self, vectors: NDArray[Any], probes: int = 32) -> None:
        faiss = load_faiss()
        if vectors.ndim != 2 or 0 in vectors.shape:
            raise ValueError(f"expected vectors (n, D), at least one, found {vectors.shape}")
        rows = unit(vectors)
        cells = max(1, min(round(len(rows) ** 0.5), len(rows) // 40))
        self._flat = faiss.IndexFlatIP(rows.shape[1])  # kept here: the inverted file does not own it
        self._index = faiss.IndexIVFFlat(self._flat, rows.shape[1], cells, faiss.METRIC_INNER_PRODUCT)
        self._index.train(rows)
        self._index.add(rows)
        self._index.nprobe = min(probes, cells)

    def __len__(self) -> int:
        """How many vectors there are."""
        return int(self._index.ntotal)

    def query(self, vector: NDArray[Any], k: int) -> Found:
        """About the ``k`` nearest of a vector (D,) by cosine; fewer where the cells hold no more."""
        near, rows = self._index.search(unit(vector)[None], min(k, len(self)))
        there = rows[0] >= 0
        return _ordered(rows[0][there], near[0][there])


def leave_one_out(vectors: NDArray[Any], labels: list[str], ks: tuple[int, ...] = (1, 5)) -> dict[str, float]:
    """How many of the nearest pictures are of the same class, each picture once the query among all others.

    Args:
        vectors: (n, D).
        labels: the class of each.
        ks: of precision at k.

    Returns:
        ``P@k``: the share of the k nearest that are of the query's class; ``R@k``: whether one of them is; ``mAP``:
        average precision over all others. Means over queries whose class has at least one other picture.

    Raises:
        ValueError: no class has two pictures.
    """
    _, classes = np.unique(np.array(labels), return_inverse=True)
    queries = np.flatnonzero(np.bincount(classes)[classes] > 1)
    if not len(queries):
        raise ValueError(f"expected a class with at least two pictures, found {len(set(labels))} classes of one each")
    rows = torch.from_numpy(unit(vectors))
    scores: dict[str, list[float]] = {name: [] for k in ks for name in (f"P@{k}", f"R@{k}")}
    scores["mAP"] = []
    for query in queries:
        cosines = (rows @ rows[query]).numpy()
        cosines[query] = -np.inf
        order = np.argsort(-cosines, kind="stable")[:-1]
        same = classes[order] == classes[query]
        for k in ks:
            scores[f"P@{k}"].append(float(same[:k].mean()))
            scores[f"R@{k}"].append(float(same[:k].any()))
        places = np.flatnonzero(same)
        scores["mAP"].append(float((np.arange(1, len(places) + 1) / (places + 1)).mean()))
    return {name: float(np.mean(values)) for name, values in scores.items()}


def _ordered(rows: NDArray[Any], cosines: NDArray[Any]) -> Found:
    order = np.lexsort((rows, -cosines))
    return Found(rows[order].astype(np.int64), cosines[order].astype(np.float32))
