"""What an exported file computes: one look at pictures of any size, normalisation and activation inside."""

import contextlib
import copy
import sys
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from e2net.model import DenseModel
from e2net.structures import unit_range

# Of the longer side, pixels.
LARGEST = 32768


class OnePass(nn.Module):
    """A model with all that stands between a picture's bytes and its map, as in evaluation without other looks.

    Args:
        model: in eval mode; it is left as it is.
        sharpen: the map's log-odds times this, where the task has objects.
        dtype: in which the network computes, float32 or float16.
    """

    def __init__(self, model: DenseModel, sharpen: float = 1.0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.model = model if dtype == torch.float32 else copy.deepcopy(model).to(dtype)
        self.sharpen, self.dtype = sharpen, dtype

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) uint8, RGB -> the task's activated prediction (B, C, H, W), float32.

        H and W are multiples of ``model.encoder.size_multiple``.
        """
        pixels = unit_range(image)
        assert isinstance(pixels, Tensor)
        task = self.model.task
        activated = task.activate(self.model(pixels.to(self.dtype)).prediction)
        return activated if self.sharpen == 1 else task.sharpened(activated, self.sharpen)


def trace(network: OnePass, like: tuple[int, int], size: tuple[int, int] | None = None) -> Any:
    """The network as a program of ``torch.export``, for any number of pictures.

    Args:
        network: what it computes.
        like: (H, W), a typical size, for choices between ways to the same result.
        size: (H, W), the only size; None: any from two patches a side, in steps of the patch.

    Raises:
        ValueError: the model cannot be exported so, or a size is not legal.
    """
    network.model.encoder.check_size(*(size or like))
    multiple = network.model.encoder.size_multiple
    batch = torch.export.Dim("batch", min=1, max=2**16)
    shape: dict[int, Any] = {0: batch}
    # Not square: sides that are equal in the example would have to be equal for ever.
    height, width = size or (like[0], like[1] + multiple)
    if size is None:
        most = LARGEST // multiple
        rows, columns = (torch.export.Dim(name, min=1, max=most) for name in ("rows", "columns"))
        shape |= {2: multiple * rows, 3: multiple * columns}
    # Two, as one would stay one.
    example = torch.zeros(2, 3, height, width, dtype=torch.uint8)
    try:
        with torch.no_grad(), _any_size(network.model.encoder.backbone):
            return torch.export.export(network.eval(), (example,), dynamic_shapes={"image": shape}, strict=False)
    # Whatever a library's own forward pass does that cannot be traced.
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        advice = "give size=... for a file of one size alone" if size is None else "this model cannot be exported"
        raise ValueError(
            f"{type(network.model.encoder.backbone).__name__}: expected a forward pass that torch.export can follow "
            f"with {'any size' if size is None else 'one size'}, found one that it cannot; {advice} ({reason})"
        ) from error


@contextlib.contextmanager
def _any_size(backbone: nn.Module) -> Iterator[None]:
    """Has transformers' models resize their positions at their own size too, to the same ones: by no condition on it.

    They ask TorchScript's tracer whether they are traced, which is what it was for. And makes no number of a symbol.
    """
    with contextlib.ExitStack() as patches:
        patches.enter_context(patch.object(torch.jit, "is_tracing", lambda: True))
        for name in {type(module).__module__ for module in backbone.modules()}:
            if hasattr(sys.modules[name], "torch_int"):
                patches.enter_context(patch.object(sys.modules[name], "torch_int", _whole))
        yield


def _whole(value: Any) -> Any:
    return value if isinstance(value, torch.SymInt) else int(value)
