"""What the processes of one training share: sums over all of them that gradients flow through, and small objects.

In one process everything here gives back what it is given.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

# Whether the batches of all processes are one batch here; not everywhere, as a process that is alone in asking for a
# sum would wait for the others for ever.
_ONE_BATCH: ContextVar[bool] = ContextVar("e2net_one_batch", default=False)


def count() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


@contextlib.contextmanager
def one_batch() -> Iterator[None]:
    """Within it the batches of all processes, of equal sizes, are one; every process must come here with its own."""
    token = _ONE_BATCH.set(True)
    try:
        yield
    finally:
        _ONE_BATCH.reset(token)


def batch_sum(values: Tensor) -> Tensor:
    """Sums over one process's batch -> sums over the whole batch, see :func:`one_batch`; of the same shape.

    The gradient of a loss made of them is right where gradients are averaged over processes, as DDP does it.
    """
    return total(values) if _ONE_BATCH.get() else values


def whole_batch(values: Tensor) -> Tensor:
    """(B, ...) of one process -> (processes · B, ...) of the whole batch; what was said of :func:`batch_sum` holds."""
    return _Gather.apply(values) if _ONE_BATCH.get() and count() > 1 else values


def total(values: Tensor) -> Tensor:
    """The sum of all processes' values, of their shape, with its gradient; a collective call."""
    return _Sum.apply(values) if count() > 1 else values


def gather(values: Tensor) -> Tensor:
    """What each process has given, by rank (processes, ...), without a gradient; a collective call."""
    parts = [torch.empty_like(values, memory_format=torch.contiguous_format) for _ in range(count())]
    if len(parts) == 1:
        return values[None]
    dist.all_gather(parts, values.contiguous())
    return torch.stack(parts)


def gather_objects(one: T) -> list[T]:
    """What each process has given, by rank; a collective call, for what is small and can be pickled."""
    found: list[Any] = [one] * count()
    if len(found) > 1:
        dist.all_gather_object(found, one)
    return found


class _Sum(torch.autograd.Function):
    """y = Σ x over processes: each x counts in every process's y, so its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        values = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient


class _Gather(torch.autograd.Function):
    """The processes' tensors behind each other along their first axis."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return gather(values).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.chunk(count())[rank()]


def is_part(value: Tensor) -> bool:
    """Whether a tensor is split over the processes, and this one holds a part."""
    return hasattr(value, "full_tensor")


def whole(value: Tensor) -> Tensor:
    """A tensor with all of its values, put together where it is split; a collective call."""
    return value.full_tensor() if is_part(value) else value  # type: ignore[attr-defined]


def local(value: Tensor) -> Tensor:
    """This process's part of a tensor, in the same memory; all of one that is not split."""
    return value.to_local() if is_part(value) else value  # type: ignore[attr-defined]


def split_like(value: Tensor, like: Any) -> Tensor:
    """A whole tensor, the first process's, split as another one is, if that is split; a collective call."""
    if not is_part(like) or is_part(value):
        return value
    from torch.distributed.tensor import distribute_tensor  # noqa: PLC0415 - where it is needed, it is there already

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
