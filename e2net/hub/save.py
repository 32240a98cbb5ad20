"""Writes a trained model as a folder that ``e2net.load`` reads, here or on the Hugging Face Hub."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

import e2net
from e2net.hub.card import write_card
from e2net.model import DenseModel
from e2net.runs.about import ABOUT, about_of, without_places
from e2net.runs.checkpoint import (
    FORMAT,
    KEY,
    encoder_fingerprint,
    find_checkpoint,
    model_of,
    read_checkpoint,
    saved_state,
)
from e2net.runs.outputs import check_free
from e2net.runs.pretrained import FILES, write_saved

# Settings that only a training reads, and that name places of this machine.
_OF_A_RUN = ("run_dir", "resume", "output")


def save_pretrained(
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    encoder_weights: bool = True,
    encoder_path: str | None = None,
) -> None:
    """Writes a run's model as a folder; for a model that is loaded, see its own ``save_pretrained``.

    Args:
        path: a run folder, a checkpoint file or a saved model.
        folder, encoder_weights: see :func:`save_model`.
        encoder_path: where the pretrained encoder lies now, if it has moved since training.

    Raises:
        FileNotFoundError: no checkpoint there, or the encoder's files are missing.
        ValueError, OSError: see :func:`save_model`.
    """
    file = find_checkpoint(os.fspath(path))
    content = read_checkpoint(file)
    save_model(model_of(content, file, encoder_path), file, content, folder, encoder_weights)


def save_model(
    model: DenseModel,
    checkpoint: Path,
    content: Mapping[str, Any],
    folder: str | os.PathLike[str],
    encoder_weights: bool = True,
) -> None:
    """Writes ``config.json``, ``model.safetensors`` and a model card.

    The config says nothing of this machine: of absolute paths only the last part is kept.

    Args:
        model: as it was loaded.
        checkpoint: the file that it was loaded from; what its run folder tells goes into the card.
        content: what :func:`~e2net.runs.checkpoint.read_checkpoint` has read from there.
        folder: made if need be. Files in it that e2net did not write are never replaced.
        encoder_weights: with those of a frozen pretrained encoder; else its own files are needed to load the folder.

    Raises:
        ValueError: the folder holds files of such names that e2net did not write; or the encoder's weights cannot be
            left out, as there are no others, or not be put in, as nothing describes the encoder.
        OSError: the disk is full, or the folder cannot be written; what was there is still there.
    """
    folder = Path(folder).expanduser()
    check_free("folder", folder, FILES)
    _write(folder, folder.resolve().name, model, checkpoint, content, encoder_weights)


def push_model(
    model: DenseModel,
    checkpoint: Path,
    content: Mapping[str, Any],
    name: str,
    encoder_weights: bool = True,
    private: bool = False,
) -> str:
    """Puts what :func:`save_model` writes into a repository of the Hub, which is made if need be.

    Args:
        model, checkpoint, content, encoder_weights: see :func:`save_model`.
        name: of the repository, such as ``user/name``.
        private: of a repository that is made: not for everybody.

    Returns:
        The address of what was written.

    Raises:
        ValueError: see :func:`save_model`; or the name is none of the Hub's.
        OSError: the Hub refuses it, or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi  # noqa: PLC0415 - takes a while

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        _write(folder, name, model, checkpoint, content, encoder_weights)
        api = HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        # All in one commit: nobody is to get new weights with an old config.
        files = [CommitOperationAdd(file, folder / file) for file in FILES]
        done = api.create_commit(name, files, commit_message=f"A model of e2net {e2net.__version__}")
    return str(done.commit_url)


def _write(
    folder: Path, name: str, model: DenseModel, checkpoint: Path, content: Mapping[str, Any], encoder_weights: bool
) -> None:
    entry, tensors = _entry(model, content[KEY], encoder_weights)
    about = about_of(content, checkpoint)
    document = {"library_name": "e2net", "e2net_version": e2net.__version__, KEY: entry, ABOUT: about}
    write_saved(folder, tensors, document, write_card(name, model, entry, about))


def _entry(
    model: DenseModel, entry: Mapping[str, Any], encoder_weights: bool
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What ``config.json`` says of a model, and the tensors that go with it."""
    config = {key: value for key, value in without_places(entry["config"]).items() if key not in _OF_A_RUN}
    kept = {"format": FORMAT, "config": config, "threshold": entry["threshold"]}
    fingerprint = encoder_fingerprint(model)
    if not encoder_weights:
        if fingerprint is None:
            raise ValueError(
                "encoder_weights=false: expected a frozen encoder whose own files have its weights, found one that "
                "was trained, or saved with them; leave it out"
            )
        return {**kept, "encoder_fingerprint": fingerprint, "backbone": None}, saved_state(model)
    description = without_places(model.encoder.describe())
    if description is None and model.encoder.pretrained:
        raise ValueError(
            f"encoder_weights=true: a {type(model.encoder).__name__} cannot be built without its files; give false"
        )
    return {**kept, "encoder_fingerprint": None, "backbone": description}, model.state_dict()
