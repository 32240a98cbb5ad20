"""Published scores of encoders, and on which data they hold."""

from collections.abc import Iterable
from pathlib import Path

import yaml

from e2net.installation import conf_folder

# Linear probes of the last block, and label propagation: ADE20k mIoU in percent, NYU-v2 RMSE in metres (DINOv2: of 4
# blocks), DAVIS 2017 J&F in percent (DINOv2-g by resolution). Names as in conf/encoder.
PUBLISHED: dict[str, dict[str, str]] = {
    "linear semantic": {
        "dinov3_s": "47.0", "dinov3_splus": "48.8", "dinov3_b": "51.8", "dinov3_l": "54.9", "dinov3_hplus": "54.8",
        "dinov3_7b": "55.9", "convnext_t": "42.7", "convnext_s": "44.8", "convnext_b": "46.3", "convnext_l": "47.8",
        "dinov2_s": "44.3", "dinov2_b": "47.3", "dinov2_l": "47.7", "dinov2_g": "49.0",
    },
    "linear depth": {
        "dinov3_s": "0.403", "dinov3_splus": "0.399", "dinov3_b": "0.373", "dinov3_l": "0.352", "dinov3_hplus": "0.352",
        "dinov3_7b": "0.309", "dinov2_s": "0.417", "dinov2_b": "0.362", "dinov2_l": "0.333", "dinov2_g": "0.298",
    },
    "tracking": {"dinov3_s": "72.7", "dinov3_b": "77.2", "dinov3_l": "79.9", "dinov2_g": "63.9-76.6"},
}  # fmt: skip
# How the published sets are told from others: the sequences of DAVIS 2017's validation part,
_NAMES = """
bike-packing blackswan bmx-trees breakdance camel car-roundabout car-shadow cows dance-twirl dog dogs-jump drift-chicane
drift-straight goat gold-fish horsejump-high india judo kite-surf lab-coat libby loading mbike-trick motocross-jump
paragliding-launch parkour pigs scooter-black shooting soapbox
"""
DAVIS = frozenset(_NAMES.split())
# the pictures and classes of ADE20k's, and the pictures of NYU-v2's test part.
_ADE20K, _NYU = (2000, 150), 654


def published(
    encoder: str, name: str, label_maps: tuple[int, int] = (0, 0), depths: int = 0, films: Iterable[str] = ()
) -> str | None:
    """What a model's card says of a probe, where encoder and data are those of the card; None elsewhere.

    Args:
        encoder: as it was given: a name in conf/encoder, or what stands there as its path.
        name: of the probe.
        label_maps: how many pictures with label maps are scored, and how many classes they have.
        depths: how many pictures with depth are scored.
        films: the names of the sequences.
    """
    there = {
        "linear semantic": label_maps == _ADE20K,
        "linear depth": depths == _NYU,
        "tracking": frozenset(films) == DAVIS,
    }
    return PUBLISHED[name].get(_config_name(encoder) or "") if there.get(name) else None


def _config_name(encoder: str) -> str | None:
    """The name in conf/encoder of an encoder that is given by it, by its Hub id, or by a folder called as that is."""
    for file in sorted((conf_folder() / "encoder").glob("*.yaml")):
        path = str(yaml.safe_load(file.read_text(encoding="utf-8")).get("path", ""))
        if encoder in (file.stem, path) or ("/" in path and Path(encoder).name == path.rpartition("/")[2]):
            return file.stem
    return None
