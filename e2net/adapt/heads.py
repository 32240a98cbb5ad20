"""What stands on an encoder's tokens in self-supervised training, and is not kept after it."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PrototypeHead(nn.Module):
    """Tokens to logits of prototypes: an MLP with GELU, an L2 norm, and a linear layer without bias (DINO, DINOv2).

    The linear layer is ``last_layer``, which recipes keep as it is at the start of training.

    Args:
        width: D of the tokens.
        prototypes: K; published encoders had 65,536 and more, for few images 4,096 to 16,384 are enough.
        hidden: width of the layers within the MLP.
        bottleneck: width of what is normed.
        layers: linear layers of the MLP, at least 1.
        weight_norm: prototypes have length 1, so that logits are cosines (DINO's weight norm with a gain fixed at 1).
    """

    def __init__(
        self,
        width: int,
        prototypes: int,
        hidden: int = 2048,
        bottleneck: int = 256,
        layers: int = 3,
        weight_norm: bool = False,
    ) -> None:
        super().__init__()
        sizes = {"width": width, "prototypes": prototypes, "hidden": hidden, "bottleneck": bottleneck, "layers": layers}
        for name, size in sizes.items():
            at_least = 2 if name == "prototypes" else 1
            if size < at_least:
                raise ValueError(f"PrototypeHead: expected {name} of at least {at_least}, found {size}")
        widths = [width, *[hidden] * (layers - 1), bottleneck]
        mlp: list[nn.Module] = []
        for before, after in pairwise(widths):
            mlp += [nn.Linear(before, after), nn.GELU()]
        self.mlp = nn.Sequential(*mlp[:-1])
        self.last_layer = (UnitLinear if weight_norm else nn.Linear)(bottleneck, prototypes, bias=False)
        for layer in (*self.mlp, self.last_layer):
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., D) -> logits (..., K), in the type that autocast gives linear layers."""
        features = self.mlp(tokens)
        # A half can hardly hold the length of small features.
        unit = F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)
        return self.last_layer(unit.to(features.dtype))


class UnitLinear(nn.Linear):
    """A linear layer whose rows are divided by their lengths: weight norm (Salimans & Kingma 2016), its gains 1."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, F.normalize(self.weight, dim=1), self.bias)
