"""Vectors of files, kept between runs, and the sheet of a search."""

import hashlib
import io
import json
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from e2net.drawing import PANEL
from e2net.features.extract import Extractor
from e2net.features.index import Descriptor, Found, Index, describe
from e2net.features.inputs import Failures
from e2net.features.masks import encode, panel
from e2net.files import write_atomically
from e2net.formats import read_image, verify_image
from e2net.pictures import Picture

_ROWS, _COLUMNS = 12, 8  # of a sheet


def vectors_of(
    extractor: Extractor,
    files: Sequence[Path],
    failures: Failures,
    descriptor: Descriptor = "class",
    batch_size: int = 8,
    store: Path | None = None,
) -> tuple[list[Path], NDArray[np.float32]]:
    """One vector of length 1 for each picture that can be read: the files, and (n, D) float32.

    Args:
        extractor: of the features.
        files: of the pictures.
        failures: takes those that cannot be read.
        descriptor: see :func:`e2net.features.index.describe`.
        batch_size: of the extractor.
        store: a file that keeps the vectors; those of files of the same path, size and time are taken from it, if it
            was written with the same weights and settings.

    Raises:
        ValueError: no picture can be read, or ``describe`` refuses.
    """
    identity = json.dumps(
        [_weights(extractor), extractor.size, extractor.blocks, extractor.norm, descriptor]
        if store else None
    )  # fmt: skip
    keys = [_key(file) for file in files]
    known = _read(store, identity) if store is not None else {}
    missing = [file for file, key in zip(files, keys, strict=True) if key not in known]
    missing = failures.without_fault(missing, verify_image, lambda file: file)
    for file, features in zip(missing, extractor(missing, batch_size), strict=True):
        known[_key(file)] = describe(features, descriptor)
    kept = failures.some([(file, key) for file, key in zip(files, keys, strict=True) if key in known])
    keys, vectors = [key for _, key in kept], np.stack([known[key] for _, key in kept])
    if store is not None:
        content = io.BytesIO()
        np.savez(content, identity=np.array(identity), keys=np.array(keys), vectors=vectors)
        write_atomically(store, content.getvalue())
    return [file for file, _ in kept], vectors


def search(
    extractor: Extractor,
    pictures: Iterable[Picture] | Picture,
    queries: Iterable[Picture] | Picture,
    top: int = 10,
    descriptor: Descriptor = "class",
    batch_size: int = 8,
) -> list[Found]:
    """The pictures most like each query: their numbers in ``pictures``, from 0, and cosines, the nearest first.

    Raises:
        ValueError: the encoder has no class token, and ``descriptor`` asks for it.
    """
    index = Index(np.stack([describe(one, descriptor) for one in extractor(pictures, batch_size)]))
    return [index.query(describe(one, descriptor), top) for one in extractor(queries, batch_size)]


def search_sheet(queries: Sequence[Path], files: Sequence[Path], found: Sequence[Found]) -> bytes:
    """A JPEG: a row for each of the first queries, the query in front of what was found, cosines below."""
    rows = []
    for query, one in list(zip(queries, found, strict=True))[:_ROWS]:
        cells = [_cell(query, "query")]
        near = zip(one.rows[:_COLUMNS], one.cosines[:_COLUMNS], strict=True)
        cells += [_cell(files[row], f"{cosine:.3f}") for row, cosine in near]
        rows.append(cv2.hconcat(cells))
    width = max(row.shape[1] for row in rows)
    wide = [cv2.copyMakeBorder(r, 0, 0, 0, width - r.shape[1], cv2.BORDER_CONSTANT, value=(255,) * 3) for r in rows]
    return encode(cv2.vconcat(wide))  # type: ignore[arg-type]


def _cell(file: Path, text: str) -> NDArray[np.uint8]:
    picture = panel(read_image(file))
    wide = round(PANEL * 1.5)
    picture = picture[:, :wide]
    left = (wide - picture.shape[1]) // 2
    framed = cv2.copyMakeBorder(
        picture, 0, 18, left, wide - picture.shape[1] - left, cv2.BORDER_CONSTANT, value=(255,) * 3
    )
    cv2.putText(framed, text, (4, PANEL + 13), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (30, 30, 30), 1, cv2.LINE_AA)
    return framed  # type: ignore[return-value]


def _weights(extractor: Extractor) -> str:
    """An identity of all weights: names are no such, a folder's files may have changed."""
    digest = hashlib.sha256()
    for name, values in sorted(extractor.encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(values.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _key(file: Path) -> str:
    state = file.stat()
    return f"{file.resolve()}\n{state.st_size}\n{state.st_mtime_ns}"


def _read(store: Path, identity: str) -> dict[str, NDArray[np.float32]]:
    """What the file keeps; nothing if it was made of other features, or is none of ours."""
    if not store.is_file():
        return {}
    try:
        with np.load(store, allow_pickle=False) as kept:
            if str(kept["identity"]) != identity:
                return {}
            return dict(zip(kept["keys"].tolist(), kept["vectors"], strict=True))
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{store}: expected vectors that e2net wrote, found a broken file; remove it") from error
