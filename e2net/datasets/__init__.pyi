from .datamodule import (
    EvalSet,
    FolderData,
    ProceduralData,
    SegmentationData,
    TrainSet,
    collate,
    in_validation,
)
from .io import find_by_stem, is_jpeg, read_image, read_map, read_mask, write_map
from .pairs import FolderMasks, FolderPairs, Source
from .procedural import ProceduralPairs
from .transforms import Augment, Resize

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
