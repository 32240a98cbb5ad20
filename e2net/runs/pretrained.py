"""A trained model as a folder of three files, on this machine or on the Hugging Face Hub; reading it runs no code."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from torch import Tensor

from e2net.files import naming, write_atomically
from e2net.runs.outputs import check_free, staged
from e2net.runs.provenance import file_hash

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
FILES = (CONFIG, WEIGHTS, CARD)
_SHA256 = "weights_sha256"
# An owner and a name, perhaps with a branch, tag or commit behind it.
_HUB_ID = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")
# First parts of paths that people mistype; nobody on the Hub is called so in earnest.
_OURS = ("runs", "checkpoint", "checkpoints", "data")


def is_saved(file: Path) -> bool:
    """Whether a file's name is that of a saved model's weights, rather than of a checkpoint."""
    return file.suffix == ".safetensors"


def write_saved(folder: Path, tensors: dict[str, Tensor], document: dict[str, Any], card: str) -> None:
    """Writes a saved model; in a folder that is there, its files are replaced once all new ones are written.

    Args:
        folder: files that e2net did not write there are never replaced.
        tensors: the state dict.
        document: what ``config.json`` holds, plain values.
        card: what ``README.md`` holds.

    Raises:
        ValueError: the folder holds files of such names that e2net did not write.
        OSError: the disk is full, or the folder cannot be written; what was there is still there.
    """
    from safetensors.torch import save_file  # noqa: PLC0415 - not every evaluation needs it

    check_free("folder", folder, FILES)
    with staged(folder, FILES) as stage:
        write_atomically(stage / CARD, card)
        with naming(folder / WEIGHTS):
            save_file(_apart(tensors), stage / WEIGHTS, {"format": "pt"})
            # safetensors lets nobody but the owner read what it writes, whatever the umask.
            shutil.copymode(stage / CARD, stage / WEIGHTS)
        document = {**document, _SHA256: file_hash(stage / WEIGHTS)}
        write_atomically(stage / CONFIG, json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same on the CPU, and those that share memory as copies: safetensors refuses them."""
    plain = {name: one.detach().cpu().contiguous() for name, one in tensors.items()}
    holders = Counter(one.untyped_storage().data_ptr() for one in plain.values())
    return {name: one.clone() if holders[one.untyped_storage().data_ptr()] > 1 else one for name, one in plain.items()}


def read_saved(file: Path) -> dict[str, Any]:
    """What ``config.json`` beside a saved model's weights holds, and under ``state_dict`` the tensors, on the CPU.

    Raises:
        FileNotFoundError: there is no ``config.json`` beside the weights.
        ValueError: one of the two cannot be read, or they do not belong together.
    """
    from safetensors import SafetensorError  # noqa: PLC0415
    from safetensors.torch import load_file  # noqa: PLC0415

    beside = file.with_name(CONFIG)
    if not beside.is_file():
        raise FileNotFoundError(f"{file}: expected {CONFIG} beside it, which says what model it is, found none")
    try:
        document = json.loads(beside.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{beside} is no valid JSON ({error}); save or download the model again") from error
    if not isinstance(document, dict):
        raise ValueError(f"{beside}: expected a mapping, found a {type(document).__name__}")
    # One changed bit would be another model, and safetensors has no checksums.
    if _SHA256 in document and file_hash(file) != document[_SHA256]:
        raise ValueError(
            f"{file} is damaged, or not the one that {beside.name} beside it is about: its SHA-256 is another one; "
            "save or download the model again"
        )
    try:
        return {**document, "state_dict": load_file(file)}
    except SafetensorError as error:
        raise ValueError(
            f"{file} is no readable file of safetensors ({error}); save or download the model again"
        ) from error


def find_saved(path: str) -> Path | None:
    """The weights of a saved model: in a folder, or fetched from the Hub unless they are in its cache already.

    Args:
        path: a folder, or a Hub id such as ``user/name`` or ``user/name@revision``.

    Returns:
        The file; None where the path is neither.

    Raises:
        FileNotFoundError: it can only be a Hub id, and the Hub gave no such model.
    """
    if (Path(path) / WEIGHTS).is_file():
        return Path(path) / WEIGHTS
    match = _HUB_ID.fullmatch(path)
    if match is None or path.partition("/")[0] in _OURS or Path(path).exists():
        return None
    from huggingface_hub import hf_hub_download  # noqa: PLC0415 - seldom needed, and takes a while

    name, revision = match["name"], match["revision"]
    try:
        config = hf_hub_download(name, CONFIG, revision=revision)
        # Of the same commit, which is the name of the folder.
        return Path(hf_hub_download(name, WEIGHTS, revision=Path(config).parent.name))
    except Exception as error:  # not our code: a name or a network, and what the library says of it
        reason = " ".join((str(error).strip() or type(error).__name__).split())
        raise FileNotFoundError(
            f"no checkpoint at {path}: there is no such file or folder, and as a model of the Hugging Face Hub it "
            f"could not be had ({type(error).__name__}: {reason:.300}); check the name"
        ) from error


def saved_name(file: Path) -> str:
    """What a saved model is called: by its folder, or by its Hub id where it lies in the Hub's cache."""
    folder = file.absolute().parent
    if folder.parent.name == "snapshots":
        return folder.parent.parent.name.removeprefix("models--").replace("--", "/")
    return folder.name
