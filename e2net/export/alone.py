"""One picture through one file, or one checkpoint, in a process of its own: prints the most memory that took, bytes.

python -m e2net.export.alone FORMAT FILE HEIGHT WIDTH THREADS [ENCODER_PATH]; FORMAT is - for a checkpoint.
"""

import resource
import sys
from pathlib import Path

import numpy as np

from e2net.export.formats import find_format, open_model


def main(arguments: list[str]) -> None:
    """Loads, predicts once, prints."""
    kind, file, height, width, threads, *encoder_path = arguments
    if kind == "-":
        run = open_model(Path(file), int(threads), *encoder_path)
    else:
        run = find_format(kind).open(Path(file), int(threads))
    run(np.zeros((1, 3, int(height), int(width)), np.uint8))
    print(_peak())


def _peak() -> int:
    status = Path("/proc/self/status")
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Not ru_maxrss: Linux begins it with what the process had that started this one.
    line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main(sys.argv[1:])
