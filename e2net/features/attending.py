"""Where class and register tokens look: one block's attention to the patches, head by head."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from e2net.encoders import ConvNeXtEncoder
from e2net.features.extract import Extractor
from e2net.pictures import Picture, check_many, is_picture


def attention(
    extractor: Extractor, pictures: Iterable[Picture] | Picture, block: int | None = None
) -> list[NDArray[np.float32]]:
    """The attention of the tokens that are no patches to the patches, made of a block's own queries and keys.

    Args:
        extractor: which encoder and size. Products are in float32, whatever its precision.
        pictures: see :class:`Extractor`.
        block: 0-based index; None is the last of the extractor's.

    Returns:
        For each picture (T, heads, h, w) float32; T are the tokens of :func:`token_names`. Of each token's attention
        this is what goes to patches; to 1 is missing what goes to the tokens themselves.

    Raises:
        ValueError: the encoder has no such tokens, no such block, or attends in a way that cannot be watched.
    """
    tokens = len(token_names(extractor))
    chosen = extractor.blocks[-1] if block is None else block
    depth = len(extractor.encoder.layers())
    if not 0 <= chosen < depth:
        raise ValueError(f"block={chosen}: expected 0 to {depth - 1} for {extractor.name}")
    if is_picture(pictures):
        pictures = [pictures]  # type: ignore[list-item]
    check_many(pictures)
    return [_of_one(extractor, extractor.prepare(one), chosen, tokens, depth) for one in pictures]  # type: ignore[union-attr, arg-type]


def token_names(extractor: Extractor) -> list[str]:
    """The tokens of an encoder that are no patches.

    Raises:
        ValueError: it has none.
    """
    encoder: Any = extractor.encoder
    count = 0 if isinstance(encoder, ConvNeXtEncoder) else encoder.num_special_tokens
    if not count:
        raise ValueError(
            f"encoder={extractor.name} has neither class token nor registers whose attention could be shown; choose "
            "pca, similarity or norms"
        )
    first = ["class"] if encoder.has_class_token else []
    return first + [f"register {i + 1}" for i in range(count - len(first))]


@torch.no_grad()
def _of_one(
    extractor: Extractor, picture: NDArray[np.uint8], block: int, tokens: int, depth: int
) -> NDArray[np.float32]:
    watch = _Watch(block, tokens)
    with watch:
        extractor.encoder.tokens(extractor.tensor(picture), blocks=[block], norm=False)
    if watch.rows is None or watch.calls != depth:
        raise ValueError(
            f"encoder={extractor.name} does not attend by PyTorch's scaled_dot_product_attention, once a block, "
            "and cannot show it; take another encoder"
        )
    height, width = (side // extractor.encoder.size_multiple for side in picture.shape[:2])
    rows = watch.rows[0, :, :, -height * width :].transpose(0, 1)
    return rows.reshape(tokens, rows.shape[1], height, width).float().cpu().numpy()


class _Watch(TorchFunctionMode):
    """Makes of one attention call the rows of the first tokens: whole matrices are never there."""

    def __init__(self, block: int, tokens: int) -> None:
        super().__init__()
        self.block, self.tokens = block, tokens
        self.calls = 0
        self.rows: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            if self.calls == self.block:
                self.rows = _rows(self.tokens, *args, **kwargs)
            self.calls += 1
        return func(*args, **kwargs)


def _rows(
    tokens: int, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **more: Any
) -> Tensor:
    """(B, heads, N, c) -> (B, heads, tokens, N), each row summing to 1."""
    if attn_mask is not None or more.get("is_causal") or more.get("enable_gqa"):
        raise ValueError("this encoder masks its attention, or shares keys between heads; take another one")
    scale = more.get("scale") or query.shape[-1] ** -0.5
    return (query[:, :, :tokens].float() @ key.float().transpose(-1, -2) * scale).softmax(-1)
