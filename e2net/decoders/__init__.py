"""Decoders: feature maps F1..F4 in, logits out.

A decoder is built with the encoder's ``channels`` and ``strides`` and called with the maps and the image's (H, W).

- ``base``: what every decoder is called with
- ``linear``: the linear probe
- ``e2net``: search, zoom and confirm
- ``caem``: cross-scale alignment and enhancement
- ``dpt``: one residual path from coarse to fine
- ``upernet``: context of the whole scene over a pyramid
- ``necks``: what trains between the encoder's maps and the decoder
- ``pyramid``: the stride that each map has in a decoder
- ``layers``: building blocks that several share
"""

import lazy_loader

# What this package offers is listed in __init__.pyi and imported when it is asked for.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
