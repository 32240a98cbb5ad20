from .app import make_app
from .batching import Batcher

__all__ = ["Batcher", "make_app"]
