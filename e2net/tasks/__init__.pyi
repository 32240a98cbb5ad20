from .base import Task
from .camouflage import Camouflage

__all__ = ["Camouflage", "Task"]
