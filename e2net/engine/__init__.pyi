from .checkpoint import load_model
from .config import build, build_model, compose_training, list_groups, resolve, user_errors
from .evaluate import evaluate, prepare_evaluation
from .memory import OutOfMemoryError
from .overrides import inherit
from .run import Job, prepare_training, train

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
