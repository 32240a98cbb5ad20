"""What ``python -m e2net.encoders`` takes. Imports nothing heavy: --help is there at once."""

from dataclasses import dataclass
from typing import Annotated

USAGE = """\
Lists the encoders, what they cost, and which of them fit a GPU.

  python -m e2net.encoders size=384 batch=1 gpu_gb=12 checkpoint_dir=checkpoint

Columns:
  extra           tokens that are no patches: class token and registers
  GFLOP           of one image forward, a multiplication and an addition counted as two
  activ.          GiB of activations in 32 bits, when frozen and in full tuning
  frozen, adapter, full
                  GiB of GPU memory for weights and activations, by the way of tuning
  files           whether the weights lie in checkpoint_dir

Activations are measured on tensors without data. adapter stands for tuning=adapter as it comes, after every block. What
trains takes four numbers a weight: itself, its gradient and AdamW's two moments. The decoder, the backward pass's own
tensors, the allocator and CUDA come on top: leave a GiB or two. bf16-mixed halves most of the activations.
"""


@dataclass(frozen=True)
class ListingSettings:
    """All settings of one listing, checked for their ranges.

    Raises:
        ValueError: a number is not positive, or absurd.
    """

    size: Annotated[int, "pixels a side; for each encoder the nearest multiple of its patch size (or of 32)"] = 384
    batch: Annotated[int, "images at a time, for memory"] = 1
    gpu_gb: Annotated[float | None, "GPU memory in GiB; marks the ways of tuning that fit it with a *"] = None
    checkpoint_dir: Annotated[str, "where downloaded encoders lie; train.py looks into checkpoint/"] = "checkpoint"

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for key in ("size", "batch", "gpu_gb"):
            value = getattr(self, key)
            if value is not None and not 0 < value < 1e6:
                raise ValueError(f"{key}={value}: expected a number above 0 and below a million")
