"""How many images fit: the batch size that ``data.batch_size=auto`` stands for, and what helps when memory runs out."""

import copy
import gc
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.precision import Precision
from torch import Tensor, nn

from e2net.losses import DenseLoss
from e2net.model import DenseModel
from e2net.runs.checkpoint import KEY
from e2net.speed import halve_frozen, is_out_of_memory
from e2net.structures import Encoded, Images
from e2net.training.optim import AdamW
from e2net.training.step import Update, leave_out_unused, renewed, step

log = logging.getLogger(__name__)

AUTO = "auto"
# A CPU gains nothing by larger batches, and small data sets lose steps to them.
CPU_LIMIT = 8
# What of the free memory a training may take: it fragments, and validation and other programs come on top.
MARGIN = 0.9
# Other programs of a CPU's memory are not ours to push out.
CPU_MARGIN = 0.5
# Gradients and workspaces of the backward pass come on top of what it keeps from the forward pass.
_TRANSIENT = 1.5


class OutOfMemoryError(MemoryError):
    """Memory ran out in training; the message names settings that should fit."""


class StepTrial:
    """Training steps on random data, to learn what they take of memory and time.

    A subclass says in :meth:`batch` and :meth:`loss` what a step is.

    Attributes:
        model: all weights of the step, on ``device``.
        device: where.
        update: from a loss to new weights.
    """

    model: nn.Module
    device: torch.device
    update: Update

    def batch(self, batch_size: int) -> tuple[Any, ...]:
        """What :meth:`loss` takes, for so many images."""
        raise NotImplementedError

    def loss(self, *batch: Any) -> Tensor:
        """The loss of one batch from :meth:`batch`."""
        raise NotImplementedError

    def step(self, *batch: Any) -> None:
        """Forward, backward, clipping, optimiser."""
        self.update.backward(self.loss(*batch))
        self.update.apply()

    def fits(self, batch_size: int) -> bool:
        """Whether steps of so many images fit into the device's memory."""
        try:
            batch = self.batch(batch_size)
            for _ in range(2):  # the second one meets the optimiser's state
                self.step(*batch)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return False
        finally:
            self.update.optimizer.zero_grad()
            _release(self.device)
        return True

    def bytes_per_image(self) -> int:
        """Estimate of the memory that one image more takes, from what a forward pass keeps for its backward pass."""
        # A difference, as weights that autocast has cast are kept too, once for all images.
        kept = [_kept(partial(self.loss, *self.batch(n)), self.model) for n in (2, 4)]
        return max(1, int(_TRANSIENT * (kept[1] - kept[0]) / 2))


class Trial(StepTrial):
    """Training steps on random images, as a run makes them: everything that a step takes, except data.

    Args:
        model: trained in place, on ``device``; what does not train is kept as a run keeps it.
        criterion: the loss.
        optim: the optimiser; its schedule is not used.
        size: (H, W) of the images, pixels.
        device: where.
        precision: of the Trainer, see :func:`~e2net.training.step.precision_of`; its scaler is left alone.
        clip: limit of the gradients' norm; None or 0 is none.
        cached: start from encoded images, as with the feature cache.
    """

    model: DenseModel

    def __init__(
        self,
        model: DenseModel,
        criterion: DenseLoss,
        optim: AdamW,
        size: Sequence[int],
        device: torch.device,
        precision: Precision | None = None,
        clip: float | None = None,
        cached: bool = False,
    ) -> None:
        self.precision = renewed(precision or Precision())
        leave_out_unused(model, criterion)
        self.precision.convert_module(model.to(device).train())
        halve_frozen(model, str(self.precision.precision), device)
        self.model, self.criterion, self.device, self.cached = model, criterion, device, cached
        self.size = (size[0], size[1])
        self.optimizer: torch.optim.Optimizer = optim.build(model, 1000)["optimizer"]
        self.update = Update(self.optimizer, self.precision, clip)

    def batch(self, batch_size: int) -> tuple[Images, Tensor]:
        """Random images (B, 3, H, W) in [0, 1], encoded with ``cached``, and targets (B, 1, H, W)."""
        image = torch.rand(batch_size, 3, *self.size, device=self.device)
        target = self.model.task.random_targets(batch_size, self.size, self.device)
        if not self.cached:
            return image, target
        with torch.no_grad(), self.precision.forward_context():
            features = self.model.encoder(image[:1])
        maps = tuple(f.float().expand(batch_size, 1, -1, -1, -1).contiguous() for f in features)
        return Encoded(maps, self.size), target

    def loss(self, image: Images, target: Tensor) -> Tensor:
        """The loss of one batch from :meth:`batch`."""
        with self.precision.forward_context():
            return step(self.model, image, target, self.criterion)["loss"]


def available_bytes(device: torch.device) -> int | None:
    """Memory that can still be taken on a device; None where this system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = []
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        line = next(
            line for line in meminfo.read_text(encoding="utf-8").splitlines() if line.startswith("MemAvailable:")
        )
        found.append(int(line.split()[1]) * 1024)
    # A container's own limit, which may be far below what the machine has.
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.is_file() and used.is_file() and (text := limit.read_text(encoding="utf-8").strip()).isdigit():
        found.append(max(0, int(text) - int(used.read_text(encoding="utf-8"))))
    return min(found, default=None)


def largest(fits: Callable[[int], bool], limit: int) -> int:
    """The largest number up to ``limit`` that fits, to within an eighth: by doubling, then by bisection.

    Args:
        fits: says it of one number; what is below one that fits must fit too.
        limit: at least 1.

    Returns:
        0 where not even 1 fits.
    """
    low, high = 0, limit + 1
    trial = min(2, limit)  # some decoders normalise over the batch, and have no use for one image
    while high - low > max(1, low // 8):
        if fits(trial):
            low = trial
        else:
            high = trial
        # Doubling until something fails.
        trial = min(2 * low, limit) if high == limit + 1 and low else (low + high) // 2
    return low


def most_that_fit(make: Callable[[], StepTrial], images: int, device: torch.device, cpu_limit: int) -> int:
    """The largest batch of which training steps fit, 0 where not even one image does; the random state stays.

    On a GPU by trial, in 90 % of the memory that is free; on a CPU by an estimate, in half of what is available.

    Args:
        make: the trial, which trains a model that is nobody else's.
        images: no more than so many.
        device: where.
        cpu_limit: no more than so many on a CPU.
    """
    cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if cuda else []):
        trial = make()
        if cuda:
            free, total = torch.cuda.mem_get_info(device)
            limit = MARGIN * (free + torch.cuda.memory_reserved(device)) / total
            torch.cuda.set_per_process_memory_fraction(limit, device)
            try:
                found = largest(trial.fits, images)
            finally:
                torch.cuda.set_per_process_memory_fraction(1.0, device)
        else:
            free_bytes = available_bytes(device)
            found = min(cpu_limit, images)
            if free_bytes is not None:
                found = min(found, int(CPU_MARGIN * free_bytes / trial.bytes_per_image()))
        del trial
        _release(device)
    return found


def without_auto(
    config: dict[str, Any], checkpoint: Mapping[str, Any] | None, meanwhile: int = 1
) -> tuple[dict[str, Any], bool]:
    """A resolved config with a number where ``data.batch_size=auto`` stands, and whether it stands there.

    Args:
        config: stays as it is.
        checkpoint: content of the one to go on from, whose run has found a number; None: a new run has to find one.
        meanwhile: the number until then.
    """
    if config["data"]["batch_size"] != AUTO:
        return config, False
    number = meanwhile if checkpoint is None else checkpoint[KEY]["config"]["data"]["batch_size"]
    return {**config, "data": {**config["data"], "batch_size": number}}, True


def choose_batch_size(
    model: DenseModel,
    criterion: DenseLoss,
    optim: AdamW,
    size: Sequence[int],
    images: int,
    device: torch.device,
    precision: Precision | None = None,
    clip: float | None = None,
    cached: bool = False,
) -> int:
    """What ``data.batch_size=auto`` stands for; the model and the random state stay as they are.

    On a GPU the largest batch, up to the number of training images, of which two whole training steps run in 90 % of
    the memory that is free. On a CPU at most 8, as larger batches are not faster there, and fewer where an estimate
    says that they would take more than half of the memory that is available.

    Args:
        model, criterion, optim, device, precision, clip, cached: see :class:`Trial`.
        size: (H, W) of the largest training batches, pixels.
        images: in the training set.

    Raises:
        ValueError: not even one image fits.
    """

    def make() -> Trial:
        return Trial(copy.deepcopy(model), criterion, optim, size, device, precision, clip, cached)

    found = most_that_fit(make, images, device, CPU_LIMIT)
    if found < 1:
        recompute = "" if model.encoder.frozen else " or tuning.gradient_checkpointing=true"
        raise ValueError(
            f"data.batch_size=auto: not even one image of {size[0]}x{size[1]} fits into the memory of {device}; "
            f"reduce size, or take a smaller encoder{recompute}"
        )
    log.info("data.batch_size=auto: %d images of %dx%d on %s", found, *size, device)
    return found


def advise(trial: Trial, batch_size: int, accumulate: int, fault: str) -> str:
    """The message of an :class:`OutOfMemoryError`.

    Args:
        trial: of the model that did not fit, at the largest size that was trained.
        batch_size, accumulate: as they were.
        fault: what PyTorch said.
    """
    trial.model.zero_grad()
    _release(trial.device)
    height, width = trial.size
    free = available_bytes(trial.device)
    fit = batch_size // 2
    if free is not None:
        # Weights are there already; gradients and AdamW's two averages may not be.
        missing = 3 * sum(p.numel() * p.element_size() for p in trial.model.parameters() if p.requires_grad)
        try:
            fit = min(fit, int((MARGIN * free - missing) / trial.bytes_per_image()))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            fit = 0
        _release(trial.device)
    remedies = []
    if fit >= 1:
        steps = -(-batch_size * accumulate // fit)
        remedies.append(f"data.batch_size={fit} trainer.accumulate_grad_batches={steps} (about the same steps)")
    multiple = trial.model.encoder.size_multiple
    # Memory goes with the number of pixels.
    factor = math.sqrt(max(fit, 0.5) / batch_size)
    smaller = [max(multiple, int(side * factor) // multiple * multiple) for side in (height, width)]
    if smaller != [height, width]:
        remedies.append(f"size={smaller[0] if smaller[0] == smaller[1] else str(smaller).replace(' ', '')}")
    if not trial.model.encoder.frozen and not trial.model.tuning.gradient_checkpointing:
        remedies.append("tuning.gradient_checkpointing=true (slower by a third)")
    return (
        f"out of memory at data.batch_size={batch_size} and images of {height}x{width} on {trial.device}: "
        f"{' '.join(fault.split())[:120]}. Expected to fit: {', or '.join(remedies) or 'a smaller encoder'}"
    )


def _kept(loss: Callable[[], Tensor], model: nn.Module) -> int:
    """Bytes that a forward pass keeps for its backward pass, without the model's own weights."""
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.compiler.set_stance("force_eager"), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        held = loss()  # until here the graph lives, and no address is used twice
    del held
    return sum(kept.values())


def _release(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
