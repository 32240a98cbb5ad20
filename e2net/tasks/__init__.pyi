from .base import Task
from .camouflage import Camouflage
from .depth import Depth

__all__ = ["Camouflage", "Depth", "Task"]
