"""Pairs of image and mask: from folders or generated, augmented, in batches.

Start with a data module (`FolderData`, `ProceduralData`); `Source` is the protocol for pairs of another kind.
"""

from e2net.datasets.datamodule import (
    EvalSet,
    FolderData,
    ProceduralData,
    SegmentationData,
    TrainSet,
    collate,
    in_validation,
)
from e2net.datasets.io import find_by_stem, read_image, read_mask, write_map
from e2net.datasets.pairs import FolderPairs, Source
from e2net.datasets.procedural import ProceduralPairs
from e2net.datasets.transforms import Augment, Resize

__all__ = [
    "Augment",
    "EvalSet",
    "FolderData",
    "FolderPairs",
    "ProceduralData",
    "ProceduralPairs",
    "Resize",
    "SegmentationData",
    "Source",
    "TrainSet",
    "collate",
    "find_by_stem",
    "in_validation",
    "read_image",
    "read_mask",
    "write_map",
]
