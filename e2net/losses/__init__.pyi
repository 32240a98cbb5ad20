from . import depth, semantic
from .base import DenseLoss, TermLoss
from .criterion import TERMS, Criterion
from .schedule import Schedule

__all__ = ["TERMS", "Criterion", "DenseLoss", "Schedule", "TermLoss", "depth", "semantic"]
