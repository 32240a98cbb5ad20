"""Reads all of a data set and says what is wrong with it. See ``python -m e2net.check --help``."""

import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from e2net.arguments import help_text, output_folder, print_anywhere, read_settings
from e2net.check.settings import USAGE, CheckSettings


def main(arguments: Sequence[str]) -> int:
    """Checks the settings, reads the data, reports.

    Args:
        arguments: of the command line, without the program's name.

    Returns:
        The exit status: 0 no errors, 1 errors, 2 a wrong setting or input, 130 interrupted.
    """
    if not arguments or {"-h", "--help"} & set(arguments):
        print(help_text(CheckSettings, USAGE))
        return 0 if arguments else 2
    try:
        settings = read_settings(CheckSettings, arguments)
        output = output_folder(settings.output, "check")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    # What these libraries say about a broken file would stand between the bar and our own line about it.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")
    warnings.filterwarnings("ignore", module="PIL")
    try:
        return _check(settings, output)
    except KeyboardInterrupt:
        print("interrupted; no report was written", file=sys.stderr)
        return 130


def _check(settings: CheckSettings, output: Path) -> int:
    # Only now, as these take seconds to import.
    import cv2  # noqa: PLC0415

    from e2net.check.page import page  # noqa: PLC0415
    from e2net.check.report import FILES, as_json, print_findings  # noqa: PLC0415
    from e2net.check.survey import check_data, data_of  # noqa: PLC0415
    from e2net.files import write_atomically  # noqa: PLC0415
    from e2net.runs import compose_training, user_errors  # noqa: PLC0415
    from e2net.runs.outputs import check_free, claim  # noqa: PLC0415

    cv2.setNumThreads(1)  # pictures are read in threads of our own
    with user_errors():
        check_free("output", output, FILES)
        data = data_of(compose_training([*settings.overrides, f"run_dir={output}"]))
        found = check_data(data, settings.threads)
    html = page(found, settings.images)
    with user_errors():  # a disk that is full
        claim(output, FILES)
        write_atomically(output / "check.html", html)
        write_atomically(output / "check.json", as_json(found))
    print_findings(found)
    print(f"page: {output / 'check.html'}")
    fatal = ("error", "warning") if settings.strict else ("error",)
    return 1 if any(one.severity in fatal for one in found.findings) else 0


if __name__ == "__main__":
    print_anywhere()
    raise SystemExit(main(sys.argv[1:]))
