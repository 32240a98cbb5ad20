"""The engine: configs to objects, training, testing, checkpoints and reports."""

from e2net.engine.checkpoint import inherit_size, load_model
from e2net.engine.config import build, build_model, list_groups, resolve, user_errors
from e2net.engine.run import Job, prepare_evaluation, prepare_training, test, train

__all__ = [
    "Job",
    "build",
    "build_model",
    "inherit_size",
    "list_groups",
    "load_model",
    "prepare_evaluation",
    "prepare_training",
    "resolve",
    "test",
    "train",
    "user_errors",
]
