"""One picture through one file, or one checkpoint, in a process of its own: prints the most memory that took, bytes.

python -m e2net.export.alone FILE HEIGHT WIDTH THREADS [ENCODER_PATH]
"""

import resource
import sys
from pathlib import Path

import numpy as np

from e2net.export.runtimes import SUFFIXES, Run, open_file


def main(arguments: list[str]) -> None:
    """Loads, predicts once, prints."""
    file, height, width, threads, *encoder_path = arguments
    path = Path(file)
    run = open_file(path, int(threads)) if path.suffix in SUFFIXES else _model(path, int(threads), *encoder_path)
    run(np.zeros((1, 3, int(height), int(width)), np.uint8))
    print(_peak())


def _peak() -> int:
    status = Path("/proc/self/status")
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Not ru_maxrss: Linux begins it with what the process had that started this one.
    line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _model(file: Path, threads: int, encoder_path: str | None = None) -> Run:
    import torch  # noqa: PLC0415 - a file needs none of these

    from e2net.export.network import OnePass  # noqa: PLC0415
    from e2net.runs import load_model  # noqa: PLC0415

    torch.set_num_threads(threads)
    network = OnePass(load_model(file, encoder_path)[0])

    def run(image: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(image)).numpy()

    return run


if __name__ == "__main__":
    main(sys.argv[1:])
