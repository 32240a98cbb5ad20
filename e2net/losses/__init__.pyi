from . import depth, semantic
from .base import DenseLoss, TermLoss
from .criterion import TERMS, Criterion
from .depth import DepthLoss
from .schedule import WeightSchedule

__all__ = ["TERMS", "Criterion", "DenseLoss", "DepthLoss", "TermLoss", "WeightSchedule", "depth", "semantic"]
