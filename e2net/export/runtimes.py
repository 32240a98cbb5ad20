"""The files run by what they are for; of e2net and torch, only what the format itself is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# (B, 3, H, W) uint8 RGB -> (B, C, H, W) float32.
Run = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


# Of the files of each format.
SUFFIXES = (".onnx", ".pt2", ".xml")


def open_file(file: Path, threads: int) -> Run:
    """A file that was exported, ready to run on the CPU.

    Args:
        file: it ends in one of ``SUFFIXES``.
        threads: to compute with.
    """
    return {".onnx": _onnx, ".pt2": _torch, ".xml": _openvino}[file.suffix](file, threads)


def _onnx(file: Path, threads: int) -> Run:
    import onnxruntime  # noqa: PLC0415 - each only where it is used

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {"image": image})[0]


def _torch(file: Path, threads: int) -> Run:
    import torch  # noqa: PLC0415

    torch.set_num_threads(threads)
    module = torch.export.load(file).module()

    def run(image: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return module(torch.from_numpy(image)).numpy()

    return run


def _openvino(file: Path, threads: int) -> Run:
    import openvino  # noqa: PLC0415

    # It computes in bf16 or fp16 where the processor has it, unless told otherwise.
    settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(file), "CPU", settings)
    return lambda image: compiled(image)[0].copy()
