"""Every config file composes, names constructors that exist, gives them arguments that they have, and builds."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, encoder_config
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hydra.utils import get_object

from e2net.runs import build, build_model, resolve
from e2net.runs.config import build_trainer, resolve_task

CONF = ROOT / "conf"
# Those of python -m e2net.adapt are tested in tests/adapt.
OTHERS = ("adapt", "adapt_with")
OPTIONS = sorted(
    f"{f.parent.name}={f.stem}"
    for f in CONF.glob("*/*.yaml")
    if f.parent.name not in OTHERS and f"{f.parent.name}/{f.stem}" != "data/pictures"
)
# What a user has to say, and a tiny encoder for everything that would be fetched.
TINY = {
    "_target_": "e2net.encoders.ViTEncoder.from_config",
    "config": encoder_config("dinov3") | {"num_hidden_layers": 12},
}


def _compose(*overrides, name="train"):
    for one in overrides:  # what belongs to another task than the default
        group, _, option = one.partition("=")
        if group in ("loss", "protocol") and (CONF / "task" / f"{option}.yaml").is_file():
            overrides = (f"task={option}", *overrides)
    required = ["run_dir=unused"] if name == "train" else ["ckpt=unused", "output=unused"]
    if not any(o.startswith("data=procedural") for o in overrides) and any(o.startswith("data=") for o in overrides):
        required.append("data.root=unused")
    if "encoder=local" in overrides:
        required.append("encoder.path=unused")
    if name == "eval" and not any(o.startswith("data=") for o in overrides):
        required.append("data.root=unused")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return resolve(compose(name, [*overrides, *required]))


def _targets(node, path=""):
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key, value in node.items():
            yield from _targets(value, f"{path}.{key}".lstrip("."))


@pytest.mark.parametrize("option", OPTIONS)
def test_option_matches_its_constructor_and_builds(option):
    config = resolve_task(_compose(option))
    for path, node in _targets(config):
        target = get_object(node["_target_"])
        parameters = inspect.signature(target).parameters
        assert not any(p.kind == p.VAR_KEYWORD for p in parameters.values()), (
            f"{path}: {node['_target_']} takes anything"
        )
        unknown = set(node) - {"_target_", "_partial_"} - set(parameters)
        assert not unknown, f"{path}: {node['_target_']} has no {unknown}"
    if config["encoder"].get("path"):
        # Not on this machine: the architecture is another's, the contract the same.
        config["encoder"] = TINY
    build_model(config)
    for key in ("data", "loss", "optim", "protocol"):
        build(config[key])


def _first_line(option):
    """Of an option's file, after Hydra's own header, which must be the very first."""
    lines = (CONF / (option.replace("=", "/") + ".yaml")).read_text().splitlines()
    return lines[1] if lines[0].startswith("# @") else lines[0]


@pytest.mark.parametrize("option", OPTIONS)
def test_option_has_a_description(option):
    first = _first_line(option)
    assert first.startswith("# ") and len(first) > 10


def test_trainer_keys_are_the_trainers():
    config = _compose()["trainer"]
    assert build_trainer(config | {"precision": "32-true"}, logger=False, enable_checkpointing=False).max_epochs > 0


def test_eval_composes_with_each_data_set():
    for data in sorted(f.stem for f in (CONF / "data").glob("*.yaml") if f.stem != "pictures"):
        assert _compose(f"data={data}", "size=64", name="eval")["data"]["size"] == 64


def test_encoder_chooses_its_default_tuning_and_the_user_overrides_it():
    assert _compose()["tuning"]["_target_"].endswith("Full")
    assert _compose("tuning=frozen")["tuning"]["_target_"].endswith("Frozen")
    assert _compose("encoder=dinov2_b")["tuning"]["_target_"].endswith("Frozen")
    assert _compose("encoder=dinov2_b", "tuning=full")["tuning"]["_target_"].endswith("Full")


def _run(script: str, *overrides: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / script), *overrides]
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=cwd)


def test_help_lists_every_option():
    shown = _run("train.py", "--help").stdout
    for option in OPTIONS:
        description = _first_line(option)[2:]
        assert any(line.split() == [option, *description.split()] for line in shown.splitlines()), option
    assert "ckpt" in _run("eval.py", "--help").stdout


@pytest.mark.parametrize("override", ["decoder.widht=32", "optim.lrr=1", "loss.final.dcie=1", "sed=3", "decoder=e3net"])
def test_misspelt_keys_do_not_compose(override):
    with pytest.raises(HydraException, match=override.split("=")[0].split(".")[-1] + "|e3net"):
        _compose(override)


@pytest.mark.parametrize("override", ["flip_test=off", "compile=No", "encoder.pretrained=yes", "trainer.benchmark=on"])
def test_words_that_are_no_booleans_are_refused(override):
    """They would be strings, all of which are true."""
    with pytest.raises(ValueError, match=f"{override}: expected true or false"):
        _compose("encoder=dinov2_b", "+" * override.startswith(("encoder.", "trainer.")) + override)


def test_settings_of_a_wrong_type_are_named():
    with pytest.raises(ValueError, match="AdamW: lr=fast: expected a number"):
        build(_compose("optim.lr=fast")["optim"])


def test_misspelt_keys_fail_before_anything_loads(tmp_path):
    override = "decoder.widht=32"
    result = _run("train.py", override, f"hydra.run.dir={tmp_path}/run")
    assert result.returncode != 0
    assert "widht" in result.stderr
    assert "Traceback" not in result.stderr and not (tmp_path / "run").exists()
