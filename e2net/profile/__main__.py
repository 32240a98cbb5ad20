"""Says where a training step's time goes. See ``python -m e2net.profile --help``."""

import logging
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from e2net.arguments import help_text, print_anywhere, read_settings, refuse_overrides

USAGE = """\
Says where the time of a training step goes, how much of the device's speed it uses, and what to change.

  python -m e2net.profile                                        the default run
  python -m e2net.profile data=folder data.root=DIR encoder=dinov3_b size=384 steps=50

Everything but steps is an override of conf/train.yaml, as for train.py: give what you train with. Nothing is written,
but for the feature cache where cache.views asks for one.

Data wait is a mean, the other parts are medians; on a GPU they are told apart by waiting for it, while throughput and
MFU (model FLOPs utilisation) come from steps that nothing interrupts. MFU compares with a large matrix product that is
timed on the same device. Logging and progress bar are not in the times. Exit status: 0, or 2 for a wrong setting.
"""


@dataclass(frozen=True)
class ProfileSettings:
    """All settings of one profile, checked for their ranges.

    Attributes:
        overrides: of ``conf/train.yaml``, in Hydra's syntax.

    Raises:
        ValueError: a value is out of its range, or an override decides what this program decides.
    """

    steps: Annotated[int, "training steps to measure, after three for warming up"] = 20
    overrides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Checks the ranges."""
        others = [o for o in self.overrides if not o.startswith("hydra.searchpath=")]  # where one's own configs lie
        refuse_overrides(others, ("run_dir", "hydra"), "a profile writes no run and has no sweep")
        if self.steps < 1:
            raise ValueError(f"steps={self.steps}: expected a number of at least 1")


def main(arguments: Sequence[str]) -> int:
    """Prepares a training, profiles it and prints table and verdict.

    Args:
        arguments: of the command line, without the program's name.
    """
    if {"-h", "--help"} & set(arguments):
        print(help_text(ProfileSettings, USAGE))
        return 0
    # Only now, as these take seconds to import.
    from e2net.profile.measure import profile_job  # noqa: PLC0415
    from e2net.profile.table import format_table, verdict  # noqa: PLC0415
    from e2net.runs import compose_training, user_errors  # noqa: PLC0415
    from e2net.training import OutOfMemoryError, prepare_training  # noqa: PLC0415
    from e2net.training.run import with_memory_advice  # noqa: PLC0415

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        with user_errors():
            settings = read_settings(ProfileSettings, arguments)
            config = compose_training([*settings.overrides, f"run_dir={folder}"])
            job = prepare_training(config)
        try:
            found = with_memory_advice(job, partial(profile_job, job, settings.steps))
        except OutOfMemoryError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    print(format_table(found))
    print(verdict(found))
    return 0


if __name__ == "__main__":
    print_anywhere()
    raise SystemExit(main(sys.argv[1:]))
