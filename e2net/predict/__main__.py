"""Predicts maps for pictures and films. See ``python -m e2net.predict --help``."""

import os
import sys
from pathlib import Path

from e2net.predict.inputs import find_inputs
from e2net.predict.settings import describe, parse


def main(arguments: list[str]) -> int:
    """Checks settings and inputs, loads the model, predicts.

    Args:
        arguments: of the command line, without the program's name.

    Returns:
        The exit status: 0 all written, 1 some files failed, 2 a wrong setting or input, 130 interrupted.
    """
    if not arguments or {"-h", "--help"} & set(arguments):
        print(describe())
        return 0 if arguments else 2
    # What these libraries say about a broken file stands between the bar and our own line about it.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    try:
        settings = parse(arguments)
        items = find_inputs(settings.input, Path(settings.output).expanduser())
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    # Only now, as these take seconds to import.
    import cv2  # noqa: PLC0415
    import torch  # noqa: PLC0415

    from e2net.engine import user_errors  # noqa: PLC0415
    from e2net.predict.job import Job  # noqa: PLC0415

    cv2.setNumThreads(1)  # pictures are read and written in threads of our own
    try:
        with user_errors():
            job = Job(settings, items)
        job.run()
    except KeyboardInterrupt:
        print(f"interrupted; what is written so far lies in {settings.output}", file=sys.stderr)
        return 130
    except torch.OutOfMemoryError:
        smaller = f"batch_size={max(1, settings.batch_size // 2)}" if settings.batch_size > 1 else "a smaller size"
        print(f"error: the GPU's memory does not suffice; try {smaller}, or device=cpu", file=sys.stderr)
        return 2
    return 1 if job.failures else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
