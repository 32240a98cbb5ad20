from . import depth, semantic
from .criterion import TERMS, Criterion
from .schedule import Schedule

__all__ = ["TERMS", "Criterion", "Schedule", "depth", "semantic"]
