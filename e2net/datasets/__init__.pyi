from .datamodule import (
    DenseData,
    EvalSet,
    FolderData,
    ProceduralData,
    TrainSet,
    collate,
    in_validation,
)
from .layouts import SemanticData
from .pairs import FolderPairs, FolderTargets, Source
from .procedural import ProceduralPairs
from .transforms import Augment, Resize

__all__ = [
    "Augment",
    "DenseData",
    "EvalSet",
    "FolderData",
    "FolderPairs",
    "FolderTargets",
    "ProceduralData",
    "ProceduralPairs",
    "Resize",
    "SemanticData",
    "Source",
    "TrainSet",
    "collate",
    "in_validation",
]
