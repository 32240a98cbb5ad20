"""The two main jobs, as plain functions of a resolved config: train and test a model, or test a checkpoint."""

import dataclasses
import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import yaml
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.utilities.seed import isolate_rng

from e2net.datasets import DenseData
from e2net.datasets.transforms import Size
from e2net.evaluation.callbacks import SamplePictures
from e2net.evaluation.data import DataModule
from e2net.evaluation.inference import predictor_of
from e2net.evaluation.predictions import SourceTargets
from e2net.evaluation.report import FILES, Scores, clear_report
from e2net.evaluation.scales import RandomScale, scaled_size
from e2net.evaluation.test import EvaluationJob, choose_precision, interrupts, test
from e2net.files import remove_file, write_atomically
from e2net.model import DenseModel
from e2net.runs.checkpoint import KEY, find_checkpoint, load_state, read_checkpoint, restore
from e2net.runs.config import (
    build,
    build_data,
    build_task,
    build_trainer,
    check_batches,
    check_training,
    resolve_task,
)
from e2net.runs.folder import (
    BEST,
    CHECKPOINTS,
    CONFIG,
    ENVIRONMENT,
    LAST,
    METRICS,
    SAMPLES,
    TEST_SCORES,
    carry_over,
    check_unused,
    is_first_process,
    remove_parts,
)
from e2net.runs.outputs import check_free, claim
from e2net.runs.provenance import file_hash, weights_hash, write_environment
from e2net.runs.resume import check_same_images, check_same_run, images_hash
from e2net.speed import compile_model
from e2net.structures import NotFiniteError
from e2net.tasks.base import Task
from e2net.training.averaging import WeightAverage
from e2net.training.cache import FeatureCache
from e2net.training.callbacks import BestCheckpoint, EarlyStopping, EpochLines, LastCheckpoint, ResumeState
from e2net.training.memory import OutOfMemoryError, Trial, advise, choose_batch_size, is_out_of_memory, without_auto
from e2net.training.module import DenseModule
from e2net.training.records import MetricsFile, WholeCheckpoints
from e2net.training.shared_layers import SharedLayers
from e2net.training.strategies import Strategy, has_values
from e2net.training.terminal import next_command, opening

log = logging.getLogger(__name__)

T = TypeVar("T")

# Lines about suspect data in the log of a run.
_WARNINGS = 5


def run_files(task: Task) -> tuple[str, ...]:
    """Patterns of what a run leaves in its folder, beside its log."""
    tested = (f"test_{file}" for file in (*FILES, *task.extra_files))
    return (CONFIG, ENVIRONMENT, METRICS, CHECKPOINTS, SAMPLES, "tensorboard", "wandb", "mlruns", *tested)


@dataclasses.dataclass
class TrainingJob(EvaluationJob):
    """Everything that a training needs, built and checked; nothing has started yet."""

    module: DenseModule
    cache: FeatureCache = dataclasses.field(default_factory=FeatureCache)
    # Optimiser steps that a resumed run has taken.
    step: int = 0


def prepare_training(config: dict[str, Any]) -> TrainingJob:
    """Builds and checks everything, so that a wrong setting or a bad file shows before the long work starts.

    Args:
        config: a resolved ``conf/train.yaml``.

    Raises:
        ValueError, FileNotFoundError: a setting, a file or the data is wrong; the message says what to do.
    """
    check_training(config)
    config = resolve_task(config)
    L.seed_everything(config["seed"], workers=True, verbose=False)
    # Else several processes would begin anew with it where they meet, and draw otherwise than one does.
    os.environ.pop("PL_GLOBAL_SEED")
    output = Path(config["run_dir"])
    task = build_task(config)
    resume, content = _resumed(config, task)
    config, auto = without_auto(config, content)
    if content is not None:
        check_same_run(content[KEY]["config"], config)
    data = build_data(config["data"], task)
    criterion, optim = (build(config[key]) for key in ("loss", "optim"))
    predictor = predictor_of(config)
    rescale = RandomScale(config["train_scales"], config["seed"])
    strategy: Strategy = build(config["strategy"])
    model = strategy.build(config)
    model.encoder.check_size(*data.size)
    predictor.check(model.encoder.size_multiple, task)
    optim.schedule.check(data.validated, task)
    cache: FeatureCache = build(config["cache"])
    cache.check(model.encoder, data, plain=predictor.scales == rescale.scales == (1.0,) and not predictor.zoom)
    if content is not None:
        if has_values(model):
            restore(model, content)
        data.begin_at(*ResumeState.position(content))
    data.check()
    if is_first_process():
        _warn_of(data)
    task.prepare_loss(criterion, data.train_targets())
    if content is not None:
        check_same_images(content.get(ResumeState.KEY, {}).get("images"), data, config["resume"])
    step = 0 if content is None else content["global_step"]
    trainer = _trainer(config, output, data, step, strategy)
    strategy.check(trainer, model, cached=cache.views > 0)
    _warn_of_time(trainer, content)
    _check_batches(config, data, trainer.world_size, auto)
    if auto and content is None:
        data.batch_size = choose_batch_size(
            model,
            criterion,
            optim,
            _largest_size(model, data, rescale),
            len(data.train_names()),
            trainer.strategy.root_device,
            trainer.precision_plugin,
            trainer.gradient_clip_val,
            cached=cache.views > 0,
        )
        config["data"]["batch_size"] = data.batch_size
    if config["compile"]:
        compile_model(model)
    module = DenseModule(model, config, criterion, optim, tuple(data.test_names), predictor, rescale)
    module.val_images = SourceTargets(data.source("train"), task).image
    return TrainingJob(module, data, trainer, output, resume, cache=cache, step=step)


def _warn_of(data: DenseData) -> None:
    """Logs what is suspect about the data, some lines of it."""
    lines = data.warnings()
    for line in lines[:_WARNINGS]:
        log.warning("%s", line)
    if lines:
        more = f"{len(lines) - _WARNINGS} more like these; " if len(lines) > _WARNINGS else ""
        log.warning("%spython -m e2net.check with the same data and task shows all, with pictures", more)


def _warn_of_time(trainer: L.Trainer, content: dict[str, Any] | None) -> None:
    """Says that a resumed run will not train, its time being used up: that of all its parts counts together."""
    timer = next((c for c in trainer.callbacks if isinstance(c, Timer)), None)  # type: ignore[attr-defined]
    if timer is None or content is None or timer.state_key not in content.get("callbacks", {}):
        return
    timer.load_state_dict(content["callbacks"][timer.state_key])
    if (timer.time_remaining() or 0) <= 0:
        log.warning(
            "the run has trained for %.0f s, all that trainer.max_time gives it: it is tested as it is; give more to"
            " go on",
            timer.time_elapsed(),
        )


def _resumed(config: dict[str, Any], task: Task) -> tuple[Path | None, dict[str, Any] | None]:
    """The checkpoint to go on from and its content, if there is one; refuses a folder with another run."""
    resume = None if config["resume"] is None else find_checkpoint(config["resume"], prefer=LAST)
    if is_first_process():
        check_unused(Path(config["run_dir"]), resume)
        check_free("run_dir", Path(config["run_dir"]), run_files(task))
    return resume, None if resume is None else read_checkpoint(resume)


def _trainer(config: dict[str, Any], output: Path, data: DenseData, step: int, strategy: Strategy) -> L.Trainer:
    """The Trainer of a run that begins at an optimiser step, with loggers and callbacks."""
    task = data.task
    callbacks = [build(one) for one in config["callbacks"].values()]
    EarlyStopping.check(callbacks, data.validated)
    checkpoints, further = output / CHECKPOINTS, build(config["logger"]).open(output, step)
    return build_trainer(
        {**config["trainer"], "precision": choose_precision(**_pick(config["trainer"], "precision", "accelerator"))},
        logger=[
            MetricsFile(output / METRICS),
            *([] if further is None else [further]),
        ],
        callbacks=[
            *([WeightAverage(config["ema"])] if config["ema"] else []),
            ResumeState(images_hash(data)),
            # The best one first: where a run ends between the two, the last one is that of an epoch before.
            *(
                [BestCheckpoint(checkpoints / BEST, f"val/{task.monitor}", task.directions[task.monitor])]
                if data.validated
                else []
            ),
            LastCheckpoint(checkpoints / LAST, config["checkpoint_every_n_steps"]),
            SamplePictures(output / SAMPLES, config["num_samples"]),
            EpochLines(),
            *callbacks,
        ],
        plugins=[WholeCheckpoints(), SharedLayers()],
        default_root_dir=output,
        enable_model_summary=False,
        **strategy.trainer_settings(),
    )


def train(job: TrainingJob) -> Scores:
    """Fits, tests the best checkpoint (the last one where there is no validation part) and reports.

    Returns:
        {test set: {score: value}}, fractions; empty where no test set is named.

    Raises:
        KeyboardInterrupt: the run was interrupted; ``resume=<run folder>`` continues it.
        OutOfMemoryError: memory ran out in training; the message names settings that should fit.
    """
    if job.trainer.is_global_zero:
        _begin(job)
        for line in opening(job):
            log.info("%s", line)
    fill_cache(job)
    data = DataModule(job.data)
    fit = partial(job.trainer.fit, job.module, datamodule=data, ckpt_path=job.checkpoint, weights_only=True)
    with interrupts(job.trainer):
        with_memory_advice(job, fit)
    job.checkpoint = _to_test(job)
    job.checkpoint_sha256 = file_hash(job.checkpoint)
    load_state(job.module.model, read_checkpoint(job.checkpoint)["state_dict"])
    scores = test(job) if job.module.test_names else {}
    if job.trainer.is_global_zero:
        print(f"next: {next_command(job.output)}\nrun folder: {job.output}")
    return scores


def fill_cache(job: TrainingJob) -> None:
    """Encodes what the feature cache lacks, where there is one."""
    if not job.cache.views:
        return
    strategy = job.trainer.strategy
    # Whether there was anything to encode must not move what dropout draws in training.
    with isolate_rng(include_cuda=strategy.root_device.type == "cuda"):
        job.cache.fill(
            job.module.model.encoder,
            job.module.config["encoder"],
            job.data,
            mirrored=job.module.predictor.flip,
            device=strategy.root_device,
            autocast=strategy.precision_plugin.forward_context,
            precision=str(job.trainer.precision),
        )


def _check_batches(config: dict[str, Any], data: DenseData, processes: int, auto: bool) -> None:
    """Refuses an epoch without a batch, and to look for a batch size on several devices."""
    check_batches(config, len(data.train_names()), len(data.val_names()), processes)
    if auto and processes > 1:
        raise ValueError(
            f"data.batch_size=auto is found on one device, found {processes}; give a number of images for each"
        )


def with_memory_advice(job: TrainingJob, work: Callable[[], T]) -> T:
    """Does some work with a job's model.

    Raises:
        OutOfMemoryError: memory ran out; the message names settings that should fit.
    """
    try:
        return work()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        fault = str(error)
    # Out here, as the exception holds all that the failed step had computed.
    module, strategy = job.module, job.trainer.strategy
    assert module.criterion is not None and module.optim is not None
    if job.trainer.world_size > 1:  # a step of one process alone would wait for the others for ever
        raise OutOfMemoryError(
            f"out of memory at data.batch_size={job.data.batch_size} on {strategy.root_device}, one of "
            f"{job.trainer.world_size} processes: {' '.join(fault.split())[:120]}. Give a smaller data.batch_size and "
            "more trainer.accumulate_grad_batches, a smaller size, or strategy=fsdp"
        )
    strategy.optimizers = []
    trial = Trial(
        module.model,
        module.criterion,
        module.optim,
        _largest_size(module.model, job.data, module.rescale),
        strategy.root_device,
        strategy.precision_plugin,
        job.trainer.gradient_clip_val,
        cached=job.cache.views > 0,
    )
    raise OutOfMemoryError(advise(trial, job.data.batch_size, job.trainer.accumulate_grad_batches, fault))


def _largest_size(model: DenseModel, data: DenseData, rescale: RandomScale) -> Size:
    """(H, W) of the largest training batches, pixels."""
    return scaled_size(data.size, max(rescale.scales), model.encoder.size_multiple)


def _begin(job: TrainingJob) -> None:
    """Makes the run folder one of this run alone: no scores of an earlier state of it, its config, its history."""
    claim(job.output, run_files(job.module.task))
    clear_report(job.output, TEST_SCORES, job.module.task.extra_files)
    for name in job.module.test_names:
        remove_file(job.output / SAMPLES / f"test_{name}.png")
    remove_parts(job.output)
    write_atomically(job.output / CONFIG, yaml.safe_dump(job.module.config, sort_keys=False))
    write_environment(
        job.output / ENVIRONMENT,
        job.trainer.strategy.root_device,
        encoder_sha256=weights_hash(job.module.model.encoder),
        resumed=None if job.checkpoint is None else str(job.checkpoint),
    )
    if job.checkpoint is None:
        (job.output / METRICS).unlink(missing_ok=True)  # of a start that came to nothing
    else:
        carry_over(job.checkpoint, job.output, job.step, job.data.validated)


def _to_test(job: TrainingJob) -> Path:
    """The best checkpoint of this run, the last one where nothing was validated; whatever else lies in the folder."""
    files = [c.file for c in job.trainer.checkpoint_callbacks if isinstance(c, BestCheckpoint | LastCheckpoint)]
    there = [file for file in files if file.is_file()]
    if not there:
        raise NotFiniteError(
            "expected a checkpoint to test, found none: all steps were skipped, see above; lower optim.lr"
        )
    if there != files:
        log.warning("no validation had a finite score: %s is tested", there[0].name)
    return there[0]


def _pick(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: config[key] for key in keys}
