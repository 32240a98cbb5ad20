"""The two main jobs, as plain functions of a resolved config: train and test a model, or test a checkpoint."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from e2net.datasets import SegmentationData
from e2net.engine.callbacks import MapWriter, SamplePictures
from e2net.engine.checkpoint import BEST, LAST, find_checkpoint, load_model, load_state, read_checkpoint
from e2net.engine.config import build, build_model
from e2net.engine.module import SegmentationModule
from e2net.engine.predictions import (
    MaskDigests,
    PredictionJob,
    ReportOptions,
    binarised,
    check_task,
    find_maps,
    masks_of,
    prepare_predictions,
    score_maps,
)
from e2net.engine.report import Scores, SetResult, clear_report, report
from e2net.model import SegmentationModel

log = logging.getLogger(__name__)


@dataclasses.dataclass
class Job:
    """Everything that a run needs, built and checked; nothing has started yet."""

    module: SegmentationModule
    data: SegmentationData
    trainer: L.Trainer
    output: Path
    checkpoint: Path | None
    options: ReportOptions = dataclasses.field(default_factory=ReportOptions)


def prepare_training(config: dict[str, Any]) -> Job:
    """Builds and checks everything, so that a wrong setting or a bad file shows before the long work starts.

    Args:
        config: a resolved ``conf/train.yaml``.

    Raises:
        ValueError, FileNotFoundError: a setting, a file or the data is wrong; the message says what to do.
    """
    L.seed_everything(config["seed"], workers=True, verbose=False)
    output = Path(config["run_dir"])
    data: SegmentationData = build(config["data"])
    criterion, optim, protocol = (build(config[key]) for key in ("loss", "optim", "protocol"))
    model = build_model(config)
    model.encoder.check_size(*data.size)
    resume = None
    if config["resume"] is not None:
        resume = find_checkpoint(config["resume"], prefer=LAST)
        load_state(model, read_checkpoint(resume)["state_dict"])
    data.check()
    module = SegmentationModule(model, config, protocol, criterion, optim, tuple(data.test_names), config["flip_test"])
    validated = data.val_fraction > 0
    trainer = build(
        {**config["trainer"], "precision": choose_precision(**_pick(config["trainer"], "precision", "accelerator"))},
        logger=[CSVLogger(output, name="", version=""), TensorBoardLogger(output, name="tensorboard", version="")],
        callbacks=[
            ModelCheckpoint(
                output / "checkpoints",
                filename=Path(BEST if validated else LAST).stem,
                monitor="val/S" if validated else None,
                mode="max",
                save_last=validated,
                enable_version_counter=False,
            ),
            LearningRateMonitor("step"),
            SamplePictures(output / "samples", config["num_samples"]),
            TQDMProgressBar(),
        ],
        default_root_dir=output,
        enable_model_summary=False,
    )
    return Job(module, data, trainer, output, resume)


def train(job: Job) -> Scores:
    """Fits, tests the best checkpoint (the last one where there is no validation part) and reports.

    Returns:
        {test set: {score: value}}, fractions.

    Raises:
        KeyboardInterrupt: the run was interrupted; ``resume=<run folder>`` continues it.
    """
    job.output.mkdir(parents=True, exist_ok=True)
    (job.output / "config.yaml").write_text(yaml.safe_dump(job.module.config, sort_keys=False))
    log.info("%d training and %d validation images", len(job.data.train_names()), len(job.data.val_names()))
    log.info("%s", describe(job.module.model))
    log.info("precision %s on %s", job.trainer.precision, job.trainer.strategy.root_device)
    job.trainer.fit(job.module, datamodule=job.data, ckpt_path=job.checkpoint, weights_only=True)
    if job.trainer.interrupted:
        raise KeyboardInterrupt
    job.checkpoint = find_checkpoint(job.output)
    load_state(job.module.model, read_checkpoint(job.checkpoint)["state_dict"])
    scores = evaluate(job, "test_scores")
    print(f"run folder: {job.output}")
    return scores


def prepare_evaluation(config: dict[str, Any]) -> Job | PredictionJob:
    """Rebuilds the model of a checkpoint and checks the test sets; or finds the maps that another run has left.

    Args:
        config: a resolved ``conf/eval.yaml``, see :func:`~e2net.engine.checkpoint.inherit`.

    Raises:
        ValueError, FileNotFoundError: see :func:`prepare_training`.
    """
    check_task(config)
    if config["predictions"] is not None:
        return prepare_predictions(config)
    protocol = build(config["protocol"])
    options = ReportOptions.of(config, protocol)
    checkpoint = find_checkpoint(config["ckpt"])
    model, trained = load_model(checkpoint, config["encoder_path"])
    data: SegmentationData = build(config["data"])
    model.encoder.check_size(*data.size)
    data.check("test")
    output = Path(config["output"])
    flip = trained["flip_test"] if config["flip_test"] is None else config["flip_test"]
    module = SegmentationModule(model, trained, protocol, test_names=tuple(data.test_names), flip=flip)
    trainer = L.Trainer(
        precision=choose_precision(config["precision"], config["accelerator"]),  # type: ignore[arg-type]
        accelerator=config["accelerator"],
        devices=1,
        logger=False,
        callbacks=[
            MapWriter(output / "maps"),
            SamplePictures(output / "samples", config["num_samples"]),
            TQDMProgressBar(),
        ],
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    return Job(module, data, trainer, output, checkpoint, options)


def evaluate(job: Job | PredictionJob, name: str = "scores") -> Scores:
    """Scores the test sets, prints the table and writes the report, ``<output>/<name>.json`` last.

    A score file of an earlier evaluation in the same folder is removed first.

    Returns:
        {test set: {score: value}}, fractions; also "<test set> (binarised)" where that was asked for.

    Raises:
        UnusableMapsError: a map on disk cannot be read.
    """
    if isinstance(job, PredictionJob):
        clear_report(job.output, name)
        about = {"predictions": str(job.folder)}
        return report(job.output, job.score(), job.method, about, job.options.bootstrap_seed, name)
    log.info("testing %s", job.checkpoint)
    if job.trainer.is_global_zero:
        clear_report(job.output, name)
    results = _test(job)
    if not job.trainer.is_global_zero:
        return {r.label: r.values() for r in results}
    about = {"checkpoint": str(job.checkpoint)}
    return report(job.output, results, _method(job), about, job.options.bootstrap_seed, name)


def _test(job: Job) -> list[SetResult]:
    """Runs the model over the test sets; every process gets the scores of all."""
    digests = MaskDigests()
    callbacks: list[L.Callback] = job.trainer.callbacks  # type: ignore[attr-defined]
    maps = next((c.folder for c in callbacks if isinstance(c, MapWriter)), None)
    callbacks.append(digests)
    try:
        job.trainer.test(job.module, datamodule=job.data, verbose=False)
    except Exception:
        if maps is not None and maps.is_dir():
            log.error("stopped; eval.py predictions=%s allow_missing=true scores the maps written so far", maps)
        raise
    finally:
        callbacks.remove(digests)
    job.module.test_results()  # from here on the scores of all processes are in each
    results = []
    for name, scores in zip(job.module.test_names, job.module.test_scores, strict=True):
        masks = masks_of(job.data, name)
        stems = [masks.name(i) for i in range(len(masks))]
        result = SetResult(name, scores, stems, job.module.protocol.describe(), digests.hash(name, stems))
        results.append(result)
        if maps is not None and job.trainer.is_global_zero:
            found = find_maps(maps, name, masks)
            result.picture = found.picture
            if job.options.binarised_too:
                again = binarised(job.module.protocol)
                (second,), _ = score_maps(found, [again], job.options.num_workers)
                results.append(dataclasses.replace(second, binarised=True, problems={}, picture=None))
    return results


def _method(job: Job) -> str:
    """The name of a checkpoint's row in tables: that of its run."""
    if job.options.method is not None or job.checkpoint is None:
        return job.options.method or job.output.name
    path = job.checkpoint.resolve()
    return path.parent.parent.name if path.parent.name == "checkpoints" else path.stem


def choose_precision(precision: str, accelerator: str) -> str:
    """The Trainer's precision; ``auto`` takes the fastest safe one that the device has."""
    if precision != "auto":
        return precision
    if accelerator not in ("auto", "gpu", "cuda") or not torch.cuda.is_available():
        return "32-true"
    return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"


def describe(model: SegmentationModel) -> str:
    """One line: how many parameters there are, and how many of them train."""
    parts = []
    for name in ("encoder", "decoder"):
        parameters = list(getattr(model, name).parameters())
        trained = sum(p.numel() for p in parameters if p.requires_grad)
        parts.append(
            f"{name} {sum(p.numel() for p in parameters) / 1e6:.2f} M parameters ({trained / 1e6:.2f} M trained)"
        )
    return ", ".join(parts)


def _pick(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: config[key] for key in keys}
