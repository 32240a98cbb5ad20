"""Pairs of image and mask: from folders or generated, augmented, in batches.

Start with a data module (`FolderData`, `ProceduralData`); `Source` is the protocol for pairs of another kind.
"""

import lazy_loader

# What this package offers is listed in __init__.pyi and imported when it is asked for.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
