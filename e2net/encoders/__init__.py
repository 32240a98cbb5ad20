"""Encoders: an image in, feature maps F1..F4 out, and the policies that say what of them trains."""

from e2net.encoders.base import Encoder
from e2net.encoders.convnext import ConvNeXtEncoder
from e2net.encoders.tuning import Adapters, Frozen, Full, LoRA, Partial, Tuning, merge_lora
from e2net.encoders.vit import ViTEncoder

__all__ = [
    "Adapters",
    "ConvNeXtEncoder",
    "Encoder",
    "Frozen",
    "Full",
    "LoRA",
    "Partial",
    "Tuning",
    "ViTEncoder",
    "merge_lora",
]
