"""Each recipe of ``conf/adapt/``: as its file says it was published, and stepped in small with all of its options."""

from typing import Any

import pytest
from conftest import ROOT, encoder_config, mostly_slow
from hydra import compose, initialize_config_dir

from e2net.adapt.run import adapt, prepare_adapting
from e2net.runs import resolve

RECIPES = sorted(file.stem for file in (ROOT / "conf" / "adapt").glob("*.yaml"))
DINOV3 = ["dinov3_pretrain", "dinov3_gram", "dinov3_high_resolution"]
# From the papers and the reference, each figure that a recipe is known by: (keys, value).
PUBLISHED: dict[str, dict[str, Any]] = {
    "dinov1": {
        "heads.prototypes": 65536, "heads.hidden": 2048, "heads.bottleneck": 256, "heads.weight_norm": True,
        "targets._target_": "e2net.adapt.targets.Centre", "targets.momentum": 0.9, "adapt.ibot": 0.0,
        "adapt.koleo": 0.0,
        "adapt.teacher_momentum": {"ramp": "cosine", "from": 0.996, "to": 1.0}, "trainer.gradient_clip_val": 3.0,
        "adapt.weight_decay": {"ramp": "cosine", "from": 0.04, "to": 0.4}, "optim.lr": 5e-4, "adapt.lr_batch": 256,
        "size": 224, "crops.local_size": 96, "crops.locals": 8,
    },
    "dinov2": {
        "adapt.dino": 1.0, "adapt.ibot": 1.0, "adapt.koleo": 0.1, "heads.prototypes": 65536, "adapt.drop_path": 0.3,
        "adapt.teacher_momentum": {"ramp": "cosine", "from": 0.992, "to": 1.0}, "tuning.layer_decay": 0.9,
        "adapt.patch_lr": 0.2, "optim.lr": 4e-3, "adapt.lr_batch": 1024, "adapt.lr_power": 0.5, "gram.weight": 0.0,
        "adapt.mask_probability": 0.5, "adapt.mask_ratio": [0.1, 0.5], "crops.global_scale": [0.32, 1.0],
        "crops.local_scale": [0.05, 0.32], "targets._target_": "e2net.adapt.targets.Sinkhorn",
    },
    "dinov3_pretrain": {
        "adapt.teacher_momentum": 0.999, "adapt.rope_rescale": 2.0, "size": 256, "crops.local_size": 112,
        "adapt.weight_decay": None, "optim.weight_decay": 0.04, "schedule.final": 1.0, "gram.weight": 0.0,
        "adapt.koleo": 0.1, "adapt.drop_path": 0.4, "optim.lr": 2e-4, "tuning.layer_decay": 0.98, "crops.flip": 0.0,
        "trainer.gradient_clip_val": 30.0, "adapt.local_weight": 1.0, "adapt.freeze_last_layer": 5000,
        "adapt.teacher_temperature": {"ramp": "linear", "from": 0.04, "to": 0.07, "until": 0.1},
    },
    "dinov3_gram": {
        "gram.weight": 2.0, "gram.scale": 2.0, "optim.lr": 1.2e-4, "adapt.rope_rescale": 2.0, "size": 256,
        "gram.renew_every": 10000, "gram.renewals": 3, "adapt.local_weight": 0.5, "adapt.teacher_temperature": 0.07,
        "trainer.max_steps": 200000,
    },
    "dinov3_high_resolution": {
        "gram.weight": 1.5, "gram.scale": 1.5, "gram.renew_every": None, "trainer.max_steps": 10000, "optim.lr": 5e-5,
        "mix": [[512, 112, 0.3], [768, 112, 0.3], [768, 168, 0.3], [768, 224, 0.05], [768, 336, 0.05]],
    },
    "one_gpu": {"heads.prototypes": 4096},
}  # fmt: skip


def _config(recipe, *overrides):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = resolve(compose("adapt", [f"adapt={recipe}", "run_dir=unused", "data=procedural", *overrides]))
    del config["decoder"]
    return config


@pytest.mark.parametrize("recipe", RECIPES)
def test_figures_are_the_published_ones(recipe):
    config = _config(recipe, "encoder=dinov3_l")
    for key, value in PUBLISHED[recipe].items():
        found = config
        for part in key.split("."):
            found = found[part]
        assert found == value, key


@pytest.mark.parametrize("recipe", mostly_slow(RECIPES, quick=(0, 2)))
def test_recipe_trains_in_small(recipe, tmp_path):
    """All of its options but those that make it long or large."""
    config = _config(recipe, "encoder=tiny", "tuning=lora" if recipe == "one_gpu" else "schedule=cosine")
    name = "dinov3" if recipe in DINOV3 else "dinov2"
    patch = 16 if recipe in DINOV3 else 14
    config["encoder"] = {"_target_": "e2net.encoders.ViTEncoder.from_config", "config": encoder_config(name)}
    config["data"] |= {"n_train": 12, "n_test": 6, "sides": [48, 64], "val_fraction": 0.0, "batch_size": 4}
    config |= {"run_dir": str(tmp_path / "run"), "output": str(tmp_path / "run" / "encoder"), "callbacks": {}}
    config["size"] = config["crops"]["global_size"] = config["probe"]["size"] = 4 * patch
    config["crops"] |= {"local_size": 2 * patch, "locals": 2}
    # Its sides are multiples of 16; some of the mix, as small.
    config["mix"] = config["mix"] and [[side // 8 // 16 * 16, 32, share] for side, _, share in config["mix"]]
    config["heads"] |= {"prototypes": 32, "hidden": 16, "bottleneck": 8}
    config["adapt"] |= {"head_steps": min(1, config["adapt"]["head_steps"])}
    config["adapt"] |= {"freeze_last_layer": min(1, config["adapt"]["freeze_last_layer"])}
    config["trainer"] |= {
        "max_steps": 3,
        "accumulate_grad_batches": 1,
        "accelerator": "cpu",
        "enable_progress_bar": False,
    }
    config["watch"] |= {"pictures": 2, "rank": 1.0, "information": 0.0}
    job = prepare_adapting(config)
    before = {name: p.detach().clone() for name, p in job.module.student.named_parameters() if p.requires_grad}
    folder = adapt(job)
    assert (folder / "model.safetensors").is_file()
    moved = {name for name, p in job.module.student.named_parameters() if name in before and not p.equal(before[name])}
    # LoRA's second matrices begin at zero, and with them the first ones get no gradient in the first step.
    assert len(moved) > 0.9 * len(before)


@pytest.mark.parametrize("recipe", DINOV3)
def test_dinov3s_recipes_want_rotary_positions(recipe, tmp_path):
    config = _config(recipe, "encoder=tiny")
    config["encoder"] = {"_target_": "e2net.encoders.ViTEncoder.from_config", "config": encoder_config("dinov2")}
    config |= {"run_dir": str(tmp_path / "run"), "output": str(tmp_path / "encoder")}
    with pytest.raises(ValueError, match=r"no rotary positions; give adapt.rope_rescale=null, or a DINOv3 encoder"):
        prepare_adapting(config)


def test_every_recipe_has_its_source():
    for recipe in RECIPES:
        head = (ROOT / "conf" / "adapt" / f"{recipe}.yaml").read_text().partition("defaults:")[0]
        assert recipe == "one_gpu" or "Source: arXiv:" in head
        assert recipe in PUBLISHED
