"""One picture through one file, or one checkpoint, in a process of its own: prints the most memory that took, bytes.

python -m e2net.export.alone FILE HEIGHT WIDTH THREADS [ENCODER_PATH]
"""

import resource
import sys
from pathlib import Path

import numpy as np

from e2net.export.runtimes import Run, open_file


def main(arguments: list[str]) -> None:
    """Loads, predicts once, prints."""
    file, height, width, threads, *encoder_path = arguments
    path = Path(file)
    run = _model(path, int(threads), *encoder_path) if path.suffix == ".ckpt" else open_file(path, int(threads))
    run(np.zeros((1, 3, int(height), int(width)), np.uint8))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(peak if sys.platform == "darwin" else peak * 1024)


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
