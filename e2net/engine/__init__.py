"""The engine: configs to objects, training, testing, checkpoints and reports."""

from e2net.engine.checkpoint import inherit, load_model
from e2net.engine.config import build, build_model, compose_training, list_groups, resolve, user_errors
from e2net.engine.memory import OutOfMemoryError
from e2net.engine.run import Job, evaluate, prepare_evaluation, prepare_training, train

__all__ = [
    "Job",
    "OutOfMemoryError",
    "build",
    "build_model",
    "compose_training",
    "evaluate",
    "inherit",
    "list_groups",
    "load_model",
    "prepare_evaluation",
    "prepare_training",
    "resolve",
    "train",
    "user_errors",
]
