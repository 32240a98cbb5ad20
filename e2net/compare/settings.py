"""The settings of ``python -m e2net.compare``: our own keys; everything else is an override of ``conf/train.yaml``."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, get_type_hints

from e2net.arguments import read_value

USAGE = """\
Compares configurations over the same seeds, or finished runs, and writes report.html and report.md.

  python -m e2net.compare encoder=dinov2_b,dinov3_b seed=0,1,2 data=folder data.root=DIR tokens=37
  python -m e2net.compare decoder=e2net,linear seed=0,1 output=runs/decoders
  python -m e2net.compare encoder=dinov2_b,dinov3_b seed=0,1,2 hydra/launcher=submitit_slurm
  python -m e2net.compare 'runs=[runs/a, runs/b]' output=runs/a_against_b

Whatever is no setting below is an override of conf/train.yaml (see python train.py --help). A list after a comma makes
variants, one after seed= repeats each of them. Each run's folder is named by a hash of its resolved config: the same
command again continues where the last one stopped, and finished runs are used as they are.

Exit status: 0 compared, 1 some runs failed (they are listed with their logs), 2 a setting or the input is wrong.

Settings (key=value):
"""
# What a setting's help stands under, in its field.
ABOUT = "about"
# What a sweep sets itself.
_RESERVED = ("resume", "run_dir", "hydra.run", "hydra.sweep", "hydra.mode")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of one comparison, checked for their ranges.

    Attributes:
        overrides: of ``conf/train.yaml``, in Hydra's syntax.

    Raises:
        ValueError: a value is out of its range, or settings contradict each other.
    """

    runs: list | None = field(
        default=None, metadata={ABOUT: "finished run folders to compare; null: train what the overrides say"}
    )
    names: list | None = field(
        default=None, metadata={ABOUT: "of the variants, in their order; null: from what differs"}
    )
    output: str | None = field(default=None, metadata={ABOUT: "folder of the report; null: runs/compare_<time>"})
    store: str = field(default="runs/compare", metadata={ABOUT: "where a sweep keeps its run folders"})
    tokens: int | list | None = field(
        default=None, metadata={ABOUT: "patches a side, or [rows,columns]: sets size to tokens x patch for each"}
    )
    score: str = field(default="S", metadata={ABOUT: "the score that charts and pictures are about"})
    images: int = field(
        default=12, metadata={ABOUT: "pictures of each test set on which two variants disagree most; 0: none"}
    )
    cost: bool = field(default=True, metadata={ABOUT: "measure parameters, GFLOPs, time and memory on this machine"})
    device: str = field(
        default="auto", metadata={ABOUT: "for measurements and pictures: auto (a GPU if there is one) or cpu"}
    )
    resamples: int = field(default=10000, metadata={ABOUT: "of the paired bootstrap"})
    bootstrap_seed: int = field(default=0, metadata={ABOUT: "of the paired bootstrap"})
    overrides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Checks the ranges."""
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


def describe() -> str:
    """The text of ``--help``."""
    lines = []
    for key in fields(Settings):
        if ABOUT in key.metadata:
            default = str(key.default).lower().replace("none", "null") if key.name != "score" else key.default
            lines.append(f"  {f'{key.name}={default}':<22} {key.metadata[ABOUT]}")
    return USAGE + "\n".join(lines)


def parse(arguments: Sequence[str]) -> Settings:
    """Takes our own keys out of the arguments; the others are kept as overrides.

    Raises:
        ValueError: an argument is no key=value, one of our keys is given twice or has a value of another type.
    """
    hints = get_type_hints(Settings)
    own = [key.name for key in fields(Settings) if ABOUT in key.metadata]
    values: dict[str, Any] = {}
    overrides = []
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals and not argument.startswith("~"):
            raise ValueError(f"expected key=value, found {argument!r}; --help lists all keys")
        if key not in own:
            if any(key == word or key.startswith(f"{word}.") for word in _RESERVED):
                raise ValueError(f"{key}: a comparison sets it itself; leave it out (store=... says where runs go)")
            overrides.append(argument)
        elif key in values:
            raise ValueError(f"{key} is given twice")
        else:
            values[key] = read_value(key, text, hints[key])
    return Settings(**values, overrides=tuple(overrides))


def close_to_own(key: str) -> str | None:
    """The one of our keys that a mistyped key may have been meant for."""
    own = [k.name for k in fields(Settings) if ABOUT in k.metadata]
    return next(iter(difflib.get_close_matches(key, own, n=1, cutoff=0.75)), None)
