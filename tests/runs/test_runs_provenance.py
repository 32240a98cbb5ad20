import json
import shlex
import shutil
import subprocess
import sys
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from e2net.runs import provenance
from e2net.runs.provenance import file_hash, git_state, package_versions, weights_hash, write_environment


def _git(folder, *command):
    identity = ["-c", "user.name=x", "-c", "user.email=x@x"]
    subprocess.run(["git", "-C", folder, *identity, *command], check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path):
    """A repository with a package ``e2net`` in it, as after a clone."""
    package = tmp_path / "clone" / "e2net"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    _git(tmp_path / "clone", "init")
    _git(tmp_path / "clone", "add", ".")
    _git(tmp_path / "clone", "commit", "-m", "first")
    return package


def test_file_holds_what_a_rerun_needs(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "data.test=[a b]"])
    write_environment(tmp_path / "run" / "environment.json", "cpu", encoder_sha256="1234")
    found = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert found["command"].endswith("train.py 'data.test=[a b]'")
    assert found["packages"]["torch"] == version("torch")
    assert found["device"]["type"] == "cpu" and found["encoder_sha256"] == "1234"
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["started"].endswith("+00:00")


@pytest.mark.parametrize("name", ["e2net.train", "e2net.adapt.__main__"])
def test_the_command_of_a_module_is_one_of_a_module(tmp_path, monkeypatch, name):
    """As a file it would have the package's own folder as the first to import from."""
    main = ModuleType("__main__")
    main.__spec__ = ModuleSpec(name, None, origin="/somewhere/it.py")
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(sys, "argv", ["/somewhere/it.py", "a b"])
    write_environment(tmp_path / "environment.json", "cpu")
    command = json.loads((tmp_path / "environment.json").read_text())["command"]
    assert shlex.split(command) == [sys.executable, "-m", name.removesuffix(".__main__"), "a b"]


def test_versions_are_those_of_the_requirements():
    versions = package_versions()
    assert {"e2net", "torch", "lightning", "transformers", "numpy"} <= set(versions)
    assert not {"pytest", "ruff"} & set(versions)


def test_commit_and_whether_the_code_differs_from_it(checkout):
    clean = git_state(checkout)
    assert len(clean["commit"]) == 40 and clean["dirty"] is False
    (checkout.parent / "runs").mkdir()
    (checkout.parent / "runs" / "result.txt").write_text("1")
    assert git_state(checkout) == clean  # a result is no change of the code
    (checkout / "new.py").write_text("")
    assert git_state(checkout) == clean | {"dirty": True}


def test_without_git_there_is_a_reason(tmp_path, checkout, monkeypatch):
    shutil.copytree(checkout, tmp_path / "plain")
    assert git_state(tmp_path / "plain")["commit"] is None
    # Installed below a repository, such as in its virtual environment: the commit there is another project's.
    shutil.copytree(checkout, checkout.parent / ".venv" / "e2net")
    other = git_state(checkout.parent / ".venv" / "e2net")
    assert other["commit"] is None and other["dirty"] is None and "__init__.py" in other["reason"]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(checkout)["reason"] == "git is not installed"


def test_package_never_installed(monkeypatch):
    def missing(name):
        raise provenance.PackageNotFoundError(name)

    monkeypatch.setattr(provenance, "requires", missing)
    assert package_versions()["torch"] == version("torch")


def test_hashes(tmp_path):
    torch.manual_seed(0)
    module: Any = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm2d(2))
    before = weights_hash(module)
    assert weights_hash(module) == before and len(before) == 64
    with torch.no_grad():
        module[0].weight[0, 0] += 1e-6
    assert weights_hash(module) != before
    (tmp_path / "x").write_bytes(b"abc")
    assert file_hash(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
