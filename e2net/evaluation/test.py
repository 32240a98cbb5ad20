"""A test of a checkpoint: prepared, run, reported."""

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch

from e2net.datasets import DenseData
from e2net.evaluation.callbacks import Bars, MapWriter, SamplePictures, TargetDigests
from e2net.evaluation.corruptions import Corrupted, report_corruptions, score_corrupted
from e2net.evaluation.data import DataModule
from e2net.evaluation.inference import Predictor, predictor_of
from e2net.evaluation.module import EvaluationModule
from e2net.evaluation.predictions import (
    ReportOptions,
    find_maps,
    score_maps,
    targets_of,
)
from e2net.evaluation.report import Scores, SetResult, clear_report, report
from e2net.files import remove_file
from e2net.formats import some
from e2net.runs.checkpoint import find_checkpoint, load_model
from e2net.runs.config import (
    build_data,
    build_trainer,
)
from e2net.runs.folder import (
    SAMPLES,
    TEST_SCORES,
)
from e2net.runs.pretrained import is_saved, saved_name
from e2net.runs.provenance import config_hash, file_hash
from e2net.tasks.base import Task

log = logging.getLogger(__name__)


@dataclasses.dataclass
class EvaluationJob:
    """Everything that a test of checkpoints needs, built and checked; nothing has started yet."""

    module: EvaluationModule
    data: DenseData
    trainer: L.Trainer
    output: Path
    checkpoint: Path | None
    options: ReportOptions = dataclasses.field(default_factory=ReportOptions)
    # Of the checkpoint that is evaluated, as it was read: a run that is still going on replaces it.
    checkpoint_sha256: str | None = None


def prepare_test(config: dict[str, Any], task: Task) -> EvaluationJob:
    """Rebuilds the model of a checkpoint and checks the test sets.

    Args:
        config: a resolved ``conf/eval.yaml`` with ``ckpt``, see :func:`~e2net.runs.overrides.inherit`.
        task: by which its test sets are scored, see :func:`~e2net.evaluation.predictions.scored_task`.

    Raises:
        ValueError, FileNotFoundError: a setting, a file or the data is wrong.
    """
    options = ReportOptions.of(config)
    options.check(task)
    checkpoint = find_checkpoint(config["ckpt"])
    digest = file_hash(checkpoint)
    model, trained = load_model(checkpoint, config["encoder_path"])
    if file_hash(checkpoint) != digest:
        raise ValueError(f"{checkpoint} was replaced while it was read; its run is still going on: try again")
    data = build_data(config["data"], task)
    model.encoder.check_size(*data.size)
    data.check("test")
    output = Path(config["output"])
    predictor = _predictor(config, trained)
    predictor.check(model.encoder.size_multiple, task)
    names = tuple(data.test_names)
    _check_maps(output / "maps", names)
    module = EvaluationModule(model, trained, names, predictor, task, options.breakdown)
    precision = choose_precision(config["precision"], config["accelerator"])
    trainer = build_trainer(
        {"_target_": "lightning.Trainer", "precision": precision, "accelerator": config["accelerator"]},
        devices=1,
        logger=False,
        callbacks=[
            MapWriter(output / "maps"),
            SamplePictures(output / SAMPLES, config["num_samples"]),
            Bars(),
        ],
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    return EvaluationJob(module, data, trainer, output, checkpoint, options=options, checkpoint_sha256=digest)


def _check_maps(folder: Path, names: tuple[str, ...]) -> None:
    """Refuses a folder with maps of sets that are not evaluated now: they would seem to be this checkpoint's."""
    kept = {Path(name).parts[0] for name in names}
    others = sorted(p.name for p in folder.iterdir() if p.name not in kept) if folder.is_dir() else []
    if others:
        raise ValueError(
            f"expected maps of {', '.join(names)} alone in {folder}, found {some(others)} of an earlier evaluation; "
            "give another output"
        )


def test(job: EvaluationJob, name: str = TEST_SCORES) -> Scores:
    """Scores the test sets, prints the table and writes the report, ``<output>/<name>.json`` last.

    Returns:
        {test set: {score: value}}, fractions; also "<test set> (binarised)" where that was asked for.
    """
    if job.trainer.is_global_zero:
        log.info("testing %s", job.checkpoint)
        clear_report(job.output, name, job.module.task.extra_files)
    results = _results(job)
    if not job.trainer.is_global_zero:
        return {r.label: r.values() for r in results}
    about: dict[str, Any] = {
        "checkpoint": str(job.checkpoint),
        "checkpoint_sha256": job.checkpoint_sha256,
        "config_sha256": config_hash(job.module.config),
    }
    scores = report(job.output, results, _method(job), about, job.options.bootstrap_seed, name)
    if job.options.kinds:
        clean = [r for r in results if not r.binarised]
        report_corruptions(job.output, clean, _corrupted(job), {"method": _method(job), **about, **_inference(job)})
    return scores


def _corrupted(job: EvaluationJob) -> dict[str, Corrupted]:
    """After the clean ones: the scores of every test set's corrupted copies, by kind and strength."""
    module = job.module
    with interrupts(job.trainer):
        return {
            name: score_corrupted(module, job.trainer, job.data, name, job.options.kinds, images, job.output)
            for name, images in zip(module.test_names, module.test_images, strict=True)
        }


def _inference(job: EvaluationJob) -> dict[str, Any]:
    """How results were computed, in plain values."""
    made = job.module.predictor
    return {
        "size": list(job.data.size),
        "flip_test": made.flip,
        "test_scales": list(made.scales),
        "zoom_test": made.zoom,
        "sharpen": made.sharpen,
        "window": made.window,
    }


def _results(job: EvaluationJob) -> list[SetResult]:
    """Runs the model over the test sets; every process gets the scores of all."""
    task, digests = job.module.task, TargetDigests()
    callbacks: list[L.Callback] = job.trainer.callbacks  # type: ignore[attr-defined]
    maps = next((c.folder for c in callbacks if isinstance(c, MapWriter)), None)
    callbacks.append(digests)
    sets = [targets_of(job.data, name) for name in job.module.test_names]
    job.module.test_images = [targets.image for targets in sets]
    if maps is not None and job.trainer.is_global_zero:
        # Those of an earlier evaluation: after an interruption nobody could tell them from this one's.
        for name, targets in zip(job.module.test_names, sets, strict=True):
            for i in range(len(targets)):
                (maps / name / f"{targets.name(i)}.png").unlink(missing_ok=True)
            remove_file(job.output / SAMPLES / f"test_{name}.png")
    try:
        with interrupts(job.trainer):
            job.trainer.test(job.module, datamodule=DataModule(job.data), verbose=False)
    except Exception:
        if maps is not None and maps.is_dir():
            log.error("stopped; eval.py predictions=%s allow_missing=true scores the maps written so far", maps)
        raise
    finally:
        callbacks.remove(digests)
    job.module.test_results()  # from here on the scores of all processes are in each
    results = []
    for number, (name, scores, targets) in enumerate(
        zip(job.module.test_names, job.module.test_scores, sets, strict=True)
    ):
        stems = [targets.name(i) for i in range(len(targets))]
        result = SetResult(name, task, scores.table(), stems, digests.hash(name, stems))
        result.placed = job.module.placed(number) if job.options.breakdown else None
        results.append(result)
        if maps is not None and job.trainer.is_global_zero:
            found = find_maps(maps, name, targets, task)
            result.pictures, result.panel = found.pictures, found.panel
            for again in job.options.variants(task)[1:]:
                (second,), _ = score_maps(found, [again], job.options.num_workers, breakdown=job.options.breakdown)
                results.append(dataclasses.replace(second, binarised=True, problems={}, pictures=None, panel=None))
    return results


@contextlib.contextmanager
def interrupts(trainer: L.Trainer) -> Iterator[None]:
    """Ctrl-C and SIGTERM raise a KeyboardInterrupt; Lightning ends the process, after SIGTERM as if all were done."""
    try:
        yield
    except SystemExit:
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise


def _method(job: EvaluationJob) -> str:
    """The name of a checkpoint's row in tables: that of its run."""
    if job.options.method is not None or job.checkpoint is None:
        return job.options.method or job.output.name
    if is_saved(job.checkpoint):
        return saved_name(job.checkpoint)
    path = job.checkpoint.resolve()
    return path.parent.parent.name if path.parent.name == "checkpoints" else path.stem


def choose_precision(precision: str, accelerator: str) -> str:
    """The Trainer's precision; ``auto`` takes the fastest safe one that the device has.

    There is a warning where a CPU would have to imitate bf16: without AVX-512 that was nine times slower than fp32.
    """
    on_cpu = accelerator not in ("auto", "gpu", "cuda") or not torch.cuda.is_available()
    if precision != "auto":
        if on_cpu and str(precision).startswith("bf16") and torch.backends.cpu.get_cpu_capability() == "AVX2":
            log.warning(
                "this processor has no bf16 instructions: precision=%s is many times slower here than 32-true",
                precision,
            )
        return precision
    if on_cpu:
        return "32-true"
    return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"


def _predictor(config: dict[str, Any], trained: dict[str, Any]) -> Predictor:
    """That of a resolved ``conf/eval.yaml``; what it leaves null is as in training."""
    looks = {"flip": config["flip_test"], "scales": config["test_scales"], "zoom": config["zoom_test"]}
    window = {"window": config["window"], "overlap": config["window_overlap"]}
    return predictor_of(trained, sharpen=config["sharpen"], **looks, **window)
