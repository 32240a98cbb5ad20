from .extract import Extractor, Features, load_encoder
from .matching import match
from .suite import probe
from .tracking import Tracker, track

__all__ = ["Extractor", "Features", "Tracker", "load_encoder", "match", "probe", "track"]
