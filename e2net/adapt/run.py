"""The whole job, as plain functions of a resolved config: an encoder and pictures in, a better encoder's folder out."""

import dataclasses
import hashlib
import inspect
import logging
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from torch import nn

from e2net.adapt.budget import estimate, largest_batch
from e2net.adapt.crops import CropMix, MultiCrop
from e2net.adapt.follow import Follow, chosen_pictures, take, tokens_of
from e2net.adapt.module import Networks, SelfSupervised, make_heads
from e2net.adapt.networks import Pair, check_class_token, check_sides, set_drop_path, set_rope_rescale, split_original
from e2net.adapt.output import check_output, save_encoder
from e2net.adapt.pictures import Pictures
from e2net.adapt.probe import Probe
from e2net.adapt.recipe import Anchor, Recipe
from e2net.adapt.report import SHOWN, curves, features_picture
from e2net.adapt.watch import CollapseError
from e2net.datasets import DenseData, ProceduralData
from e2net.encoders import Encoder, Tuning
from e2net.evaluation.test import choose_precision, interrupts
from e2net.files import write_atomically
from e2net.runs.checkpoint import KEY, find_checkpoint, read_checkpoint
from e2net.runs.config import build, build_trainer, check_adapting, flatten
from e2net.runs.folder import (
    BEST,
    CHECKPOINTS,
    CONFIG,
    ENVIRONMENT,
    LAST,
    METRICS,
    carry_over,
    check_unused,
    is_first_process,
    remove_parts,
)
from e2net.runs.outputs import check_free, claim
from e2net.runs.provenance import write_environment
from e2net.runs.resume import check_same_run
from e2net.structures import Tokens
from e2net.training.callbacks import EarlyStopping, LastCheckpoint, ResumeState
from e2net.training.memory import OutOfMemoryError, is_out_of_memory, without_auto
from e2net.training.records import MetricsFile, WholeCheckpoints

log = logging.getLogger(__name__)

PROBE, FEATURES = "probe.png", "features.png"
# Patches a side of the pictures whose features are shown.
_SHOWN_PATCHES = 20
_FILES = (CONFIG, ENVIRONMENT, METRICS, CHECKPOINTS, PROBE, FEATURES, "tensorboard", "wandb", "mlruns")
# With more prototypes for each view of a picture, most of them are nobody's.
_PER_VIEW = 16
# Settings that the encoder's card tells.
_TOLD = ("size", "mix", "seed", "tuning", "adapt", "gram", "crops", "heads", "targets", "optim", "trainer")


@dataclasses.dataclass
class AdaptJob:
    """Everything that a self-supervised training needs, built and checked; nothing has started yet."""

    module: SelfSupervised
    pictures: Pictures
    crops: CropMix
    trainer: L.Trainer
    follow: Follow
    run_dir: Path
    output: Path
    checkpoint: Path | None
    step: int
    # (n, 3, S, S) uint8 pictures that are looked at, and the original encoder's tokens for them.
    images: torch.Tensor
    before: Tokens


def prepare_adapting(config: dict[str, Any]) -> AdaptJob:
    """Builds and checks everything, so that a wrong setting or a bad file shows before the long work starts.

    Args:
        config: a resolved ``conf/adapt.yaml``.

    Raises:
        ValueError, FileNotFoundError: a setting, a file or the data is wrong; the message says what to do.
    """
    check_adapting(config)
    L.seed_everything(config["seed"], workers=True, verbose=False)
    os.environ.pop("PL_GLOBAL_SEED")
    run_dir, output = Path(config["run_dir"]), Path(config["output"]).expanduser()
    resume, content = _resumed(config, run_dir)
    config, auto = without_auto(config, content, 2)
    if content is not None:
        # Without what a checkpoint of train.py has by default.
        check_same_run({k: v for k, v in content[KEY]["config"].items() if k in config}, config)
    encoder: Encoder = build(config["encoder"])
    tuning: Tuning = build(config["tuning"])
    recipe, anchor, watch = (build(config[key]) for key in ("adapt", "gram", "watch"))
    student, original = _student(encoder, tuning, recipe)
    check_output(student, output)
    data, pictures = _pictures(config)
    crops = _crops(config, encoder, anchor)
    probe = _probe(config, data)
    if probe is not None:
        probe.check(original)
    pictures.check()
    step = 0
    fingerprint = original.fingerprint()
    if content is not None:
        _check_same(content, fingerprint, pictures, config)
        pictures.begin_at(*ResumeState.position(content))
        step = content["global_step"]
    for line in pictures.warnings(crops):
        log.warning("%s", line)
    images = chosen_pictures(pictures, watch.pictures, config["size"])
    follow = Follow(watch, images, tokens_of(original, images), probe, run_dir / CHECKPOINTS / BEST)
    trainer = _trainer(config, run_dir, step, follow, pictures)
    module = _module(config, student, original, recipe, anchor, tuning, pictures.batch_size, trainer)
    if auto and content is None:
        device = trainer.strategy.root_device
        clip = trainer.gradient_clip_val
        pictures.batch_size = largest_batch(
            module, crops.largest, len(pictures), device, trainer.precision_plugin, clip
        )
        config["data"]["batch_size"] = pictures.batch_size
        log.info("data.batch_size=auto: %d pictures", pictures.batch_size)
        module.pictures = pictures.batch_size * trainer.accumulate_grad_batches
        module.config = config
    module.fingerprint = fingerprint
    _set_length(module, pictures, trainer)
    _check_enough(config, pictures, module)
    _check_room(module, run_dir, output)
    # Larger than crops: of seven patches a side nobody sees anything.
    shown = chosen_pictures(pictures, SHOWN, max(config["size"], _SHOWN_PATCHES * original.size_multiple))
    before = tokens_of(original, shown)
    return AdaptJob(module, pictures, crops, trainer, follow, run_dir, output, resume, step, shown, before)


def _resumed(config: dict[str, Any], run_dir: Path) -> tuple[Path | None, dict[str, Any] | None]:
    resume = None if config["resume"] is None else find_checkpoint(config["resume"], prefer=LAST)
    if is_first_process():
        check_unused(run_dir, resume)
        check_free("run_dir", run_dir, _FILES)
    return resume, None if resume is None else read_checkpoint(resume)


def _student(encoder: Encoder, tuning: Tuning, recipe: Recipe) -> tuple[Encoder, Encoder]:
    """The encoder made a student, and the encoder as it came."""
    check_class_token(encoder, recipe)
    original = split_original(encoder, tuning, recipe.masks)
    if encoder.frozen:
        raise ValueError(
            "tuning=frozen: nothing of the encoder would train; give tuning=lora, explora, partial or full"
        )
    set_rope_rescale(encoder, recipe.rope_rescale)
    if recipe.drop_path:
        set_drop_path(encoder, recipe.drop_path)
    return encoder, original


def _pictures(config: dict[str, Any]) -> tuple[DenseData | None, Pictures]:
    built = build(config["data"])
    return (built, Pictures.of(built)) if isinstance(built, DenseData) else (None, built)


def _crops(config: dict[str, Any], encoder: Encoder, anchor: Anchor) -> CropMix:
    """Makers of crops of all sizes that there are to be."""
    settings, mix = config["crops"], config["mix"]
    check_sides(encoder, {"size": config["size"]})
    if mix is None:
        return CropMix([_sized(settings, encoder, anchor, "size", "crops.local_size")])
    if not mix or not all(len(row) == 3 for row in mix):
        raise ValueError(f"mix={mix}: expected [[global side, local side, share of the batches], ...], or null")
    made = [
        _sized({**settings, "global_size": side, "local_size": local}, encoder, anchor, "mix", "mix")
        for side, local, _ in mix
    ]
    return CropMix(made, [share for _, _, share in mix])


def _sized(settings: dict[str, Any], encoder: Encoder, anchor: Anchor, whole: str, part: str) -> MultiCrop:
    make = build(settings, _partial_=True)
    crops: MultiCrop = make()
    if anchor.weight.peak:
        crops = make(gram_size=anchor.side(crops.global_size, encoder.size_multiple))
    local = crops.local_size if crops.locals else None
    for key, side in ((whole, crops.global_size), (part, local), ("gram.scale", crops.gram_size)):
        check_sides(encoder, {key: side})
    return crops


def _probe(config: dict[str, Any], data: DenseData | None) -> Probe | None:
    """The probe on a labelled set; generated pictures have labels of their own.

    Raises:
        ValueError: settings of a probe that there is not, or another task for the labels of generated pictures.
    """
    settings = dict(config["probe"])
    if settings["root"] is not None:
        return build(settings)
    if isinstance(data, ProceduralData):
        if settings["task"] is not None:
            raise ValueError(f"probe.task={settings['task']}: generated pictures have masks; leave it out")
        del settings["root"]
        return build(settings, _partial_=True)(root=data.source("test", data.test_names[0]))
    usual = {key: one.default for key, one in inspect.signature(Probe).parameters.items()} | {"size": config["size"]}
    for key, value in usual.items():
        if key != "root" and settings[key] != value:
            raise ValueError(f"probe.{key}={settings[key]}: there is no probe without probe.root=FOLDER; leave it out")
    return None


def _module(
    config: dict[str, Any],
    student: Encoder,
    original: Encoder,
    recipe: Recipe,
    anchor: Anchor,
    tuning: Tuning,
    batch_size: int,
    trainer: L.Trainer,
) -> SelfSupervised:
    heads = make_heads(build(config["heads"], _partial_=True), student.channels[-1], recipe)
    own_anchor = bool(anchor.weight.peak and (anchor.start or anchor.renew_every))
    networks = Networks(Pair(student, heads), original, anchor.weight.peak > 0, own_anchor)
    make = partial(build(config["targets"], _partial_=True), prototypes=config["heads"]["prototypes"])
    targets: dict[str, nn.Module] = {"dino": make()} if recipe.dino.peak else {}
    if recipe.masks:
        targets["ibot"] = make()
    pictures = batch_size * trainer.accumulate_grad_batches * trainer.world_size
    return SelfSupervised(
        networks, config, recipe, anchor, targets, build(config["optim"]), tuning, config["seed"], pictures
    )


def names_hash(pictures: Pictures) -> str:
    """SHA-256 of the names of all pictures, in their order."""
    names = "\n".join(pictures.name(index) for index in range(len(pictures)))
    return hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()


def _check_same(content: dict[str, Any], fingerprint: str, pictures: Pictures, config: dict[str, Any]) -> None:
    """Refuses another encoder and other pictures than those of the run to be resumed.

    Raises:
        ValueError: one of them is.
    """
    for what, before, now in (
        ("encoder's weights", content[KEY]["encoder_fingerprint"], fingerprint),
        ("pictures", content[ResumeState.KEY]["images"], names_hash(pictures)),
    ):
        if before != now:
            raise ValueError(
                f"resume={config['resume']}: expected the {what} of that run, found others; give the same, wherever "
                "they lie now, or train anew"
            )


def _trainer(config: dict[str, Any], run_dir: Path, step: int, follow: Follow, pictures: Pictures) -> L.Trainer:
    settings = config["trainer"]
    callbacks = [build(one) for one in config["callbacks"].values()]
    EarlyStopping.check(callbacks, validated=False)
    further = build(config["logger"]).open(run_dir, step)
    precision = choose_precision(settings["precision"], settings["accelerator"])
    # Lightning resumes a run of max_steps at another batch than it stopped at: Follow counts the steps instead.
    rest = {key: value for key, value in settings.items() if key not in ("max_steps", "max_epochs")}
    trainer = build_trainer(
        {**rest, "precision": precision, "max_epochs": 1},
        logger=[MetricsFile(run_dir / METRICS), *([] if further is None else [further])],
        callbacks=[
            ResumeState(names_hash(pictures)),
            follow,
            StepCheckpoint(run_dir / CHECKPOINTS / LAST, config["checkpoint_every_n_steps"]),
            *callbacks,
        ],
        plugins=[WholeCheckpoints()],
        default_root_dir=run_dir,
        enable_model_summary=False,
    )
    if trainer.world_size > 1:
        raise ValueError(f"trainer.devices={trainer.num_devices}: expected one device; give trainer.devices=1")
    return trainer


class StepCheckpoint(LastCheckpoint):
    """The same by optimiser steps alone, as an epoch of few pictures lasts seconds.

    Args:
        file: where to.
        every_n_steps: optimiser steps; the end of an epoch that is due is waited for where it comes first.
    """

    def __init__(self, file: Path, every_n_steps: int) -> None:
        super().__init__(file, every_n_steps)
        self._saved = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        self._saved = trainer.global_step

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        step, ending = trainer.global_step, self._asked(trainer)
        due = self.every_n_steps is not None and step // self.every_n_steps > self._saved // self.every_n_steps
        if not self._written and (due or ending or trainer.should_stop or step >= pl_module.steps):
            self._save(trainer, pl_module)
        self._step, self._ending = step, ending

    def _save(self, trainer: L.Trainer, pl_module: Any) -> None:
        super()._save(trainer, pl_module)
        self._saved = trainer.global_step


def _set_length(module: SelfSupervised, pictures: Pictures, trainer: L.Trainer) -> None:
    """Of the run, in optimiser steps and epochs."""
    settings = module.config["trainer"]
    batches, limit = max(1, len(pictures) // pictures.batch_size), trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else max(1, int(batches * limit))
    an_epoch = -(-batches // trainer.accumulate_grad_batches)
    steps = settings.get("max_steps") or -1
    module.steps = steps if steps > 0 else an_epoch * settings["max_epochs"]
    trainer.fit_loop.max_epochs = -(-module.steps // an_epoch)


def _check_room(module: SelfSupervised, *folders: Path) -> None:
    """Refuses a disk that cannot hold what the run will write at least.

    Raises:
        ValueError: how much there is, and how much is wanted.
    """
    trained = sum(p.numel() * p.element_size() for p in module.student.parameters() if p.requires_grad)
    whole = sum(p.numel() * p.element_size() for p in module.student.encoder.parameters())
    # Student, teacher and two averages, once more while a checkpoint is replaced; the best one; the encoder's folder.
    wanted = 2 * 4 * trained + trained + whole
    for folder in folders:
        there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
        free = shutil.disk_usage(there).free
        if free < wanted:
            raise ValueError(
                f"{folder}: expected room for about {wanted / 2**20:.0f} MiB of checkpoints and the encoder, found "
                f"{free / 2**20:.0f}; make room, or give another folder"
            )


def _check_enough(config: dict[str, Any], pictures: Pictures, module: SelfSupervised) -> None:
    """Refuses too few pictures: for a batch, or for the prototypes.

    Raises:
        ValueError: what was found, and what to give instead.
    """
    batch, count, prototypes = pictures.batch_size, len(pictures), config["heads"]["prototypes"]
    recipe = module.recipe
    if recipe.koleo.peak and min(batch, count) < 2:
        raise ValueError(
            f"adapt.koleo: expected two pictures and more in a batch, found {min(batch, count)} of {count}; give a "
            "larger data.batch_size, more pictures, or adapt.koleo=0"
        )
    if count < batch:
        raise ValueError(
            f"expected at least data.batch_size={batch} pictures, found {count}; give a smaller one, or more pictures"
        )
    most = 2 * count * _PER_VIEW
    if prototypes > most:
        raise ValueError(
            f"heads.prototypes={prototypes}: expected at least {-(-prototypes // (2 * _PER_VIEW))} pictures for so "
            f"many, found {count}; give heads.prototypes={max(16, most // 16 * 16)} or fewer, or more pictures"
        )
    if module.steps <= recipe.head_steps:
        raise ValueError(
            f"adapt.head_steps={recipe.head_steps}: expected fewer than the {module.steps} steps of the run, else the "
            "encoder never trains; give a larger trainer.max_steps"
        )


def adapt(job: AdaptJob) -> Path:
    """Trains, keeps the best encoder, writes its folder and the report.

    Returns:
        The encoder's folder.

    Raises:
        CollapseError: the features or the prototypes have collapsed; if the probe has seen a better encoder than the
            original before, its folder is written.
        KeyboardInterrupt: the run was interrupted; ``resume=<run folder>`` continues it.
        OutOfMemoryError: memory ran out in training; the message names settings that should fit.
    """
    _begin(job)
    trainer = job.trainer
    loader = job.pictures.loader(job.crops)
    with interrupts(trainer):
        try:
            trainer.fit(job.module, loader, ckpt_path=job.checkpoint, weights_only=True)
        except CollapseError as error:
            best = job.follow.best
            if best is None or job.follow.merit(best) <= job.follow.merit(job.follow.rows[0]):
                raise
            _finish(job)
            raise CollapseError(f"{error}. The best encoder before that, of step {best['step']:.0f}, is kept") from None
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemoryError(
                f"out of memory at data.batch_size={job.pictures.batch_size}: give a smaller one and more "
                "trainer.accumulate_grad_batches, tuning.gradient_checkpointing=true, tuning=lora or a smaller size"
            ) from error
    return _finish(job)


def _begin(job: AdaptJob) -> None:
    """Says what the run will take, and makes the run folder one of this run alone."""
    module, trainer = job.module, job.trainer
    config = module.config
    claim(job.run_dir, _FILES)
    remove_parts(job.run_dir)
    write_atomically(job.run_dir / CONFIG, yaml.safe_dump(config, sort_keys=False))
    resumed = None if job.checkpoint is None else str(job.checkpoint)
    write_environment(job.run_dir / ENVIRONMENT, trainer.strategy.root_device, encoder_sha256=None, resumed=resumed)
    if job.checkpoint is None:
        (job.run_dir / METRICS).unlink(missing_ok=True)
    else:
        carry_over(job.checkpoint, job.run_dir, job.step, job.follow.probe is not None)
    log.info("%d pictures, %d optimiser steps in %d epochs", len(job.pictures), module.steps, trainer.max_epochs or 0)
    device = trainer.strategy.root_device
    log.info("precision %s on %s", trainer.precision, device)
    budget = estimate(
        module, job.pictures, job.crops.largest, device, trainer.precision_plugin, trainer.gradient_clip_val
    )
    for line in budget.lines(
        job.pictures.batch_size, module.steps - job.step, trainer.accumulate_grad_batches, job.pictures.num_workers
    ):
        log.info("%s", line)


def _finish(job: AdaptJob) -> Path:
    module, follow = job.module, job.follow
    encoder = module.teacher.encoder.cpu()
    best, last = follow.best, follow.rows[-1]
    if best is not None and best is not last:
        take(encoder, read_checkpoint(job.run_dir / CHECKPOINTS / BEST)["state_dict"])
    chosen = last if best is None else best
    after = tokens_of(encoder, job.images)
    write_atomically(job.run_dir / PROBE, curves(follow.rows))
    write_atomically(job.run_dir / FEATURES, features_picture(job.images, job.before, after))
    _tell(follow, chosen)
    save_encoder(encoder, job.output, _card(job, chosen), module.config["size"])
    print(f"curves: {job.run_dir / PROBE}\nfeatures before and after: {job.run_dir / FEATURES}")
    print(f"encoder: {job.output}")
    return job.output


def _tell(follow: Follow, chosen: dict[str, float]) -> None:
    """Prints what has become of the features, honest in both directions."""
    first = follow.rows[0]
    for name in sorted(chosen.keys() & first.keys() - {"step"}):
        print(f"{name:<28} before {first[name]:.4g}, after {chosen[name]:.4g} (step {chosen['step']:.0f})")
    if follow.probe is not None and follow.merit(chosen) <= follow.merit(first):
        print("it did not help: by the probe no state of the training is better than the encoder as it came")


def _card(job: AdaptJob, chosen: dict[str, float]) -> dict[str, Any]:
    """What the encoder's folder says of how it was made."""
    first, config = job.follow.rows[0], job.module.config
    flat = flatten({key: config[key] for key in _TOLD})
    return {
        "base": config["encoder"].get("path", "random weights"),
        "pictures": len(job.pictures),
        "steps": int(chosen["step"]),
        "before": {k: v for k, v in first.items() if k != "step"},
        "after": {k: v for k, v in chosen.items() if k != "step"},
        "settings": " ".join(f"{key}={value}" for key, value in flat.items() if value is not None),
    }
