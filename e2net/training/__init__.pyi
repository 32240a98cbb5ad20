from .memory import OutOfMemoryError
from .run import TrainingJob, prepare_training, train

__all__ = ["OutOfMemoryError", "TrainingJob", "prepare_training", "train"]
