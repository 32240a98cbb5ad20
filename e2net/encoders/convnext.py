"""DINOv3's ConvNeXt as a feature encoder, from Hugging Face or timm."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

from torch import Tensor, nn
from torch.nn import functional as F

from e2net.encoders.base import IMAGENET_MEAN, IMAGENET_STD, Encoder, are_indices, no_masks
from e2net.encoders.hub import Weights, build_backbone, build_described, describe_backbone, load_backbone
from e2net.encoders.timm_hub import load_timm
from e2net.structures import Tokens


class ConvNeXtEncoder(Encoder):
    """A ConvNeXt whose four stages give F1..F4, at strides 4, 8, 16 and 32.

    Its "blocks" are the stages. As tokens a stage's map is the patches and their mean is the class token, the last
    stage's through the final norm, as in DINOv3.

    Args:
        backbone: Hugging Face's ``DINOv3ConvNextModel`` or timm's ``ConvNeXt``.
        mean, std: of RGB images in [0, 1], per channel.
        norm: apply the model's final norm, to F4. The other stages have none: DINOv3's own evaluations return them as
            they are.
        pretrained: see :class:`~e2net.encoders.base.Encoder`.

    Raises:
        ValueError: another kind of model.
    """

    backbone: Any  # two libraries' models, which share no interface
    strides = (4, 8, 16, 32)
    blocks = (0, 1, 2, 3)

    def __init__(
        self,
        backbone: Any,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        norm: bool = True,
        pretrained: bool = False,
    ) -> None:
        if type(backbone).__name__ not in ("DINOv3ConvNextModel", "ConvNeXt"):
            raise ValueError(
                f"{type(backbone).__name__} is no ConvNeXt; expected DINOv3ConvNextModel or timm's ConvNeXt (for a "
                "vision transformer choose encoder=local or encoder=timm)"
            )
        super().__init__(backbone, mean, std, self.strides[-1], pretrained)
        self.norm = norm
        self._is_timm = hasattr(backbone, "pretrained_cfg")
        widths = (
            [stage["num_chs"] for stage in backbone.feature_info] if self._is_timm else backbone.config.hidden_sizes
        )
        self.channels = tuple(widths)
        if not norm:  # no gradient would arrive there
            self._final_norm().requires_grad_(False)

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        norm: bool = True,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> Self:
        """Builds an encoder with random weights.

        Args:
            config: ``model_type: dinov3_convnext`` and any other keys of that Hugging Face config.
            norm, mean, std: see the class.

        Raises:
            ValueError: an unknown ``model_type`` or a key which that config does not have.
        """
        return cls(build_backbone(config), mean, std, norm)

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        norm: bool = True,
        weights: Weights = "pretrained",
        checkpoint_dir: str = "checkpoint",
        config: Mapping[str, Any] | None = None,
    ) -> Self:
        """Loads an encoder from ``checkpoint_dir/<name>/``, from any other folder, or from the Hub.

        Args:
            path: a folder, or a Hub id such as ``facebook/dinov3-convnext-tiny-pretrain-lvd1689m``.
            norm: see the class.
            weights, checkpoint_dir, config: as in :meth:`e2net.encoders.ViTEncoder.from_pretrained`.

        Raises:
            FileNotFoundError: a folder, or one of its files, is missing, or the Hub gave no such model.
            ValueError: the files are another model's, or do not hold every weight of the architecture.
        """
        return cls(*load_backbone(path, config, weights, checkpoint_dir), norm, pretrained=weights == "pretrained")

    @classmethod
    def from_timm(
        cls,
        path: str,
        file: str | None = None,
        norm: bool = True,
        weights: Weights = "pretrained",
        checkpoint_dir: str = "checkpoint",
    ) -> Self:
        """Loads timm's version; the features are those of Hugging Face's for the same weights.

        Args:
            path: a folder in timm's Hub format, or a model name such as ``convnext_tiny.dinov3_lvd1689m``.
            file: a file with weights for the named model; None takes the folder's or the Hub's.
            norm: see the class.
            weights, checkpoint_dir: as in :meth:`e2net.encoders.ViTEncoder.from_pretrained`.

        Raises:
            FileNotFoundError: the folder or the file is missing, or the Hub gave no such weights.
            ValueError: an unknown name, another kind of model, or weights that do not fit it.
        """
        return cls(*load_timm(path, file, weights, checkpoint_dir), norm, pretrained=weights == "pretrained")

    @classmethod
    def from_description(
        cls,
        description: Mapping[str, Any],
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        norm: bool = True,
    ) -> Self:
        """As :meth:`e2net.encoders.ViTEncoder.from_description`."""
        return cls(build_described(description), mean, std, norm)

    def describe(self) -> dict[str, Any]:
        means = {"mean": self.mean.flatten().tolist(), "std": self.std.flatten().tolist()}
        return {**describe_backbone(self.backbone), **means}

    def layers(self) -> list[nn.Module]:
        return [block for stage in self._stages() for block in (stage.blocks if self._is_timm else stage.layers)]

    def encode(self, pixels: Tensor) -> list[Tensor]:
        maps = self._maps(pixels)
        if self.norm:
            maps[-1] = self._normed(maps[-1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return maps

    def encode_tokens(
        self, pixels: Tensor, masked: Tensor | None, blocks: Sequence[int], norm: bool | None
    ) -> list[Tokens]:
        if masked is not None:
            raise no_masks(self.backbone)
        if not are_indices(blocks, len(self.blocks)):
            raise ValueError(
                f"blocks of a ConvNeXt are its stages, 0 to {len(self.blocks) - 1}, found {blocks}; give some of these"
            )
        maps, tokens = self._maps(pixels), []
        for stage in blocks:
            patches = maps[stage].flatten(2).transpose(1, 2)
            pooled = patches.mean(1)
            if stage == len(maps) - 1 and (self.norm if norm is None else norm):
                patches, pooled = self._normed(patches), self._normed(pooled)
            tokens.append(Tokens(pooled, patches[:, :0], patches))
        return tokens

    def _maps(self, pixels: Tensor) -> list[Tensor]:
        """The stages' outputs, un-normed. Stage by stage: the model itself would flatten and pool the last one."""
        x = self.backbone.stem(pixels) if self._is_timm else pixels
        maps = []
        for stage in self._stages():
            x = stage(x)
            maps.append(x)
        return maps

    def _normed(self, channels_last: Tensor) -> Tensor:
        """(..., D) through the final norm. timm's own takes maps with channels second."""
        norm = self._final_norm()
        return F.layer_norm(channels_last, norm.normalized_shape, norm.weight, norm.bias, norm.eps)

    def _stages(self) -> Any:
        return self.backbone.stages if self._is_timm else self.backbone.model.stages

    def _final_norm(self) -> Any:
        return self.backbone.head.norm if self._is_timm else self.backbone.layer_norm
