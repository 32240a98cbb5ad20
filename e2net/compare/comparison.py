"""From runs to a report: the one function that does everything."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import e2net
from e2net.arguments import check_folder
from e2net.compare.corruptions import gather
from e2net.compare.cost import choose_device, machine, measure
from e2net.compare.gallery import choose, draw
from e2net.compare.markdown import markdown
from e2net.compare.page import page
from e2net.compare.result import Comparison
from e2net.compare.runs import Run, Variant, check_comparable, common_seeds, differing_keys, group, read_run
from e2net.compare.settings import CompareSettings
from e2net.compare.statistics import LEVEL, Difference, mean_and_deviation, paired_bootstrap
from e2net.evaluation.report import plain
from e2net.files import write_atomically
from e2net.runs.checkpoint import find_checkpoint
from e2net.runs.outputs import check_free, claim

FILES = ("comparison.json", "report.md", "report.html")
# A data set's score is a mean over its images if it equals theirs.
_SAME = 1e-6


def compare(
    runs: Sequence[str | Path],
    output: str | Path,
    *,
    names: Sequence[str] | None = None,
    score: str | None = None,
    images: int = 12,
    cost: bool = True,
    device: str = "auto",
    resamples: int = 10000,
    bootstrap_seed: int = 0,
) -> Comparison:
    """Compares finished runs and writes ``report.html``, ``report.md`` and ``comparison.json``.

    Runs of one config are one variant, repeated over seeds; the first variant is what others are compared to.

    Args:
        runs: run folders, at least two.
        output: folder for the report.
        names: of the variants, in the order in which their runs come first; None: from what differs.
        score: the one that charts and pictures are about; None: the one that chooses checkpoints.
        images: how many pictures of each test set and pair; 0 leaves the gallery out.
        cost: measure time, memory and operations on this machine.
        device: ``auto`` (a GPU if there is one) or ``cpu``.
        resamples, bootstrap_seed: of the paired bootstrap.

    Raises:
        ValueError, FileNotFoundError: the runs are not there, not finished, or cannot be compared.
    """
    settings = CompareSettings(
        runs=[str(run) for run in runs],
        score=score,
        images=images,
        cost=cost,
        device=device,
        resamples=resamples,
        bootstrap_seed=bootstrap_seed,
    )
    check_folder("output", Path(output))
    return compare_variants(group([read_run(run) for run in runs], names), Path(output), settings)


def compare_variants(
    variants: Sequence[Variant],
    output: Path,
    settings: CompareSettings,
    warnings: Sequence[str] = (),
    failures: Sequence[str] = (),
) -> Comparison:
    """The same for runs that are grouped already; see :func:`compare`.

    Args:
        variants: at least two.
        output: folder for the report.
        settings: what to measure and draw.
        warnings: what else the report should warn of.
        failures: runs that are missing because they failed.
    """
    check_free("output", output, FILES)
    check_comparable(variants)
    variants, about_seeds = common_seeds(variants)
    first = variants[0].runs[0]
    scores = list(first.document["scores"][first.sets[0]])
    score = first.task.monitor if settings.score is None else settings.score
    if score not in scores:
        raise ValueError(f"score={score}: expected one of {', '.join(scores)}")
    corruptions, about_them = gather(variants, first.sets, score)
    found = Comparison(
        variants=list(variants),
        sets=first.sets,
        scores=scores,
        score=score,
        task=first.task,
        differing=differing_keys([variant.config for variant in variants]),
        differences=_differences(variants, settings.resamples, settings.bootstrap_seed),
        resamples=settings.resamples,
        seed=settings.bootstrap_seed,
        corruptions=corruptions,
        warnings=[*warnings, *about_seeds, *_unequal(variants), *about_them],
        failures=list(failures),
    )
    if settings.cost:
        _add_costs(found, settings.device)
    if settings.images:
        found.examples = choose(variants, found.sets, found.score, settings.images)
        try:
            found.examples = draw(found.examples, variants, output, settings.device)
        except (ValueError, OSError) as error:
            found.warnings.append(f"The gallery has no pictures: {' '.join(str(error).split())}")
    claim(output, FILES)
    document = json.dumps(plain(_document(found)), indent=2, default=str, allow_nan=False)
    write_atomically(output / "comparison.json", document + "\n")
    write_atomically(output / "report.md", markdown(found))
    write_atomically(output / "report.html", page(found))
    return found


def _differences(variants: Sequence[Variant], resamples: int, seed: int) -> dict[str, dict[int, dict[str, Difference]]]:
    found: dict[str, dict[int, dict[str, Difference]]] = {}
    for name in variants[0].runs[0].sets:
        run = variants[0].runs[0]
        stems = list(run.images[name])
        scores = [
            s for s in run.document["scores"][name] if all(_is_mean(r, name, s) for v in variants for r in v.runs)
        ]
        rows = [np.stack([v.per_image(name, s, stems) for s in scores], axis=1) for v in variants]
        found[name] = {
            i: dict(zip(scores, paired_bootstrap(rows[0], rows[i], resamples, seed), strict=True))
            for i in range(1, len(variants))
        }
    return found


def _is_mean(run: Run, name: str, score: str) -> bool:
    if score in run.task.set_scores_only:
        return False
    values = [image[score] for image in run.images[name].values()]
    return abs(float(np.mean(values)) - run.document["scores"][name][score]) < _SAME


def _unequal(variants: Sequence[Variant]) -> list[str]:
    """What of the budget differs, said in words; everything that differs is in the table as well."""
    said = []
    for key, what in (
        ("trainer.max_epochs", "epochs"),
        ("data.batch_size", "images a step"),
        ("data.root", "data folders"),
    ):
        rows = differing_keys([v.config for v in variants])
        if key in rows:
            values = "; ".join(f"{v.name}: {value}" for v, value in zip(variants, rows[key], strict=True))
            said.append(f"The variants differ in {what} ({values}).")
    return said


def _add_costs(found: Comparison, device: str) -> None:
    place = choose_device(device)
    try:
        found.costs = measure([find_checkpoint(v.runs[0].folder) for v in found.variants], place)
    except (ValueError, OSError, RuntimeError) as error:  # the last: not enough memory
        found.warnings.append(f"Cost was not measured: {' '.join(str(error).split())}")
        return
    found.machine = machine(place)
    counts = {c.tokens for c in found.costs}
    if len({rows * columns for rows, columns in counts}) > 1:
        each = "; ".join(
            f"{v.name}: {c.tokens[0]} x {c.tokens[1]}" for v, c in zip(found.variants, found.costs, strict=True)
        )
        said = f"Not the same number of patch tokens ({each})"
        if not any(w.startswith("Not the same number of patch tokens") for w in found.warnings):
            found.warnings.append(f"{said}; a sweep with tokens=... makes them equal.")


def _document(found: Comparison) -> dict[str, Any]:
    """What other programs may want of it."""
    return {
        "e2net": e2net.__version__,
        "written": found.written,
        "variants": [
            {
                "name": v.name,
                "runs": [str(run.folder) for run in v.runs],
                "seeds": v.seeds,
                "scores": {
                    name: {s: mean_and_deviation(v.values(name, s)) for s in found.scores} for name in found.sets
                },
                "cost": asdict(found.costs[i]) if found.costs else None,
            }
            for i, v in enumerate(found.variants)
        ],
        "differing": found.differing,
        "differences": {
            name: {found.variants[i].name: {s: asdict(d) for s, d in one.items()} for i, one in pairs.items()}
            for name, pairs in found.differences.items()
        },
        "corruptions": {
            name: {v.name: asdict(one) for v, one in zip(found.variants, ones, strict=True)}
            for name, ones in found.corruptions.items()
        },
        "bootstrap": {"level": LEVEL, "resamples": found.resamples, "seed": found.seed, "over": "images, paired"},
        "machine": found.machine,
        "warnings": found.warnings,
        "failures": found.failures,
    }
