"""Checks on a real GPU what e2net does only there (docs/gpu.md), in about five minutes, a line for each: pass or FAIL.

Everything is generated: nothing to fetch, nothing kept. Exit status 1 if anything failed. On a CPU it is a rehearsal of
the script, and says of each line that it had to skip why.

    python benchmarks/gpu_smoke.py
    python benchmarks/gpu_smoke.py --device cpu
    python benchmarks/gpu_smoke.py --only resume predict
"""

import argparse
import contextlib
import io
import json
import logging
import os
import re
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Before CUDA starts: matrix products are then repeatable, which the check of resumed runs needs.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import lightning as L
import numpy as np
import torch
from transformers import AutoConfig, AutoModel

from e2net import load
from e2net.compare import cost
from e2net.evaluation.data import DataModule
from e2net.profile import profile_job
from e2net.runs import compose_training
from e2net.runs.checkpoint import read_checkpoint
from e2net.training import OutOfMemoryError, TrainingJob, prepare_training, train
from e2net.training.memory import Trial, available_bytes, choose_batch_size
from e2net.training.run import fill_cache
from e2net.training.step import precision_of, step

SETTINGS = [
    "size=64", "decoder.width=32", "data.n_train=48", "data.n_test=4", "data.sides=[64,96]", "data.batch_size=8",
    "data.val_fraction=0.2", "data.num_workers=0", "num_samples=2", "trainer.max_epochs=1",
    "trainer.log_every_n_steps=1",
]  # fmt: skip
# A rehearsal looks at the script, and is to be quick.
REHEARSAL = ["size=32", "decoder.width=16", "data.n_train=24", "data.sides=[32,48]", "data.batch_size=4"]
MIXED = ("bf16-mixed", "16-mixed")


class Skipped(Exception):
    """A check that this device cannot make; its text is the reason."""


@dataclass
class Context:
    """What the checks share.

    Attributes:
        device: where they run.
        folder: for runs.
        runs: finished default runs, by precision.
    """

    device: torch.device
    folder: Path
    runs: dict[str, Path] = field(default_factory=dict)
    count: int = 0

    @property
    def side(self) -> int:
        """Pixels a side of images that are meant to take memory."""
        return 256 if self.cuda else 64

    @property
    def cuda(self) -> bool:
        """Whether this is the real thing."""
        return self.device.type == "cuda"

    def prepare(self, *overrides: str, name: str | None = None) -> TrainingJob:
        """A small run in a folder of its own; everything else as ``train.py`` resolves it on this device."""
        self.count += 1
        folder = self.folder / (name or f"run{self.count}")
        accelerator = "auto" if self.cuda else "cpu"
        settings = [*SETTINGS, *([] if self.cuda else REHEARSAL), f"run_dir={folder}"]
        return prepare_training(compose_training([*settings, f"trainer.accelerator={accelerator}", *overrides]))

    def run(self, precision: str) -> Path:
        """The folder of a finished run in this precision."""
        if precision not in self.runs:
            job = self.prepare(f"trainer.precision={precision}")
            train(job)
            self.runs[precision] = job.output
        return self.runs[precision]

    def need(self, precision: str) -> None:
        """Skips a check that only a GPU can make in this precision."""
        if precision == "16-mixed" and not self.cuda:
            raise Skipped("Lightning has fp16 on GPUs only")
        if precision == "bf16-mixed" and self.cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise Skipped("this GPU has no bf16")

    def need_gpu(self, why: str) -> None:
        """Skips a check that says nothing on a CPU."""
        if not self.cuda:
            raise Skipped(why)


def expect(condition: object, message: str) -> None:
    """Raises AssertionError; an assert would vanish under ``python -O``."""
    if not condition:
        raise AssertionError(message)


def last(folder: Path) -> dict[str, Any]:
    """The last checkpoint of a run."""
    return read_checkpoint(folder / "checkpoints" / "last.ckpt")


def fit(job: TrainingJob, *callbacks: L.Callback) -> TrainingJob:
    """Trains without a test."""
    job.trainer.callbacks.extend(callbacks)  # type: ignore[attr-defined]
    job.trainer.fit(job.module, datamodule=DataModule(job.data), ckpt_path=job.checkpoint, weights_only=True)
    return job


def images(count: int = 4) -> list[np.ndarray]:
    """Generated pictures, (h, w, 3) uint8 RGB."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (72 + 8 * i, 96, 3), dtype=np.uint8) for i in range(count)]


# The checks: each returns what it found, in words.


def check_default_run(at: Context) -> str:
    """``python train.py`` as it is: train, validate, save, test, with what ``auto`` stands for here."""
    job = at.prepare()
    expect(job.trainer.strategy.root_device.type == at.device.type, f"ran on {job.trainer.strategy.root_device}")
    scores = train(job)["procedural"]
    at.runs.setdefault(str(job.trainer.precision), job.output)
    fused = [g["fused"] for g in last(job.output)["optimizer_states"][0]["param_groups"]]
    expect(all(fused), f"fused optimiser: {fused}")
    expect(0 < scores["S"] < 1, f"S is {scores['S']}")
    return f"{job.trainer.precision}, fused AdamW, S {scores['S']:.3f}"


def check_mixed(at: Context, precision: str) -> str:
    """A run in a given precision; in fp16 its scaler has found a scale, in all its weights are finite."""
    at.need(precision)
    content = last(at.run(precision))
    expect(all(v.isfinite().all() for v in content["state_dict"].values()), "a weight is not finite")
    halves = [k for k, v in content["state_dict"].items() if v.dtype in (torch.bfloat16, torch.float16)]
    expect(not halves, f"stored in half precision: {halves[:3]}")
    if precision == "16-mixed":
        scale = content["MixedPrecision"]["scale"]
        expect(0 < scale < float("inf"), f"scale {scale}")
        return f"scale {scale:g}"
    return "weights finite, stored as float32"


def check_half_loss(at: Context, precision: str) -> str:
    """Loss of one step against float32 on the CPU."""
    at.need(precision)
    job = at.prepare("decoder.dropout=0", f"trainer.precision={precision}")
    model, criterion = job.module.model.train(), job.module.criterion
    assert criterion is not None
    batch = next(iter(job.data.train_dataloader()))
    image = batch.image.float() / 255
    with torch.no_grad():
        expected = float(step(model, image, batch.target, criterion)["loss"])
        model.to(at.device)
        with precision_of(precision, at.device).forward_context():
            found = float(step(model, image.to(at.device), batch.target.to(at.device), criterion)["loss"])
    expect(abs(found - expected) < 0.02 * expected, f"{found:.4f}, in float32 on the CPU {expected:.4f}")
    return f"{found:.4f}, in float32 on the CPU {expected:.4f}"


class _Stop(L.Callback):
    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        trainer.should_stop = True


def check_resume(at: Context, precision: str) -> str:
    """Interrupted and resumed against uninterrupted: random numbers, average, optimiser, scaler and weights."""
    at.need(precision)
    options = ["trainer.max_epochs=2", f"trainer.precision={precision}", "ema=0.9", "trainer.deterministic=warn"]
    name = f"resume_{precision}"
    fit(at.prepare(*options, name=f"{name}_whole"))
    fit(at.prepare(*options, name=f"{name}_stopped"), _Stop())
    torch.manual_seed(99)
    resume = f"resume={at.folder / f'{name}_stopped'}"
    fit(at.prepare(*options, resume, name=f"{name}_resumed"))
    whole, resumed = last(at.folder / f"{name}_whole"), last(at.folder / f"{name}_resumed")
    for key in ("global_step", "lr_schedulers", "MixedPrecision"):
        expect(whole.get(key) == resumed.get(key), f"{key}: {whole.get(key)} and {resumed.get(key)}")
    for key, state in whole["resume"].items():
        equal = torch.equal(state, resumed["resume"][key]) if isinstance(state, torch.Tensor) else True
        expect(equal, f"random state of {key} differs")
    expect(("cuda" in whole["resume"]) == at.cuda, "the GPU's random state is not kept")
    expect(whole["ema"]["updates"] == whole["global_step"] == resumed["ema"]["updates"], "updates of the average")
    pairs = [(v.double(), resumed["state_dict"][k].double()) for k, v in whole["state_dict"].items()]
    apart = max(float((a - b).abs().max()) for a, b in pairs)
    # Kernels that add up in any order are allowed (warn), and there the last bits differ from run to run.
    expect(apart < 1e-2 if at.cuda else apart == 0, f"weights differ by {apart:.2g}")
    return "bit-equal" if apart == 0 else f"equal but for {apart:.1g}, by kernels without a fixed order"


def check_average(at: Context) -> str:
    """The average of weights is on the device, moves, and is what is saved."""
    job = fit(at.prepare("ema=0.9"))
    content = last(job.output)
    weights = content["ema"]["weights"]
    moved = sum(not torch.equal(v, content["state_dict"][k]) for k, v in weights.items())
    expect(moved > len(weights) / 2, f"{moved} of {len(weights)} tensors differ from their average")
    return f"{content['ema']['updates']} updates, {moved} tensors apart from it"


def check_scores(at: Context) -> str:
    """Validation scores on the device against those on the CPU, of the same weights in float32."""
    job = fit(at.prepare("trainer.precision=32-true"))
    here = {k: float(v) for k, v in job.trainer.callback_metrics.items() if k.startswith("val/")}
    other = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    other.validate(job.module.cpu(), job.data.val_dataloader(), verbose=False)
    there = {k: float(v) for k, v in other.callback_metrics.items() if k.startswith("val/")}
    apart = {k: abs(here[k] - there[k]) for k in here}
    worst = max(apart, key=lambda key: apart[key])
    expect(apart[worst] < 5e-3, f"{worst} is {here[worst]:.4f}, on the CPU {there[worst]:.4f}")
    return f"{len(here)} scores, at most {apart[worst]:.1g} apart"


def check_predict(at: Context) -> str:
    """Maps of pictures: this device in float32 and in its own precision, against the CPU."""
    folder = at.run("bf16-mixed" if not at.cuda else "32-true")
    expected = [r.prob for r in load(folder, device="cpu", precision="32-true").predict(images(), batch_size=2)]
    found = {}
    for precision in ("32-true", "auto"):
        model = load(folder, device=str(at.device), precision=precision)
        probs = [r.prob for r in model.predict(images(), batch_size=2)]
        found[model.precision] = max(float(np.abs(a - b).max()) for a, b in zip(probs, expected, strict=True))
    for precision, apart in found.items():
        expect(apart < (0.01 if precision == "32-true" else 0.1), f"{precision}: {apart:.3f} apart from the CPU")
    return ", ".join(f"{precision} at most {apart:.1g} apart" for precision, apart in found.items())


def check_frozen(at: Context) -> str:
    """A pretrained encoder's frozen weights are kept in bf16, and a checkpoint holds none of them."""
    folder = at.folder / "encoder"
    small = {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 4, "num_attention_heads": 3}
    config = AutoConfig.for_model("dinov3_vit", patch_size=16, num_register_tokens=4, **small)
    AutoModel.from_config(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    precision = "auto" if at.cuda else "32-true"
    job = at.prepare("encoder=local", f"encoder.path={folder}", "tuning=lora", f"trainer.precision={precision}")
    train(job)
    dtypes = {p.dtype for b in job.module.model.encoder.layers() for p in b.parameters() if not p.requires_grad}
    halved = at.cuda and job.trainer.precision == "bf16-mixed"
    expect((torch.bfloat16 in dtypes) == halved, f"types {dtypes}")
    state = last(job.output)["state_dict"]
    expect(all(v.dtype != torch.bfloat16 for v in state.values()), "bf16 weights were stored")
    load(job.output, device=str(at.device)).predict(images(1)[0])  # with the encoder's files, by its fingerprint
    return "kept in bf16, none stored" if halved else "kept in float32, none stored"


def check_cache(at: Context) -> str:
    """A frozen encoder with its features on disk."""
    job = at.prepare("tuning=frozen", "cache.views=1", f"cache.folder={at.folder / 'cache'}")
    scores = train(job)["procedural"]
    features = next(iter(job.data.train_dataloader())).image.maps
    expect(len(features) == 4, "no features in a batch")
    return f"S {scores['S']:.3f}, features {features[0].dtype}"


def check_compile(at: Context) -> str:
    """``compile=true`` compiles, instead of falling back with a warning."""
    at.need_gpu("compiling takes minutes on a CPU; tests/training/test_training_speed.py does it there")
    with _warnings_of("e2net") as seen:
        train(at.prepare("compile=true"))
    fallbacks = [text for text in seen if "compile=true has no effect" in text]
    expect(not fallbacks, fallbacks[0] if fallbacks else "")
    return "encoder blocks, neck and decoder"


@contextlib.contextmanager
def _warnings_of(name: str) -> Iterator[list[str]]:
    seen: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: seen.append(record.getMessage())
    logging.getLogger(name).addHandler(handler)
    try:
        yield seen
    finally:
        logging.getLogger(name).removeHandler(handler)


def check_batch_size(at: Context) -> str:
    """``data.batch_size=auto``: the largest batch within 90 % of the free memory; another step of it fits after."""
    job = at.prepare("data.batch_size=auto", f"size={at.side}")
    train(job)
    module, plugin = job.module, job.trainer.precision_plugin
    parts = (module.model, module.criterion, module.optim, (at.side, at.side))
    rest = (at.device, plugin, job.trainer.gradient_clip_val)
    found = choose_batch_size(*parts, 4096, *rest)
    free = available_bytes(at.device)
    expect(Trial(*parts, *rest).fits(found), f"{found} images were chosen, and do not fit")
    return f"{found} images of {at.side}x{at.side} in {(free or 0) / 2**30:.1f} GiB"


def check_advice(at: Context) -> str:
    """Memory that runs out in training ends with settings that fit."""
    job = at.prepare("data.batch_size=16", f"size={at.side}")
    if at.cuda:
        total = torch.cuda.mem_get_info(at.device)[1]
        torch.cuda.empty_cache()
        # What is held now, and 256 MiB on top: a step of 16 such images takes more.
        limit = (torch.cuda.memory_reserved(at.device) + (256 << 20)) / total
        torch.cuda.set_per_process_memory_fraction(limit, at.device)
    else:
        job.module.training_step = _out_of_memory  # type: ignore[assignment]  # raises instead
    try:
        train(job)
    except OutOfMemoryError as error:
        found = re.search(r"data\.batch_size=(\d+) trainer\.accumulate_grad_batches=\d+|size=\d+", str(error))
        expect(found, f"no setting in: {error}")
        return f"{'' if at.cuda else 'pretended; '}{found[0] if found else ''}"
    finally:
        if at.cuda:
            torch.cuda.set_per_process_memory_fraction(1.0, at.device)
    raise AssertionError("16 images of 256x256 fitted into 256 MiB")


def _out_of_memory(*_: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def check_profile(at: Context) -> str:
    """Parts of a step, FLOPs against the device's peak, and its memory."""
    found = profile_job(at.prepare(), steps=5)
    expect(0 < found.mfu < 1, f"MFU is {found.mfu:.3f}")
    expect(min(found.seconds[p] for p in ("encoder", "decoder", "loss", "backward", "optimiser")) > 0, "a part took 0")
    expect((found.memory is not None) == at.cuda, f"memory {found.memory}")
    return f"{found.step * 1e3:.1f} ms a step, MFU {found.mfu:.1%} of {found.peak / 1e12:.1f} TFLOP/s"


def check_cost(at: Context) -> str:
    """What compare measures of a finished run."""
    checkpoint = at.run("bf16-mixed" if not at.cuda else "32-true") / "checkpoints" / "best.ckpt"
    (found,) = cost.measure([checkpoint], at.device, rounds=1)
    expect(found.train_step > 0 and found.flops > 0, f"{found}")
    expect(found.train_memory is not None or not at.cuda, "no memory measured")
    return f"{found.images_per_second:.0f} images/s, {(found.train_memory or 0) / 2**20:.0f} MiB in training"


def check_pinned(at: Context) -> str:
    """Batches of worker processes lie in pinned memory."""
    at.need_gpu("pinned memory is a GPU's")
    job = at.prepare("data.num_workers=2")
    batch = next(iter(job.data.train_dataloader()))
    expect(batch.image.is_pinned() and batch.target.is_pinned(), "image or mask is not pinned")
    moved = job.trainer.strategy.batch_to_device(batch, at.device)
    expect(type(moved) is type(batch) and moved.image.is_cuda, f"{type(moved)} on {moved.image.device}")
    return "image and mask"


def check_processes(at: Context) -> str:
    """One process of ``strategy=ddp``, with a loss that looks at no refined map: NCCL on a GPU, gloo on a CPU."""
    job = at.prepare("strategy=ddp", "trainer.devices=1", "loss=v5", "trainer.max_epochs=2")
    train(job)
    backend = torch.distributed.get_backend()
    torch.distributed.destroy_process_group()
    return str(backend)


def check_accumulation(at: Context) -> str:
    """Accumulated gradients with clipping, in the device's own precision."""
    job = fit(at.prepare("trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=0.1"))
    expect(all(p.isfinite().all() for p in job.module.model.parameters()), "a weight is not finite")
    return f"{job.trainer.global_step} steps"


def check_random_state(at: Context) -> str:
    """A cache that is filled twice, and a trial of memory, draw nothing that a run would have drawn."""
    job = at.prepare("tuning=frozen", "cache.views=1", f"cache.folder={at.folder / 'cache2'}")
    fill_cache(job)
    states = [torch.get_rng_state(), torch.cuda.get_rng_state(at.device) if at.cuda else torch.get_rng_state()]
    module = job.module
    choose_batch_size(module.model, module.criterion, module.optim, (64, 64), 8, at.device)
    after = [torch.get_rng_state(), torch.cuda.get_rng_state(at.device) if at.cuda else torch.get_rng_state()]
    expect(all(torch.equal(a, b) for a, b in zip(states, after, strict=True)), "random numbers were drawn")
    return "left alone"


CHECKS: dict[str, Callable[[Context], str]] = {
    "default run": check_default_run,
    **{f"run {p}": lambda at, p=p: check_mixed(at, p) for p in MIXED},  # type: ignore[misc]
    **{f"loss {p}": lambda at, p=p: check_half_loss(at, p) for p in MIXED},  # type: ignore[misc]
    "accumulation": check_accumulation,
    **{f"resume {p}": lambda at, p=p: check_resume(at, p) for p in ("32-true", *MIXED)},  # type: ignore[misc]
    "average of weights": check_average,
    "scores": check_scores,
    "predict": check_predict,
    "frozen weights": check_frozen,
    "feature cache": check_cache,
    "random state": check_random_state,
    "pinned memory": check_pinned,
    "profile": check_profile,
    "cost": check_cost,
    "batch size": check_batch_size,
    "out of memory": check_advice,
    "processes": check_processes,
    "compile": check_compile,
}


def run(device: torch.device, names: Sequence[str]) -> int:
    """Makes the checks, prints a line for each, and says how many failed."""
    counts = {"pass": 0, "FAIL": 0, "skip": 0}
    with tempfile.TemporaryDirectory() as folder:
        at = Context(device, Path(folder))
        for name in names:
            start, log = time.perf_counter(), io.StringIO()
            try:
                with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    found = CHECKS[name](at)
                word = "pass"
            except Skipped as reason:
                word, found = "skip", str(reason)
            except Exception as error:
                word, found = "FAIL", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                traceback.print_exc(limit=-4)
            counts[word] += 1
            print(f"{word}  {name:<18}  {found}  ({time.perf_counter() - start:.1f} s)", flush=True)
            if at.cuda:
                torch.cuda.empty_cache()
    print(f"{counts['pass']} passed, {counts['FAIL']} failed, {counts['skip']} skipped")
    return counts["FAIL"]


def main(arguments: Sequence[str]) -> int:
    """Reads the arguments and makes the checks; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="checks with such a word in their name")
    options = parser.parse_args(arguments)
    names = [name for name in CHECKS if any(word in name for word in options.only)]
    if not names:
        parser.error(f"--only={' '.join(options.only)}: expected words out of {', '.join(CHECKS)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("this machine has no GPU that PyTorch can use; --device cpu is a rehearsal")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    cuda = options.device == "cuda"
    device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    kind = torch.cuda.get_device_name(device) if cuda else "CPU: a rehearsal, which says nothing about a GPU"
    print(f"{kind}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    return int(run(device, names) > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
