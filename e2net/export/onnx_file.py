"""ONNX files: from a traced program, with metadata, and with weights and activations of 8 bits."""

import operator
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Resize has antialiasing from 18 on; what later ones add is not needed, and not all runtimes know it.
_OPSET = 18
# Files of the format end at 2 GiB; what is larger lies beside it in a file of its own.
_MOST_BYTES = 3 << 29
# What is multiplied in 8 bits: where the weights are.
_QUANTISED = ["MatMul", "Gemm", "Conv"]


def write_onnx(program: Any, file: Path, metadata: Mapping[str, str], opset: int = _OPSET) -> None:
    """Writes what :func:`e2net.export.network.trace` gave; weights beyond 1.5 GiB as ``<file>.data``."""
    import torch  # noqa: PLC0415 - seconds
    from onnxscript import ir  # noqa: PLC0415

    written = torch.onnx.export(
        program,
        dynamo=True,
        input_names=["image"],
        output_names=["map"],
        opset_version=opset,
        verbose=False,
        custom_translation_table={operator.floordiv: _floor_divide},
    )
    assert written is not None
    for value in (*written.model.graph.inputs, *written.model.graph.outputs):
        sides = value.shape
        assert sides is not None, value.name
        names = ("batch", "channels", "height", "width")
        value.shape = ir.Shape([d if isinstance(d, int) else n for d, n in zip(sides, names, strict=True)])
    for node in ir.traversal.RecursiveGraphIterator(written.model.graph):
        node.metadata_props.clear()  # where in the sources it comes from, with the paths of this machine
    written.model.metadata_props.update(metadata)
    written.model.producer_name = "e2net"
    weights = sum(getattr(value.const_value, "nbytes", 0) for value in written.model.graph.initializers.values())
    written.save(str(file), external_data=weights > _MOST_BYTES)


def _floor_divide(dividend: Any, divisor: Any) -> Any:
    """Of whole numbers, down. ONNX divides towards zero, and so does torch's own translation: ``-(-3 // 2)`` is 1."""
    from onnxscript import opset18 as op  # noqa: PLC0415 - seconds

    # Mod has the sign of the divisor, as in Python.
    return op.Div(op.Sub(dividend, op.Mod(dividend, divisor)), divisor)


def quantise(source: Path, target: Path, pictures: Iterator[NDArray[np.uint8]], folder: Path) -> None:
    """Writes an ONNX file anew with weights and activations of 8 bits, their ranges taken from pictures.

    Static quantisation as QDQ: activations uint8, one range for each; weights int8, one scale for each output channel;
    only where an operand is a weight.

    Args:
        source: the file in float32.
        target: what is written.
        pictures: (1, 3, H, W) uint8 each.
        folder: for files in between.
    """
    import onnx  # noqa: PLC0415
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static  # noqa: PLC0415
    from onnxruntime.quantization.shape_inference import quant_pre_process  # noqa: PLC0415

    prepared = folder / "prepared.onnx"
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(target),
        _Reader(pictures),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=_QUANTISED,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        extra_options={"MatMulConstBOnly": True},
    )
    prepared.unlink()
    written, metadata = onnx.load(str(target)), onnx.load(str(source), load_external_data=False).metadata_props
    kept = {one.key for one in written.metadata_props}
    written.metadata_props.extend(one for one in metadata if one.key not in kept)
    onnx.save(written, str(target))


class _Reader:
    """Calibration pictures as onnxruntime takes them."""

    def __init__(self, pictures: Iterator[NDArray[np.uint8]]) -> None:
        self._pictures = pictures

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        picture = next(self._pictures, None)
        return None if picture is None else {"image": picture}
