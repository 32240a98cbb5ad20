"""Each recipe of ``conf/experiment/`` in small: a tiny encoder of its family, on few pictures."""

from conftest import ROOT, encoder_config
from hydra import compose, initialize_config_dir

from e2net.runs import resolve

RECIPES = sorted(file.stem for file in (ROOT / "conf" / "experiment").glob("*.yaml"))
# By a part of the name of a downloaded encoder: the tiny one that stands in for it. The order matters: both kinds of
# DINOv2 are named so.
FAMILIES = {"dinov3": "dinov3", "with-registers": "dinov2_registers", "dinov2": "dinov2"}


def recipe_config(recipe, *overrides):
    """As it is in its file."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return resolve(compose("train", [f"experiment={recipe}", "run_dir=unused", *overrides]))


def one_of_each():
    """Recipes with every task, loss, decoder, tuning, schedule and option of averaging and looking that any has."""
    found, chosen = set(), []
    # The second is one whose plateau schedule falls within few epochs.
    for recipe in ["recommended", "e2net_dinov3_v5", *RECIPES]:
        config = recipe_config(recipe)
        parts = [config[key] for key in ("task", "loss", "decoder", "tuning")] + [config["optim"]["schedule"]]
        own = {part["_target_"] for part in parts} | {key for key in ("ema", "flip_test", "zoom_test") if config[key]}
        if not own <= found:
            found |= own
            chosen.append(recipe)
    return chosen


def small_recipe(recipe, folder, *overrides, patches=4, **data):
    """With all of its own options but those that make it long.

    Images have so many patches a side; ``data`` are further settings of the generated pictures.
    """
    config = recipe_config(recipe, *overrides)
    config["encoder"] = _tiny(config["encoder"])
    patch = config["encoder"].get("config", {}).get("patch_size", 16)
    kept = {key: config["data"][key] for key in ("augment", "seed")}
    small = {"n_train": 12, "n_test": 1, "sides": [32, 48], "size": patches * patch, "batch_size": 2, "num_workers": 0}
    config["data"] = {"_target_": "e2net.datasets.ProceduralData", "val_fraction": 0.3, **small, **kept, **data}
    config["trainer"] |= {"max_epochs": 2, "max_steps": -1, "accumulate_grad_batches": 1, "accelerator": "cpu"}
    config["trainer"] |= {"precision": "32-true", "val_check_interval": 1.0, "check_val_every_n_epoch": 1}
    config |= {"run_dir": str(folder), "num_samples": 0, "size": patches * patch, "callbacks": {}}
    config["cache"]["folder"] = str(folder / "cache")
    if "width" in config["decoder"]:
        config["decoder"]["width"] = 16
    return config


def _tiny(encoder):
    """A random encoder with the family, the depth and the options of a recipe's, but 32 channels."""
    if encoder.get("path", "").startswith("/") or "path" not in encoder:
        return encoder
    family = next(tiny for name, tiny in FAMILIES.items() if name in encoder["path"])
    depth = 24 if "large" in encoder["path"] or "vitl" in encoder["path"] else 12
    config = encoder_config(family) | {"num_hidden_layers": depth}
    options = {key: value for key, value in encoder.items() if key in ("blocks", "norm")}
    return {"_target_": "e2net.encoders.ViTEncoder.from_config", "config": config, **options}
