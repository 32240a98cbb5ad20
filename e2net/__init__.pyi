from .predict.segmenter import load

__version__: str
__all__ = ["load"]
