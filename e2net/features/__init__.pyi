from .attending import attention
from .extract import Extractor, Features, load_encoder
from .looks import norms, pca, similarity
from .masks import foreground, segment
from .store import search
from .whole import classify

__all__ = [
    "Extractor",
    "Features",
    "attention",
    "classify",
    "foreground",
    "load_encoder",
    "norms",
    "pca",
    "search",
    "segment",
    "similarity",
]
