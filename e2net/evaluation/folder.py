"""One folder of maps, scored by one call: for notebooks and scripts."""

from collections.abc import Sequence
from pathlib import Path

from e2net.datasets import FolderTargets
from e2net.evaluation.predictions import UnusableMapsError, find_maps, score_maps
from e2net.evaluation.report import SetResult
from e2net.formats import some
from e2net.tasks.base import Task


def score_folder(
    maps: str | Path,
    truth: str | Path,
    task: Task | None = None,
    scores: Sequence[str] = (),
    allow_missing: bool = False,
    num_workers: int | None = None,
) -> SetResult:
    """Scores the maps of one test set as ``eval.py predictions=...`` does, and writes nothing.

    Args:
        maps: a folder of maps, whoever made them, each with its mask's stem.
        truth: the folder that holds the masks in ``GT``, and perhaps their images in ``Image``.
        task: what a map means and by which protocol it is scored; None: camouflage, as in published tables.
        scores: further ones, beside the task's own.
        allow_missing: score the others where a mask has no map; they are under ``problems``. False: an error.
        num_workers: processes; None takes one for each usable core, 0 none but this one.

    Returns:
        ``values()`` of the set; of ``scores`` its ``intervals()`` and ``per_image()``; ``pictures(index)`` of an image.

    Raises:
        FileNotFoundError, ValueError: a folder is missing, or a setting is wrong.
        UnusableMapsError: maps are missing, or maps or masks cannot be read.
    """
    maps = Path(maps).absolute()
    targets = FolderTargets(truth, task)
    found = find_maps(maps.parent, maps.name, targets, targets.task.with_scores(scores))
    if found.missing and not allow_missing:
        raise UnusableMapsError(
            f"{maps}: {len(found.missing)} of {len(found.maps)} maps are missing ({some(found.missing)}); add them, or"
            " score the others with allow_missing=True"
        )
    (result,), faults = score_maps(found, num_workers=num_workers)
    if faults:
        raise UnusableMapsError(f"{maps}: {len(faults)} files cannot be used: {some(faults)}")
    return result
