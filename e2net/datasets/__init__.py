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
from e2net.datasets.io import find_by_stem, is_jpeg, read_image, read_map, read_mask, write_map
from e2net.datasets.pairs import FolderMasks, FolderPairs, Source
from e2net.datasets.procedural import ProceduralPairs
from e2net.datasets.transforms import Augment, Resize

__all__ = [
    "Augment",
    "EvalSet",
    "FolderData",
    "FolderMasks",
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
    "is_jpeg",
    "read_image",
    "read_map",
    "read_mask",
    "write_map",
]
