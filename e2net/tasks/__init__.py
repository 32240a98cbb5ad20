"""Tasks: what a map means, one file each.

- ``base``: the contract
- ``camouflage``: one soft mask of objects
- ``semantic``: one of K classes at every pixel
- ``depth``: metres at every pixel
- ``objects``: how pictures of objects are told apart
"""

import lazy_loader

# What this package offers is listed in __init__.pyi and imported when it is asked for.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
