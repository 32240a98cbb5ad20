"""How a checkpoint was trained and what it scores, as its run folder tells it: for those who get the weights alone."""

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from e2net.runs.folder import CHECKPOINTS, ENVIRONMENT, TEST_SCORES
from e2net.runs.provenance import file_hash

# The key under which a saved model's config.json holds it.
ABOUT = "about"
# Of a path of this machine, all but its last part.
_PLACE = re.compile(r"(?:^|(?<=[=:\[,'\"( ]))(?:[A-Za-z]:)?[\\/](?:[^'\",\[\]\\/=]+[\\/])*(?=[^'\",\[\]\\/=])")


def about_of(content: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """What is known of a checkpoint's training, in plain values; a saved model holds its own.

    Args:
        content: what :func:`~e2net.runs.checkpoint.read_checkpoint` has read.
        file: from there.

    Returns:
        ``command``, ``started``, ``git``, ``packages`` and ``device`` of the training; ``protocol``, and under
        ``sets`` the ``images``, ``scores`` and 95 % ``intervals`` of each test set, where the run's test was of these
        very weights. What its folder does not tell is left out.
    """
    if ABOUT in content:
        return dict(content[ABOUT]) if isinstance(content[ABOUT], dict) else {}
    run = file.parent.parent if file.parent.name == CHECKPOINTS else None
    about: dict[str, Any] = {}
    if run is None:
        return about
    environment = _json(run / ENVIRONMENT)
    if isinstance(environment.get("command"), str):
        about["command"] = _as_program(environment["command"])
    told = {key: environment[key] for key in ("started", "git", "packages", "device") if key in environment}
    about |= without_places(told)  # where git gives no commit it may say of which folder
    scores = _json(run / f"{TEST_SCORES}.json")
    if scores and scores.get("checkpoint_sha256") == file_hash(file):
        about["protocol"] = scores["protocol"]
        about["sets"] = {
            name: {
                "images": one["maps"],
                "scores": scores["scores"][name],
                "intervals": scores["intervals"][name],
            }
            for name, one in scores["sets"].items()
        }
    return about


def without_places(value: Any) -> Any:
    """The same plain values with nothing of this machine's folders: of every absolute path the last part."""
    if isinstance(value, Mapping):
        return {key: without_places(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_places(one) for one in value]
    return _PLACE.sub("", value) if isinstance(value, str) else value


def _as_program(command: str) -> str:
    """A run's command as one of ``e2net``: without Python, which lies elsewhere on another machine."""
    words = shlex.split(command)
    for position, word in enumerate(words):
        name = re.fullmatch(r"(?:.*[\\/])?(train|eval)\.py|e2net\.(\w+)", word)
        if name is not None:
            return shlex.join(["e2net", name[1] or name[2], *without_places(words[position + 1 :])])
    return shlex.join(without_places(words))


def _json(file: Path) -> dict[str, Any]:
    """A document that e2net wrote; nothing where there is none.

    Raises:
        ValueError: it is none any more.
    """
    if not file.is_file():
        return {}
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no valid JSON ({error})") from error
    return document if isinstance(document, dict) else {}
