"""e2net: dense prediction on DINO features, first of all camouflaged-object segmentation."""

__version__ = "0.1.0"
