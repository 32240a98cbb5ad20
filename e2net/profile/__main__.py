"""Says where a training step's time goes. See ``python -m e2net.profile --help``."""

import logging
import sys
import tempfile
from collections.abc import Sequence
from functools import partial

from e2net.arguments import print_anywhere

USAGE = """\
Says where the time of a training step goes, how much of the device's speed it uses, and what to change.

  python -m e2net.profile                                        the default run
  python -m e2net.profile data=folder data.root=DIR encoder=dinov3_b size=384 steps=50

Everything but steps is an override of conf/train.yaml, as for train.py: give what you train with. Nothing is written,
but for the feature cache where cache.views asks for one.

  steps=20    training steps to measure, after three for warming up

Data wait is a mean, the other parts are medians; on a GPU they are told apart by waiting for it, while throughput and
MFU (model FLOPs utilisation) come from steps that nothing interrupts. MFU compares with a large matrix product that is
timed on the same device. Logging and progress bar are not in the times. Exit status: 0, or 2 for a wrong setting.
"""
# Hydra's, which decide nothing here, or ours.
_RESERVED = ("run_dir", "hydra", "-m", "--multirun")


def main(arguments: Sequence[str]) -> int:
    """Prepares a training, profiles it and prints table and verdict.

    Args:
        arguments: of the command line, without the program's name.
    """
    if {"-h", "--help"} & set(arguments):
        print(USAGE, end="")
        return 0
    # Only now, as these take seconds to import.
    from e2net.engine import OutOfMemoryError, compose_training, prepare_training, user_errors  # noqa: PLC0415
    from e2net.engine.run import with_memory_advice  # noqa: PLC0415
    from e2net.profile.measure import profile_job  # noqa: PLC0415
    from e2net.profile.table import format_table, verdict  # noqa: PLC0415

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        with user_errors():
            steps, overrides = parse(arguments)
            config = compose_training([*overrides, f"run_dir={folder}"])
            job = prepare_training(config)
        try:
            found = with_memory_advice(job, partial(profile_job, job, steps))
        except OutOfMemoryError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    print(format_table(found))
    print(verdict(found))
    return 0


def parse(arguments: Sequence[str]) -> tuple[int, list[str]]:
    """Takes ``steps`` out of the arguments; the others are overrides.

    Raises:
        ValueError: ``steps`` is not a positive number, or an argument decides what this program decides.
    """
    steps, overrides = 20, []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key == "steps":
            if not value.isdigit() or int(value) < 1:
                raise ValueError(f"steps={value}: expected a number of at least 1")
            steps = int(value)
        elif key.lstrip("+~") in _RESERVED or key.lstrip("+~").startswith(("hydra.", "hydra/")):
            raise ValueError(f"{argument}: a profile writes no run and has no sweep; leave it out")
        else:
            overrides.append(argument)
    return steps, overrides


if __name__ == "__main__":
    print_anywhere()
    raise SystemExit(main(sys.argv[1:]))
