from .checkpoint import load_model
from .config import (
    build,
    build_data,
    build_model,
    build_task,
    compose_evaluation,
    compose_training,
    list_groups,
    resolve,
    user_errors,
)
from .overrides import inherit

__all__ = [
    "build",
    "build_data",
    "build_model",
    "build_task",
    "compose_evaluation",
    "compose_training",
    "inherit",
    "list_groups",
    "load_model",
    "resolve",
    "user_errors",
]
