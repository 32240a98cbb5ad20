"""The Hub as its own client asks it, over HTTP: what is pushed is loaded by its name, later without network too."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, hf_model
from test_hub_save import run_of

from e2net.hub import save_pretrained


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What a process of its own has found: the Hub's client reads its settings when it is imported."""
    place = tmp_path_factory.mktemp("hub")
    hf_model("dinov3").save_pretrained(place / "encoder")
    (place / "encoder" / "preprocessor_config.json").write_text('{"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}')
    path = str(place / "encoder")
    run_of(place / "run", {"_target_": "e2net.encoders.ViTEncoder.from_pretrained", "path": path})
    save_pretrained(place / "run", place / "model")
    command = [sys.executable, str(Path(__file__).with_name("pushed.py")), str(place / "model"), str(place / "home")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=False, cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_what_is_pushed_is_loaded_by_its_name(found):
    assert found["local"] == found["first"] == found["first again"]
    assert found["changed"] == found["second"] == found["offline"] != found["first"]
    assert found["files"] == ["README.md", "config.json", "model.safetensors"]
    assert found["private"] is True and found["address"].startswith(f"{found['url']}/me/frogs/commit/")
    assert found["name"] == "me/frogs"


def test_what_the_hub_does_not_give_is_told(found):
    for name in ("me/nothing", "me/frogs@nowhere"):
        said, asked = found[name]
        assert said.startswith(f"no checkpoint at {name}: ") and "Hub" in said and asked
    for name in ("me/frogs/more", "runs/nothing"):  # paths, of which nobody hears
        said, asked = found[name]
        assert "expected a checkpoint file" in said and not asked
    assert found["no model"].startswith("no checkpoint at me/encoder")
    assert "offline" in found["offline, never fetched"].lower() or "cache" in found["offline, never fetched"]
    assert "401" in found["no token"] and found["offline, to push"]
