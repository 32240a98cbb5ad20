"""Building blocks that several decoders share."""

from collections.abc import Iterable, Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from e2net.attention import attention
from e2net.symbolic import same, typical


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear resampling (``align_corners=False``) of (B, C, h, w) to ``size``; the input itself if it has it."""
    if same(x.shape[-2:], size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def add(maps: Iterable[Tensor]) -> Tensor:
    """The sum of maps of one shape, without holding them all at once."""
    return reduce(torch.add, maps)


def convolve(conv: nn.Module, x: Tensor, size: Sequence[int]) -> Tensor:
    """``conv(resize(x, size))``, computed before the upsampling where that costs less; the same up to rounding.

    A kernel is a sum of shifted 1x1 convolutions, its taps. These mix channels, resampling mixes positions of one
    channel, so they commute: the taps are applied to the small map, and two matrix products, along the width and along
    the height, upsample, shift and add up what they gave. For 128 channels and 96x96 pixels that takes a sixth of the
    multiplications from 24x24 pixels on, and little more than half from 48x48 on.

    Args:
        conv: a ``nn.Conv2d`` with a square odd kernel, padded to keep the size; no groups, stride or dilation.
        x: (B, C, h, w).
        size: (H, W) of the result.
    """
    assert isinstance(conv, nn.Conv2d)
    (height, width), (h, w), k = size, x.shape[-2:], conv.kernel_size[0]
    if not _taps_first(conv, (typical(h), typical(w)), (typical(height), typical(width))):
        return conv(resize(x, size))
    tapped = torch.einsum("b c h w, o c k l -> b h k l w o", x, conv.weight)
    columns = rearrange(_shifted_upsampling(w, width, k, x), "W l w -> W (l w)")
    rows = rearrange(_shifted_upsampling(h, height, k, x), "H k h -> H (h k)")
    wide = columns @ rearrange(tapped, "b h k l w o -> (b h k) (l w) o")
    result = rows @ rearrange(wide, "(b h k) W o -> b (h k) (W o)", h=h, k=k)
    result = rearrange(result, "b H (W o) -> b o H W", W=width)
    return result if conv.bias is None else result + conv.bias[:, None, None]


def _taps_first(conv: nn.Conv2d, size: tuple[int, int], larger: tuple[int, int]) -> bool:
    """Whether fewer multiplications are needed if a kernel's taps are applied before the upsampling."""
    (h, w), (height, width), k = size, larger, conv.kernel_size[0]
    # For each output channel.
    taps_first = k * k * h * w * (conv.in_channels + width) + k * h * height * width
    return height >= h and width >= w and taps_first < k * k * height * width * conv.in_channels


def _shifted_upsampling(n: int, m: int, taps: int, like: Tensor) -> Tensor:
    """(m, taps, n): the weights which mix n pixels to output pixel i + tap - taps // 2; zeros beyond the edges."""
    pixel = torch.arange(n, device=like.device)
    weights = F.interpolate((pixel[:, None] == pixel).float()[None], size=m, mode="linear")[0]
    padded = F.pad(weights, (taps // 2, taps // 2))
    return torch.stack([padded[:, tap : tap + m].T for tap in range(taps)], dim=1).to(like.dtype)


def conv_bn(in_channels: int, out_channels: int, kernel_size: int, relu: bool = True) -> nn.Sequential:
    """Convolution without bias, BatchNorm and, unless ``relu`` is false, ReLU; keeps height and width."""
    if out_channels < 1:
        raise ValueError(f"decoder.width must be at least 1, found {out_channels}")
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False),
        nn.BatchNorm2d(out_channels),
    ]
    return nn.Sequential(*layers, nn.ReLU(inplace=True)) if relu else nn.Sequential(*layers)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each pixel of (B, C, h, w)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SqueezeExcitation(nn.Module):
    """Channel gating from globally pooled features (Hu et al. 2018, eq. 2-4). (B, C, h, w) -> (B, C, h, w)."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(channels // reduction, 4)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, hidden, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class Fuse(nn.Module):
    """φ([up(coarse), up(fine)]): a 3x3 convolution over both maps, BatchNorm and ReLU, at the output's size.

    A convolution over concatenated channels is the sum of one convolution per part, and each part's taps are applied
    at its own resolution, see :func:`convolve`.

    Args:
        channels: of both inputs and of the output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.coarse = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.fine = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, coarse: Tensor, fine: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """(B, C, h, w) and (B, C, h', w') -> (B, C, H, W) of ``size``, the fine map's unless given."""
        size = tuple(fine.shape[-2:] if size is None else size)
        return F.relu(self.norm(convolve(self.coarse, coarse, size) + convolve(self.fine, fine, size)), inplace=True)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Multi-head attention of tokens, see :func:`e2net.attention.attention`.

    Args:
        q: (B, N, C); k, v: (B, M, C). M stays what it is: keys and values are not upsampled to the queries' grid.
        heads: must divide C.

    Returns:
        (B, N, C).
    """
    q, k, v = (rearrange(t, "b n (heads c) -> b heads n c", heads=heads) for t in (q, k, v))
    return rearrange(attention(q, k, v), "b heads n c -> b n (heads c)")


class TransformerBlock(nn.Module):
    """Pre-norm self-attention and MLP (Dosovitskiy et al. 2021, eq. 2-3) on tokens (B, N, C)."""

    def __init__(self, channels: int, heads: int = 8, mlp_ratio: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, mlp_ratio * channels), nn.GELU(), nn.Linear(mlp_ratio * channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        x = x + self.proj(attend(q, k, v, self.heads))
        return x + self.mlp(self.norm2(x))
