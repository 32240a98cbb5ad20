from .attending import attention
from .extract import Extractor, Features, load_encoder
from .looks import norms, pca, similarity

__all__ = ["Extractor", "Features", "attention", "load_encoder", "norms", "pca", "similarity"]
