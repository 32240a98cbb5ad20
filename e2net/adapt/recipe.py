"""What a recipe of self-supervised training says beside crops, heads and optimiser: weights and schedules."""

import math
from collections.abc import Sequence

from e2net.losses.schedule import Weight, WeightSchedule


class Recipe:
    """Weights of the losses, and how the teacher, the heads and the encoder are treated over the run.

    Shares of training are counted from the end of the first ``head_steps``.

    Args:
        dino: weight of the DINO loss on class tokens; with a ramp or steps it changes over training, as all weights.
        local_weight: of its terms with local crops, among all of its terms.
        ibot: weight of the iBOT loss on masked patches; 0 does without masks.
        koleo: weight of KoLeo on the class tokens of each global crop.
        head_steps: so many optimiser steps train the heads alone, the encoder being as it came: published encoders
            come without heads, and random ones would lead them astray.
        freeze_last_layer: so many optimiser steps leave the heads' prototypes as they are.
        shared_head: one head for class tokens and patches (iBOT); else each has its own (DINOv2).
        teacher_momentum: what of the teacher is kept at each step.
        teacher_temperature: of the targets.
        student_temperature: of the student's probabilities.
        weight_decay: over training; None: ``optim.weight_decay`` throughout.
        drop_path: probability that a block of the student is left out for a picture.
        rope_rescale: rotary coordinates of the student are scaled by a factor drawn between its inverse and itself; 1
            is off, None is as the encoder's config has it.
        mask_probability: of a global crop to be masked.
        mask_ratio: smallest and largest share of its patches.
        patch_lr: factor on the rate of the patch embedding.
        lr_batch: number of pictures a step for which ``optim.lr`` is meant; None: for whatever there are.
        lr_power: the rate goes with (pictures a step / ``lr_batch``) to this power: 0.5 DINOv2 and 3, 1 DINO.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        dino: Weight = 1.0,
        local_weight: float = 1.0,
        ibot: Weight = 1.0,
        koleo: Weight = 0.1,
        head_steps: int = 0,
        freeze_last_layer: int = 0,
        shared_head: bool = False,
        teacher_momentum: Weight = 0.996,
        teacher_temperature: Weight = 0.07,
        student_temperature: float = 0.1,
        weight_decay: Weight | None = None,
        drop_path: float = 0.0,
        rope_rescale: float | None = None,
        mask_probability: float = 0.5,
        mask_ratio: Sequence[float] = (0.1, 0.5),
        patch_lr: float = 1.0,
        lr_batch: int | None = None,
        lr_power: float = 0.5,
    ) -> None:
        self.dino, self.ibot = WeightSchedule(dino, "adapt.dino"), WeightSchedule(ibot, "adapt.ibot")
        self.koleo = WeightSchedule(koleo, "adapt.koleo")
        self.momentum = WeightSchedule(teacher_momentum, "adapt.teacher_momentum")
        self.temperature = WeightSchedule(teacher_temperature, "adapt.teacher_temperature")
        self.decay = None if weight_decay is None else WeightSchedule(weight_decay, "adapt.weight_decay")
        if not self.dino.peak and not self.ibot.peak:
            raise ValueError("adapt.dino=0 and adapt.ibot=0: expected at least one of the two losses")
        if self.momentum.peak > 1:
            raise ValueError(f"adapt.teacher_momentum must be at most 1, found {teacher_momentum}")
        for name, value in (("local_weight", local_weight), ("head_steps", head_steps)):
            if not 0 <= value < math.inf:
                raise ValueError(f"adapt.{name} must be at least 0, found {value}")
        if freeze_last_layer < 0:
            raise ValueError(f"adapt.freeze_last_layer must be at least 0, found {freeze_last_layer}")
        if not student_temperature > 0 or not self.temperature(0.0) > 0 or not self.temperature(1.0) > 0:
            raise ValueError("adapt: temperatures must be above 0")
        if not 0 <= drop_path < 1 or not 0 <= mask_probability <= 1:
            raise ValueError(
                "adapt: expected drop_path in [0, 1) and mask_probability in [0, 1], "
                f"found {drop_path} and {mask_probability}"
            )
        if len(mask_ratio) != 2 or not 0 < mask_ratio[0] <= mask_ratio[1] < 1:
            raise ValueError(
                f"adapt.mask_ratio must be two rising shares above 0 and below 1, found {list(mask_ratio)}"
            )
        if rope_rescale is not None and not 1 <= rope_rescale < math.inf:
            raise ValueError(f"adapt.rope_rescale must be at least 1 (off), or null, found {rope_rescale}")
        if not 0 < patch_lr < math.inf or not 0 <= lr_power <= 1 or (lr_batch is not None and lr_batch < 1):
            raise ValueError(
                "adapt: expected patch_lr above 0, lr_power in [0, 1] and lr_batch of at least 1 or null, "
                f"found {patch_lr}, {lr_power} and {lr_batch}"
            )
        self.local_weight, self.student_temperature = local_weight, student_temperature
        self.head_steps, self.freeze_last_layer, self.shared_head = head_steps, freeze_last_layer, shared_head
        self.drop_path, self.rope_rescale = drop_path, rope_rescale
        self.mask_probability, self.mask_ratio = mask_probability, (float(mask_ratio[0]), float(mask_ratio[1]))
        self.patch_lr, self.lr_batch, self.lr_power = patch_lr, lr_batch, lr_power

    @property
    def masks(self) -> bool:
        """Whether the student sees masked patches."""
        return self.ibot.peak > 0

    def lr_factor(self, pictures: int) -> float:
        """Factor on ``optim.lr`` at so many pictures in an optimiser step."""
        return 1.0 if self.lr_batch is None else (pictures / self.lr_batch) ** self.lr_power


class Anchor:
    """Gram anchoring: how dense features are kept from rotting (DINOv3, section 4).

    Args:
        weight: of the Gram loss, which may change over training; 0 is off.
        scale: the Gram teacher sees each global crop at so many times its side; 1 is the same side.
        start: share of training at which the Gram teacher is copied from the teacher; 0: it is the original encoder.
        renew_every: optimiser steps after which it is copied again; None: never.
        renewals: how often at most; None: until the end.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        weight: Weight = 0.0,
        scale: float = 2.0,
        start: float = 0.0,
        renew_every: int | None = None,
        renewals: int | None = None,
    ) -> None:
        self.weight = WeightSchedule(weight, "gram.weight")
        counts = [count for count in (renew_every, renewals) if count is not None]
        if not 1 <= scale <= 4 or not 0 <= start < 1 or any(count < 1 for count in counts):
            raise ValueError(
                "gram: expected scale in [1, 4], start in [0, 1) and renew_every and renewals of at least 1 or null, "
                f"found {scale}, {start}, {renew_every} and {renewals}"
            )
        if renewals is not None and renew_every is None:
            raise ValueError(f"gram.renewals={renewals}: expected gram.renew_every beside it, found null")
        self.scale, self.start, self.renew_every, self.renewals = scale, start, renew_every, renewals

    def copies(self, step: int, steps: int) -> bool:
        """Whether the Gram teacher becomes the teacher of now, ``step`` of ``steps`` having been taken."""
        since = step - math.ceil(self.start * steps)
        if since <= 0 or self.renew_every is None:
            return since == 0 and self.start > 0
        times, rest = divmod(since, self.renew_every)
        return rest == 0 and (self.renewals is None or times <= self.renewals)

    def side(self, size: int, multiple: int) -> int:
        """Of its crops, for global crops of ``size`` pixels a side and an encoder of this size multiple."""
        return max(size, round(self.scale * size / multiple) * multiple)
