from . import depth, self_supervised, semantic
from .base import DenseLoss, TermLoss
from .criterion import TERMS, Criterion
from .depth import DepthLoss
from .schedule import WeightSchedule
from .semantic_loss import SemanticLoss

__all__ = [
    "TERMS",
    "Criterion",
    "DenseLoss",
    "DepthLoss",
    "SemanticLoss",
    "TermLoss",
    "WeightSchedule",
    "depth",
    "self_supervised",
    "semantic",
]
