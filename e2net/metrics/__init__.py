"""Scores of the field: pure functions, torchmetrics classes over them, and the protocol behind them.

- ``functional``: scores of a map against a mask
- ``scoring``: all of them at once
- ``geometry``: what a score needs of a mask alone
- ``protocol``: how a prediction becomes the map that is scored
- ``context``: the context measure
- ``calibration``: how far values are probabilities
- ``objects``: what makes an object hard to find, and kinds of error
- ``table``: the scores of a set, and their intervals
- ``collect``: what all collectors of a set's scores share
- ``modular``: torchmetrics classes of masks
- ``semantic``: scores of label maps
- ``semantic_modular``: their torchmetrics class
- ``depth``: scores of depth maps
- ``depth_set``: of a set of them
- ``depth_modular``: their torchmetrics class
- ``tracking``: J and F of objects in a film
"""

import lazy_loader

# What this package offers is listed in __init__.pyi and imported when it is asked for.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
