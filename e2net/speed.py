"""Where and in which types to compute, and the same arithmetic in less time.

That is ``torch.compile``, and frozen weights that are kept as they are multiplied.
"""

import logging
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import torch
from torch import nn

from e2net.model import DenseModel
from e2net.processes import is_part

log = logging.getLogger(__name__)

# The types in which products of matrices are computed, by the Trainer's word for it; None as the weights are.
AUTOCAST = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def choose_device(name: str) -> torch.device:
    """The device of a name such as ``cpu`` or ``cuda:1``; ``auto`` takes a GPU if there is one.

    Raises:
        ValueError: this machine has none of that name.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.ones(1, device=device).add(1).item()
    # An unknown word, a backend that this machine lacks, or one without values.
    except (RuntimeError, AssertionError, ImportError, AttributeError) as error:
        raise ValueError(
            f"device={name} is not to be had here ({str(error).splitlines()[0]:.100}); try auto"
        ) from error
    return device


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that a device's or this machine's memory is used up."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "not enough memory" in text)
    )


def compile_model(model: DenseModel, **options: Any) -> None:
    """Compiles the encoder's blocks, the neck and the decoder in place; names in the state dict stay as they are.

    The blocks one by one: they share one piece of compiled code, and the hooks that collect hidden states and add
    adapters stay outside of it (compiled code keeps the hooks of its first call). Nothing is compiled before the first
    batch. Where that fails, for want of a C++ compiler say, there is one warning and the model runs as it is.

    Args:
        model: what to compile.
        options: for ``torch.compile``.
    """
    state = _State()
    compiled: dict[Any, Callable] = {}
    for part in (*model.encoder.layers(), model.neck, model.decoder):
        plain = part.forward.__func__  # type: ignore[attr-defined]
        if plain not in compiled:
            # The decoder anew for each size of image: with sizes left open its many resamplings take minutes.
            fixed = {"dynamic": False} if part is model.decoder else {}
            compiled[plain] = torch.compile(plain, **fixed | options)
        # A bound method, which copy.deepcopy binds to the copy.
        part.forward = MethodType(_with_fallback(compiled[plain], plain, state), part)


class _State:
    """Shared by all parts of a model: whether compiling has failed."""

    failed = False


def _with_fallback(compiled: Callable, plain: Callable, state: _State) -> Callable:
    def forward(part: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if state.failed:
            return plain(part, *args, **kwargs)
        try:
            return compiled(part, *args, **kwargs)
        except torch._dynamo.exc.TorchDynamoException as error:
            state.failed = True
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            log.warning("compile=true has no effect: torch.compile failed (%s)", reason.strip()[:200])
            return plain(part, *args, **kwargs)

    return forward


def frozen_weights(model: DenseModel) -> Iterator[nn.Parameter]:
    """Frozen weights and biases of the linear layers in the encoder's blocks, where they can be read from files again.

    Nothing outside of the blocks: DINOv3 computes its rotary positions in the type of the patch embedding's weight.
    """
    if not model.encoder.pretrained:
        return  # a checkpoint stores these, and at their full precision
    for module in (module for block in model.encoder.layers() for module in block.modules()):
        if isinstance(module, nn.Linear):
            yield from (p for p in module.parameters(recurse=False) if not p.requires_grad)


def halve_frozen(model: DenseModel, precision: str, device: torch.device) -> None:
    """:func:`cast_frozen` to bf16 where that gains something: on a GPU, for a Trainer's ``bf16-mixed``.

    To be called after whatever hashes the weights. A CPU keeps float32: what it would save is no more than noise
    (docs/performance.md).
    """
    if precision == "bf16-mixed" and device.type == "cuda":
        cast_frozen(model, torch.bfloat16)


@torch.no_grad()
def cast_frozen(model: DenseModel, dtype: torch.dtype) -> None:
    """Keeps :func:`frozen_weights` in the type that autocast would cast them to in every step: the same results.

    Norms and all other parameters stay as they are, since autocast computes with those in float32; so do weights that
    are split over processes, which are put together in one type.
    """
    for parameter in (parameter for parameter in frozen_weights(model) if not is_part(parameter)):
        parameter.data = parameter.data.to(dtype)
