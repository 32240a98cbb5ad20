"""Layers that see the batch of all processes as one: norms over a batch, and dropout."""

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.plugins.layer_sync import LayerSync
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from e2net import processes


class SharedLayers(LayerSync):
    """Has a model's BatchNorm and dropout take the batches of all processes as one while it trains, and undoes that.

    Several processes then train as one would with all of their images at once. Each would otherwise norm by a few
    images of its own, and drop the same units as all others, as they all have the same seed.
    """

    def __init__(self) -> None:
        self._before: list[tuple[nn.Module, str, nn.Module]] = []

    def apply(self, model: nn.Module) -> nn.Module:
        """Exchanges the layers in place; parameters, buffers and names stay as they are."""
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                shared = _shared(child)
                if shared is not None:
                    self._before.append((module, name, child))
                    setattr(module, name, shared)
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Brings back what :meth:`apply` has exchanged."""
        for module, name, child in self._before:
            child.train(module.get_submodule(name).training)
            setattr(module, name, child)
        self._before.clear()
        return model


def _shared(layer: nn.Module) -> nn.Module | None:
    if isinstance(layer, _BatchNorm) and not isinstance(layer, nn.SyncBatchNorm):
        return SharedBatchNorm.of(layer)
    whole = isinstance(layer, nn.Dropout1d | nn.Dropout2d | nn.Dropout3d)
    p: Any = getattr(layer, "p", 0) if whole or isinstance(layer, nn.Dropout) else 0
    return SharedDropout(p, whole).train(layer.training) if p > 0 else None


class SharedBatchNorm(_BatchNorm):
    """BatchNorm over the pixels of all processes' images.

    PyTorch's own ``SyncBatchNorm`` is for GPUs alone; this one is the same on every device.
    """

    @classmethod
    def of(cls, norm: _BatchNorm) -> "SharedBatchNorm":
        """The same norm with the same parameters and buffers."""
        shared = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, device="meta")
        for name, parameter in norm.named_parameters(recurse=False):
            setattr(shared, name, parameter)
        for name, buffer in norm.named_buffers(recurse=False):
            setattr(shared, name, buffer)
        return shared.train(norm.training)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions: that of the layer in whose place this one is."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        result, mean, variance, pixels = _norm(input, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            assert self.running_mean is not None and self.running_var is not None
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * (pixels / (pixels - 1).clamp(min=1)), momentum)
        return result


@torch.compiler.disable
def _norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(B, C, ...) normed; mean (C,), variance (C,) and number of pixels (C,) over all processes."""
    return _Norm.apply(x, weight, bias, eps)


class _Norm(torch.autograd.Function):
    """Ioffe & Szegedy 2015, with the sums over a batch taken over all processes, forwards and backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, ...]:
        axes = [0, *range(2, x.ndim)]
        variance, mean = torch.var_mean(x.to(torch.promote_types(x.dtype, torch.float32)), axes, correction=0)
        # Not sums of squares, less the square of the sum: where the mean is large few digits would be left.
        own = torch.stack([mean, variance, torch.full_like(mean, x.numel() / x.shape[1])])
        means, variances, pixels = processes.gather(own).unbind(1)
        share = pixels / pixels.sum(0)
        mean = (share * means).sum(0)
        variance = (share * (variances + (means - mean).square())).sum(0)
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt(), pixels.sum(0))
        ctx.axes = axes
        results = (F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps), mean, variance, pixels.sum(0))
        ctx.mark_non_differentiable(*results[1:])
        return results

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, pixels = ctx.saved_tensors
        shape = [1, -1] + [1] * (x.ndim - 2)
        centred = (x - mean.view(shape)) * scale.view(shape)
        gradient = gradients[0].to(centred.dtype)
        of_bias, of_weight = gradient.sum(ctx.axes), (gradient * centred).sum(ctx.axes)
        plain, along = (processes.total(torch.stack([of_bias, of_weight])) / pixels).view(2, *shape).unbind(0)
        change = (gradient - plain - centred * along) * (scale if weight is None else scale * weight).view(shape)
        return change.to(x.dtype), *(None if weight is None else one for one in (of_weight, of_bias)), None


class SharedDropout(nn.Module):
    """Dropout that draws for the images of all processes, and takes those of its own: every image has other gaps.

    All draw alike, as all have the same seed, and as one process would for a batch of all their images in the order in
    which :class:`~e2net.datasets.datamodule.EpochSampler` deals them out.

    Args:
        p: the share of what is dropped.
        whole: drop whole channels, not single values.
    """

    def __init__(self, p: float, whole: bool) -> None:
        super().__init__()
        self.p, self.whole = p, whole

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        factors = (x.shape[1], *[1] * (x.ndim - 2)) if self.whole else x.shape[1:]
        drawn = F.dropout(x.new_ones(len(x) * processes.count(), *factors), self.p)
        return x * drawn[processes.rank() :: processes.count()]
