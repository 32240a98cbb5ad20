from .extract import Extractor, Features, load_encoder
from .masks import foreground, segment
from .store import search
from .whole import classify

__all__ = ["Extractor", "Features", "classify", "foreground", "load_encoder", "search", "segment"]
