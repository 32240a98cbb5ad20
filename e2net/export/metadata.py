"""What a file says of itself: task, sizes, licence, how it was trained, and what is not inside."""

import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import e2net
from e2net.export.network import OnePass
from e2net.hub.card import licence_of, weights_of
from e2net.runs.about import without_places
from e2net.runs.checkpoint import trained_with

# Of a run's config, what says how it was trained; no places on a disk.
_TRAINING = ("encoder", "neck", "decoder", "tuning", "loss", "optim", "schedule", "data", "size", "train_scales", "ema")
# What a run may do at test, and a file does not.
_LOOKS = ("flip_test", "test_scales", "zoom_test")


def metadata_of(
    network: OnePass, config: Mapping[str, Any], sha256: str, size: tuple[int, int] | None
) -> dict[str, str]:
    """Name to text, JSON where it is no word; the keys of an ONNX file's own metadata.

    Args:
        network: what was exported.
        config: the resolved config of its training.
        sha256: of the checkpoint.
        size: (H, W), the only size; None: any.
    """
    encoder, task = network.model.encoder, network.model.task
    step = encoder.size_multiple
    sides = f"height and width multiples of {step}" if size is None else f"height {size[0]}, width {size[1]}"
    looks = {key: trained_with(dict(config), key) for key in _LOOKS}
    found: dict[str, Any] = {
        "e2net": e2net.__version__,
        "task": task.name,
        "task_settings": {k: v for k, v in config["task"].items() if k != "_target_"},
        "input": f"image: (batch, 3, height, width) uint8, RGB; {sides}; normalised inside",
        "output": "map: (batch, channels, height, width) float32, what the task averages; activated inside",
        "channels": task.out_channels,
        "size_multiple": step,
        "size": trained_with(dict(config), "size") if size is None else list(size),
        "mean": encoder.mean.flatten().tolist(),
        "std": encoder.std.flatten().tolist(),
        "sharpen": network.sharpen,
        "not_inside": looks,
        "encoder_licence": licence_words(config["encoder"]),
        "training": without_places({key: config[key] for key in _TRAINING if key in config}),
        "epochs": config.get("trainer", {}).get("max_epochs"),
        "checkpoint_sha256": sha256,
    }
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in found.items()}


def licence_words(encoder: Mapping[str, Any]) -> str:
    """The licence of an encoder's weights, by its config, in words."""
    path = weights_of(encoder)
    if path is None:
        return "none: the encoder was trained from random weights"
    licence = licence_of(path)
    return f"not known to e2net; see {PurePath(path).name}" if licence is None else licence.name
