"""Floating-point operations of a piece of work, counted from what is multiplied and not from what runs it.

Counted are matrix products, convolutions and attention, a multiplication and an addition as two, in the forward and
the backward pass. The figures are the same whichever kernel PyTorch chooses for attention, on the meta device as on any
other. Norms, activations, softmax, resampling and other work that goes pixel by pixel are left out, as is usual.
"""

import re
from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Words in the name of an operation that multiplies matrices.
_WORDS = {"attention", "attn", "sdpa", "transformer", "conv", "convolution", "linear", "trilinear", "einsum", "gemm"}
_WORDS |= {"mm", "addmm", "bmm", "baddbmm", "addbmm", "matmul", "mv", "addmv", "dot", "vdot", "tensordot"}
_WORDS |= {"lstm", "gru", "rnn"}


def count_flops(work: Callable[[], Any]) -> int:
    """Floating-point operations of ``work``, those of its backward passes too.

    Blocks that are recomputed in the backward pass count twice. Compiled code runs as it was written, as operations
    inside of it would not be seen.

    Raises:
        NotImplementedError: ``work`` does arithmetic by an operation that is not known here.
    """
    with torch.compiler.set_stance("force_eager"), FlopCounter() as counter:
        work()
    return counter.total


class FlopCounter(TorchDispatchMode):
    """Counts under ``with``; ``total`` is what was counted so far. See :func:`count_flops` for compiled code."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function._schema.name
        count = _COUNTS.get(name.removesuffix("_"))
        if count is None:
            # Under inference_mode an operation that is made of others comes whole.
            if name != "prim::device":
                with self:
                    result = function.decompose(*args, **kwargs)
                if result is not NotImplemented:
                    return result
            if _multiplies(name):
                raise NotImplementedError(
                    f"the FLOPs of {name} are not known: expected one of {', '.join(sorted(_COUNTS))}. Add its formula "
                    f"to {__name__}, or use another implementation of it"
                )
        result = function(*args, **kwargs)
        if count is not None:
            self.total += count(result, *args, **kwargs)
        return result


def _multiplies(name: str) -> bool:
    words = set(re.split(r"[\W_\d]+", name))
    return bool(words & _WORDS) and "upsample" not in words


def _product(_result: Tensor, a: Tensor, b: Tensor, *_: Any, **__: Any) -> int:
    """(..., n, k) times (..., k, m), or times (k,)."""
    return 2 * a.numel() * (b.shape[-1] if b.ndim > 1 else 1)


def _add_product(result: Tensor, _added: Tensor, *factors: Any, **options: Any) -> int:
    return _product(result, *factors, **options)


def _convolution(result: Tensor, x: Tensor, weight: Tensor, _bias: Any, *settings: Any, **__: Any) -> int:
    return _convolve(x, weight, result, transposed=settings[3])


def _convolution_backward(
    _result: Any, gradient: Tensor, x: Tensor, weight: Tensor, _sizes: Any, *settings: Any, **__: Any
) -> int:
    of_image, of_weight = settings[-1][:2]
    return (int(of_image) + int(of_weight)) * _convolve(x, weight, gradient, transposed=settings[3])


def _convolve(x: Tensor, weight: Tensor, y: Tensor, transposed: bool) -> int:
    """Each pixel of ``y``, or of ``x`` where that is scattered, meets the kernels of all channels of its group once."""
    return 2 * (x if transposed else y).numel() * prod(weight.shape[1:])


def _attention(_result: Any, q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> int:
    """Queries times keys, weights times values; masked pairs too. (B, heads, N, c), and M for N in ``k`` and ``v``."""
    return 2 * prod(q.shape[:-1]) * k.shape[-2] * (q.shape[-1] + v.shape[-1])


def _attention_backward(_result: Any, _gradient: Any, q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> int:
    """The gradients that are asked for, of q, k, v and, for the first two, of the weights. Recomputing is no part."""
    channels = (int(q.requires_grad) + int(k.requires_grad)) * q.shape[-1]
    channels += (int(v.requires_grad) + int(q.requires_grad or k.requires_grad)) * v.shape[-1]
    return 2 * prod(q.shape[:-1]) * k.shape[-2] * channels


def _unpadded(count: Callable[..., int]) -> Callable[..., int]:
    """For flash attention on a GPU: PyTorch fills heads with zeros up to a multiple of 8 channels, which are no part.

    It then passes on the scale, 1/sqrt(c), of the channels that are meant.
    """

    def counted(result: Any, first: Tensor, *others: Any, scale: float | None = None, **_: Any) -> int:
        given = first.shape[-1]  # of the queries, or of the output's gradient
        meant = round(scale**-2) if scale else given
        return count(result, first, *others) * (meant if 0 < given - meant < 8 else given) // given

    return counted


def _multi_head(_result: Any, q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> int:
    """``nn.MultiheadAttention`` in inference: (B, N, C) and (B, M, C), with its four projections of C by C."""
    projected = 2 * q.numel() + k.numel() + v.numel()
    return 2 * q.shape[-1] * projected + _attention(None, q, k, v)


def _encoder_layer(_result: Any, x: Tensor, *_arguments: Any, **__: Any) -> int:
    """``nn.TransformerEncoderLayer`` in inference."""
    first_of_mlp = _arguments[_FFN_WEIGHT]
    return _multi_head(None, x, x, x) + 2 * 2 * x.numel() * first_of_mlp.shape[0]


_FFN_WEIGHT = 13  # where _transformer_encoder_layer_fwd has it, after src
_KERNELS = ("flash_attention_for_cpu", "efficient_attention", "cudnn_attention", "fused_attention_overrideable")
# By name: no release of PyTorch has all of them. Each is called with the result and the operation's arguments.
_COUNTS: dict[str, Callable[..., int]] = {
    **dict.fromkeys(("aten::mm", "aten::bmm", "aten::mv", "aten::dot", "aten::vdot", "aten::_int_mm"), _product),
    **dict.fromkeys(("aten::addmm", "aten::_addmm_activation", "aten::baddbmm", "aten::addmv"), _add_product),
    "aten::addbmm": _add_product,
    "aten::convolution": _convolution,
    "aten::convolution_overrideable": _convolution,
    "aten::convolution_backward": _convolution_backward,
    **{f"aten::_scaled_dot_product_{kernel}": _attention for kernel in _KERNELS},
    **{f"aten::_scaled_dot_product_{kernel}_backward": _attention_backward for kernel in _KERNELS},
    "aten::_scaled_dot_product_flash_attention": _unpadded(_attention),
    "aten::_scaled_dot_product_flash_attention_backward": _unpadded(_attention_backward),
    "aten::_scaled_dot_product_attention_math_for_mps": _attention,
    "aten::_native_multi_head_attention": _multi_head,
    "aten::_transformer_encoder_layer_fwd": _encoder_layer,
}
