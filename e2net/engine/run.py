"""The two main jobs, as plain functions of a resolved config: train and test a model, or test a checkpoint."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import LearningRateMonitor, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger

from e2net.datasets import DenseData
from e2net.datasets.transforms import Size
from e2net.engine.averaging import WeightAverage
from e2net.engine.cache import FeatureCache
from e2net.engine.callbacks import CheckpointFile, MapWriter, ResumeState, SamplePictures, TargetDigests
from e2net.engine.checkpoint import KEY, find_checkpoint, load_model, load_state, read_checkpoint, restore
from e2net.engine.config import (
    build,
    build_data,
    build_model,
    build_task,
    build_trainer,
    check_batches,
    check_training,
    resolve_task,
)
from e2net.engine.data import DataModule
from e2net.engine.folder import (
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
from e2net.engine.inference import Predictor
from e2net.engine.memory import AUTO, OutOfMemoryError, Trial, advise, choose_batch_size, is_out_of_memory
from e2net.engine.module import DenseModule
from e2net.engine.outputs import check_free, claim
from e2net.engine.predictions import (
    ReportOptions,
    find_maps,
    score_maps,
    scored_task,
    targets_of,
)
from e2net.engine.provenance import config_hash, file_hash, weights_hash, write_environment
from e2net.engine.records import MetricsFile, WholeCheckpoints
from e2net.engine.report import FILES, Scores, SetResult, clear_report, report
from e2net.engine.resume import check_same_images, check_same_run, images_hash
from e2net.engine.scales import RandomScale, scaled_size
from e2net.engine.speed import compile_model
from e2net.files import write_atomically
from e2net.formats import some
from e2net.model import DenseModel
from e2net.tasks.base import Task

log = logging.getLogger(__name__)

T = TypeVar("T")


def run_files(task: Task) -> tuple[str, ...]:
    """Patterns of what a run leaves in its folder, beside its log."""
    tested = (f"test_{file}" for file in (*FILES, *task.extra_files))
    return (CONFIG, ENVIRONMENT, METRICS, CHECKPOINTS, SAMPLES, "tensorboard", *tested)


@dataclasses.dataclass
class Job:
    """Everything that a run needs, built and checked; nothing has started yet."""

    module: DenseModule
    data: DenseData
    trainer: L.Trainer
    output: Path
    checkpoint: Path | None
    cache: FeatureCache = dataclasses.field(default_factory=FeatureCache)
    options: ReportOptions = dataclasses.field(default_factory=ReportOptions)
    # Of the checkpoint that is evaluated, as it was read: a run that is still going on replaces it.
    checkpoint_sha256: str | None = None


def prepare_training(config: dict[str, Any]) -> Job:
    """Builds and checks everything, so that a wrong setting or a bad file shows before the long work starts.

    Args:
        config: a resolved ``conf/train.yaml``.

    Raises:
        ValueError, FileNotFoundError: a setting, a file or the data is wrong; the message says what to do.
    """
    check_training(config)
    config = resolve_task(config)
    L.seed_everything(config["seed"], workers=True, verbose=False)
    output = Path(config["run_dir"])
    task = build_task(config)
    resume, content = _resumed(config, task)
    auto = config["data"]["batch_size"] == AUTO
    if auto:  # until the model is there to be tried; a resumed run keeps what was found
        found = 1 if content is None else content[KEY]["config"]["data"]["batch_size"]
        config = {**config, "data": {**config["data"], "batch_size": found}}
    if content is not None:
        check_same_run(content[KEY]["config"], config)
    data = build_data(config["data"], task)
    criterion, optim = (build(config[key]) for key in ("loss", "optim"))
    predictor = Predictor(config["flip_test"], config["test_scales"])
    rescale = RandomScale(config["train_scales"], config["seed"])
    model = build_model(config)
    model.encoder.check_size(*data.size)
    optim.schedule.check(data.validated, task)
    cache: FeatureCache = build(config["cache"])
    cache.check(model.encoder, data, plain=predictor.scales == rescale.scales == (1.0,))
    if content is not None:
        restore(model, content)
        data.first_epoch = content["epoch"] + 1  # checkpoints are written at the end of one
    data.check()
    task.prepare_loss(criterion, data.train_targets())
    if content is not None:
        check_same_images(content.get(ResumeState.KEY, {}).get("images"), data, config["resume"])
    check_batches(config, len(data.train_names()), len(data.val_names()))
    step = 0 if content is None else content["global_step"]
    trainer = _trainer(config, output, data, step)
    _check_devices(config, trainer, cache, auto)
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
    names = tuple(data.test_names)
    module = DenseModule(model, config, criterion, optim, names, predictor, rescale)
    return Job(module, data, trainer, output, resume, cache)


def _resumed(config: dict[str, Any], task: Task) -> tuple[Path | None, dict[str, Any] | None]:
    """The checkpoint to go on from and its content, if there is one; refuses a folder with another run."""
    resume = None if config["resume"] is None else find_checkpoint(config["resume"], prefer=LAST)
    if is_first_process():
        check_unused(Path(config["run_dir"]), resume)
        check_free("run_dir", Path(config["run_dir"]), run_files(task))
    return resume, None if resume is None else read_checkpoint(resume)


def _trainer(config: dict[str, Any], output: Path, data: DenseData, step: int) -> L.Trainer:
    """The Trainer of a run that begins at an optimiser step, with loggers and callbacks."""
    task = data.task
    checkpoints = output / CHECKPOINTS
    return build_trainer(
        {**config["trainer"], "precision": choose_precision(**_pick(config["trainer"], "precision", "accelerator"))},
        logger=[
            MetricsFile(output / METRICS),
            # What an interrupted run has logged beyond the step is not shown.
            TensorBoardLogger(output, name="tensorboard", version="", purge_step=step),
        ],
        callbacks=[
            *([WeightAverage(config["ema"])] if config["ema"] else []),
            ResumeState(images_hash(data)),
            # The best one first: where a run ends between the two, the last one is that of an epoch before.
            *(
                [CheckpointFile(checkpoints / BEST, f"val/{task.monitor}", task.directions[task.monitor])]
                if data.validated
                else []
            ),
            CheckpointFile(checkpoints / LAST),
            LearningRateMonitor("step"),
            SamplePictures(output / SAMPLES, config["num_samples"]),
            TQDMProgressBar(),
        ],
        plugins=[WholeCheckpoints()],
        default_root_dir=output,
        enable_model_summary=False,
    )


def _check_devices(config: dict[str, Any], trainer: L.Trainer, cache: FeatureCache, auto: bool) -> None:
    """Refuses several devices where a run can use one only."""
    for wanted, setting in ((cache.views, "cache.views"), (auto, "data.batch_size=auto")):
        if wanted and trainer.world_size > 1:
            raise ValueError(
                f"{setting} works on one device, found trainer.devices={config['trainer']['devices']}; give one, or "
                f"do without {setting}"
            )


def train(job: Job) -> Scores:
    """Fits, tests the best checkpoint (the last one where there is no validation part) and reports.

    Returns:
        {test set: {score: value}}, fractions; empty where no test set is named.

    Raises:
        KeyboardInterrupt: the run was interrupted; ``resume=<run folder>`` continues it.
        OutOfMemoryError: memory ran out in training; the message names settings that should fit.
    """
    if job.trainer.is_global_zero:
        _begin(job)
    log.info("%d training and %d validation images", len(job.data.train_names()), len(job.data.val_names()))
    log.info("%s", describe(job.module.model))
    log.info("precision %s on %s", job.trainer.precision, job.trainer.strategy.root_device)
    fill_cache(job)
    data = DataModule(job.data)
    fit = partial(job.trainer.fit, job.module, datamodule=data, ckpt_path=job.checkpoint, weights_only=True)
    with _interrupts(job.trainer):
        with_memory_advice(job, fit)
    job.checkpoint = _to_test(job)
    job.checkpoint_sha256 = file_hash(job.checkpoint)
    load_state(job.module.model, read_checkpoint(job.checkpoint)["state_dict"])
    scores = test(job) if job.module.test_names else {}
    print(f"run folder: {job.output}")
    return scores


@contextlib.contextmanager
def _interrupts(trainer: L.Trainer) -> Iterator[None]:
    """Ctrl-C and SIGTERM raise a KeyboardInterrupt; Lightning ends the process, after SIGTERM as if all were done."""
    try:
        yield
    except SystemExit:
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise


def fill_cache(job: Job) -> None:
    """Encodes what the feature cache lacks, where there is one."""
    if not job.cache.views:
        return
    strategy = job.trainer.strategy
    job.cache.fill(
        job.module.model.encoder,
        job.module.config["encoder"],
        job.data,
        mirrored=job.module.predictor.flip,
        device=strategy.root_device,
        autocast=strategy.precision_plugin.forward_context,
        precision=str(job.trainer.precision),
    )


def with_memory_advice(job: Job, work: Callable[[], T]) -> T:
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


def prepare_test(config: dict[str, Any]) -> Job:
    """Rebuilds the model of a checkpoint and checks the test sets.

    Args:
        config: a resolved ``conf/eval.yaml`` with ``ckpt``, see :func:`~e2net.engine.overrides.inherit`.

    Raises:
        ValueError, FileNotFoundError: see :func:`prepare_training`.
    """
    task, options = scored_task(config), ReportOptions.of(config)
    options.variants(task)  # while it costs nothing
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
    predictor.check(model.encoder.size_multiple)
    names = tuple(data.test_names)
    _check_maps(output / "maps", names)
    module = DenseModule(model, trained, test_names=names, predictor=predictor, task=task)
    precision = choose_precision(config["precision"], config["accelerator"])
    trainer = build_trainer(
        {"_target_": "lightning.Trainer", "precision": precision, "accelerator": config["accelerator"]},
        devices=1,
        logger=False,
        callbacks=[
            MapWriter(output / "maps"),
            SamplePictures(output / SAMPLES, config["num_samples"]),
            TQDMProgressBar(),
        ],
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    return Job(module, data, trainer, output, checkpoint, options=options, checkpoint_sha256=digest)


def _check_maps(folder: Path, names: tuple[str, ...]) -> None:
    """Refuses a folder with maps of sets that are not evaluated now: they would seem to be this checkpoint's."""
    kept = {Path(name).parts[0] for name in names}
    others = sorted(p.name for p in folder.iterdir() if p.name not in kept) if folder.is_dir() else []
    if others:
        raise ValueError(
            f"expected maps of {', '.join(names)} alone in {folder}, found {some(others)} of an earlier evaluation; "
            "give another output"
        )


def test(job: Job, name: str = TEST_SCORES) -> Scores:
    """Scores the test sets, prints the table and writes the report, ``<output>/<name>.json`` last.

    Returns:
        {test set: {score: value}}, fractions; also "<test set> (binarised)" where that was asked for.
    """
    log.info("testing %s", job.checkpoint)
    if job.trainer.is_global_zero:
        clear_report(job.output, name, job.module.task.extra_files)
    results = _results(job)
    if not job.trainer.is_global_zero:
        return {r.label: r.values() for r in results}
    about: dict[str, Any] = {
        "checkpoint": str(job.checkpoint),
        "checkpoint_sha256": job.checkpoint_sha256,
        "config_sha256": config_hash(job.module.config),
    }
    return report(job.output, results, _method(job), about, job.options.bootstrap_seed, name)


def _results(job: Job) -> list[SetResult]:
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
            (job.output / SAMPLES / f"test_{name}.png").unlink(missing_ok=True)
    try:
        with _interrupts(job.trainer):
            job.trainer.test(job.module, datamodule=DataModule(job.data), verbose=False)
    except Exception:
        if maps is not None and maps.is_dir():
            log.error("stopped; eval.py predictions=%s allow_missing=true scores the maps written so far", maps)
        raise
    finally:
        callbacks.remove(digests)
    job.module.test_results()  # from here on the scores of all processes are in each
    results = []
    for name, scores, targets in zip(job.module.test_names, job.module.test_scores, sets, strict=True):
        stems = [targets.name(i) for i in range(len(targets))]
        result = SetResult(name, task, scores.table(), stems, digests.hash(name, stems))
        results.append(result)
        if maps is not None and job.trainer.is_global_zero:
            found = find_maps(maps, name, targets, task)
            result.picture = found.picture
            for again in job.options.variants(task)[1:]:
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


def describe(model: DenseModel) -> str:
    """One line: how many parameters there are, and how many of them train."""
    parts = []
    for name in ("encoder", "neck", "decoder"):
        parameters = list(getattr(model, name).parameters())
        trained = sum(p.numel() for p in parameters if p.requires_grad)
        parts.append(
            f"{name} {sum(p.numel() for p in parameters) / 1e6:.2f} M parameters ({trained / 1e6:.2f} M trained)"
        )
    return ", ".join(parts)


def _begin(job: Job) -> None:
    """Makes the run folder one of this run alone: no scores of an earlier state of it, its config, its history."""
    claim(job.output, run_files(job.module.task))
    clear_report(job.output, TEST_SCORES, job.module.task.extra_files)
    for old in (job.output / SAMPLES).glob("test_*.png"):
        old.unlink()
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
        content = read_checkpoint(job.checkpoint)
        validated = job.data.validated
        carry_over(job.checkpoint, job.output, content["epoch"], content["global_step"], validated)


def _to_test(job: Job) -> Path:
    """The best checkpoint of this run, the last one where nothing was validated; whatever else lies in the folder."""
    files = [c.file for c in job.trainer.checkpoint_callbacks if isinstance(c, CheckpointFile)]
    return next(file for file in files if file.is_file())


def _predictor(config: dict[str, Any], trained: dict[str, Any]) -> Predictor:
    """That of a resolved ``conf/eval.yaml``; what it leaves null is as in training."""

    def chosen(key: str) -> Any:
        return trained[key] if config[key] is None else config[key]

    return Predictor(chosen("flip_test"), chosen("test_scales"), config["window"], config["window_overlap"])


def _pick(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: config[key] for key in keys}
