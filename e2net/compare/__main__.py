"""Trains or finds what is to be compared, and writes the report. See ``python -m e2net.compare --help``."""

import sys
from collections.abc import Sequence
from pathlib import Path

from e2net.arguments import check_folder, help_text, output_folder, print_anywhere, read_settings
from e2net.compare.settings import USAGE, CompareSettings


def main(arguments: Sequence[str]) -> int:
    """Checks everything, sweeps if there is something to train, and compares.

    Args:
        arguments: of the command line, without the program's name.

    Returns:
        The exit status: 0 compared, 1 some runs failed, 2 a wrong setting or input, 130 interrupted.
    """
    if not arguments or {"-h", "--help"} & set(arguments):
        print(help_text(CompareSettings, USAGE))
        return 0 if arguments else 2
    try:
        settings = read_settings(CompareSettings, arguments)
        output = output_folder(settings.output, "compare")
        check_folder("store", Path(settings.store).expanduser())
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        return _compare(settings, output)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def _compare(settings: CompareSettings, output: Path) -> int:
    # Only now, as these take seconds to import.
    from e2net.compare.comparison import FILES, compare_variants  # noqa: PLC0415
    from e2net.compare.runs import Variant, group, read_run  # noqa: PLC0415
    from e2net.compare.sweep import make_plan, run_sweep  # noqa: PLC0415
    from e2net.compare.tables import verdict  # noqa: PLC0415
    from e2net.runs import user_errors  # noqa: PLC0415
    from e2net.runs.outputs import check_free  # noqa: PLC0415

    warnings: list[str] = []
    failures: list[str] = []
    with user_errors():  # now, not when all has been trained
        check_free("output", output, FILES)
    if settings.runs is not None:
        with user_errors():
            variants = group([read_run(str(run)) for run in settings.runs], settings.names)
    else:
        with user_errors():
            plan = make_plan(settings)
        for line in plan.warnings:
            print(f"note: {line}", file=sys.stderr)
        print(f"{len(plan.names)} variants, {len(plan.jobs)} runs, in {settings.store}: {', '.join(plan.names)}")
        with user_errors():
            run_sweep(plan, output)
        warnings = plan.warnings
        failures = [
            f"{plan.names[job.variant]}, seed {job.config['seed']}: {job.fault}" for job in plan.jobs if job.fault
        ]
        runs = [
            [read_run(job.folder) for job in plan.jobs if job.variant == i and job.finished]
            for i in range(len(plan.names))
        ]
        variants = [Variant(name, one) for name, one in zip(plan.names, runs, strict=True) if one]
    if len(variants) < 2:
        _tell(failures)
        print("error: fewer than two variants have a finished run, so there is nothing to compare", file=sys.stderr)
        return 1
    with user_errors():
        found = compare_variants(variants, output, settings, warnings, failures)
    for name in found.sets:
        for other in range(1, len(found.variants)):
            print(f"{name}, {found.score}: {verdict(found, name, other)[0]}")
    print(f"report: {output / 'report.html'}")
    _tell(failures)
    return 1 if failures else 0


def _tell(failures: Sequence[str]) -> None:
    for line in failures:
        print(f"failed: {line}", file=sys.stderr)


if __name__ == "__main__":
    print_anywhere()
    raise SystemExit(main(sys.argv[1:]))
