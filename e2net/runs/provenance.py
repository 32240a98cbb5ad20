"""What a run was made with: versions, commit, command, device and weights, as a JSON file in its folder."""

import hashlib
import json
import platform
import re
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

import e2net
from e2net.files import write_atomically
from e2net.installation import PACKAGE

# Where code and settings lie in a checkout; a results folder beside them makes no difference to a run.
_CODE = ("e2net", "conf", "train.py", "eval.py", "pyproject.toml")


def write_environment(file: Path, device: torch.device | str, **more: Any) -> None:
    """Writes the present environment to a JSON file.

    Args:
        file: its folder is made; a file of that name is replaced.
        device: what the run computes on.
        more: further entries, such as hashes of weights.
    """
    document = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": _command(),
        "folder": str(Path.cwd()),
        "device": describe_device(torch.device(device)),
        "python": platform.python_version(),
        "system": platform.platform(),
        **_code(),
        **more,
    }
    write_atomically(file, json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def _command() -> str:
    """What starts this program again, in a shell."""
    program = sys.argv[:1]
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None and program == [spec.origin]:  # by python -m: as a file it would not find its package
        program = ["-m", spec.name.removesuffix(".__main__")]
    return shlex.join([sys.executable, *program, *sys.argv[1:]])


@cache
def _code() -> dict[str, Any]:
    """Of this process, found once: code that changes while it lasts is not the code that runs."""
    return {"git": git_state(PACKAGE), "packages": package_versions()}


def package_versions() -> dict[str, str]:
    """Versions of e2net and of all that it requires (without what only its developers need), by package name."""
    versions = {"e2net": e2net.__version__}
    try:
        needed = [line for line in requires("e2net") or () if "extra ==" not in line]
    except PackageNotFoundError:  # run from a checkout that was never installed
        needed = ["torch", "lightning", "transformers", "numpy", "opencv-python-headless", "torchmetrics"]
    for line in needed:
        name = re.split(r"[^\w.-]", line, maxsplit=1)[0]
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # OpenCV has four packages with one module
            versions[name] = "not installed under this name"
    return versions


def git_state(folder: Path) -> dict[str, Any]:
    """The commit that the code in ``folder`` was checked out from.

    Returns:
        ``commit``, and ``dirty``: whether code or settings differ from it, new files included. Where there is no
        commit both are None, and ``reason`` says why.
    """

    def git(*command: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *command], check=True, capture_output=True, text=True, timeout=30
        ).stdout.strip()

    try:
        # A package that is installed below someone's repository is not part of it.
        git("ls-files", "--error-unmatch", "__init__.py")
        top = git("rev-parse", "--show-toplevel")
        changes = git("status", "--porcelain", "--", *(str(Path(top) / path) for path in _CODE))
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changes)}
    except FileNotFoundError:
        reason = "git is not installed"
    except subprocess.TimeoutExpired:
        reason = "git did not answer"
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["git failed"])[0]
    return {"commit": None, "dirty": None, "reason": reason}


def describe_device(device: torch.device) -> dict[str, Any]:
    """Type and name of a device, and for a GPU the CUDA version that torch was built with."""
    if device.type == "cuda":
        return {"type": "cuda", "name": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    name = platform.processor() or platform.machine()
    return {"type": device.type, "name": name, "threads": torch.get_num_threads()}


def weights_hash(module: nn.Module) -> str:
    """SHA-256 of names and values of all parameters: equal for equal weights, wherever they were loaded from."""
    digest = hashlib.sha256()
    for name, parameter in sorted(module.named_parameters()):
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def config_hash(config: Any) -> str:
    """SHA-256 of a resolved config, whatever the order of its keys: which settings a score file is about."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()


def file_hash(file: Path) -> str:
    """SHA-256 of a file, as ``sha256sum`` prints it."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
