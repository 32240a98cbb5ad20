"""Decoders: feature maps F1..F4 in, logits out.

A decoder is built with the encoder's ``channels`` and ``strides`` and called with the maps and the image's (H, W).
"""

import lazy_loader

# What this package offers is listed in __init__.pyi and imported when it is asked for.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
