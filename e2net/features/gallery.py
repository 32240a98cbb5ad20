"""Pictures in one self-contained HTML file: a click on a patch shows its similarity everywhere."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from e2net.features.extract import Features
from e2net.formats import printable
from e2net.page.pictures import encode_all
from e2net.page.render import render

_TEMPLATE = Path(__file__).parent / "template"
# Of all patches in the page, in base64; and numbers of one patch.
_BYTES = 6_000_000
_WIDTHS = (128, 96, 64, 48, 32, 24, 16)


class Shown(NamedTuple):
    """What the page shows of one picture.

    Attributes:
        name: of the picture.
        picture: (H, W, 3) uint8.
        drawn: title and picture (H, W, 3) uint8 of each map.
        features: of each encoder.
    """

    name: str
    picture: NDArray[np.uint8]
    drawn: list[tuple[str, NDArray[np.uint8]]]
    features: list[Features]


def gallery(title: str, encoders: Sequence[str], shown: Sequence[Shown], facts: str = "") -> str:
    """The whole file.

    Args:
        title: of the page.
        encoders: names, in the order of each picture's features.
        shown: the pictures.
        facts: a line below the title.
    """
    codes = [quantised([one.features[i].patches for one in shown], _width(shown)) for i in range(len(encoders))]
    encoded = encode_all([[one.picture, *(picture for _, picture in one.drawn)] for one in shown])
    figures = []
    for k, (one, (picture, *drawn)) in enumerate(zip(shown, encoded, strict=True)):
        grids = [
            {
                "encoder": i,
                "height": codes[i][k].shape[0],
                "width": codes[i][k].shape[1],
                "depth": codes[i][k].shape[2],
                "codes": base64.b64encode(codes[i][k].tobytes()).decode(),
            }
            for i in range(len(encoders))
        ]
        maps = [{"title": name, "picture": small} for (name, _), small in zip(one.drawn, drawn, strict=True)]
        figures.append({"name": printable(one.name), "picture": picture, "maps": maps, "grids": grids})
    return render(_TEMPLATE, {"title": title, "encoders": list(encoders), "figures": figures, "facts": facts})


def quantised(patches: Sequence[NDArray[np.float32]], width: int) -> list[NDArray[np.int8]]:
    """Unit vectors in so few bytes that their products, over 127², are still the cosines, to about 0.02.

    Patches of unit length in the ``width`` directions that hold the most of their products, made of unit length anew.

    Args:
        patches: (h, w, D) of each picture.
        width: numbers of a patch.

    Returns:
        (h, w, min(width, D)) int8 for each picture.
    """
    rows = np.concatenate([one.reshape(-1, one.shape[-1]) for one in patches]).astype(np.float64)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    _, vectors = np.linalg.eigh(rows.T @ rows)
    rows = rows @ vectors[:, ::-1][:, :width]
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    ends = np.cumsum([one.shape[0] * one.shape[1] for one in patches])[:-1]
    codes = np.split(np.rint(rows * 127).astype(np.int8), ends)
    return [code.reshape(*one.shape[:2], -1) for code, one in zip(codes, patches, strict=True)]


def _width(shown: Sequence[Shown]) -> int:
    patches = sum(f.patches.shape[0] * f.patches.shape[1] for one in shown for f in one.features)
    return next((w for w in _WIDTHS if patches * w * 4 / 3 <= _BYTES), _WIDTHS[-1])
