"""Where a training step's time goes, and how near to the device's limit it is.

- ``measure``: times of whole steps, part by part
- ``table``: the table and its verdict
"""

import lazy_loader

# What this package offers is listed in __init__.pyi and imported when it is asked for.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
