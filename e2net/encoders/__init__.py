"""Encoders: an image in, feature maps F1..F4 out, and the policies that say what of them trains.

- ``base``: what every encoder has in common
- ``vit``: vision transformers, of Hugging Face and timm
- ``convnext``: DINOv3's ConvNeXt, of both
- ``hub``: Hugging Face backbones, built or loaded
- ``timm_hub``: timm's backbones, built or loaded
- ``tuning``: what of an encoder trains
- ``listing``: the encoders of ``conf/encoder``, and what fits
- ``options``: of the program that lists them
"""

import lazy_loader

# What this package offers is listed in __init__.pyi and imported when it is asked for.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
