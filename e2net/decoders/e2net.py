"""The E2Net ("Eagle Eye") decoder: CAEM, then search (LFSM), zoom (CFZM) and confirm (CCM)."""

from collections.abc import Collection, Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from e2net.decoders.base import Decoder
from e2net.decoders.caem import CAEM
from e2net.decoders.layers import Fuse, TransformerBlock, attend, conv_bn, resize
from e2net.decoders.pyramid import Align, PyramidName
from e2net.structures import Output


class LFSM(nn.Module):
    """Lateral fovea search: where in the whole scene might the object be?

    Transformer blocks on the coarsest level's tokens, then 1x1-BN-ReLU-1x1. Positions need no encoding of their own:
    the encoder's features carry them. The blocks' output also replaces G4 in the later stages, so that what they
    confirm against has seen the whole scene.

    Args:
        width: channels.
        depth: transformer blocks.
        heads: attention heads; must divide ``width``.
        out_channels: of the coarse map.
    """

    def __init__(self, width: int, depth: int = 1, heads: int = 8, out_channels: int = 1) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(depth)))
        self.head = nn.Sequential(conv_bn(width, width, 1), nn.Conv2d(width, out_channels, 1))

    def forward(self, g4: Tensor) -> tuple[Tensor, Tensor]:
        """G4 (B, C, h, w) -> the searched G4 (B, C, h, w) and coarse logits (B, K, h, w)."""
        tokens = self.blocks(rearrange(g4, "b c h w -> b (h w) c"))
        searched = rearrange(tokens, "b (h w) c -> b c h w", h=g4.shape[-2])
        return searched, self.head(searched)


class CFZM(nn.Module):
    """Central fovea zoom: G'i = conv3x3-BN-ReLU(Gi·A + Gi) with A = sigmoid(coarse logits), and a 1x1 head on each.

    Of several coarse channels, A is the largest.

    Args:
        width: channels.
        levels: number of maps.
        out_channels: of the maps that the heads give.
    """

    def __init__(self, width: int, levels: int = 4, out_channels: int = 1) -> None:
        super().__init__()
        self.zoom = nn.ModuleList(conv_bn(width, width, 3) for _ in range(levels))
        self.heads = nn.ModuleList(nn.Conv2d(width, out_channels, 1) for _ in range(levels))

    def forward(
        self, maps: Sequence[Tensor], coarse: Tensor, refine: bool = True
    ) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """G1..G4 (B, C, h_i, w_i), coarse logits (B, K, h, w) -> G'1..G'4 and their logits (B, K, h_i, w_i).

        Without ``refine`` there are no logits.
        """
        attended = coarse.sigmoid().amax(1, keepdim=True)
        zoomed = [zoom(g * (1 + resize(attended, g.shape[-2:]))) for zoom, g in zip(self.zoom, maps, strict=True)]
        return zoomed, tuple(head(g) for head, g in zip(self.heads, zoomed, strict=True)) if refine else ()


class CCM(nn.Module):
    """Cognitive confirmation: gated cross-attention from fine to coarse, then progressive decoding.

    Q comes from G'1, K and V from G'4 at its own resolution; O is their attention and
    fused = G'1 + sigmoid(1x1([G'1, O]))·O. Then G'3 and G'2 are fused in, the resolution doubling each time until it
    reaches stride 4, and conv3x3-BN-ReLU-1x1 gives the logits. The published version goes on doubling past the
    image's own size, which costs most of its time and adds no information.

    Args:
        width: channels.
        heads: attention heads; must divide ``width``.
        out_channels: of the prediction.
    """

    # The logits are decoded at this many pixels a side; finer is left to the final bilinear resize.
    OUTPUT_STRIDE = 4

    def __init__(self, width: int, heads: int = 8, out_channels: int = 1) -> None:
        super().__init__()
        self.heads = heads
        self.norm_q = nn.LayerNorm(width)
        self.norm_kv = nn.LayerNorm(width)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.gate = nn.Linear(2 * width, width)
        self.fuse = nn.ModuleList(Fuse(width) for _ in range(2))
        self.head = nn.Sequential(conv_bn(width, width, 3), nn.Conv2d(width, out_channels, 1))

    def forward(self, maps: Sequence[Tensor], image_size: Sequence[int]) -> Tensor:
        """G'1..G'4 (B, C, h_i, w_i), the image's (H, W) -> logits (B, K, h, w) at stride 4."""
        g1, g2, g3, g4 = maps
        fine, context = (rearrange(g, "b c h w -> b (h w) c") for g in (g1, g4))
        k, v = self.kv(self.norm_kv(context)).chunk(2, dim=-1)
        seen = self.proj(attend(self.q(self.norm_q(fine)), k, v, self.heads))
        fused = fine + torch.sigmoid(self.gate(torch.cat([fine, seen], dim=-1))) * seen
        x = rearrange(fused, "b (h w) c -> b c h w", h=g1.shape[-2])
        limit = [-(-side // self.OUTPUT_STRIDE) for side in image_size]
        for fuse, g in zip(self.fuse, (g3, g2), strict=True):
            size = [torch.sym_min(2 * side, most) for side, most in zip(x.shape[-2:], limit, strict=True)]
            x = fuse(x, g, size)
        return self.head(x)


class E2NetDecoder(Decoder):
    """CAEM, LFSM, CFZM and CCM.

    Args:
        channels, strides: of the encoder's maps.
        width: channels inside the decoder; published with 128 and 256.
        pyramid: strides of the four levels, 4 to 32 (``standard``) or as the encoder gives them (``simple``).
        search_depth: transformer blocks in LFSM.
        heads: attention heads in LFSM and CCM.
        dropout: probability that a channel of an aligned map F'i is dropped in training; for small training sets.
        align: ``native``: every level at its own stride; ``unified``: all at G1's size, as published, for the same
            weights at many times the cost. It differs where the levels' strides do (``pyramid`` ``standard``).
        out_channels: of the prediction.

    Raises:
        ValueError: ``heads`` does not divide ``width``; an unknown ``pyramid`` or ``align``.
    """

    # What forward() gives beside the prediction.
    AUXILIARY = frozenset({"coarse", "refined"})

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        width: int = 128,
        pyramid: PyramidName = "simple",
        search_depth: int = 1,
        heads: int = 8,
        dropout: float = 0.1,
        align: Align = "native",
        out_channels: int = 1,
    ) -> None:
        super().__init__()
        if heads < 1 or search_depth < 0:
            raise ValueError(
                f"decoder: heads must be at least 1 and search_depth at least 0, found {heads} and {search_depth}"
            )
        if width % heads:
            raise ValueError(f"decoder.width must be a multiple of decoder.heads, found {width} and {heads}")
        self.caem = CAEM(channels, strides, width, pyramid, dropout, align)
        self.lfsm = LFSM(width, search_depth, heads, out_channels)
        self.cfzm = CFZM(width, len(channels), out_channels)
        self.ccm = CCM(width, heads, out_channels)
        self._refine = True

    def leave_out(self, auxiliary: Collection[str]) -> None:
        """Does without some of the maps ``coarse`` and ``refined``, which no loss looks at.

        The refined ones are not computed then and their heads do not train, though they stay in the state dict. The
        coarse one is what the zoom goes by, with or without a loss of its own.
        """
        self._refine = "refined" not in auxiliary
        self.cfzm.heads.requires_grad_(self._refine)

    def forward(self, features: Sequence[Tensor], image_size: Sequence[int]) -> Output:
        """F1..F4 (B, D_i, h_i, w_i), the image's (H, W) -> the prediction, coarse and refined maps."""
        maps = self.caem(features, image_size)
        searched, coarse = self.lfsm(maps[-1])
        zoomed, refined = self.cfzm([*maps[:-1], searched], coarse, self._refine)
        auxiliary: dict[str, tuple[Tensor, ...]] = {"coarse": (self.converted(coarse),)}
        if refined:
            auxiliary["refined"] = tuple(map(self.converted, refined))
        return Output(resize(self.converted(self.ccm(zoomed, image_size)), image_size), auxiliary)
