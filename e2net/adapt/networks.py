"""Student, teacher and the Gram teacher: copies of one encoder that share what does not train, and their heads."""

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from e2net.adapt.recipe import Recipe
from e2net.encoders import Encoder, Tuning
from e2net.structures import Tokens

# Names of what stands where a residual branch of a block ends begin so; identities, unless a config says more.
_DROPS = "drop_path"


class DropPath(nn.Module):
    """Leaves a residual branch out for some pictures, in training (stochastic depth, arXiv:1603.09382).

    Args:
        probability: of each picture, in [0, 1); what is kept is scaled up by it.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, branch: Tensor) -> Tensor:
        """(B, ...) -> the same shape."""
        if not self.training or not self.probability:
            return branch
        kept = torch.rand(len(branch), *[1] * (branch.ndim - 1), device=branch.device) >= self.probability
        return branch * kept.to(branch.dtype) / (1 - self.probability)


class Heads(nn.Module):
    """What stands on the class token and on the patches.

    Args:
        make: called with the encoder's width, makes one head.
        width: D of its tokens.
        recipe: which of them there are, and whether they are one.
    """

    def __init__(self, make: Callable[[int], nn.Module], width: int, recipe: Recipe) -> None:
        super().__init__()
        self.dino = make(width) if recipe.dino.peak or recipe.shared_head else None
        self.ibot = make(width) if recipe.masks and not recipe.shared_head else None

    def of_classes(self, tokens: Tensor) -> Tensor:
        """(..., D) class tokens -> (..., K) logits."""
        assert self.dino is not None
        return self.dino(tokens)

    def of_patches(self, tokens: Tensor) -> Tensor:
        """(..., D) patch tokens -> (..., K) logits."""
        head = self.ibot if self.ibot is not None else self.dino
        assert head is not None
        return head(tokens)

    def last_layers(self) -> Iterator[nn.Parameter]:
        """Weights of the prototypes."""
        for head in (self.dino, self.ibot):
            if head is not None:
                yield from head.last_layer.parameters()  # type: ignore[union-attr]


def last_tokens(encoder: Encoder, images: Tensor, masked: Tensor | None = None) -> Tokens:
    """Tokens of an encoder's last block, from pictures (B, 3, H, W) uint8 or float in [0, 1]."""
    pixels = images.float() / 255 if images.dtype == torch.uint8 else images
    return encoder.tokens(pixels, masked, [encoder.blocks[-1]])[0]


def copy_frozen(network: nn.Module) -> nn.Module:
    """A copy that does not train, in eval mode, which shares with its original what does not train there either."""
    shared = {id(p): p for p in network.parameters() if not p.requires_grad}
    twin = copy.deepcopy(network, shared)
    own_trained(twin)
    for module in twin.modules():
        if isinstance(module, Encoder):
            module.trained = []
    return twin.requires_grad_(False).eval()


def own_trained(network: nn.Module) -> None:
    """Gives a network its own copy of each parameter that trains, and so may train elsewhere; these do not train."""
    for module in network.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and parameter.requires_grad:
                module._parameters[name] = nn.Parameter(parameter.detach().clone(), requires_grad=False)


def split_original(encoder: Encoder, tuning: Tuning, masks: bool) -> Encoder:
    """Applies a tuning policy to an encoder in place, and returns the encoder as it was, which never trains.

    What does not train is one tensor in both.

    Args:
        encoder: becomes the student.
        tuning: what of it trains.
        masks: whether its mask token trains too.

    Raises:
        ValueError: the policy or masks do not fit the encoder.
    """
    original = copy.deepcopy(encoder, {id(p): p for p in encoder.parameters()})
    tuning.apply(encoder)
    if masks:
        encoder.train_mask_token()
    own_trained(original)
    original.trained = []
    return original.eval()


def set_drop_path(encoder: Encoder, probability: float) -> None:
    """Has a student leave out whole blocks for some pictures in training, each with the same probability.

    Whatever the tuning policy trains: a block that is frozen in part is left out as well.

    Raises:
        ValueError: its blocks have no place for it.
    """
    found = 0
    for block in encoder.layers():
        for name in [name for name, _ in block.named_children()]:
            if name.startswith(_DROPS):
                drop = DropPath(probability)
                setattr(block, name, drop)
                if not any(block in list(module.modules()) for module in encoder.trained):
                    encoder.trained.append(drop)
                found += 1
    if probability and not found:
        raise ValueError(
            f"adapt.drop_path={probability}: the blocks of {type(encoder.backbone).__name__} have no {_DROPS}; give 0"
        )
    encoder.train()


def set_rope_rescale(encoder: Encoder, factor: float | None) -> None:
    """Has a student's rotary coordinates rescaled at random in training, see :class:`~e2net.adapt.recipe.Recipe`.

    Raises:
        ValueError: the encoder has no rotary positions of which this is known.
    """
    ropes = [m for name, m in encoder.backbone.named_modules() if name.rpartition(".")[2] == "rope_embeddings"]
    if not ropes:
        if factor not in (None, 1.0):
            raise ValueError(
                f"adapt.rope_rescale={factor}: {type(encoder.backbone).__name__} has no rotary positions; give "
                "adapt.rope_rescale=null, or a DINOv3 encoder"
            )
        return
    for rope in ropes:
        if factor is not None:
            rope.config = copy.copy(rope.config)
            rope.config.pos_embed_rescale = None if factor == 1 else factor
        if not any(rope in list(module.modules()) for module in encoder.trained):
            encoder.trained.append(rope)
    encoder.train()


def check_class_token(encoder: Encoder, recipe: Recipe) -> None:
    """Makes sure that an encoder has the class token that a recipe asks for.

    Raises:
        ValueError: it has none.
    """
    if (recipe.dino.peak or recipe.koleo.peak) and not getattr(encoder, "has_class_token", True):
        raise ValueError(
            f"adapt.dino: {type(encoder.backbone).__name__} has no class token, which the DINO loss and KoLeo are of; "
            "give adapt.dino=0 adapt.koleo=0, or another encoder"
        )


def check_sides(encoder: Encoder, sides: dict[str, int | None]) -> None:
    """Makes sure that an encoder takes crops of these sides, pixels, by the names of their settings.

    Raises:
        ValueError: it does not; the message names the nearest sides that it takes.
    """
    for key, side in sides.items():
        if side is not None:
            try:
                encoder.check_size(side, side)
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from error


class Pair(nn.Module):
    """An encoder and its heads.

    Args:
        encoder: the backbone.
        heads: what stands on its tokens.
    """

    def __init__(self, encoder: Encoder, heads: Heads) -> None:
        super().__init__()
        self.encoder, self.heads = encoder, heads


@torch.no_grad()
def move_average(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Moves what trains of a teacher towards the student: t <- m t + (1 - m) s.

    Args:
        teacher: a copy of the student's structure.
        student: whose parameters that require a gradient count.
        momentum: m, in [0, 1].
    """
    pairs = [
        (mine, theirs)
        for mine, theirs in zip(teacher.parameters(), student.parameters(), strict=True)
        if theirs.requires_grad
    ]
    if pairs and momentum < 1:
        mine, theirs = (list(side) for side in zip(*pairs, strict=True))
        torch._foreach_lerp_(mine, theirs, 1 - momentum)
