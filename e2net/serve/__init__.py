"""A trained model over HTTP: a picture in, its map or its objects out.

- ``settings``: of the program
- ``app``: the web application
- ``batching``: pictures of many requests through one network
"""

import lazy_loader

# See e2net/__init__.py.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
