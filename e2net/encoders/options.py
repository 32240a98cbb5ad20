"""What ``python -m e2net.encoders`` takes. Imports nothing heavy: --help is there at once."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

USAGE = """\
Lists the encoders, what they cost, and which of them fit a GPU.

  python -m e2net.encoders [size=384] [batch=1] [gpu_gb=12] [checkpoint_dir=checkpoint]

  size            pixels a side; rounded, for each encoder, to the nearest multiple of its patch size (or of 32)
  batch           images at a time, for memory
  gpu_gb          GPU memory in GiB; marks the ways of tuning that fit it with a *
  checkpoint_dir  where downloaded encoders lie; train.py looks into checkpoint/

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
class Options:
    """The command's arguments; see ``USAGE``."""

    size: int = 384
    batch: int = 1
    gpu_gb: float | None = None
    checkpoint_dir: str = "checkpoint"

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Self:
        """Reads ``key=value`` arguments.

        Raises:
            ValueError: an unknown key, or a value that is no positive number.
        """
        known = [f.name for f in fields(cls)]
        given: dict[str, Any] = {}
        for argument in arguments:
            key, equals, value = argument.partition("=")
            if not equals or key not in known:
                raise ValueError(f"unknown argument {argument!r}; expected {', '.join(f'{k}=...' for k in known)}")
            given[key] = value if key == "checkpoint_dir" else _positive(key, value, float if key == "gpu_gb" else int)
        return cls(**given)


def _positive(key: str, value: str, kind: type[int] | type[float]) -> float:
    try:
        number = kind(value)
    except ValueError:
        number = 0
    if not 0 < number < 1e6:
        raise ValueError(f"{key} must be a positive {'whole ' * (kind is int)}number, found {value!r}")
    return number
