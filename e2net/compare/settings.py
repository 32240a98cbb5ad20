"""The settings of ``python -m e2net.compare``: our own keys; everything else is an override of ``conf/train.yaml``."""

from dataclasses import dataclass
from typing import Annotated

from e2net.arguments import refuse_overrides

USAGE = """\
Compares configurations over the same seeds, or finished runs, and writes report.html and report.md.

  python -m e2net.compare encoder=dinov2_b,dinov3_b seed=0,1,2 data=folder data.root=DIR tokens=37
  python -m e2net.compare encoder=dinov3_b,checkpoint/dinov3-b-mine seed=0,1,2 data=folder data.root=DIR
  python -m e2net.compare decoder=e2net,linear seed=0,1 output=runs/decoders
  python -m e2net.compare encoder=dinov2_b,dinov3_b seed=0,1,2 hydra/launcher=submitit_slurm
  python -m e2net.compare 'runs=[runs/a, runs/b]' output=runs/a_against_b

Whatever is no setting below is an override of conf/train.yaml (see e2net train --help). A list after a comma
makes variants, one after seed= repeats each of them; encoder= takes folders too. Each run's folder is named by a hash
of its resolved config: the same command again continues where the last one stopped, and finished runs are used as
they are.

Exit status: 0 compared, 1 some runs failed (they are listed with their logs), 2 a setting or the input is wrong.
"""
# What a sweep sets itself.
_RESERVED = ("resume", "run_dir", "hydra.run", "hydra.sweep", "hydra.mode")


@dataclass(frozen=True, kw_only=True)
class CompareSettings:
    """All settings of one comparison, checked for their ranges.

    Attributes:
        overrides: of ``conf/train.yaml``, in Hydra's syntax.

    Raises:
        ValueError: a value is out of its range, or settings contradict each other.
    """

    runs: Annotated[list | None, "finished run folders to compare; null: train what the overrides say"] = None
    names: Annotated[list | None, "of the variants, in their order; null: from what differs"] = None
    output: Annotated[str | None, "folder of the report; null: runs/compare_<time>"] = None
    store: Annotated[str, "where a sweep keeps its run folders"] = "runs/compare"
    tokens: Annotated[int | list | None, "patches a side, or [rows,columns]: sets size to tokens x patch for each"] = (
        None
    )
    score: Annotated[
        str | None, "the score that charts and pictures are about; null: the one that chooses checkpoints"
    ] = None
    images: Annotated[int, "pictures of each test set on which two variants disagree most; 0: none"] = 12
    cost: Annotated[bool, "measure parameters, GFLOPs, time and memory on this machine"] = True
    device: Annotated[str, "for measurements and pictures: auto (a GPU if there is one) or cpu"] = "auto"
    resamples: Annotated[int, "of the paired bootstrap"] = 10000
    bootstrap_seed: Annotated[int, "of the paired bootstrap"] = 0
    overrides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Checks the ranges."""
        refuse_overrides(self.overrides, _RESERVED, "a comparison sets it itself (store=... says where runs go)")
        for key, low in (("images", 0), ("resamples", 100), ("bootstrap_seed", 0)):
            if getattr(self, key) < low:
                raise ValueError(f"{key}={getattr(self, key)}: expected at least {low}")
        sides = [self.tokens] if isinstance(self.tokens, int) else self.tokens
        if sides is not None and (len(sides) not in (1, 2) or not all(isinstance(n, int) and n > 0 for n in sides)):
            raise ValueError(f"tokens={self.tokens}: expected a number of patches, or [rows,columns]")
        if self.device not in ("auto", "cpu"):
            raise ValueError(f"device={self.device}: expected auto or cpu")
        if self.runs is not None and (self.overrides or self.tokens is not None):
            what = self.overrides[0] if self.overrides else f"tokens={self.tokens}"
            raise ValueError(
                f"runs=... compares runs as they are, so {what} would change nothing; leave one of them out"
            )
        if self.runs is None and not any("," in o or "(" in o for o in self.overrides):
            raise ValueError(
                "nothing to compare: expected runs=[A,B] or an override with several values such as "
                "encoder=dinov2_b,dinov3_b; --help shows more"
            )
