"""Vision transformers as feature encoders: DINOv3, DINOv2 and others, from Hugging Face or timm."""

import inspect
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple, Self

import torch
from einops import rearrange
from torch import Tensor, nn

from e2net.attention import attention
from e2net.encoders.base import IMAGENET_MEAN, IMAGENET_STD, Encoder, are_indices, no_masks
from e2net.encoders.hub import Weights, build_backbone, build_described, describe_backbone, load_backbone
from e2net.encoders.timm_hub import load_timm
from e2net.structures import Tokens
from e2net.symbolic import same

# The name by which transformers knows our attention.
_ATTENTION = "e2net"
# Where the forward pass of this thread keeps the outputs of its chosen blocks, which are its keys; None outside of any.
# The hooks that fill it stay on the blocks: to add and remove them in each pass would show one thread's blocks to
# another's.
_KEPT: ContextVar[dict[nn.Module, Any] | None] = ContextVar("e2net_kept", default=None)


class ViTEncoder(Encoder):
    """A vision transformer that returns the hidden states of four blocks as feature maps F1..F4.

    Only the blocks up to the last one asked for are kept and run; pooling heads are dropped. The number of special
    tokens (class token and registers), the patch size, the width and the depth are read from the model itself.
    Learned position embeddings are interpolated to the size of the image.

    Attributes:
        patch_size: pixels a side.
        blocks: 0-based indices of the blocks behind F1..F4.
        embed_dim: width of a token. ``channels`` are twice that with ``class_token``.
        num_special_tokens: tokens before the patches.
        has_class_token: whether the first of them is a class token.

    Args:
        backbone: a Hugging Face or timm model with a list of blocks and a final norm.
        mean, std: of RGB images in [0, 1], per channel.
        blocks: 0-based indices of four blocks, ascending; None takes depth/4, depth/2, 3·depth/4 and depth
            (blocks 2, 5, 8 and 11 of 12).
        norm: apply the model's final norm to every returned hidden state, as DINO's own evaluations do.
        class_token: append the block's class token to each of its patch tokens.
        pretrained: see :class:`~e2net.encoders.base.Encoder`.

    Raises:
        ValueError: a model that is no vision transformer, impossible ``blocks``, or ``norm`` or ``class_token`` for a
            model that has none.
    """

    def __init__(
        self,
        backbone: nn.Module,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        blocks: Sequence[int] | None = None,
        norm: bool = True,
        class_token: bool = False,
        pretrained: bool = False,
    ) -> None:
        _drop_heads(backbone)
        shape = _shape(backbone)
        layers = _block_list(backbone)
        blocks = _check_blocks(blocks, len(layers))
        _check_inputs(backbone)
        del layers[blocks[-1] + 1 :]
        _set_attention(backbone)
        super().__init__(backbone, mean, std, shape.patch_size, pretrained)
        if class_token and not shape.has_class_token:
            raise ValueError(f"{type(backbone).__name__} has no class token; set encoder.class_token=false")
        final_norm = _final_norm(backbone)
        if norm and final_norm is None:
            raise ValueError(f"{type(backbone).__name__} has no final norm; set encoder.norm=false")
        self.patch_size = shape.patch_size
        self.embed_dim = shape.width
        self.num_special_tokens = shape.special_tokens
        self.has_class_token = shape.has_class_token
        self.blocks = blocks
        self._hooked: set[int] = set()
        self._hook(blocks)
        self.norm = norm
        self.class_token = class_token
        self.channels = (self.embed_dim * (2 if class_token else 1),) * len(self.blocks)
        self.strides = (self.patch_size,) * len(self.blocks)
        # The mask token is never trained here, nor is the final norm when maps are returned without it. Freezing them
        # keeps "every trainable parameter receives a gradient" true.
        for name, parameter in backbone.named_parameters():
            if name.endswith("mask_token"):
                parameter.requires_grad_(False)
        if not norm and final_norm is not None:
            final_norm.requires_grad_(False)

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        blocks: Sequence[int] | None = None,
        norm: bool = True,
        class_token: bool = False,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> Self:
        """Builds an encoder with random weights.

        Args:
            config: ``model_type`` (such as ``dinov3_vit``) and any other keys of that Hugging Face config.
            blocks, norm, class_token, mean, std: see the class.

        Raises:
            ValueError: an unknown ``model_type`` or a key which that config does not have.
        """
        return cls(build_backbone(config), mean, std, blocks, norm, class_token)

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        blocks: Sequence[int] | None = None,
        norm: bool = True,
        class_token: bool = False,
        weights: Weights = "pretrained",
        checkpoint_dir: str = "checkpoint",
        config: Mapping[str, Any] | None = None,
    ) -> Self:
        """Loads an encoder from ``checkpoint_dir/<name>/``, from any other folder, or from the Hub.

        Args:
            path: a folder, or a Hub id such as ``facebook/dinov2-base``. For a Hub id the folder
                ``checkpoint_dir/dinov2-base`` is used if it exists.
            blocks, norm, class_token: see the class.
            weights: ``random`` keeps the architecture and draws new weights, as a control experiment.
            checkpoint_dir: where downloaded encoders lie.
            config: what the files' own config is expected to say; None takes any. It is also what random weights are
                drawn for, and what ``python -m e2net.encoders`` lists, where the files are absent.

        Raises:
            FileNotFoundError: a folder, or one of its files, is missing, or the Hub gave no such model.
            ValueError: the files are another model's, or do not hold every weight of the architecture, or ``weights``
                is another word.
        """
        loaded = load_backbone(path, config, weights, checkpoint_dir)
        return cls(*loaded, blocks, norm, class_token, pretrained=weights == "pretrained")

    @classmethod
    def from_timm(
        cls,
        path: str,
        file: str | None = None,
        blocks: Sequence[int] | None = None,
        norm: bool = True,
        class_token: bool = False,
        weights: Weights = "pretrained",
        checkpoint_dir: str = "checkpoint",
    ) -> Self:
        """Loads timm's version of a model; the features are those of Hugging Face's for the same weights.

        Args:
            path: a folder in timm's Hub format, or a model name such as ``vit_small_patch16_dinov3.lvd1689m``.
            file: a file with weights for the named model; None takes the folder's or the Hub's.
            blocks, norm, class_token: see the class.
            weights, checkpoint_dir: as in :meth:`from_pretrained`.

        Raises:
            FileNotFoundError: the folder or the file is missing, or the Hub gave no such weights.
            ValueError: an unknown name, a model that is no vision transformer, or weights that do not fit it.
        """
        # Without dynamic_img_size timm's models take images of their training size only.
        loaded = load_timm(path, file, weights, checkpoint_dir, dynamic_img_size=True)
        return cls(*loaded, blocks, norm, class_token, pretrained=weights == "pretrained")

    @classmethod
    def from_description(
        cls,
        description: Mapping[str, Any],
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        blocks: Sequence[int] | None = None,
        norm: bool = True,
        class_token: bool = False,
    ) -> Self:
        """Builds an encoder from what :meth:`describe` gave, with random weights, to be replaced by a checkpoint's.

        Raises:
            ValueError: the installed libraries have no such model.
        """
        return cls(build_described(description), mean, std, blocks, norm, class_token)

    def describe(self) -> dict[str, Any]:
        means = {"mean": self.mean.flatten().tolist(), "std": self.std.flatten().tolist()}
        return {**describe_backbone(self.backbone), **means}

    def layers(self) -> list[nn.Module]:
        return list(_block_list(self.backbone))

    def train_mask_token(self) -> None:
        if not _can_mask(self.backbone):
            raise no_masks(self.backbone)
        embeddings: Any = self.backbone.embeddings
        if embeddings.mask_token is None:
            embeddings.mask_token = nn.Parameter(torch.zeros(1, 1, self.embed_dim, device=self.mean.device))
        embeddings.mask_token.requires_grad_(True)

    def encode(self, pixels: Tensor) -> list[Tensor]:
        height = pixels.shape[-2] // self.patch_size
        return [self._to_map(tokens, height) for tokens in self.encode_tokens(pixels, None, self.blocks, None)]

    def encode_tokens(
        self, pixels: Tensor, masked: Tensor | None, blocks: Sequence[int], norm: bool | None
    ) -> list[Tokens]:
        final_norm = _final_norm(self.backbone) if (self.norm if norm is None else norm) else None
        if norm and final_norm is None:
            raise ValueError(f"{type(self.backbone).__name__} has no final norm; expected tokens with norm=False")
        height, width = (side // self.patch_size for side in pixels.shape[-2:])
        if masked is not None:
            self._check_masked(masked, (len(pixels), height * width))
        states = self._hidden_states(pixels, masked, blocks)
        if final_norm is not None:
            states = [final_norm(state) for state in states]
        return [self._split(state, height, width) for state in states]

    def _split(self, state: Tensor, height: int, width: int) -> Tokens:
        """(B, special + h·w, D) by kind."""
        patches = state[:, self.num_special_tokens :]
        if patches.shape[1] != height * width:
            raise ValueError(
                f"{type(self.backbone).__name__} returned {patches.shape[1]} patch tokens for {height}x{width} "
                "patches; expected one for each: take a model that neither masks nor merges them"
            )
        first = int(self.has_class_token)
        return Tokens(state[:, 0] if first else None, state[:, first : self.num_special_tokens], patches)

    def _to_map(self, tokens: Tokens, height: int) -> Tensor:
        """(B, D, h, w), or (B, 2·D, h, w) with the class token."""
        patches = tokens.patches
        if self.class_token:
            assert tokens.class_token is not None
            patches = torch.cat((patches, tokens.class_token[:, None].expand_as(patches)), dim=-1)
        return rearrange(patches, "b (h w) d -> b d h w", h=height)

    def _check_masked(self, masked: Tensor, shape: tuple[int, int]) -> None:
        if not _can_mask(self.backbone):
            raise no_masks(self.backbone)
        embeddings: Any = self.backbone.embeddings
        if embeddings.mask_token is None:
            raise ValueError(
                f"{type(self.backbone).__name__} came without a mask token; call train_mask_token(), which adds one"
            )
        if tuple(masked.shape) != shape or masked.dtype != torch.bool:
            raise ValueError(
                f"expected the masked patches as bool of shape {shape}, found {masked.dtype} of {tuple(masked.shape)}"
            )

    def _hook(self, blocks: Sequence[int]) -> None:
        layers = self.layers()
        for i in blocks:
            if i not in self._hooked:
                layers[i].register_forward_hook(_keep)
                self._hooked.add(i)

    def _hidden_states(self, pixels: Tensor, masked: Tensor | None, blocks: Sequence[int]) -> list[Tensor]:
        """Un-normed outputs (B, special + N, D) of ``blocks``; no other hidden state is kept."""
        layers = self.layers()
        if not are_indices(blocks, len(layers)):
            raise ValueError(f"blocks must be different 0-based indices below {len(layers)}, found {blocks}")
        self._hook(blocks)
        kept: dict[nn.Module, Any] = dict.fromkeys(layers[i] for i in blocks)
        token = _KEPT.set(kept)
        try:
            self._run(pixels, masked)
        finally:
            _KEPT.reset(token)
        return [kept[layers[i]] for i in blocks]

    def _run(self, pixels: Tensor, masked: Tensor | None) -> None:
        backbone: Any = self.backbone
        mask = {} if masked is None else {"bool_masked_pos": masked}
        if _is_timm(backbone):
            backbone.forward_features(pixels)
        elif backbone.config.model_type == "siglip2_vision_model":  # takes patches, and the shape of their grid
            grid = [side // self.patch_size for side in pixels.shape[-2:]]
            patches = rearrange(pixels, "b c (h p) (w q) -> b (h w) (p q c)", p=self.patch_size, q=self.patch_size)
            # On the CPU, as the model reads it element by element.
            backbone(patches, pixel_attention_mask=None, spatial_shapes=torch.tensor([grid] * len(pixels)))
        elif backbone.config.model_type == "aimv2_vision_model":  # does not interpolate its positions
            backbone.encoder(inputs_embeds=_embed_aimv2(backbone.embeddings, pixels))
        elif "interpolate_pos_encoding" in inspect.signature(backbone.forward).parameters:
            backbone(pixels, interpolate_pos_encoding=True, **mask)
        else:  # rotary positions, or DINOv2 and InternVL, which interpolate unasked
            self._run_at_its_size(pixels, mask)

    def _run_at_its_size(self, pixels: Tensor, mask: dict[str, Tensor]) -> None:
        height, width = pixels.shape[-2:]
        try:
            self.backbone(pixels, **mask)
        except RuntimeError as error:
            own = getattr(self.backbone.config, "image_size", None)
            if not isinstance(own, int) or height == width == own or isinstance(error, torch.OutOfMemoryError):
                raise
            raise ValueError(
                f"{type(self.backbone).__name__} cannot take images of {height}x{width} ({error}): "
                f"its position embeddings are for {own}x{own}: set size={own}"
            ) from error


def _set_attention(backbone: Any) -> None:
    """Has a Hugging Face model that attends by PyTorch's fused kernel attend by :func:`e2net.attention.attention`."""
    if _is_timm(backbone) or backbone.config._attn_implementation != "sdpa":
        return
    from transformers import AttentionInterface  # noqa: PLC0415

    AttentionInterface.register(_ATTENTION, _attend)
    backbone.set_attn_implementation(_ATTENTION)


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, **settings: Any
) -> tuple[Tensor, None]:
    """As transformers calls it: (B, heads, N, c) each -> (B, N, heads, c)."""
    usual = query.shape[-1] ** -0.5
    if attention_mask is not None or settings.get("dropout") or settings.get("scaling", usual) != usual:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward  # noqa: PLC0415

        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    return attention(query, key, value).transpose(1, 2).contiguous(), None


def _keep(block: nn.Module, _inputs: Any, output: Any) -> None:
    """A forward hook; a function that holds nothing, so that copies and pickles of a block need nothing else."""
    kept = _KEPT.get()
    if kept is not None and block in kept:
        kept[block] = output[0] if isinstance(output, tuple) else output


def _embed_aimv2(embeddings: Any, pixels: Tensor) -> Tensor:
    """Patch embeddings with positions (B, h·w, D), at any size of image (B, 3, H, W)."""
    height, width = (side // embeddings.patch_size for side in pixels.shape[-2:])
    own = embeddings.config.image_size // embeddings.patch_size
    if embeddings.config.is_native or same((height, width), (own, own)):
        return embeddings(pixels)
    tokens = embeddings.rms_norm(embeddings.patch_embed(pixels).flatten(2).transpose(1, 2))
    square = embeddings.position_embedding.weight.unflatten(0, (own, own)).permute(2, 0, 1)[None]
    # As transformers does it in its other models.
    resized = nn.functional.interpolate(square, (height, width), mode="bicubic", align_corners=False)
    return tokens + resized.flatten(2).transpose(1, 2)


class _Shape(NamedTuple):
    patch_size: int
    width: int
    special_tokens: int
    has_class_token: bool


def _shape(backbone: Any) -> _Shape:
    if _is_timm(backbone):
        if not hasattr(backbone, "num_prefix_tokens"):
            raise _no_vit(backbone)
        has_class_token = getattr(backbone, "cls_token", None) is not None
        # The stride: with a convolutional stem in front of its patches more than the patch size.
        patch_size = _square(backbone.patch_embed.feat_ratio(as_scalar=False))
        return _Shape(patch_size, int(backbone.embed_dim), int(backbone.num_prefix_tokens), has_class_token)
    config = backbone.config
    if not (hasattr(config, "patch_size") and hasattr(config, "hidden_size")):
        raise _no_vit(backbone)
    # Counted on the parameters: configs do not say whether there is a class token, and not all mention registers.
    special = {name.rpartition(".")[2]: parameter for name, parameter in backbone.named_parameters()}
    has_class_token = bool({"cls_token", "class_embedding"} & special.keys())
    others = sum(special[name].shape[-2] for name in ("register_tokens", "distillation_token") if name in special)
    return _Shape(_square(config.patch_size), int(config.hidden_size), has_class_token + others, has_class_token)


def _no_vit(backbone: nn.Module) -> ValueError:
    return ValueError(
        f"{type(backbone).__name__} is no vision transformer; for DINOv3's ConvNeXt choose encoder=convnext_t, _s, _b "
        "or _l, or encoder=timm_convnext"
    )


def _check_inputs(backbone: Any) -> None:
    """Raises ValueError for a model that wants more than pixels, such as the number of frames of a film."""
    if _is_timm(backbone) or backbone.config.model_type == "siglip2_vision_model":
        return
    _, *more = inspect.signature(backbone.forward).parameters.values()
    needed = [p.name for p in more if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    if needed:
        raise ValueError(
            f"{type(backbone).__name__} asks for {', '.join(needed)} beside an image; expected a vision transformer "
            "that takes images alone"
        )


def _can_mask(backbone: Any) -> bool:
    """Whether the model puts a mask token in the place of patches; it may yet have to be given one."""
    return (
        not _is_timm(backbone)
        and "bool_masked_pos" in inspect.signature(backbone.forward).parameters
        and hasattr(getattr(backbone, "embeddings", None), "mask_token")
    )


def _square(size: int | Sequence[int]) -> int:
    if isinstance(size, int):
        return size
    if len(set(size)) != 1:
        raise ValueError(f"expected square patches, found {tuple(size)}; take another encoder")
    return int(size[0])


def _is_timm(backbone: nn.Module) -> bool:
    return hasattr(backbone, "pretrained_cfg")


def _block_list(backbone: Any) -> nn.ModuleList | nn.Sequential:
    """The list of transformer blocks; its attribute path differs between models and transformers versions."""
    if _is_timm(backbone):
        return backbone.blocks
    lists = [m for m in backbone.modules() if isinstance(m, nn.ModuleList)]
    if not lists:
        raise ValueError(f"{type(backbone).__name__} has no list of blocks; expected a vision transformer")
    return max(lists, key=len)


def _final_norm(backbone: nn.Module) -> nn.Module | None:
    # timm calls it fc_norm where the classifier averages tokens first, and "norm" is an identity then.
    for name in ("norm", "layernorm", "post_layernorm", "rms_norm", "fc_norm"):
        norm = getattr(backbone, name, None)
        if isinstance(norm, nn.Module) and not isinstance(norm, nn.Identity):
            return norm
    return None  # BEiT and others, whose pooling heads normalise


def _drop_heads(backbone: Any) -> None:
    """Removes what comes after the final norm in Hugging Face's ViT and SigLIP: no feature map depends on it."""
    if _is_timm(backbone):
        return
    for name in ("pooler", "head"):
        if hasattr(backbone, name):
            setattr(backbone, name, None)
    if hasattr(backbone, "use_head"):
        backbone.use_head = False


def _check_blocks(blocks: Sequence[int] | None, depth: int) -> tuple[int, ...]:
    if blocks is None:
        if depth < 4:
            raise ValueError(f"expected an encoder of at least 4 blocks, one for each of F1..F4, found {depth}")
        return tuple(depth * i // 4 - 1 for i in (1, 2, 3, 4))
    if not are_indices(blocks, depth) or len(blocks) != 4 or list(blocks) != sorted(blocks):
        raise ValueError(
            f"encoder.blocks must be four ascending 0-based indices below the depth {depth}, found {blocks}"
        )
    return tuple(blocks)
