"""How an encoder is tuned: each policy owns requires_grad, the train/eval mode and the learning rate's scale."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from e2net.encoders.base import Encoder, are_indices, method_of

# Names of the projections that LoRA goes to by default, query and value, in the models there are; the first set of
# which a model has all. The last is timm's, one matrix for query, key and value.
_QUERY_AND_VALUE = (("q_proj", "v_proj"), ("query", "value"), ("qkv",))


class Tuning:
    """A policy: what of an encoder trains, and at which rate. Applied once, when the model is built.

    A subclass says in :meth:`choose` what trains; modes, gradients and recomputation follow from that.

    Args:
        lr_scale: factor on the learning rate of all that trains in the encoder; pretrained weights want 0.1 or less.
        gradient_checkpointing: recompute each block in the backward pass rather than keep what it computes: the
            same gradients with a fraction of the memory, at about a third more time.

    Raises:
        ValueError: ``lr_scale`` is not positive.
    """

    def __init__(self, lr_scale: float = 1.0, gradient_checkpointing: bool = False) -> None:
        if not 0 < lr_scale < math.inf:
            raise ValueError(f"tuning.lr_scale must be positive, found {lr_scale}; to freeze use tuning=frozen")
        self.lr_scale, self.gradient_checkpointing = lr_scale, gradient_checkpointing

    def choose(self, encoder: Encoder) -> list[nn.Module]:
        """Adds what the policy adds to ``encoder``, and returns the modules that train."""
        raise NotImplementedError

    def apply(self, encoder: Encoder) -> None:
        """Sets ``requires_grad`` and ``encoder.trained``, and adds what the policy adds, in place.

        Raises:
            ValueError: an option does not fit the encoder.
        """
        # Off before any policy: what no gradient could reach, such as a mask token.
        unreached = {parameter for parameter in encoder.parameters() if not parameter.requires_grad}
        encoder.requires_grad_(False)
        encoder.trained = self.choose(encoder)
        for module in encoder.trained:
            for parameter in module.parameters():
                parameter.requires_grad_(parameter not in unreached)
        if self.gradient_checkpointing:
            _recompute_blocks(encoder)
        encoder.train()

    def lr_scales(self, encoder: Encoder) -> dict[str, float]:
        """{name: factor on the learning rate} of every parameter of ``encoder`` that trains."""
        return {name: self.lr_scale for name, parameter in encoder.named_parameters() if parameter.requires_grad}


class Frozen(Tuning):
    """Nothing in the encoder trains: eval mode whatever ``train()`` says, and no autograd graph."""

    def __init__(self) -> None:
        super().__init__()

    def choose(self, encoder: Encoder) -> list[nn.Module]:
        return []


class Full(Tuning):
    """Every parameter that the features depend on trains.

    Args:
        lr_scale, gradient_checkpointing: see :class:`Tuning`.
        layer_decay: further factor on the learning rate for each block that lies nearer to the image (BEiT,
            arXiv:2106.08254): 1 for the last block and all after it, ``layer_decay**k`` for the k-th block before it,
            ``layer_decay**depth`` for the embeddings; a layer between two blocks goes with the one after it. 1 is off.

    Raises:
        ValueError: ``lr_scale`` is not positive, or ``layer_decay`` not in (0, 1].
    """

    def __init__(self, lr_scale: float = 1.0, layer_decay: float = 1.0, gradient_checkpointing: bool = False) -> None:
        super().__init__(lr_scale, gradient_checkpointing)
        if not 0 < layer_decay <= 1:
            raise ValueError(f"tuning.layer_decay must be in (0, 1], found {layer_decay}; give 1 to switch it off")
        self.layer_decay = layer_decay

    def choose(self, encoder: Encoder) -> list[nn.Module]:
        return [encoder.backbone]

    def lr_scales(self, encoder: Encoder) -> dict[str, float]:
        blocks = encoder.layers()
        place = {parameter: i for i, block in enumerate(blocks, start=1) for parameter in block.parameters()}
        scales, reached = {}, 0
        # Parameters come in the order in which their modules run: embeddings, blocks, what lies between them, norm.
        for name, parameter in encoder.named_parameters():
            reached = place.get(parameter, reached)
            depth = reached if parameter in place or reached == 0 else min(reached + 1, len(blocks))
            if parameter.requires_grad:
                scales[name] = self.lr_scale * self.layer_decay ** (len(blocks) - depth)
        return scales


class Partial(Tuning):
    """The last blocks train, and the final norm if the feature maps pass through it.

    Args:
        last: how many blocks, counted back from the last one that runs.
        lr_scale, gradient_checkpointing: see :class:`Tuning`.

    Raises:
        ValueError: ``lr_scale`` or ``last`` is not positive.
    """

    def __init__(self, last: int = 2, lr_scale: float = 0.1, gradient_checkpointing: bool = False) -> None:
        super().__init__(lr_scale, gradient_checkpointing)
        if last < 1:
            raise ValueError(f"tuning.last must be at least 1, found {last}; to freeze use tuning=frozen")
        self.last = last

    def choose(self, encoder: Encoder) -> list[nn.Module]:
        blocks = encoder.layers()
        if self.last > len(blocks):
            raise ValueError(f"tuning.last must be at most {len(blocks)}, the blocks that run, found {self.last}")
        return [*blocks[-self.last :], *_final_norms(encoder, blocks[-1])]


class Adapter(nn.Module):
    """A bottleneck beside the identity: h -> s · Up(GELU(Down(LN(h)))), to be added to h (Houlsby, arXiv:1902.00751).

    Up starts at zero, so an encoder with fresh adapters gives the features of the encoder alone, bit for bit.

    Args:
        width: channels D of h.
        bottleneck: channels between Down and Up.
        scale: first value of the learnt scalar s.
    """

    def __init__(self, width: int, bottleneck: int, scale: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.down = nn.Linear(width, bottleneck, bias=False)
        self.up = nn.Linear(bottleneck, width, bias=False)
        self.scale = nn.Parameter(torch.tensor(scale))
        nn.init.zeros_(self.up.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        """What to add to ``hidden``, tokens (B, N, D) or maps (B, D, h, w), in the same shape."""
        is_map = hidden.ndim == 4
        tokens = hidden.movedim(1, -1) if is_map else hidden
        change = self.scale * self.up(F.gelu(self.down(self.norm(tokens))))
        return change.movedim(-1, 1) if is_map else change


class Adapters(Tuning):
    """An :class:`Adapter` after chosen blocks trains; the encoder's own weights do not.

    Args:
        blocks: 0-based indices of the blocks; None is all that run. Published for 12 blocks: 3, 6, 9, 11.
        reduction: the block's width over that of the bottleneck.
        scale: first value of each adapter's learnt scalar.
        lr_scale, gradient_checkpointing: see :class:`Tuning`.

    Raises:
        ValueError: ``lr_scale``, ``reduction`` or ``scale`` is not positive.
    """

    def __init__(
        self,
        blocks: Sequence[int] | None = None,
        reduction: int = 4,
        scale: float = 1e-3,
        lr_scale: float = 1.0,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__(lr_scale, gradient_checkpointing)
        if reduction < 1 or not 0 < scale < math.inf:
            raise ValueError(
                "tuning: reduction must be at least 1 and scale above 0, without which no adapter would ever get a "
                f"gradient, found {reduction} and {scale}"
            )
        self.blocks, self.reduction, self.scale = blocks, reduction, scale

    def choose(self, encoder: Encoder) -> list[nn.Module]:
        layers = encoder.layers()
        chosen = range(len(layers)) if self.blocks is None else self.blocks
        if not chosen or not are_indices(chosen, len(layers)):
            raise ValueError(
                f"tuning.blocks must be a list of different 0-based indices below {len(layers)}, the blocks that run, "
                f"found {chosen}; give null for all"
            )
        adapters: list[nn.Module] = []
        for block in (layers[i] for i in chosen):
            width = _width(block)
            if self.reduction > width:
                raise ValueError(f"tuning.reduction must be at most the width {width}, found {self.reduction}")
            adapters.append(Adapter(width, width // self.reduction, self.scale))
            # Inside the block and not around it: the names of the encoder's own weights stay as they are.
            block.add_module("adapter", adapters[-1])
            # In front of other hooks, which are to see the block's output with the adapter's part in it.
            block.register_forward_hook(_add_adapter, prepend=True)
        return adapters


class LoRA(Tuning):
    """Low-rank updates of chosen projections train (arXiv:2106.09685), by Hugging Face's ``peft``.

    Args:
        rank: of each update.
        alpha: an update counts ``alpha / rank``.
        dropout: on the input of the updates, in training.
        targets: linear layers of the blocks, by the end of their names, such as ``[q_proj, mlp.up_proj]``. None is
            query and value, whatever the model calls them.
        lr_scale, gradient_checkpointing: see :class:`Tuning`.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        rank: int = 8,
        alpha: float = 16.0,
        dropout: float = 0.0,
        targets: Sequence[str] | None = None,
        lr_scale: float = 1.0,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__(lr_scale, gradient_checkpointing)
        if targets is not None and (not targets or isinstance(targets, str)):
            raise ValueError(
                "tuning.targets must be a list of names of linear layers, such as [q_proj], found "
                f"{targets or 'none'}; give null for query and value"
            )
        if rank < 1 or not 0 < alpha < math.inf or not 0 <= dropout < 1:
            raise ValueError(
                "tuning: rank must be at least 1, alpha positive and dropout in [0, 1), "
                f"found {rank}, {alpha} and {dropout}"
            )
        self.rank, self.alpha, self.dropout, self.targets = rank, alpha, dropout, targets

    def choose(self, encoder: Encoder) -> list[nn.Module]:
        from peft import LoraConfig, inject_adapter_in_model  # noqa: PLC0415 - a second that only this policy costs

        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # a float works as well
            lora_dropout=self.dropout,
            target_modules=self._find(encoder),
        )
        inject_adapter_in_model(config, encoder.backbone)
        # Not the layer as a whole: the projection itself is in it, and stays as it is.
        return [
            part
            for layer in _lora_layers(encoder).values()
            for part in (layer.lora_dropout, layer.lora_A, layer.lora_B)
        ]

    def _blocks(self, encoder: Encoder) -> list[nn.Module]:
        """Those that get updates."""
        return encoder.layers()

    def _find(self, encoder: Encoder) -> list[str]:
        """Full names in the backbone of the layers that are meant."""
        inside = {module for block in self._blocks(encoder) for module in block.modules()}
        names = [n for n, m in encoder.backbone.named_modules() if isinstance(m, nn.Linear) and m in inside]
        ends = {name.rpartition(".")[2] for name in names}
        found = ", ".join(sorted(ends)) or "none"
        if self.targets is None:
            default = next((targets for targets in _QUERY_AND_VALUE if ends.issuperset(targets)), None)
            if default is None:
                raise ValueError(
                    "tuning.targets=null means query and value, but this encoder has no layers of such names; "
                    f"choose from its linear layers: {found}"
                )
            return [name for name in names if name.endswith(default)]
        for target in self.targets:
            if not any(f".{name}".endswith(f".{target}") for name in names):
                raise ValueError(
                    f"tuning.targets must end names of linear layers, found {target}; choose from: {found}"
                )
        return [name for name in names if any(f".{name}".endswith(f".{target}") for target in self.targets)]


class ExPLoRA(LoRA):
    """The last blocks train as a whole, and low-rank updates of all blocks before them (arXiv:2406.10973).

    For continued self-supervised training: what the last blocks say changes most, the rest only leans towards the new
    pictures. The final norm trains too where the features pass through it.

    Args:
        last: how many blocks train as a whole, counted back from the last one that runs.
        rank, alpha, dropout, targets, lr_scale, gradient_checkpointing: see :class:`LoRA`.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        last: int = 2,
        rank: int = 8,
        alpha: float = 16.0,
        dropout: float = 0.0,
        targets: Sequence[str] | None = None,
        lr_scale: float = 1.0,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__(rank, alpha, dropout, targets, lr_scale, gradient_checkpointing)
        if last < 1:
            raise ValueError(f"tuning.last must be at least 1, found {last}; for updates alone use tuning=lora")
        self.last = last

    def choose(self, encoder: Encoder) -> list[nn.Module]:
        blocks = encoder.layers()
        if self.last >= len(blocks):
            raise ValueError(f"tuning.last must be below {len(blocks)}, the blocks that run, found {self.last}")
        return [*super().choose(encoder), *blocks[-self.last :], *_final_norms(encoder, blocks[-1])]

    def _blocks(self, encoder: Encoder) -> list[nn.Module]:
        return encoder.layers()[: -self.last]


def merge_lora(encoder: Encoder) -> None:
    """Adds LoRA's updates to the weights that they belong to, in place: the same features from plain layers.

    For export and inference. Nothing of the encoder trains from here on, and its weights lie in no file any more, so
    ``encoder.pretrained`` becomes false.

    Raises:
        ValueError: the encoder has no updates.
    """
    layers = _lora_layers(encoder)
    if not layers:
        raise ValueError("encoder has no LoRA updates to merge; expected one under tuning=lora that is not merged yet")
    for name, layer in layers.items():
        layer.merge()
        encoder.backbone.set_submodule(name, layer.get_base_layer())
    encoder.requires_grad_(False)
    encoder.trained, encoder.pretrained = [], False
    encoder.eval()


def _lora_layers(encoder: Encoder) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer  # noqa: PLC0415 - see LoRA.choose

    return {name: module for name, module in encoder.backbone.named_modules() if isinstance(module, LoraLayer)}


def _add_adapter(block: nn.Module, _inputs: Any, output: Any) -> Any:
    """A forward hook; a function that holds nothing, so that a copy of the block uses the copy's adapter."""
    if isinstance(output, tuple):
        return (output[0] + block.adapter(output[0]), *output[1:])  # type: ignore[operator]
    return output + block.adapter(output)  # type: ignore[operator]


def _width(block: nn.Module) -> int:
    """Channels of a residual block: those which its own norm layers have."""
    for child in block.children():
        if "norm" in type(child).__name__.lower() and isinstance(weight := getattr(child, "weight", None), Tensor):
            return weight.numel()
    raise ValueError(
        f"tuning=adapter: {type(block).__name__} has no norm layer to read the width from; expected a residual "
        "block that normalises its input; use tuning=lora, partial or full"
    )


def _final_norms(encoder: Encoder, last_block: nn.Module) -> list[nn.Module]:
    """Norms after the last block that the features depend on (the encoder has switched the others off)."""
    modules = list(encoder.backbone.modules())
    after = modules[modules.index(last_block) + len(list(last_block.modules())) :]
    return [m for m in after if "norm" in type(m).__name__.lower() and list(m.parameters(recurse=False))]


def _recompute_blocks(encoder: Encoder) -> None:
    """Has blocks and their adapters recompute in backward. Blocks before the first that trains keep nothing anyway."""
    reached = False
    for block in encoder.layers():
        reached = reached or any(p.requires_grad for p in block.parameters())
        if reached:
            for module in (block, *(m for m in block.modules() if isinstance(m, Adapter))):
                # Hugging Face's own switch works in train mode only, where an encoder that trains in part is not.
                module.forward = method_of(module, _recompute)


def _recompute(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    forward = partial(type(module).forward, module)
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
