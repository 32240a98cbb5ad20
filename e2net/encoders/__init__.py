"""Encoders: an image in, feature maps F1..F4 out, and the policies that say what of them trains."""

from e2net.encoders.tuning import Frozen, Full
from e2net.encoders.vit import ViTEncoder

__all__ = ["Frozen", "Full", "ViTEncoder"]
