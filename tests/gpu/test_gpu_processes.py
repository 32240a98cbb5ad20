"""Training in two processes, on the CPU by gloo: what several GPUs do by NCCL."""

import json
import os
import subprocess
import sys
from pathlib import Path

from conftest import ROOT


def test_two_processes_train_where_the_loss_looks_at_no_refined_map(tmp_path):
    script = Path(__file__).parent / "two_processes.py"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "v5"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = json.loads((tmp_path / "found.json").read_text())
    assert first["steps"] >= 4
    assert first.pop("loss") != second.pop("loss"), "each process should have had images of its own"
    # A plateau schedule goes by the mean loss: the rates, and so the weights, would part otherwise.
    assert first == second and first["lr"] > 0 and 0 < first["val/S"] < 1
    scores = json.loads((tmp_path / "test_scores.json").read_text())["scores"]
    assert 0 < scores["procedural"]["S"] < 1
