"""The LightningModule of self-supervised training: the losses of a batch of crops, and what changes after each step."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from e2net.adapt.crops import CropBatch
from e2net.adapt.masking import block_masks
from e2net.adapt.networks import Heads, Pair, copy_frozen, last_tokens, move_average
from e2net.adapt.recipe import Anchor, Recipe
from e2net.adapt.targets import usage
from e2net.encoders import Encoder, Tuning
from e2net.losses.self_supervised import dino_loss, gram, ibot_loss, koleo, resize_patches
from e2net.processes import gather, one_batch
from e2net.runs.checkpoint import FORMAT, KEY
from e2net.training.finite import FiniteSteps
from e2net.training.optim import AdamW
from e2net.training.schedules import Curve
from e2net.training.step import clip

# Optimiser steps of the heads' own warm-up, where they train alone at first.
_HEAD_WARMUP = 10


class Networks(nn.Module):
    """All networks of a training.

    Args:
        student: what trains, with its heads.
        original: the encoder as it came; it is the Gram teacher until a recipe copies the teacher there.
        anchored: whether a Gram teacher is needed at all.
        own_anchor: whether it ever becomes a copy of the teacher.
    """

    def __init__(self, student: Pair, original: Encoder, anchored: bool, own_anchor: bool) -> None:
        super().__init__()
        self.student = student
        self.teacher = cast(Pair, copy_frozen(student))
        self.gram: Encoder | None = None
        if own_anchor:
            self.gram = cast(Encoder, copy_frozen(self.teacher.encoder))
            for parameter in self.gram.parameters():
                parameter.data = parameter.data.clone()
        elif anchored:
            self.gram = original


class SelfSupervised(L.LightningModule):
    """Trains an encoder without labels.

    Args:
        networks: what trains, and what it learns from.
        config: the resolved config, stored in every checkpoint.
        recipe: weights and schedules.
        anchor: Gram anchoring.
        targets: makes of a teacher's logits (N, K) targets: ``dino`` and ``ibot``.
        optim: makes the optimiser; its schedule is a curve.
        tuning: which has been applied to the student's encoder.
        seed: of the masks.
        pictures: in an optimiser step, all processes together.

    Attributes:
        steps: optimiser steps of the run.
        fingerprint: of the encoder as it came, stored in every checkpoint.
    """

    fingerprint: str = ""

    def __init__(
        self,
        networks: Networks,
        config: dict[str, Any],
        recipe: Recipe,
        anchor: Anchor,
        targets: Mapping[str, nn.Module],
        optim: AdamW,
        tuning: Tuning,
        seed: int,
        pictures: int,
    ) -> None:
        super().__init__()
        if not isinstance(optim.schedule, Curve):
            raise ValueError(
                f"schedule={type(optim.schedule).__name__}: expected a curve over the steps; give schedule=cosine, "
                "poly or step"
            )
        self.networks, self.config, self.recipe, self.anchor = networks, config, recipe, anchor
        self.targets = nn.ModuleDict(dict(targets))
        self.optim, self.tuning, self.seed, self.pictures = optim, tuning, seed, pictures
        self.steps = 1
        self.finite = FiniteSteps()
        # As in e2net.training.module: this epoch's sum of losses over images, and their number.
        self.mean_loss = torch.zeros(2)
        # Of the last batch, for a watch on collapse: see e2net.adapt.targets.usage.
        self.usage: dict[str, Tensor] = {}

    @property
    def student(self) -> Pair:
        """What trains."""
        return self.networks.student

    @property
    def teacher(self) -> Pair:
        """Its moving average, which is what is kept in the end."""
        return self.networks.teacher

    def heads_only(self, step: int) -> bool:
        """Whether the encoder does not train yet."""
        return step < self.recipe.head_steps

    def progress(self, step: int) -> float:
        """The share of training with the encoder that is done, in [0, 1]."""
        return min(1.0, max(0, step - self.recipe.head_steps) / max(self.steps - self.recipe.head_steps, 1))

    def losses(self, batch: CropBatch, rng: np.random.Generator, step: int) -> dict[str, Tensor]:
        """All losses of a batch.

        Args:
            batch: crops of B pictures, uint8.
            rng: draws the masks.
            step: how many optimiser steps have been taken.

        Returns:
            Scalars by name, un-weighted; ``loss`` is their weighted sum, to be minimised.
        """
        recipe, progress = self.recipe, self.progress(step)
        crops, images = batch.global_.shape[:2]
        whole = batch.global_.flatten(0, 1)
        masked = self._masks(rng, whole)
        with torch.no_grad():
            targets, places = self._targets(whole, masked, recipe.temperature(progress))
        frozen = self.heads_only(step)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            seen = last_tokens(self.student.encoder, whole, masked)
            local = (
                last_tokens(self.student.encoder, batch.local.flatten(0, 1)).class_token
                if batch.local.shape[0] and recipe.dino.peak
                else None
            )
        found: dict[str, Tensor] = {}
        weights = {"dino": recipe.dino(progress), "ibot": recipe.ibot(progress)}
        if recipe.dino.peak:
            assert seen.class_token is not None
            classes = seen.class_token if local is None else torch.cat([seen.class_token, local])
            logits = self.student.heads.of_classes(classes).unflatten(0, (-1, images))
            parts = dino_loss(logits, targets["dino"].unflatten(0, (crops, images)), recipe.student_temperature)
            found |= {"dino_global": parts["global"], "dino_local": parts["local"]}
            found["dino"] = self._dino(parts, crops, len(logits) - crops)
        if masked is not None and places is not None:
            logits = self.student.heads.of_patches(seen.patches[masked])
            found["ibot"] = ibot_loss(logits, targets["ibot"], places, len(whole), recipe.student_temperature)
        if not frozen and recipe.koleo.peak:
            assert seen.class_token is not None
            found["koleo"] = sum(koleo(one) for one in seen.class_token.unflatten(0, (crops, images)))  # type: ignore[assignment]
            weights["koleo"] = recipe.koleo(progress)
        weight = self.anchor.weight(progress)
        if not frozen and weight:
            found["gram"] = gram(seen.patches, self._anchors(batch))
            weights["gram"] = weight
        loss = sum(weights[name] * found[name] for name in weights if name in found)
        return {"loss": cast(Tensor, loss), **found}

    def _dino(self, parts: Mapping[str, Tensor], crops: int, local: int) -> Tensor:
        """The mean over all pairs, those with local crops weighted."""
        among, beside = crops * (crops - 1), crops * local
        if not among + beside:
            raise ValueError("crops: expected a second global crop or a local one for the DINO loss, found neither")
        return (among * parts["global"] + self.recipe.local_weight * beside * parts["local"]) / (among + beside)

    def _masks(self, rng: np.random.Generator, images: Tensor) -> Tensor | None:
        """(G·B, N) bool."""
        recipe = self.recipe
        if not recipe.masks:
            return None
        height, width = (side // self.student.encoder.size_multiple for side in images.shape[-2:])
        masks = block_masks(rng, len(images), height, width, recipe.mask_probability, recipe.mask_ratio)
        return masks.to(images.device)

    def _targets(
        self, images: Tensor, masked: Tensor | None, temperature: float
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """Targets for class tokens and masked patches, and the image of each of the latter."""
        seen, targets, places = last_tokens(self.teacher.encoder, images), {}, None
        if self.recipe.dino.peak:
            logits = self.teacher.heads.of_classes(seen.class_token)  # type: ignore[arg-type]
            # A crop at a time would have half as many samples for Sinkhorn-Knopp.
            targets["dino"] = self.targets["dino"](logits, temperature)
            if self.training:
                self.targets["dino"].update(logits)  # type: ignore[operator]
            self.usage = usage(targets["dino"])
        if masked is not None and masked.any():
            logits = self.teacher.heads.of_patches(seen.patches[masked])
            targets["ibot"] = self.targets["ibot"](logits, temperature)
            if self.training:
                self.targets["ibot"].update(logits)  # type: ignore[operator]
            places = masked.nonzero()[:, 0]
        return targets, places

    @torch.no_grad()
    def _anchors(self, batch: CropBatch) -> Tensor:
        """The Gram teacher's patches (G·B, N, D) at the student's places."""
        assert self.networks.gram is not None
        crops = batch.global_ if batch.gram is None else batch.gram
        patches = last_tokens(self.networks.gram, crops.flatten(0, 1)).patches
        multiple = self.student.encoder.size_multiple
        grid, size = ((one.shape[-2] // multiple, one.shape[-1] // multiple) for one in (crops, batch.global_))
        return patches if grid == size else resize_patches(patches, grid, size)

    def on_train_start(self) -> None:
        self.finite.start(self.student, getattr(self.trainer.precision_plugin, "scaler", None) is not None)
        self.mean_loss = self.mean_loss.to(self.device)

    def training_step(self, batch: CropBatch, batch_idx: int) -> Tensor:
        rng = np.random.default_rng([self.seed, self.current_epoch, batch_idx, self.global_rank])
        with one_batch():
            losses = self.losses(batch, rng, self.global_step)
        images = batch.global_.shape[1]
        loss = self.finite.add_loss([f"batch {batch_idx} of epoch {self.current_epoch}"], losses["loss"])
        counted = torch.stack([loss.detach() * images, torch.full_like(loss, images)])
        self.mean_loss += torch.where(loss.isfinite(), counted, 0.0)
        self.log("train/loss", losses["loss"], prog_bar=True, batch_size=images)
        self.log_dict({f"train/{k}": v for k, v in losses.items() if k != "loss"}, batch_size=images)
        self.log_dict({f"train/prototypes_{k}": v for k, v in self.usage.items()}, batch_size=images)
        return loss

    def on_after_backward(self) -> None:
        self.finite.after_backward()

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """As in :class:`~e2net.training.module.DenseModule`; gradients of kept prototypes are dropped first."""
        if self.global_step < self.recipe.freeze_last_layer:
            for parameter in self.student.heads.last_layers():
                parameter.grad = None
        finite = clip(optimizer, self.trainer.precision_plugin, gradient_clip_val, gradient_clip_algorithm)
        self.finite.add_step(self.global_step, finite)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """A step of the student, then of the teacher: before anything is saved or looked at."""
        step = self.global_step
        decay = None if self.recipe.decay is None else self.recipe.decay(self.progress(step))
        for group in optimizer.param_groups:
            if decay is not None and not group["name"].endswith("no_decay"):
                group["weight_decay"] = decay
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        momentum = self.recipe.momentum(self.progress(step))
        if self.heads_only(step):  # the teacher's random heads are to be left behind soon
            momentum = min(momentum, (1 + step) / (10 + step))
        move_average(self.teacher, self.student, momentum)
        if self.anchor.copies(step + 1, self.steps) and self.networks.gram is not None:
            move_average_whole(self.networks.gram, self.teacher.encoder)

    def on_train_epoch_end(self) -> None:
        self.finite.look()
        total, images = self.gathered_mean().sum(0)
        self.log("train/mean_loss", total / images, sync_dist=True)
        self.mean_loss.zero_()

    def gathered_mean(self) -> Tensor:
        """``mean_loss`` of all processes, (processes, 2)."""
        return gather(self.mean_loss)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Of the optimiser; those of the encoder have names that begin with ``encoder``."""
        encoder = self.student.encoder
        scales = {
            name: scale * (self.recipe.patch_lr if "patch_embed" in name else 1.0)
            for name, scale in self.tuning.lr_scales(encoder).items()
        }
        parts = {"encoder": encoder, "heads": self.student.heads}
        return self.optim.groups_of(parts, {"encoder": scales}, self.recipe.lr_factor(self.pictures))

    def configure_optimizers(self) -> Any:
        optimizer = self.optim.optimizer(self.parameter_groups())
        rates: list[Callable[[int], float]] = [
            self._encoder_rate if group["name"].startswith("encoder") else self._head_rate
            for group in optimizer.param_groups
        ]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, rates), "interval": "step"}}

    def _encoder_rate(self, step: int) -> float:
        return 0.0 if self.heads_only(step) else cast(Curve, self.optim.schedule)(self.progress(step))

    def _head_rate(self, step: int) -> float:
        curve = cast(Curve, self.optim.schedule)
        if self.heads_only(step):
            return min(1.0, (step + 1) / _HEAD_WARMUP)
        progress = self.progress(step)
        warm = self.recipe.head_steps and progress < curve.warmup
        return 1.0 if warm else curve(progress)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """What changes in training; the rest comes from the encoder's files, or its random weights from the seed."""
        changing = self._changing()
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if name in changing}

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> None:
        """Loads what :meth:`state_dict` returned; a tensor that does not fit is an error whatever ``strict`` says."""
        expected = self.state_dict()
        faults = sorted(
            {name for name in expected.keys() ^ state_dict.keys()}
            | {n for n in expected.keys() & state_dict.keys() if expected[n].shape != state_dict[n].shape}
        )
        if faults:
            raise ValueError(
                f"checkpoint does not fit: {len(faults)} tensors differ ({', '.join(faults[:3])}); give the "
                "encoder, tuning and recipe that it is of"
            )
        super().load_state_dict(state_dict, strict=False)

    def _changing(self) -> set[str]:
        trains = {name for name, parameter in self.student.named_parameters() if parameter.requires_grad}
        names = {f"networks.{part}.{name}" for part in ("student", "teacher") for name in trains}
        names |= {f"targets.{name}" for name, _ in self.targets.named_buffers()}
        if self.networks.gram is not None and (self.anchor.start or self.anchor.renew_every):
            names |= {
                f"networks.gram.{name.removeprefix('encoder.')}" for name in trains if name.startswith("encoder.")
            }
        return names

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[KEY] = {"format": FORMAT, "config": self.config, "encoder_fingerprint": self.fingerprint}


@torch.no_grad()
def move_average_whole(copy: nn.Module, network: nn.Module) -> None:
    """Makes a copy of a network of the same structure equal to it."""
    for mine, theirs in zip(copy.parameters(), network.parameters(), strict=True):
        mine.copy_(theirs)


def make_heads(make: Any, width: int, recipe: Recipe) -> Heads:
    """The student's heads, of ``make(width=...)``."""
    return Heads(lambda wide: make(width=wide), width, recipe)
