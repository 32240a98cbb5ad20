"""timm's backbones: from a folder in timm's Hub format, a model name with a weights file, or the Hub."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from e2net.encoders.base import method_of
from e2net.encoders.hub import PICKLES, Loaded, Weights, check_weights, find_folder, read_json, refuse_code
from e2net.symbolic import same


def load_timm(path: str, file: str | None, weights: Weights, checkpoint_dir: str, **model_args: Any) -> Loaded:
    """Loads a timm model without its classifier and pooling.

    Args:
        path: a folder with timm's ``config.json`` and ``model.safetensors``, or a model name such as
            ``vit_small_patch16_dinov3.lvd1689m``, with or without ``timm/`` in front. For a name, the folder
            ``checkpoint_dir/<name>`` is used if it exists.
        file: weights of the named model, in place of those of the folder or the Hub (.safetensors, .pth or .bin).
        weights: ``random`` keeps the architecture and draws new weights.
        checkpoint_dir: where downloaded encoders lie.
        model_args: for the model's constructor.

    Raises:
        FileNotFoundError: a folder, a file or a model of that name is missing, or the Hub gave no such weights.
        ValueError: an argument that the model does not take, or weights that do not fit it.
    """
    import timm  # noqa: PLC0415 - seconds that the other encoders don't need
    from safetensors import SafetensorError  # noqa: PLC0415

    check_weights(weights)
    if file is not None and not Path(file).is_file():
        raise FileNotFoundError(f"encoder.file {file} does not exist; expected weights of the timm model {path}")
    if file is not None and not file.endswith(".safetensors"):
        refuse_code(Path(file))
    name = _source(path, checkpoint_dir)
    folder = find_folder(path, checkpoint_dir)
    if file is None and folder is not None and not (folder / "model.safetensors").is_file():
        refuse_code(*sorted(f for f in folder.iterdir() if f.suffix in PICKLES))
    try:
        # The number of classes stays the file's own, so that timm loads strictly; with any other it passes over
        # missing weights in silence.
        model: Any = timm.create_model(
            name,
            pretrained=weights == "pretrained",
            # timm has loaders of its own for models published as .npz, which releases before 1.0.30 use for any file.
            pretrained_cfg_overlay={"file": file, "source": "timm", "custom_load": False} if file else None,
            **model_args,
        )
    except OSError as error:
        raise FileNotFoundError(
            f"encoder weights {path} could not be had from the Hub ({type(error).__name__}); download config.json and "
            f"model.safetensors of timm's {path.removeprefix('timm/')} elsewhere and put them into "
            f"{Path(checkpoint_dir) / Path(path).name}/, or give a file with the weights as encoder.file=..."
        ) from error
    except TypeError as error:
        raise ValueError(
            f"encoder {path}: timm's model is of another kind than this encoder ({error}); expected a vision "
            "transformer that takes images of any size (encoder=timm) or a ConvNeXt (encoder=timm_convnext)"
        ) from error
    except (RuntimeError, SafetensorError, UnpicklingError) as error:
        reason = textwrap.shorten(str(error), 300, placeholder=" ...")  # timm names every weight that does not fit
        raise ValueError(f"encoder {path}: timm cannot build or fill this model: {reason}") from error
    _finish(model)
    model.e2net_arguments = _arguments(path, checkpoint_dir, model_args)
    return Loaded(model, tuple(model.pretrained_cfg["mean"]), tuple(model.pretrained_cfg["std"]))


def create_timm(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """The same from what a loaded one has as ``e2net_arguments``, with random weights.

    Raises:
        ValueError: timm has no such model.
    """
    import timm  # noqa: PLC0415 - see load_timm

    try:
        if "/" in name or ":" in name:  # where timm would look for files
            raise ValueError("expected the name of a model")
        model: Any = timm.create_model(name, pretrained=False, **arguments)
    except Exception as error:  # not our code: whatever it is, name or arguments are at fault
        raise ValueError(f"checkpoint: timm cannot build the encoder {name} that it describes ({error})") from error
    _finish(model)
    model.e2net_arguments = {"name": name, "arguments": dict(arguments)}
    return model


def _finish(model: Any) -> None:
    model.reset_classifier(0, "")
    _interpolate_like_hugging_face(model)


def _arguments(path: str, checkpoint_dir: str, model_args: dict[str, Any]) -> dict[str, Any]:
    """What builds the model without its files."""
    folder = find_folder(path, checkpoint_dir)
    if folder is None:
        return {"name": path.removeprefix("timm/"), "arguments": model_args}
    config = read_json(folder / "config.json")
    return {"name": config["architecture"], "arguments": {**config.get("model_args", {}), **model_args}}


def _source(path: str, checkpoint_dir: str) -> str:
    """What ``timm.create_model`` takes as a name."""
    folder = find_folder(path, checkpoint_dir)
    if folder is not None:
        config = folder / "config.json"
        if not config.is_file() or "architecture" not in read_json(config):
            raise FileNotFoundError(
                f"encoder folder {folder} has no config.json that names timm's architecture; expected a folder as "
                f"downloaded from huggingface.co/timm (for one of transformers use encoder=local encoder.path={folder})"
            )
        return f"local-dir:{folder}"
    name = path.removeprefix("timm/")
    from timm import is_model  # noqa: PLC0415 - seconds that the other encoders don't need

    if not is_model(name.partition(".")[0]):
        raise FileNotFoundError(
            f"encoder folder {path} does not exist (and neither does {Path(checkpoint_dir) / Path(path).name}), and "
            "timm has no model of that name; expected a folder with timm's config.json and model.safetensors, or a "
            "name such as vit_small_patch16_dinov3.lvd1689m"
        )
    return name


def _interpolate_like_hugging_face(model: Any) -> None:
    """Has a timm ViT resize its position embeddings as transformers does, so that both give the same features.

    timm smooths them (``antialias``), which also changes the bicubic kernel. Meta's DINOv2 and transformers do so
    for the models with registers only. Other classes than the plain one put their tokens together in other ways.
    """
    from timm.models.vision_transformer import VisionTransformer  # noqa: PLC0415 - see load_timm

    plain = isinstance(model, VisionTransformer) and type(model)._pos_embed is VisionTransformer._pos_embed
    if plain and model.pos_embed is not None and model.reg_token is None:
        model._pos_embed = method_of(model, _add_positions)


def _add_positions(model: Any, patches: Tensor) -> Tensor:
    """Patch embeddings (B, h, w, D) -> tokens with positions (B, special + h·w, D); replaces timm's own method."""
    height, width = patches.shape[1:3]
    special = 0 if model.no_embed_class else model.num_prefix_tokens
    positions = model.pos_embed[:, special:]
    grid = model.patch_embed.grid_size
    if not same((height, width), grid):
        square = positions.unflatten(1, grid).permute(0, 3, 1, 2)
        resized = nn.functional.interpolate(square.float(), (height, width), mode="bicubic").to(positions.dtype)
        positions = resized.flatten(2).transpose(1, 2)
    tokens = patches.flatten(1, 2) + positions
    if model.cls_token is not None:
        cls_token = model.cls_token + model.pos_embed[:, :special] if special else model.cls_token
        tokens = torch.cat((cls_token.expand(tokens.shape[0], -1, -1), tokens), dim=1)
    return model.pos_drop(tokens)
