"""What variants lose on corrupted pictures, where ``eval.py corruptions=true`` has left its scores beside each run."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2net.compare.runs import Run, Variant, sign
from e2net.formats import some

# In a run's folder: the output of its evaluation.
PLACE = Path("corruptions", "corruptions.json")


@dataclass(frozen=True)
class Corrupted:
    """A score of one variant on one test set, averaged over its runs.

    Attributes:
        clean: on the pictures as they are.
        kinds: by kind of corruption, a value for each strength from 1 on.
        mean: over all kinds and strengths.
        drop: by which part of the clean score the mean is worse; NaN where that is 0.
    """

    clean: float
    kinds: dict[str, list[float]]
    mean: float
    drop: float


def gather(
    variants: Sequence[Variant], sets: Sequence[str], score: str
) -> tuple[dict[str, list[Corrupted]], list[str]]:
    """The scores of all variants on corrupted pictures.

    Args:
        variants: with their runs.
        sets: names of the test sets.
        score: which one.

    Returns:
        {test set: one for each variant}, empty unless every run has been evaluated on the same corruptions of them;
        and what is to be said about it.
    """
    runs = [run for variant in variants for run in variant.runs]
    missing = [run for run in runs if not (run.folder / PLACE).is_file()]
    if missing:
        lacking = some([str(run.folder) for run in missing])
        remedy = f"e2net eval ckpt={missing[0].folder} corruptions=true output={missing[0].folder / PLACE.parent}"
        said = f"Corrupted pictures are left out, as not all runs were evaluated on them ({lacking}): {remedy}"
        return {}, [said] if len(missing) < len(runs) else []
    try:
        read = {id(run): _read(run, sets, score) for run in runs}
    except ValueError as error:
        return {}, [f"Corrupted pictures are left out: {error}"]
    if len({tuple(kinds) for by_set in read.values() for _, kinds in by_set.values()}) > 1:
        return {}, ["Corrupted pictures are left out, as the runs were evaluated on different kinds of corruptions."]
    way = sign(runs[0].task, score)
    return {name: [_mean([read[id(run)][name] for run in v.runs], way) for v in variants] for name in sets}, []


def _read(run: Run, sets: Sequence[str], score: str) -> dict[str, tuple[float, dict[str, list[float]]]]:
    """Of each test set the clean score, and those of each kind by strength.

    Raises:
        ValueError: the file is of another checkpoint or of other pictures, or cannot be read.
    """
    file = run.folder / PLACE
    again = "evaluate the run again with corruptions=true"
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        if document["checkpoint_sha256"] != run.document.get("checkpoint_sha256"):
            raise ValueError(f"it is of another checkpoint than test_scores.json; {again}")
        found = {}
        for name in sets:
            one, tested = document["sets"][name], run.document["sets"][name]
            for key in ("file_list_sha256", "masks_sha256"):
                if None not in (one[key], tested[key]) and one[key] != tested[key]:
                    raise ValueError(f"its test set {name} is not that of test_scores.json; {again}")
            if document["protocol"] != tested["protocol"]:
                raise ValueError(f"its protocol is not that of test_scores.json; {again}")
            kinds = {
                str(kind): [_number(by_strength[str(s)][score]) for s in document["strengths"]]
                for kind, by_strength in one["corrupted"].items()
            }
            found[name] = (_number(one["clean"][score]), kinds)
            if not kinds or not all(kinds.values()):
                raise ValueError("it has no scores; evaluate it again")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        fault = next(iter(str(error).splitlines()), "")
        raise ValueError(f"{file} cannot be used ({type(error).__name__}: {fault})") from error
    return found


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"expected a number, found {value!r}")
    return float(value)


def _mean(found: Sequence[tuple[float, dict[str, list[float]]]], way: int) -> Corrupted:
    """Of several runs; ``way`` is 1 if more of the score is better, -1 if less is."""
    clean = sum(one for one, _ in found) / len(found)
    kinds = {
        kind: [sum(values) / len(found) for values in zip(*(one[kind] for _, one in found), strict=True)]
        for kind in found[0][1]
    }
    values = [value for by_strength in kinds.values() for value in by_strength]
    mean = sum(values) / len(values)
    return Corrupted(clean, kinds, mean, way * (clean - mean) / abs(clean) if clean else math.nan)
