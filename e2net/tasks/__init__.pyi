from .base import Task
from .camouflage import Camouflage
from .depth import Depth
from .semantic import Semantic

__all__ = ["Camouflage", "Depth", "Semantic", "Task"]
