"""e2net: dense prediction on DINO features, first of all camouflaged-object segmentation."""

import lazy_loader

__version__ = "0.1.0"

# What a package offers is listed in its __init__.pyi and imported when it is asked for: torch and the rest take
# seconds, and neither `import e2net` nor --help shall take any.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
