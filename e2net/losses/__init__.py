"""Losses: terms as pure functions, and the criterion that weighs and adds them.

- ``base``: what every loss is called with, and the weighted sum of terms
- ``criterion``: that sum over a model's final, coarse and refined maps
- ``functional``: terms for masks
- ``semantic``: terms for classes
- ``semantic_loss``: their sum, with weights of the classes
- ``depth``: terms for depth
- ``self_supervised``: losses without labels
- ``schedule``: weights that change in the course of training
"""

import lazy_loader

# What this package offers is listed in __init__.pyi and imported when it is asked for.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
