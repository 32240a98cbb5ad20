"""An encoder as a folder of Hugging Face's: what ``transformers`` and ``encoder=local`` load."""

import copy
import json
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from e2net.encoders import Encoder, ViTEncoder, merge_lora
from e2net.encoders.hub import is_hub_id
from e2net.encoders.tuning import Adapter
from e2net.files import naming, write_atomically
from e2net.runs.cards import cell
from e2net.runs.outputs import check_free, staged

# What is written, and so what of a folder may be replaced.
FILES = ("config.json", "model.safetensors", "preprocessor_config.json", "README.md")
# Of models that come without their pooling heads here: no feature depends on them.
_HEADS = ("pooler", "head")
# Which blocks a backbone's own interface would return; written anew, as there may be fewer blocks.
_STAGES = ("stage_names", "out_features", "out_indices", "_out_features", "_out_indices")
_SIDE = 224


def check_output(encoder: Encoder, folder: str | Path) -> None:
    """Makes sure that :func:`save_encoder` can write an encoder into a folder; before a long training.

    Args:
        encoder: as it will train, tuning policy and all.
        folder: it need not be there.

    Raises:
        ValueError: the folder holds files of such names that e2net did not write; or the encoder is timm's, has
            adapters, or has other weights than a model of ``transformers``.
    """
    check_free("output", Path(folder), FILES)
    backbone: Any = encoder.backbone
    if hasattr(backbone, "pretrained_cfg"):
        raise ValueError(
            f"output: {type(backbone).__name__} is timm's, and transformers loads no such folder; expected an encoder "
            "of Hugging Face (encoder=local, dinov2_b, dinov3_b, ...)"
        )
    if any(isinstance(module, Adapter) for module in encoder.modules()):
        raise ValueError(
            "output: adapters are layers of e2net's own, and transformers loads no encoder with them; expected "
            "tuning=lora, which is merged, or partial or full"
        )
    _check_weights(encoder)


def save_encoder(
    encoder: Encoder, folder: str | Path, card: Mapping[str, Any], size: int | None = None, loader: str | None = None
) -> None:
    """Writes an encoder as a folder that ``transformers.AutoModel.from_pretrained`` loads, features and all.

    LoRA's updates are merged into the weights of a copy; the encoder stays as it is. The folder appears whole; where it
    is there from an earlier call, its files are replaced once all new ones are written.

    Args:
        encoder: of Hugging Face.
        folder: files that e2net did not write there are never replaced.
        card: how the encoder was made, for the model card: plain values by name; ``base`` is the original encoder,
            a Hub id or a folder.
        size: side of the square pictures that the image processor makes, pixels; None: the config's.
        loader: how the card says that e2net loads it, as an override such as ``encoder=convnext_t``; None: by the kind.

    Raises:
        OSError: the disk is full, or the folder cannot be written; what was there is still there.
        ValueError: see :func:`check_output`.
    """
    folder = Path(folder)
    check_output(encoder, folder)
    with torch.no_grad():
        plain = _plain_copy(encoder)
    backbone: Any = plain.backbone
    loader = loader or (
        "encoder=convnext_t '~encoder.config'" if backbone.config.model_type == "dinov3_convnext" else "encoder=local"
    )
    with staged(folder, FILES) as stage:
        with naming(folder / "model.safetensors"):
            stage.mkdir()
            backbone.save_pretrained(stage, max_shard_size="1000GB")
            # safetensors lets nobody but the owner read what it writes, whatever the umask.
            shutil.copymode(stage / "config.json", stage / "model.safetensors")
        processor = json.dumps(_processor(plain, size), indent=2) + "\n"
        write_atomically(stage / "preprocessor_config.json", processor)
        write_atomically(stage / "README.md", _card(plain, folder, card, loader))


def _plain_copy(encoder: Encoder) -> Encoder:
    """A copy on the CPU whose backbone has the weights of a model of ``transformers``, and a config that says so."""
    plain = copy.deepcopy(encoder).cpu()
    if any(".lora_" in name for name in plain.backbone.state_dict()):
        merge_lora(plain)
    backbone: Any = plain.backbone
    backbone.config = _config(plain)
    embeddings: Any = getattr(backbone, "embeddings", None)
    own = any(name.endswith("mask_token") for name in _fresh(backbone.config))
    if not own and getattr(embeddings, "mask_token", None) is not None:
        embeddings.mask_token = None  # one that was added for training: the model has no place for it
    return plain


def _config(encoder: Encoder) -> Any:
    """The backbone's config with as many blocks as it has: those after the last one behind F1..F4 are not there."""
    backbone: Any = encoder.backbone
    keys = {key: value for key, value in backbone.config.to_dict().items() if key not in _STAGES}
    if isinstance(encoder, ViTEncoder):
        keys["num_hidden_layers"] = len(encoder.layers())
    return type(backbone.config).from_dict({**keys, "dtype": "float32"})


def _fresh(config: Any) -> dict[str, torch.Size]:
    """Names and shapes of the weights of the model that ``transformers`` builds from a config."""
    from transformers import AutoModel  # noqa: PLC0415 - seconds

    with torch.device("meta"):
        model = AutoModel.from_config(config, trust_remote_code=False)
    return {name: value.shape for name, value in model.state_dict().items()}


def _check_weights(encoder: Encoder) -> None:
    # As they are called once LoRA is merged; peft puts a layer around each that it updates.
    kept = (name for name in encoder.backbone.state_dict() if ".lora_" not in name)
    names, expected = {name.replace(".base_layer.", ".") for name in kept}, set(_fresh(_config(encoder)))
    more = sorted(name for name in names - expected if not name.endswith("mask_token"))
    fewer = sorted(name for name in expected - names if not set(name.split(".")) & set(_HEADS))
    if more or fewer:
        what = f"has {more[0]} beside them" if more else f"lacks {fewer[0]}"
        raise ValueError(
            f"output: expected the weights of transformers' {type(encoder.backbone).__name__}, but this encoder "
            f"{what}; take an encoder that transformers has as it is"
        )


def _processor(encoder: Encoder, size: int | None) -> dict[str, Any]:
    own = getattr(encoder.backbone.config, "image_size", None)
    side = size or (own if isinstance(own, int) else _SIDE)
    multiple = encoder.size_multiple
    side = max(multiple, side // multiple * multiple)
    return {
        # The plainest there is: resizes to a square, scales to [0, 1], normalises.
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        # The shortest numbers that are these in float32.
        "image_mean": [float(str(np.float32(value))) for value in encoder.mean.flatten().tolist()],
        "image_std": [float(str(np.float32(value))) for value in encoder.std.flatten().tolist()],
    }


def _card(encoder: Encoder, folder: Path, card: Mapping[str, Any], loader: str) -> str:
    config: Any = encoder.backbone.config
    base, card = card.get("base"), dict(card)
    if isinstance(base, str) and Path(base).is_absolute():
        base = card["base"] = Path(base).name  # the rest of a path of this machine says nothing elsewhere
    layers = getattr(config, "num_hidden_layers", None)
    facts = {
        "architecture": config.model_type,
        **({"blocks": layers} if layers is not None else {}),
        "parameters": f"{sum(p.numel() for p in encoder.backbone.parameters()):,}",
        **card,
        "made by": f"e2net {metadata.version('e2net')}",
    }
    rows = "\n".join(f"| {cell(name)} | {cell(value)} |" for name, value in facts.items())
    head = ["library_name: transformers", "pipeline_tag: image-feature-extraction", "tags: [e2net, self-supervised]"]
    if isinstance(base, str) and is_hub_id(base, "checkpoint"):
        head.insert(0, f"base_model: {json.dumps(base)}")
    front = "\n".join(("---", *head, "---"))
    return f"""{front}

# {folder.name}

An encoder of images, trained further without labels by e2net. Whatever licence the original encoder has goes on for
this one.

| | |
|---|---|
{rows}

## Use

```python
from transformers import AutoImageProcessor, AutoModel

model = AutoModel.from_pretrained("{folder.name}")
processor = AutoImageProcessor.from_pretrained("{folder.name}")
```

or, in e2net, `e2net train {loader} encoder.path={folder.name}`, at any size that is a multiple of
{encoder.size_multiple} pixels.
"""
