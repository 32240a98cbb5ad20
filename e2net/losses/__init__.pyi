from . import depth, semantic
from .base import DenseLoss, TermLoss
from .criterion import TERMS, Criterion
from .schedule import WeightSchedule

__all__ = ["TERMS", "Criterion", "DenseLoss", "TermLoss", "WeightSchedule", "depth", "semantic"]
