"""Predicts maps for pictures and films. See ``python -m e2net.predict --help``."""

import os
import signal
import sys
from pathlib import Path

from e2net.arguments import help_text, print_anywhere, read_settings
from e2net.predict.inputs import find_inputs, shown
from e2net.predict.settings import USAGE, PredictSettings


def main(arguments: list[str]) -> int:
    """Checks settings and inputs, loads the model, predicts.

    Args:
        arguments: of the command line, without the program's name.

    Returns:
        The exit status: 0 all written, 1 some files failed, 2 a wrong setting or input, 130 interrupted.
    """
    if not arguments or {"-h", "--help"} & set(arguments):
        print(help_text(PredictSettings, USAGE))
        return 0 if arguments else 2
    # What these libraries say about a broken file stands between the bar and our own line about it.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    for stream in (sys.stdout, sys.stderr):  # a terminal may not know the letters of a file's name
        getattr(stream, "reconfigure", lambda errors: None)(errors="backslashreplace")
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        settings = read_settings(PredictSettings, arguments)
        items = find_inputs(settings.input, Path(settings.output).expanduser())
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    # Only now, as these take seconds to import.
    import cv2  # noqa: PLC0415

    from e2net.predict.job import Job  # noqa: PLC0415
    from e2net.runs import user_errors  # noqa: PLC0415
    from e2net.speed import is_out_of_memory  # noqa: PLC0415

    cv2.setNumThreads(1)  # pictures are read and written in threads of our own
    try:
        with user_errors():
            job = Job(settings, items)
        job.run()
    except KeyboardInterrupt:
        print(f"interrupted; what is written so far lies in {shown(Path(settings.output))}", file=sys.stderr)
        return 130
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        smaller = f"batch_size={max(1, settings.batch_size // 2)}" if settings.batch_size > 1 else "a smaller size"
        other = ", or device=cpu" if job.model.device.type != "cpu" else ""
        print(f"error: the memory does not suffice; try {smaller}{other}", file=sys.stderr)
        return 2
    return 1 if job.failures else 0


if __name__ == "__main__":
    print_anywhere()
    raise SystemExit(main(sys.argv[1:]))
