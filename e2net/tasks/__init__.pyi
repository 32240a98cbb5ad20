from .base import Task
from .camouflage import Camouflage
from .semantic import Semantic

__all__ = ["Camouflage", "Semantic", "Task"]
