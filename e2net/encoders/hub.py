"""Hugging Face backbones: built from a config, or loaded from a folder or the Hub."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import nn

from e2net.encoders.base import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:  # imported where it is used: transformers takes longer to import than all the rest
    from transformers import PretrainedConfig, PreTrainedModel

Weights = Literal["pretrained", "random"]

# What a downloaded encoder comes in, beside its weights.
_FOLDER_FILES = ("config.json", "preprocessor_config.json")
# Kinds of files that may hold code beside weights.
PICKLES = (".bin", ".pth", ".pt", ".tar", ".ckpt")
# The keys that tell one published model from another; the rest of a config may be spelt differently by its file.
_IDENTITY = (
    "model_type",
    "hidden_size",
    "hidden_sizes",
    "num_hidden_layers",
    "depths",
    "patch_size",
    "num_register_tokens",
)
# Of the files of a model of images and texts: the image half's names, less what stands in front of them there.
_TOWER = {r"^(?:model\.)?vision_tower\.": ""}
# Never run here: pooling heads, and the token that stands for masked patches in self-supervised training.
_UNUSED = ("pooler", "head", "mask_token")


class Loaded(NamedTuple):
    """A backbone, and mean and standard deviation per channel of the RGB images in [0, 1] that it was trained on."""

    backbone: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]


def build_backbone(config: Mapping[str, Any]) -> "PreTrainedModel":
    """A whole Hugging Face model with random weights.

    Args:
        config: ``model_type`` (such as ``dinov3_vit``) and any other keys of that Hugging Face config.

    Raises:
        ValueError: an unknown ``model_type`` or a key which that config does not have.
    """
    from transformers import AutoConfig  # noqa: PLC0415

    keys = dict(config)
    model_type = keys.pop("model_type", None)
    try:
        defaults = AutoConfig.for_model(str(model_type))
    except ValueError as error:
        raise ValueError(
            f"encoder config: unknown model_type {model_type!r}; expected one that transformers knows, "
            "such as dinov3_vit, dinov2 or dinov2_with_registers"
        ) from error
    unknown = sorted(key for key in keys if not hasattr(defaults, key))
    if unknown:
        raise ValueError(f"encoder config: {type(defaults).__name__} has no key {', '.join(unknown)}; leave it out")
    try:
        return _draw(_vision(AutoConfig.for_model(model_type, **keys)))
    except Exception as error:  # not our code: all that it has to object is about the keys
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"encoder config: transformers cannot build {model_type} from it ({reason})") from error


def load_backbone(path: str, config: Mapping[str, Any] | None, weights: Weights, checkpoint_dir: str) -> Loaded:
    """Loads a backbone from a folder, from ``checkpoint_dir/<last part of path>/``, or from the Hub.

    Args:
        path: a folder or a Hub id such as ``facebook/dinov2-base``.
        config: the keys of the Hugging Face config that the files are expected to have; None takes any. With
            ``weights="random"`` they replace files that are not on this machine, and mean and std are ImageNet's then.
        weights: ``random`` keeps the architecture and draws new weights.
        checkpoint_dir: where downloaded encoders lie.

    Raises:
        FileNotFoundError: a folder, or one of its files, is missing, or the Hub gave no such model.
        ValueError: the files belong to another model than ``config``, do not hold every weight, or cannot be read.
    """
    check_weights(weights)
    if weights == "random" and config is not None and find_folder(path, checkpoint_dir) is None:
        return Loaded(build_backbone(config), IMAGENET_MEAN, IMAGENET_STD)

    from safetensors import SafetensorError  # noqa: PLC0415
    from transformers import AutoConfig, AutoModel  # noqa: PLC0415
    from transformers.image_processing_base import ImageProcessingMixin  # noqa: PLC0415

    source = _resolve(path, checkpoint_dir)
    try:
        # Else a folder that comes with code of its own would ask on the terminal whether to run it.
        whole = AutoConfig.from_pretrained(source, trust_remote_code=False)
        found = _vision(whole)
        _check_identity(source, config or {}, found)
        processor, _ = ImageProcessingMixin.get_image_processor_dict(source)
        folder = Path(source)
        if weights == "pretrained" and folder.is_dir() and not any(folder.glob("*.safetensors")):
            refuse_code(*sorted(f for f in folder.iterdir() if f.suffix in PICKLES))
        if weights == "random":
            backbone, missing = _draw(found), []
        else:
            # dtype is explicit: files in fp16 would otherwise be kept, and trained, in fp16.
            backbone, info = AutoModel.from_pretrained(
                source,
                config=found,
                dtype=torch.float32,
                output_loading_info=True,
                trust_remote_code=False,
                key_mapping=None if found is whole else _TOWER,
            )
            missing = sorted(key for key in info["missing_keys"] if not set(key.split(".")) & set(_UNUSED))
    except OSError as error:
        raise FileNotFoundError(_not_found(path, source, checkpoint_dir, error)) from error
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"encoder {source} is a model whose code comes with its files, and that is never run here; expected one "
            "that transformers knows (for InternViT: encoder=internvit_300m)"
        ) from error
    except SafetensorError as error:
        raise ValueError(f"encoder {source}: model.safetensors cannot be read ({error}); download it again") from error
    if missing:
        raise ValueError(
            f"encoder {source}: its files lack {len(missing)} weights that {type(found).__name__} needs "
            f"({', '.join(missing[:3])}, ...); config and weights belong to different models: download both again"
        )
    if not {"image_mean", "image_std"} <= processor.keys():
        raise ValueError(
            f"encoder {source}: its preprocessor_config.json has no image_mean and image_std; add the mean and the "
            "standard deviation of its training images, three numbers each"
        )
    return Loaded(backbone, tuple(processor["image_mean"]), tuple(processor["image_std"]))


def describe_backbone(backbone: Any) -> dict[str, Any]:
    """What :func:`build_described` builds the same architecture from: plain values, no weights."""
    if hasattr(backbone, "pretrained_cfg"):
        return {"library": "timm", **backbone.e2net_arguments}
    return {"library": "transformers", "config": json.loads(backbone.config.to_json_string(use_diff=False))}


def build_described(description: Mapping[str, Any]) -> nn.Module:
    """A backbone with random weights, see :func:`describe_backbone`; nothing is read or fetched.

    Raises:
        ValueError: the description is of no model that the installed libraries know.
    """
    if description.get("library") == "timm":
        from e2net.encoders.timm_hub import create_timm  # noqa: PLC0415 - it imports this module

        return create_timm(str(description.get("name")), description.get("arguments") or {})

    from transformers import AutoConfig  # noqa: PLC0415

    keys = dict(description.get("config") or {})
    model_type = keys.pop("model_type", None)
    try:
        defaults = AutoConfig.for_model(model_type)
        for key, value in keys.items():  # which transformers would look at when the model runs
            if isinstance(getattr(defaults, key, None), bool) and not isinstance(value, bool):
                raise ValueError(f"expected true or false for {key}, found {value!r}")
        return _draw(type(defaults).from_dict(keys))
    except Exception as error:  # not our code: whatever it is, the description is at fault
        raise ValueError(
            f"checkpoint: transformers cannot build the encoder {model_type} that it describes ({error}); update "
            "transformers, or give the encoder's files by encoder_path=..."
        ) from error


def check_weights(weights: str) -> None:
    """Raises ValueError for a word that is no source of weights."""
    if weights not in ("pretrained", "random"):
        raise ValueError(f"encoder.weights must be 'pretrained' or 'random', found {weights!r}")


def refuse_code(*files: Path) -> None:
    """Raises ValueError for a file that holds more than tensors: older libraries would run what it says."""
    for file in files:
        try:
            torch.load(file, map_location="meta", weights_only=True, mmap=False)
        except Exception as error:
            raise ValueError(
                f"{file} is no file of plain weights; expected .safetensors, or a .pth or .bin of tensors alone"
            ) from error


def find_folder(path: str, checkpoint_dir: str) -> Path | None:
    """The folder that ``path`` names, or ``checkpoint_dir/<last part of path>``, if there is one."""
    local = Path(path).expanduser()
    return next((folder for folder in (local, Path(checkpoint_dir) / local.name) if folder.is_dir()), None)


def is_hub_id(path: str, checkpoint_dir: str) -> bool:
    """Whether ``path`` could be a Hub id: an owner and a name, and plainly no path on this machine."""
    parts = Path(path).parts
    return len(parts) == 2 and not path.startswith(("/", ".", "~")) and parts[0] != checkpoint_dir


def weights_on_disk(path: str, checkpoint_dir: str) -> bool:
    """Whether ``path`` can be loaded without the network; Hugging Face's own cache is not looked at."""
    folder = find_folder(path, checkpoint_dir)
    return folder is not None and any(folder.glob("*.safetensors"))


def _draw(config: "PretrainedConfig") -> "PreTrainedModel":
    from transformers import AutoModel  # noqa: PLC0415

    return AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)


def _vision(config: "PretrainedConfig") -> "PretrainedConfig":
    """The image half of a model of images and texts, such as SigLIP or InternVL; any other config as it is."""
    return getattr(config, "vision_config", config)


def _check_identity(source: str, expected: Mapping[str, Any], found: "PretrainedConfig") -> None:
    wrong = [
        f"{key} is {getattr(found, key, None)}, not {expected[key]}"
        for key in _IDENTITY
        if key in expected and _side(getattr(found, key, None)) != expected[key]
    ]
    if wrong:
        raise ValueError(
            f"encoder {source} is another model than this encoder's config ({'; '.join(wrong)}); put the right files "
            "there, or choose encoder=local encoder.path=..., which takes any vision transformer"
        )


def _side(value: Any) -> Any:
    """A square given by both of its sides, as InternVL's patch size is, as one number."""
    return value[0] if isinstance(value, list | tuple) and len(value) == 2 and value[0] == value[1] else value


def _resolve(path: str, checkpoint_dir: str) -> str:
    """The folder for ``path`` if there is one, else ``path`` itself as a Hub id."""
    folder = find_folder(path, checkpoint_dir)
    if folder is not None:
        for name in _FOLDER_FILES:
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"encoder folder {folder} has no {name}; expected {', '.join(_FOLDER_FILES)} and "
                    "model.safetensors, as downloaded from the Hub" + _timm_hint(folder)
                )
            read_json(folder / name)
        return str(folder)
    if not is_hub_id(path, checkpoint_dir):
        raise FileNotFoundError(
            f"encoder folder {path} does not exist (and neither does {Path(checkpoint_dir) / Path(path).name}); "
            f"expected a folder with {', '.join(_FOLDER_FILES)} and model.safetensors, or a Hub id such as "
            "facebook/dinov2-base"
        )
    return path


def read_json(file: Path) -> dict[str, Any]:
    """The contents of ``file``; ValueError, with its name, where they are no JSON."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON ({error}); download it again") from error


def _timm_hint(folder: Path) -> str:
    config = folder / "config.json"
    if config.is_file() and "architecture" in read_json(config):
        return f". Its config.json is timm's: load it with encoder=timm encoder.path={folder}"
    return ""


def _not_found(path: str, source: str, checkpoint_dir: str, error: OSError) -> str:
    if Path(source).is_dir():
        return f"encoder folder {source} cannot be loaded: {str(error).splitlines()[0]}; download it again"
    gated = (
        " DINOv3 is gated: accept its licence on the model's page and run `hf auth login`." if "dinov3" in path else ""
    )
    return (
        f"encoder weights {path} were not found in {Path(checkpoint_dir) / Path(path).name} and could not be had from "
        f"the Hub ({type(error).__name__}).{gated} Or download them elsewhere and put config.json, "
        f"model.safetensors and preprocessor_config.json into {Path(checkpoint_dir) / Path(path).name}/"
    )
