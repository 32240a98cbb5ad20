"""Pairs of image and mask: from folders or generated, augmented, in batches.

Start with a data module (`FolderData`, `ProceduralData`); `Source` is the protocol for pairs of another kind.

- ``datamodule``: which pairs are for what, and how they become batches
- ``pairs``: images and targets in two folders, and the protocol of every source
- ``layouts``: published layouts of label maps
- ``procedural``: generated camouflage
- ``transforms``: resizing and augmentation of a pair
- ``corruptions``: eight corruptions of photographs at five strengths
- ``repeats``: the same file in several sets
- ``cached``: features of a frozen encoder, kept on disk
"""

import lazy_loader

# What this package offers is listed in __init__.pyi and imported when it is asked for.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
