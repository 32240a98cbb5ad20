"""A sweep by submitit: each job in a process of its own, as a cluster would run it."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT
from tiny import TINY

# Hydra's plugins have a namespace of their own, which is there without any of them.
pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("submitit", "hydra_plugins.hydra_submitit_launcher")),
    reason='submitit is not installed: pip install -e ".[cluster]"',
)


def _train(*overrides):
    command = [sys.executable, str(ROOT / "train.py"), *overrides]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_jobs_run_for_themselves_and_one_that_is_refused_says_why(tmp_path):
    sweep = ["-m", "hydra/launcher=submitit_local", "seed=1,-1", f"hydra.sweep.dir={tmp_path}"]
    done = _train(*sweep, *TINY, "trainer.max_epochs=1", "num_samples=0", "logger=csv", "callbacks={}")
    assert done.returncode == 1 and "seed=-1: expected at least 0" in done.stderr and "Traceback" not in done.stderr
    assert yaml.safe_load((tmp_path / "0" / "config.yaml").read_text())["seed"] == 1
    assert json.loads((tmp_path / "0" / "test_scores.json").read_text())["scores"]["procedural"]
    assert not (tmp_path / "1" / "checkpoints").exists()


def test_settings_of_a_cluster_compose():
    settings = ["hydra.launcher.partition=gpu", "hydra.launcher.timeout_min=1440", "hydra.launcher.gpus_per_node=4"]
    done = _train("hydra/launcher=submitit_slurm", *settings, "--cfg", "hydra", "-p", "hydra.launcher")
    assert done.returncode == 0, done.stderr
    found = yaml.safe_load(done.stdout)
    assert (found["partition"], found["timeout_min"], found["gpus_per_node"]) == ("gpu", 1440, 4)
    assert found["_target_"].endswith("SlurmLauncher")
