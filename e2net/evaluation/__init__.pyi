from .entry import evaluate, prepare_evaluation
from .test import EvaluationJob

__all__ = ["EvaluationJob", "evaluate", "prepare_evaluation"]
