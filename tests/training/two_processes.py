"""Trainings in one process and in two at once, and what each of these has found.

All are forked from one that has imported everything, as that takes longer than to train. What a process has found in a
case is in one/CASE.0.json or two/CASE.RANK.json of a folder, and what it has printed beside these.
"""

import copy
import json
import multiprocessing
import os
import signal
import socket
import sys
from typing import Any

import lightning as L
import pytest
import torch
from conftest import hf_model
from small_recipes import one_of_each, small_recipe
from torch import nn

from e2net import processes
from e2net.evaluation.data import DataModule
from e2net.losses import semantic
from e2net.losses.depth import gradient_loss, l1, sig_loss
from e2net.processes import whole
from e2net.training import prepare_training, train
from e2net.training.run import fill_cache
from e2net.training.shared_layers import SharedLayers
from e2net.training.strategies import shards_on_cpus

# Of this process; set where it begins.
RANK, SEVERAL, MACHINES = 0, False, 1
# Of all processes together, at a step.
BATCH = 4
# Recipes that are not slow: the recommended one, and one whose rates go by a score.
QUICK = 2
# Tunings of which a split model is compared with copies.
SPLIT = ("frozen", "full")
WRITTEN: set[str] = set()


def _note_writes(event, args):
    if event == "open" and isinstance(args[0], str) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        WRITTEN.add(args[0])
    elif event == "os.rename":
        WRITTEN.add(str(args[1]))


class Report(L.Callback):
    """What a process finds in training."""

    def __init__(self):
        self.losses, self.rates, self.scores, self.means = [], [], [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_epoch_start(self, trainer, module):
        if "train/mean_loss" in trainer.callback_metrics:  # that of the epoch before, which a schedule has seen
            self.means.append(float(trainer.callback_metrics["train/mean_loss"]))

    def on_validation_end(self, trainer, module):
        if not trainer.sanity_checking:
            metrics = trainer.callback_metrics.items()
            self.scores.append({key: float(value) for key, value in metrics if key.startswith("val/")})


def settings(config):
    """The same training in so many processes."""
    config["data"]["batch_size"] = BATCH // (2 if SEVERAL else 1)
    config["trainer"] |= {"devices": (2 if SEVERAL else 1) // MACHINES, "num_nodes": MACHINES, "log_every_n_steps": 1}
    return config


def run(config, tested=True):
    """Trains, tests where that is asked for, and says what was found."""
    doubled = config["trainer"]["precision"] == "64-true"
    with pytest.MonkeyPatch.context() as patch:
        if doubled:
            patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        return _run(config, tested)


def _run(config, tested):
    report = Report()
    job: Any = prepare_training(settings(config))
    job.trainer.callbacks.append(report)
    if not tested:
        fill_cache(job)
        job.trainer.fit(job.module, datamodule=DataModule(job.data))
    scores = train(job) if tested else None
    state = job.module.model.state_dict().items()
    weights = {name: whole(value).double().sum().item() for name, value in state}
    found = {"losses": report.losses, "rates": report.rates, "val": report.scores, "means": report.means}
    return {
        **found,
        "test": scores,
        "weights": weights,
        "wrote": sorted(w for w in WRITTEN if w.startswith(config["run_dir"])),
    }


def recipe(name, out):
    """Two epochs of four steps and a rest, five where rates go by scores; validation and test have odd numbers.

    In float64: AdamW makes whole steps of gradients that should be 0, and so of rounding, which in float32 can part two
    trainings by more than 1e-5 within so many steps.
    """
    config = small_recipe(name, out / name, patches=2, n_train=21, n_test=5, val_fraction=0.2)
    plateau = "patience" in config["optim"]["schedule"]
    config["trainer"] |= {"max_epochs": 5 if plateau else 2, "precision": "64-true"}
    if name == "recommended":
        config["num_samples"] = 3
    else:
        config["logger"] = {"_target_": "e2net.training.loggers.Csv"}
    if config["encoder"].get("blocks") is None and config["tuning"].get("blocks") is None:
        config["encoder"]["config"]["num_hidden_layers"] = 4
    if plateau:
        config["optim"]["schedule"]["patience"] = 0
    return run(config, tested=name == "recommended")


def _few_steps(folder, *overrides):
    """Two epochs of two steps, with averaged weights and mirror images, on few tensors: each costs FSDP time."""
    few = ("decoder=linear", "decoder.dropout=0.1", "logger=csv")
    config = small_recipe("recommended", folder, *few, *overrides, patches=2, n_train=20, n_test=3, val_fraction=0.2)
    config["trainer"] |= {"max_epochs": 2, "limit_train_batches": 2, "precision": "64-true"}
    if "path" not in config["encoder"]:
        config["encoder"]["config"]["num_hidden_layers"] = 4
    return config


class Stop(L.Callback):
    """Ends a run in the middle of its last epoch: by Ctrl-C in all processes, or by killing the second one."""

    def __init__(self, kill):
        self.kill = kill

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.current_epoch == 1 and batch_idx == 1:
            if not self.kill:
                raise KeyboardInterrupt
            if RANK == 1:
                os.kill(os.getpid(), signal.SIGKILL)


def _two_epochs(name, folder, resume=None):
    strategy, _, _ = name.partition("_")
    plateau = ["schedule=plateau", "schedule.monitor=train/mean_loss"] if strategy == "ddp" else []
    config = _few_steps(folder, f"strategy={strategy}", *plateau)
    # Saved last behind the second epoch's first step of three, and no oftener: each costs FSDP seconds.
    config["trainer"] |= {"precision": "32-true", "limit_train_batches": 3}
    return {**config, "checkpoint_every_n_steps": 4, "resume": resume}


def whole_run(name, out):
    """Two epochs at once."""
    return run(_two_epochs(name, out / name))


def stopped(name, out):
    """Ended within the second of them."""
    job: Any = prepare_training(settings(_two_epochs(name, out / name)))
    job.trainer.callbacks.insert(0, Stop(name.endswith("killed")))
    try:
        train(job)
    except KeyboardInterrupt:
        return {}
    raise AssertionError("it was not interrupted")


def resumed(name, out):
    """And continued."""
    name = name.removesuffix("_on")
    return run(_two_epochs(name, out / name, str(out / name)))


def refused(name, out):
    """A model that this torch cannot split on a CPU."""
    try:
        prepare_training(settings(_two_epochs(name, out / name)))
    except ValueError as error:
        return {"said": str(error)}
    raise AssertionError("it was not refused")


def sharded(name, out):
    """The same training by DDP and by FSDP."""
    tuning = name.removeprefix("fsdp_")
    encoder = ["encoder=local", f"encoder.path={out.parent / 'encoder'}"] if tuning != "full" else []
    found = {}
    for strategy in ("ddp", "fsdp"):
        config = _few_steps(out / f"{strategy}_{tuning}", f"tuning={tuning}", f"strategy={strategy}", *encoder)
        found[strategy] = run(config)
    return found


def layers(name, out):
    """Norms and dropout of two processes against PyTorch's own over all images; the largest differences by name."""
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.Dropout2d(0.5),
        nn.Conv2d(8, 4, 1),
        nn.BatchNorm2d(4, affine=False, momentum=None),
        nn.Dropout(0.3),
        nn.Conv2d(4, 4, 1),
        nn.BatchNorm2d(4, track_running_stats=False),
    ).double()
    shared, plugin = copy.deepcopy(plain), SharedLayers()
    kinds = [type(layer) for layer in shared]
    plugin.apply(shared)
    exchanged = [type(layer).__name__ for layer in shared if type(layer) not in kinds]
    images = torch.randn(4, 3, 6, 6, dtype=torch.float64) * 3 + 100
    differences = {}
    for _ in range(2):
        whole_images: Any = images.clone().requires_grad_()
        own: Any = images[RANK::2].clone().requires_grad_()
        torch.manual_seed(1)
        expected = plain(whole_images)
        expected.square().mean().backward()
        torch.manual_seed(1)
        found = shared(own)
        found.square().mean().backward()
        differences["output"] = _difference(found, expected[RANK::2])
        differences["image"] = _difference(own.grad / 2, whole_images.grad[RANK::2])
    for (key, mine), theirs in zip(shared.named_parameters(), plain.parameters(), strict=True):
        assert mine.grad is not None
        differences[key] = _difference(processes.total(mine.grad) / 2, theirs.grad)
    for (key, ours), all_of_them in zip(shared.named_buffers(), plain.buffers(), strict=True):
        differences[key] = _difference(ours, all_of_them)
    plugin.revert(shared.eval())
    differences["eval"] = _difference(shared(images), plain.eval()(images))
    return {"exchanged": exchanged, "back": [type(layer) for layer in shared] == kinds, "differences": differences}


def losses(name, out):
    """Losses over a batch, value and gradient, of two processes against those of all images at once."""
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 5, 8, 8).double(), torch.randint(0, 5, (4, 1, 8, 8))
    labels[0], labels[1, 0, :4] = 255, 4  # the first process knows nothing of its first image
    depth, metres = torch.rand(4, 1, 16, 16).double() + 0.5, torch.rand(4, 1, 16, 16).double() * 5
    metres[0], metres[3] = 0, 0
    weights = torch.rand(5).double()
    terms = {
        "ce": (lambda x, y: semantic.cross_entropy(x, y, weights=weights, smoothing=0.1), logits, labels),
        "dice": (semantic.dice, logits, labels),
        "lovasz": (semantic.lovasz, logits, labels),
        "sig": (sig_loss, depth, metres),
        "gradient": (gradient_loss, depth, metres),
        "l1": (l1, depth, metres),
    }
    differences = {}
    for key, (term, prediction, target) in terms.items():
        whole_prediction: Any = prediction.clone().requires_grad_()
        own: Any = prediction[RANK::2].clone().requires_grad_()
        expected = term(whole_prediction, target)
        expected.backward()
        with processes.one_batch():
            found = term(own, target[RANK::2])
        found.backward()
        differences[key] = _difference(found, expected)
        differences[f"{key}'s gradient"] = _difference(own.grad / 2, whole_prediction.grad[RANK::2])
        differences[f"{key} of one process"] = _difference(term(prediction, target), expected)
    return {"differences": differences}


def _difference(found, expected):
    return float((found - expected).detach().abs().max())


def begin(out, cases, rank, port, machines):
    """One process: does its cases; without a rank, alone."""
    global RANK, SEVERAL, MACHINES
    RANK, SEVERAL, MACHINES = rank or 0, rank is not None, machines
    if SEVERAL:
        places = {"NODE_RANK": str(rank), "LOCAL_RANK": "0"} if machines > 1 else {"LOCAL_RANK": str(rank)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **places}
    log = (out / f"{machines}.{RANK}.log").open("w", buffering=1)
    for stream in (1, 2):
        os.dup2(log.fileno(), stream)
    sys.addaudithook(_note_writes)
    for case in cases:
        kind, _, name = case.rpartition(":")
        print("case", case, flush=True)
        found = globals()[kind or "recipe"](name, out)
        (out / f"{name}.{RANK}.json").write_text(json.dumps(found))


def started(*settings):
    process = multiprocessing.get_context("fork").Process(target=begin, args=settings)
    process.start()
    return process


def pair(out, cases, machines=1):
    """Two processes: two devices of one machine, or one each of two."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [started(out, cases, rank, port, machines) for rank in (0, 1)]


def all_cases(out):
    """Does them; in a process of its own, as it forks."""
    for family in ("dinov3", "dinov2", "dinov2_registers"):
        hf_model(family)
    recipes = one_of_each()[:QUICK]
    alone = started(out / "one", recipes, None, 0, 1)
    split = f"sharded:{SPLIT[0]}" if shards_on_cpus() else "refused:fsdp_refused"
    cases = [*recipes, "layers:layers", "losses:losses", split]
    both = pair(out / "two", [*cases, "whole_run:ddp_whole", "stopped:ddp_killed"])
    for process in (alone, *both):
        process.join()
    assert alone.exitcode == 0, "see one/1.0.log"
    assert both[1].exitcode == -signal.SIGKILL and both[0].exitcode != 0, "see two/1.*.log"
    finish(pair(out / "two", ["resumed:ddp_killed_on"], machines=2))


def split_cases(out):
    """What takes longest: the other recipes, and FSDP, which is slow on CPUs."""
    recipes = one_of_each()[QUICK:]
    split = ["sharded:full", "whole_run:fsdp_whole", "stopped:fsdp_stopped"] if shards_on_cpus() else []
    finish([started(out / "one", recipes, None, 0, 1), *pair(out / "two", [*recipes, *split])])
    if split:
        finish(pair(out / "two", ["resumed:fsdp_stopped_on"], machines=2))


def finish(processes):
    """Waits until they end, as they should."""
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * len(processes), "see two/*.log"
