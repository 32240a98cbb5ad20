"""Connected objects of a mask in COCO's run-length encoding, without pycocotools."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray


def find_objects(mask: NDArray[np.bool_], prob: NDArray[np.float32], min_area: int = 1) -> list[dict[str, Any]]:
    """The connected objects of a mask (8 neighbours), largest first.

    Args:
        mask: (h, w) bool.
        prob: (h, w) in [0, 1].
        min_area: objects of fewer pixels are left out.

    Returns:
        For each the keys of a COCO annotation: ``segmentation`` (``size`` [h, w] and ``counts``, compressed),
        ``bbox`` [x, y, width, height] and ``area`` in pixels, and ``score``, the mean probability inside.
    """
    _, labels, measures, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8, ltype=cv2.CV_32S)
    areas = measures[:, cv2.CC_STAT_AREA]
    sums = np.bincount(labels.ravel(), weights=prob.ravel(), minlength=len(areas))
    order = [int(i) for i in np.argsort(-areas[1:], kind="stable") + 1 if areas[i] >= min_area]
    found = []
    for label in order:
        x, y, width, height = (int(v) for v in measures[label, :4])
        counts = run_lengths(labels[y : y + height, x : x + width] == label, (x, y), mask.shape)
        found.append(
            {
                "segmentation": {"size": list(mask.shape), "counts": compress(counts)},
                "bbox": [x, y, width, height],
                "area": int(areas[label]),
                "score": round(float(sums[label] / areas[label]), 6),
            }
        )
    return found


def run_lengths(part: NDArray[np.bool_], corner: tuple[int, int], size: tuple[int, ...]) -> list[int]:
    """COCO's run lengths of a mask that is empty outside of one box; the cost is that of the box.

    Args:
        part: (h', w') bool, the mask inside the box, not empty.
        corner: (x, y) of the box's upper left pixel.
        size: (h, w) of the whole mask.

    Returns:
        Lengths of runs down the columns, from left to right: background, object, background, ... The first may be 0.
    """
    steps = np.diff(part.T.astype(np.int8), axis=1, prepend=0, append=0)  # (w', h' + 1): 1 where a run starts, -1 ends

    def positions(sign: int) -> NDArray[np.int64]:
        columns, rows = np.nonzero(steps == sign)
        return (columns + corner[0]) * size[0] + rows + corner[1]

    starts, ends = positions(1), positions(-1)
    # A run that reaches the bottom goes on where the next column starts at the top.
    apart = starts[1:] != ends[:-1]
    starts, ends = starts[np.r_[True, apart]], ends[np.r_[apart, True]]
    edges = np.column_stack([starts, ends]).ravel()
    total = size[0] * size[1]
    counts = np.diff(edges, prepend=0, append=total).tolist()
    return counts if counts[-1] else counts[:-1]


def compress(counts: list[int]) -> str:
    """COCO's text form of run lengths.

    From the fourth on, the difference to the one before the last is written: 5 bits a character, low bits first, the
    sixth bit set where more follow, 48 added to be printable.
    """
    text = bytearray()
    for i, count in enumerate(counts):
        value = count - counts[i - 2] if i > 2 else count
        while True:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text.append((bits | 32 if more else bits) + 48)
            if not more:
                break
    return text.decode("ascii")
