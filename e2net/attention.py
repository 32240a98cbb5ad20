"""Scaled dot-product attention, by the way that is fastest where it runs."""

import torch
import torch.nn.functional as F
from torch import Tensor

from e2net.symbolic import is_exporting

_HALF = (torch.bfloat16, torch.float16)
# Of the attention matrix of one layer, all images and heads together: 128 MiB in half precision.
_MOST = 2**26


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(query · keyᵀ / √c) · value.

    PyTorch's fused kernel, which never holds the whole attention matrix; but in half precision on a CPU, where that
    kernel has no fast matrix products, two plain ones if the matrix is small: forward and backward 1.8 to 2.3 times
    as fast at 257 to 1,025 tokens (docs/performance.md), and as near to float32.

    Args:
        query: (B, heads, N, c), floating point.
        key, value: (B, heads, M, c).

    Returns:
        (B, heads, N, c).
    """
    if _is_small_half_on_cpu(query, key):
        return ((query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)).softmax(-1) @ value
    return F.scaled_dot_product_attention(query, key, value)


def _is_small_half_on_cpu(query: Tensor, key: Tensor) -> bool:
    # A program that is exported runs elsewhere and at any size.
    if is_exporting() or query.device.type != "cpu":
        return False
    half = query.dtype in _HALF or torch.is_autocast_enabled("cpu")
    return half and query.shape[:3].numel() * key.shape[2] <= _MOST
