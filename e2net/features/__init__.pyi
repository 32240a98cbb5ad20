from .attending import attention
from .extract import Extractor, Features, load_encoder
from .looks import norms, pca, similarity
from .masks import foreground, segment
from .matching import match
from .store import search
from .suite import probe
from .tracking import Tracker, track
from .whole import classify

__all__ = [
    "Extractor",
    "Features",
    "Tracker",
    "attention",
    "classify",
    "foreground",
    "load_encoder",
    "match",
    "norms",
    "pca",
    "probe",
    "search",
    "segment",
    "similarity",
    "track",
]
