"""Trained models for others: as a folder of three files, and on the Hugging Face Hub.

- ``save``: writes the folder, or pushes it
- ``card``: the model card
"""

import lazy_loader

# See e2net/__init__.py.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
