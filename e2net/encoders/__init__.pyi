from .base import Encoder
from .convnext import ConvNeXtEncoder
from .tuning import Adapters, ExPLoRA, Frozen, Full, LoRA, Partial, Tuning, merge_lora
from .vit import ViTEncoder

__all__ = [
    "Adapters",
    "ConvNeXtEncoder",
    "Encoder",
    "ExPLoRA",
    "Frozen",
    "Full",
    "LoRA",
    "Partial",
    "Tuning",
    "ViTEncoder",
    "merge_lora",
]
