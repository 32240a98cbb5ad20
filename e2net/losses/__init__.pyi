from . import depth, semantic
from .base import DenseLoss, TermLoss
from .criterion import TERMS, Criterion
from .schedule import Schedule
from .semantic_loss import SemanticLoss

__all__ = ["TERMS", "Criterion", "DenseLoss", "Schedule", "SemanticLoss", "TermLoss", "depth", "semantic"]
