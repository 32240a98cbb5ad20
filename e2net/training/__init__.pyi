from .finite import NotFiniteError as NotFiniteError
from .memory import OutOfMemoryError
from .run import TrainingJob, prepare_training, train

__all__ = ["NotFiniteError", "OutOfMemoryError", "TrainingJob", "prepare_training", "train"]
