from .entry import evaluate, prepare_evaluation
from .folder import score_folder
from .test import EvaluationJob

__all__ = ["EvaluationJob", "evaluate", "prepare_evaluation", "score_folder"]
