"""Short trainings, an evaluation and a prediction, to the last bit: rebuilding the inside must not move them.

``python tests/test_fixed_values.py`` writes ``fixed_values.json`` anew, for a change that means to alter them.
"""

import hashlib
import json
import platform
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import transformers
from conftest import ROOT
from hydra import compose, initialize_config_dir
from tiny import TINY, rows_of

from e2net import load
from e2net.datasets import ProceduralPairs
from e2net.evaluation import evaluate, prepare_evaluation
from e2net.formats import read_map
from e2net.runs import resolve
from e2net.runs.checkpoint import read_checkpoint
from e2net.runs.overrides import inherit
from e2net.training import prepare_training, train

FILE = Path(__file__).with_name("fixed_values.json")

# Between them they meet all decoders, most terms of the losses, and all that changes what a training step computes.
TRAININGS = {
    "default": ["decoder=e2net"],
    "adapter": ["tuning=adapter", "tuning.reduction=2", "decoder=caem", "loss=v5", "ema=0.9"],
    "lora": ["tuning=lora", "tuning.rank=2", "decoder=linear", "loss=focal_tversky", "train_scales=[0.5,1.0]"],
    "dpt": ["decoder=dpt", "neck=vitdet", "loss=structure", "tuning=partial", "trainer.accumulate_grad_batches=2"],
    "upernet": ["decoder=upernet", "neck=norm", "loss=ual", "tuning.layer_decay=0.8", "schedule=plateau"],
    "cached": ["decoder=e2net", "tuning=frozen", "cache.views=2", "flip_test=true"],
}


def _here():
    """What the last bits of a float depend on."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text(encoding="utf-8").splitlines() if cpu.is_file() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    libraries = {"torch": torch.__version__, "transformers": transformers.__version__}
    libraries |= {"numpy": np.__version__, "opencv": cv2.__version__}
    kind = {"machine": platform.machine(), "cpu": model, "kernels": torch.backends.cpu.get_cpu_capability()}
    return {**libraries, **kind, "python": platform.python_version()}


def _digest(arrays):
    found = hashlib.sha256()
    for array in arrays:
        found.update(str((array.shape, array.dtype)).encode() + np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def _composed(name, *overrides):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose(name, list(overrides))
        return resolve(inherit(config, overrides) if name == "eval" else config)


def _drawn(folder):
    """Of the default training's initial weights, before any step; releases of libraries have drawn others."""
    model = prepare_training(_composed("train", *TINY, "decoder=e2net", f"run_dir={folder / 'drawn'}")).module.model
    return [float(value.double().abs().sum()) for value in model.parameters()]


def _trained(folder, name):
    tiny = [one for one in TINY if name != "lora" or one != "decoder.width=16"]  # a linear decoder has none
    places = [f"run_dir={folder / name}", f"cache.folder={folder}/cache"]
    scores = train(prepare_training(_composed("train", *tiny, *TRAININGS[name], *places)))
    state = read_checkpoint(folder / name / "checkpoints" / "best.ckpt")["state_dict"]
    losses = [float(row["train/loss"]) for row in rows_of(folder / name) if "train/loss" in row]
    weights = {"weights": _digest(value.numpy() for value in state.values())}
    return {"losses": losses, "scores": scores["procedural"], **weights}


def _evaluated(folder):
    given = [f"ckpt={folder}/default", f"output={folder}/eval", "flip_test=true", "test_scales=[1.0,1.5]", "size=48"]
    given += ["window=32", "accelerator=cpu", "num_samples=0", "binarised_too=true", "num_workers=0"]
    scores = evaluate(prepare_evaluation(_composed("eval", *given)))
    maps = sorted((folder / "eval" / "maps" / "procedural").iterdir())
    return {"scores": scores, "maps": _digest(read_map(file) for file in maps)}


def _predicted(folder):
    model = load(folder / "default", device="cpu")
    pairs = ProceduralPairs(3, 5, 0.2, "test")
    maps = [model.predict(pairs.read(i)[0]).map for i in range(len(pairs))]
    return {"means": [float(np.mean(one)) for one in maps], "maps": _digest(maps)}


def _values(folder):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trainings = {name: _trained(folder, name) for name in TRAININGS}
        return {**trainings, "evaluation": _evaluated(folder), "prediction": _predicted(folder)}
    finally:
        torch.set_num_threads(threads)


def _close(found, fixed, path=""):
    """Within what another processor's rounding makes of a short training; digests say nothing there."""
    if isinstance(fixed, dict):
        assert found.keys() == fixed.keys(), path
        for key in fixed:
            _close(found[key], fixed[key], f"{path}/{key}")
    elif isinstance(fixed, list):
        assert len(found) == len(fixed), path
        for i, value in enumerate(fixed):
            _close(found[i], value, f"{path}/{i}")
    elif isinstance(fixed, float):
        assert found == pytest.approx(fixed, rel=0.02, abs=0.02), path


def test_values_are_those_that_were_fixed(tmp_path):
    fixed = json.loads(FILE.read_text(encoding="utf-8"))
    drawn = _drawn(tmp_path)
    if drawn != pytest.approx(fixed["drawn"], rel=1e-5):
        pytest.skip(f"these libraries draw other initial weights than those of {fixed['made_on']}")
    found = _values(tmp_path)
    if fixed["made_on"] == _here():
        assert found == fixed["values"]
    _close(found, fixed["values"])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        FILE.write_text(
            json.dumps({"made_on": _here(), "drawn": _drawn(Path(place)), "values": _values(Path(place))}, indent=1)
            + "\n",
            "utf-8",
        )
    sys.exit()
