"""Hugging Face vision transformers as feature encoders: DINOv3 ViT, DINOv2, DINOv2 with registers."""

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from einops import rearrange
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.image_processing_base import ImageProcessingMixin

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# The file that each part of a downloaded encoder comes in.
_FOLDER_FILES = ("config.json", "preprocessor_config.json")


class ViTEncoder(nn.Module):
    """A vision transformer that returns the hidden states of four blocks as feature maps F1..F4.

    Only the blocks up to the last one asked for are kept and run. The number of special tokens (class token and
    registers), the patch size, the width and the depth are read from the model's own config.

    Attributes:
        channels: feature channels of F1..F4.
        strides: image pixels per feature pixel of F1..F4; for a ViT the patch size, four times.
        patch_size: height and width of an image must be multiples of this, in pixels.
        blocks: 0-based indices of the blocks behind F1..F4.
        pretrained: whether the weights came from a file that can be read again. If not, a checkpoint must hold
            them even when they are frozen.

    Args:
        backbone: a Hugging Face model with a ``ModuleList`` of blocks and a final norm.
        mean, std: of RGB images in [0, 1], per channel.
        blocks: 0-based indices of four blocks, ascending; None takes depth/4, depth/2, 3·depth/4 and depth
            (blocks 2, 5, 8 and 11 of 12).
        norm: apply the model's final norm to every returned hidden state, as DINO's own evaluations do.
        pretrained: see the attribute.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        blocks: Sequence[int] | None = None,
        norm: bool = True,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        config = backbone.config
        layers = _block_list(backbone)
        depth = len(layers)
        self.blocks = _check_blocks(blocks, depth)
        del layers[self.blocks[-1] + 1 :]
        self.backbone = backbone
        self.norm = norm
        self.pretrained = pretrained
        self.frozen = False
        self.embed_dim = int(config.hidden_size)
        self.patch_size = _patch_size(config)
        # Plain Dinov2Config has no such attribute: that model has no registers.
        self.num_special_tokens = 1 + int(getattr(config, "num_register_tokens", 0))
        self.channels = (self.embed_dim,) * len(self.blocks)
        self.strides = (self.patch_size,) * len(self.blocks)
        # Not in the state dict: they belong to the encoder's files, not to what is trained.
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        # Hugging Face never trains the mask token here, nor the final norm when maps are returned without it. Freezing
        # them by name keeps "every trainable parameter receives a gradient" true.
        for name, parameter in backbone.named_parameters():
            if name.endswith("mask_token") or (not norm and parameter in set(_final_norm(backbone).parameters())):
                parameter.requires_grad_(False)
        self.train(False)  # a model built from a config starts in train mode, one from files in eval mode

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        blocks: Sequence[int] | None = None,
        norm: bool = True,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> Self:
        """Builds an encoder with random weights.

        Args:
            config: ``model_type`` (such as ``dinov3_vit``) and any other keys of that Hugging Face config.
            blocks, norm, mean, std: see the class.

        Raises:
            ValueError: an unknown ``model_type`` or a key which that config does not have.
        """
        keys = dict(config)
        model_type = keys.pop("model_type", None)
        try:
            defaults = AutoConfig.for_model(model_type)
        except ValueError as error:
            raise ValueError(
                f"encoder config: unknown model_type {model_type!r}; expected one that transformers knows, "
                "such as dinov3_vit, dinov2 or dinov2_with_registers"
            ) from error
        unknown = sorted(key for key in keys if not hasattr(defaults, key))
        if unknown:
            raise ValueError(f"encoder config: {type(defaults).__name__} has no key {', '.join(unknown)}")
        backbone = AutoModel.from_config(AutoConfig.for_model(model_type, **keys), attn_implementation="sdpa")
        return cls(backbone, mean, std, blocks, norm)

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        blocks: Sequence[int] | None = None,
        norm: bool = True,
        weights: Literal["pretrained", "random"] = "pretrained",
        checkpoint_dir: str = "checkpoint",
    ) -> Self:
        """Loads an encoder from ``checkpoint_dir/<name>/``, from any other folder, or from the Hub.

        Args:
            path: a folder, or a Hub id such as ``facebook/dinov2-base``. For a Hub id the folder
                ``checkpoint_dir/dinov2-base`` is used if it exists.
            blocks, norm: see the class.
            weights: ``random`` keeps the architecture and draws new weights, as a control experiment.
            checkpoint_dir: where downloaded encoders lie.

        Raises:
            FileNotFoundError: a folder, or one of its files, is missing, or the Hub gave no such model.
            ValueError: the files do not hold every weight of the architecture, or ``weights`` is another word.
        """
        if weights not in ("pretrained", "random"):
            raise ValueError(f"encoder.weights must be 'pretrained' or 'random', found {weights!r}")
        source = _resolve(path, checkpoint_dir)
        try:
            config = AutoConfig.from_pretrained(source)
            processor, _ = ImageProcessingMixin.get_image_processor_dict(source)
            if weights == "random":
                backbone = AutoModel.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
                missing = set()
            else:
                # dtype is explicit: files in fp16 would otherwise be kept, and trained, in fp16.
                backbone, info = AutoModel.from_pretrained(
                    source, config=config, dtype=torch.float32, attn_implementation="sdpa", output_loading_info=True
                )
                missing = {key for key in info["missing_keys"] if not key.endswith("mask_token")}
        except OSError as error:
            raise FileNotFoundError(_not_found(path, source, checkpoint_dir, error)) from error
        except SafetensorError as error:
            raise ValueError(
                f"encoder {source}: model.safetensors cannot be read ({error}); download it again"
            ) from error
        if missing:
            raise ValueError(
                f"encoder {source}: its files lack {len(missing)} weights that {type(config).__name__} needs "
                f"({', '.join(sorted(missing)[:3])}, ...); the config and the weights belong to different models"
            )
        return cls(
            backbone, processor["image_mean"], processor["image_std"], blocks, norm, pretrained=weights == "pretrained"
        )

    def check_size(self, height: int, width: int) -> None:
        """Raises ValueError, naming the nearest legal sizes, unless the patch size divides both (pixels)."""
        p = self.patch_size
        if height > 0 and width > 0 and height % p == 0 and width % p == 0:
            return
        lower = (max(p, height // p * p), max(p, width // p * p))
        upper = (-(-height // p) * p, -(-width // p) * p)
        raise ValueError(
            f"image size {height}x{width} (height x width) is not a multiple of the patch size {p}; "
            f"the nearest legal sizes are {lower[0]}x{lower[1]} and {upper[0]}x{upper[1]}"
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """Encodes a batch.

        Args:
            image: (B, 3, H, W) float, RGB in [0, 1]; H and W multiples of the patch size.

        Returns:
            F1..F4, each (B, D, H/p, W/p).

        Raises:
            ValueError: the patch size does not divide H or W. (Hugging Face would crop silently.)
        """
        height, width = image.shape[-2:]
        self.check_size(height, width)
        # no_grad rather than inference_mode: the decoder's first convolution must save its input for backward.
        with torch.no_grad() if self.frozen else contextlib.nullcontext():
            tokens = self._hidden_states((image - self.mean) / self.std)
            if self.norm:
                norm = _final_norm(self.backbone)
                tokens = [norm(t) for t in tokens]
        patches = [t[:, self.num_special_tokens :] for t in tokens]
        return [rearrange(t, "b (h w) d -> b d h w", h=height // self.patch_size) for t in patches]

    def _hidden_states(self, pixels: Tensor) -> list[Tensor]:
        """Un-normed outputs (B, special + N, D) of ``self.blocks``; no other hidden state is kept."""
        kept: list[Tensor] = []
        layers = _block_list(self.backbone)
        hooks = [layers[i].register_forward_hook(lambda _m, _i, out: kept.append(out)) for i in self.blocks]
        try:
            self.backbone(pixels)
        finally:
            for hook in hooks:
                hook.remove()
        return kept

    def train(self, mode: bool = True) -> Self:
        """Sets the mode; a frozen encoder stays in eval mode, where DINOv3 does not rescale its RoPE coordinates."""
        return super().train(mode and not self.frozen)

    def fingerprint(self) -> str:
        """SHA-256 of the weights' names and values, to tell whether two encoders are the same."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.backbone.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()


def _block_list(backbone: nn.Module) -> nn.ModuleList:
    """The list of transformer blocks; its attribute path differs between models and transformers versions."""
    lists = [m for m in backbone.modules() if isinstance(m, nn.ModuleList)]
    if not lists:
        raise ValueError(f"{type(backbone).__name__} has no list of blocks; expected a vision transformer")
    return max(lists, key=len)


def _final_norm(backbone: nn.Module) -> nn.Module:
    for name in ("norm", "layernorm", "post_layernorm"):
        if isinstance(norm := getattr(backbone, name, None), nn.Module):
            return norm
    raise ValueError(f"{type(backbone).__name__} has no final norm; expected a vision transformer")


def _patch_size(config: PretrainedConfig) -> int:
    size = config.patch_size
    if isinstance(size, int):
        return size
    if len(set(size)) != 1:
        raise ValueError(f"patch size {tuple(size)} is not square; only square patches are supported")
    return int(size[0])


def _check_blocks(blocks: Sequence[int] | None, depth: int) -> tuple[int, ...]:
    if blocks is None:
        if depth < 4:
            raise ValueError(f"encoder has {depth} blocks; at least 4 are needed for F1..F4")
        return tuple(depth * i // 4 - 1 for i in (1, 2, 3, 4))
    chosen = tuple(blocks)
    if len(chosen) != 4 or list(chosen) != sorted(set(chosen)) or chosen[0] < 0 or chosen[-1] >= depth:
        raise ValueError(
            f"encoder.blocks must be four ascending 0-based indices below the depth {depth}, found {list(chosen)}"
        )
    return chosen


def _resolve(path: str, checkpoint_dir: str) -> str:
    """The folder for ``path`` if there is one, else ``path`` itself as a Hub id."""
    local = Path(path).expanduser()
    downloaded = Path(checkpoint_dir) / local.name
    for folder in (local, downloaded):
        if folder.is_dir():
            for name in _FOLDER_FILES:
                if not (folder / name).is_file():
                    raise FileNotFoundError(
                        f"encoder folder {folder} has no {name}; expected {', '.join(_FOLDER_FILES)} and "
                        "model.safetensors, as downloaded from the Hub"
                    )
                _check_json(folder / name)
            return str(folder)
    if local.is_absolute() or path.startswith((".", "~")) or len(local.parts) != 2 or local.parts[0] == checkpoint_dir:
        raise FileNotFoundError(
            f"encoder folder {path} does not exist (and neither does {downloaded}); expected a folder with "
            f"{', '.join(_FOLDER_FILES)} and model.safetensors, or a Hub id such as facebook/dinov2-base"
        )
    return path


def _check_json(file: Path) -> None:
    try:
        json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON ({error}); download it again") from error


def _not_found(path: str, source: str, checkpoint_dir: str, error: OSError) -> str:
    if Path(source).is_dir():
        return f"encoder folder {source} cannot be loaded: {str(error).splitlines()[0]}"
    gated = (
        " DINOv3 is gated: accept its licence on the model's page and run `hf auth login`." if "dinov3" in path else ""
    )
    return (
        f"encoder weights {path} were not found in {Path(checkpoint_dir) / Path(path).name} and could not be had from "
        f"the Hub ({type(error).__name__}).{gated} Or download them elsewhere and put config.json, "
        f"model.safetensors and preprocessor_config.json into {Path(checkpoint_dir) / Path(path).name}/"
    )
