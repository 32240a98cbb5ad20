"""How a training is spread over devices: what the ``strategy`` group of a config builds."""

import logging
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from e2net import processes
from e2net.model import DenseModel
from e2net.runs.config import build_model
from e2net.runs.folder import is_first_process

log = logging.getLogger(__name__)


class Strategy:
    """What a config's ``strategy`` group builds.

    Attributes:
        name: of its file in ``conf/strategy``.
        several: whether it is for several processes (True), for one (False), or for either (None).
    """

    name: str
    several: bool | None = None

    def trainer_settings(self) -> dict[str, Any]:
        """Arguments of the Trainer."""
        return {"strategy": "auto"}

    def check(self, trainer: L.Trainer, model: DenseModel, cached: bool) -> None:
        """Refuses what it is not for.

        Args:
            trainer: that it has made.
            model: what will train.
            cached: whether the encoder's features come from the cache.

        Raises:
            ValueError: what was found, and what to give instead.
        """
        if self.several is False and trainer.world_size > 1:
            raise ValueError(
                f"strategy={self.name}: expected one device, found {_places(trainer)}; give strategy=ddp or "
                "trainer.devices=1"
            )
        if self.several and trainer.world_size == 1:
            raise ValueError(
                f"strategy={self.name}: expected several devices, found one; give trainer.devices=2 or more (-1: all), "
                "or leave the strategy out"
            )

    def build(self, config: dict[str, Any]) -> DenseModel:
        """The model of this process, see :func:`~e2net.runs.config.build_model`."""
        return build_model(config)


def _places(trainer: L.Trainer) -> str:
    nodes = f" on each of {trainer.num_nodes} machines" if trainer.num_nodes > 1 else ""
    return f"trainer.devices={trainer.num_devices}{nodes}"


class Auto(Strategy):
    """One process on one device, DDP on several."""

    name = "auto"


class Single(Strategy):
    """One process."""

    name, several = "single", False


class DDP(Strategy):
    """A process and a copy of the model for each device; gradients are averaged in every step.

    Args:
        find_unused_parameters: look in every step for parameters that got no gradient, which is an error otherwise.
    """

    name = "ddp"

    def __init__(self, find_unused_parameters: bool = False) -> None:
        self.find_unused_parameters = find_unused_parameters

    def trainer_settings(self) -> dict[str, Any]:
        # A Trainer looks up what a name stands for, such as the launcher that fits where it runs.
        return {"strategy": "ddp_find_unused_parameters_true" if self.find_unused_parameters else "ddp"}

    def check(self, trainer: L.Trainer, model: DenseModel, cached: bool) -> None:
        if trainer.world_size == 1:  # not refused: the same command is to run on a machine with one GPU
            log.warning("strategy=ddp: there is one device; trainer.devices=2 takes two, -1 all")


class FSDP(Strategy):
    """A process for each device, and of each parameter, its gradient and the optimiser's state a part in each.

    A block of the encoder is put together when it runs. The first process alone reads the encoder's files, in its
    machine's memory; the others build a model without values, and get their parts.
    """

    name, several = "fsdp", True

    def trainer_settings(self) -> dict[str, Any]:
        # Tensors of inference mode may not be written to in training, and what holds a whole block is used again.
        return {"strategy": ShardedStrategy(), "inference_mode": False}

    def check(self, trainer: L.Trainer, model: DenseModel, cached: bool) -> None:
        super().check(trainer, model, cached)
        if cached:
            raise ValueError("strategy=fsdp: expected cache.views=0, as no process has the whole encoder that fills it")
        if trainer.precision == "16-mixed":
            raise ValueError(
                "strategy=fsdp: expected trainer.precision=bf16-mixed or 32-true, found 16-mixed, whose scaling would "
                "differ between the parts"
            )
        single = [name for name, parameter in model.named_parameters() if parameter.ndim == 0]
        if single:
            raise ValueError(
                f"strategy=fsdp: expected parameters that can be split, found a single number, {single[0]}; give "
                "another tuning (frozen, lora, partial, full), or strategy=ddp"
            )
        if trainer.strategy.root_device.type == "cpu" and not shards_on_cpus():
            raise ValueError(
                f"strategy=fsdp: expected a GPU, as torch {torch.__version__} splits models on GPUs alone, found a "
                "CPU; take a newer torch, or strategy=ddp"
            )

    def build(self, config: dict[str, Any]) -> DenseModel:
        """The model, in other processes than the first one without values: they read no weights and take no memory."""
        if is_first_process():
            return build_model(config)
        encoder = config["encoder"]
        drawn = {**encoder, "weights": "random"} if "weights" in encoder else encoder
        with torch.device("meta"):
            model = build_model({**config, "encoder": drawn})
        model.encoder.pretrained = encoder.get("weights") == "pretrained"  # what a checkpoint leaves out
        return model


def shards_on_cpus() -> bool:
    """Whether this torch can split a model over processes on CPUs; 2.6 cannot, as its CPU streams have no events."""
    return hasattr(torch.cpu.Stream, "record_event")


def has_values(model: nn.Module) -> bool:
    """Whether a model's tensors are more than shapes."""
    return not any(parameter.is_meta for parameter in model.parameters())


class ShardedStrategy(DDPStrategy):
    """Processes as DDP has them, with a model that :func:`shard` has split."""

    def setup(self, trainer: L.Trainer) -> None:
        assert self.accelerator is not None and self.model is not None
        self.accelerator.setup(trainer)
        fitting = trainer.state.fn == TrainerFn.FITTING
        if fitting and self._layer_sync:
            self.model = self._layer_sync.apply(self.model)
        self.model = self.precision_plugin.convert_module(self.model)
        shard(self.model.model, self.root_device)  # type: ignore[arg-type]
        self.model_to_device()  # the loss and the scores
        self.barrier()
        if fitting:
            self.setup_optimizers(trainer)
            torch.set_rng_state(self.broadcast(torch.get_rng_state()))  # who had no weights to draw is behind
        self.setup_precision_plugin()

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        result = super().validation_step(*args, **kwargs)
        self._put_away()
        return result

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        result = super().test_step(*args, **kwargs)
        self._put_away()
        return result

    def _put_away(self) -> None:
        """Drops whole parameters, which no backward pass does here: they would outlive a change of their parts."""
        assert self.model is not None
        for module in self.model.modules():
            if hasattr(module, "reshard"):
                module.reshard()  # type: ignore[operator]

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return _collected(super().lightning_module_state_dict())

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        return _collected(super().optimizer_state(optimizer))

    def load_model_state_dict(self, checkpoint: Any, strict: bool = True) -> None:
        """Does nothing: the first process has the values of the checkpoint since before the model was split."""

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            parts = {
                index: {name: _like(value, parameters[index]) for name, value in values.items()}
                for index, values in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": parts})

    def teardown(self) -> None:
        # Not DDP's: the model stays split, on its devices, and the layers that it was split with stay in it.
        assert self.cluster_environment is not None and self.accelerator is not None
        self.cluster_environment.teardown()
        self.precision_plugin.teardown()
        self.accelerator.teardown()


def shard(model: DenseModel, device: torch.device) -> None:
    """Splits a model over the processes in place, with the first one's values; does nothing where it is split already.

    Each block of the encoder, and what else encoder, neck and decoder have, is put together when it runs.

    Args:
        model: on the CPU; in other processes than the first its tensors need no values.
        device: of this process.
    """
    from torch.distributed.device_mesh import init_device_mesh  # noqa: PLC0415 - a second that only this strategy costs
    from torch.distributed.fsdp import fully_shard  # noqa: PLC0415

    if any(processes.is_part(parameter) for parameter in model.parameters()):
        return
    source = {name: value.detach() for name, value in _tensors(model)} if processes.rank() == 0 else {}
    model.to("meta")
    mesh = init_device_mesh(device.type, (processes.count(),))
    for part in (*model.encoder.layers(), model.encoder, model.neck, model.decoder):
        if any(True for _ in part.parameters()):
            fully_shard(part, mesh=mesh)
    model.to_empty(device=device)
    with torch.no_grad():
        for name, value in _tensors(model):
            _fill(value, source.pop(name, None), device)


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _fill(value: Tensor, source: Tensor | None, device: torch.device) -> None:
    """Gives a parameter's parts, or a buffer, the first process's values; one after another, for memory's sake."""
    whole = torch.empty(value.shape, dtype=value.dtype, device=device) if source is None else source.to(device)
    if processes.is_part(value):
        processes.local(value).copy_(processes.local(processes.split_like(whole, value)))
    else:
        dist.broadcast(whole, 0)
        value.copy_(whole)


def _collected(state: Any) -> Any:
    """The same with whole tensors on the CPU, of which the first process alone keeps the values."""

    def collect(value: Any) -> Any:
        if not isinstance(value, Tensor) or not processes.is_part(value):
            return value
        whole = processes.whole(value)
        return whole.cpu() if processes.rank() == 0 else whole.new_empty(0, device="cpu")

    return pytree.tree_map(collect, state)


def _like(value: Any, parameter: Tensor) -> Any:
    """An optimiser's whole tensor about a parameter, split as that is; its count of steps stays as it is."""
    if not isinstance(value, Tensor) or value.shape != parameter.shape or not processes.is_part(parameter):
        return value
    return processes.split_like(value.to(parameter.device), parameter)
