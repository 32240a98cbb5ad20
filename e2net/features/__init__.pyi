from .extract import Extractor, Features, load_encoder

__all__ = ["Extractor", "Features", "load_encoder"]
