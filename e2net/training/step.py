"""One training step, the same for a run, for a trial of memory and for whatever measures: loss, gradient, update."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch import Tensor
from torch.nn.utils import clip_grad_value_, clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from e2net.decoders import Decoder
from e2net.losses import DenseLoss
from e2net.model import DenseModel
from e2net.processes import whole
from e2net.structures import Images

# Lightning's short names of precisions.
_SHORT = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


def _unwatched(name: str) -> AbstractContextManager[object]:
    return nullcontext()


def step(
    model: DenseModel,
    image: Images,
    target: Tensor,
    criterion: DenseLoss,
    progress: float = 1.0,
    part: Callable[[str], AbstractContextManager[object]] = _unwatched,
) -> dict[str, Tensor]:
    """Forward pass and loss of one batch.

    Args:
        model: in train mode, and by :func:`leave_out_unused` without what ``criterion`` does not look at.
        image: (B, 3, H, W) float, RGB in [0, 1], or encoded.
        target: (B, 1, H, W), what the criterion takes.
        criterion: the loss.
        progress: the share of training that is done, in [0, 1].
        part: makes the context in which ``encoder``, ``decoder`` and ``loss`` each run, for a stopwatch.

    Returns:
        Scalars by name, ``loss`` the one to minimise; see :meth:`~e2net.losses.Criterion.forward`.
    """
    with part("encoder"):
        features = model.encoder(image)
    with part("decoder"):
        output = model.decode(features, image.shape[-2:])
    with part("loss"):
        return criterion(output, target, progress)


def leave_out_unused(model: DenseModel, criterion: DenseLoss) -> None:
    """Has the decoder do without the auxiliary maps that the criterion never looks at.

    Their heads would get no gradient, and several processes would wait for it for ever.
    """
    if isinstance(model.decoder, Decoder):
        model.decoder.leave_out(model.decoder.AUXILIARY - criterion.parts)


def precision_of(name: str | int, device: torch.device) -> Precision:
    """What a Trainer with ``precision=name`` has on a device: its autocast, and in fp16 a scaler of its own.

    Args:
        name: ``32-true``, ``bf16-mixed`` or ``16-mixed``, or what the Trainer takes for these.
        device: where the model will be.

    Raises:
        ValueError: another name.
    """
    full = _SHORT.get(str(name), str(name))
    if full not in _SHORT.values():
        raise ValueError(f"precision={name}: expected one of {', '.join(_SHORT.values())}")
    return Precision() if full == "32-true" else MixedPrecision(full, device.type)  # type: ignore[arg-type]


def renewed(precision: Precision) -> Precision:
    """The same with a scaler that has not seen a step; a trial must not move that of the run."""
    if isinstance(precision, MixedPrecision):
        return MixedPrecision(precision.precision, precision.device)  # type: ignore[arg-type]
    return precision


def clip(
    optimizer: Optimizer, precision: Precision, limit: float | None, algorithm: GradClipAlgorithmType | None = None
) -> Tensor:
    """Clips the gradients in place, and has the optimiser skip its next step where one of them is not finite.

    A fused optimiser unscales fp16's gradients in its own step, so that Lightning refuses to clip before it, in bf16
    too, where nothing is scaled. Unscaled here, they may be clipped. In all precisions it is then told whether they
    were finite by a tensor, and skips the step without anyone waiting for the device; with fp16 the scaler does that.

    Args:
        optimizer: whose gradients; not fused, they must have been unscaled.
        precision: of the run.
        limit: of the norm of all gradients together, or of each value; None or 0 leaves them alone.
        algorithm: None is the norm.

    Returns:
        A boolean scalar on the device, whether the gradients are finite.
    """
    scaler = getattr(precision, "scaler", None)
    if scaler is not None and _unscales(optimizer):
        scaler.unscale_(optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
    finite = whole(norm).isfinite()
    if limit and algorithm == GradClipAlgorithmType.VALUE:
        clip_grad_value_(parameters, limit)
    elif limit:
        clip_grads_with_norm_(parameters, limit, norm)
    if scaler is None:
        _skip_unless(finite, optimizer, parameters)
    return finite


def _skip_unless(finite: Tensor, optimizer: Optimizer, parameters: Iterable[Tensor]) -> None:
    if _unscales(optimizer):
        # As torch's GradScaler tells it; the scale itself stays unset.
        optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
    elif not finite:
        for parameter in parameters:
            parameter.grad = None


class Update:
    """From a loss to new weights, outside of a Trainer and as it does it: scale, backward, unscale, clip, step.

    Args:
        optimizer: over what trains.
        precision: of the run; its scaler is used and moved on.
        limit, algorithm: see :func:`clip`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        precision: Precision,
        limit: float | None = None,
        algorithm: GradClipAlgorithmType | None = None,
    ) -> None:
        self.optimizer, self.precision, self.limit, self.algorithm = optimizer, precision, limit, algorithm
        self._scaler = getattr(precision, "scaler", None)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of a loss, scaled where the precision asks for it."""
        (loss if self._scaler is None else self._scaler.scale(loss)).backward()

    def apply(self) -> None:
        """Clips, changes the weights, and drops the gradients."""
        if self._scaler is not None and not _unscales(self.optimizer):
            self._scaler.unscale_(self.optimizer)
        clip(self.optimizer, self.precision, self.limit, self.algorithm)
        if self._scaler is None:
            self.optimizer.step()
        else:
            self._scaler.step(self.optimizer)
            self._scaler.update()
        self.optimizer.zero_grad()


def _unscales(optimizer: Optimizer) -> bool:
    """Whether the optimiser unscales gradients in its own step, as fused ones do."""
    return getattr(optimizer, "_step_supports_amp_scaling", False)
