"""The formats of exported files: how each is written, and how it runs.

One of your own is a subclass of :class:`Format`: a line in ``FORMATS``, or ``format=MODULE.CLASS`` where
``E2NET_TRUST`` names the module. Imports nothing heavy, and runs a file with nothing of e2net and torch but what the
format itself is.
"""

# ruff: noqa: PLC0415

import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from e2net.export.network import OnePass

# (B, 3, H, W) uint8 RGB -> (B, C, H, W) float32.
Run = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


@dataclass(frozen=True)
class Asked:
    """What is to be written.

    Attributes:
        network: one pass of the model, in the precision asked for where that is fp32 or fp16.
        size: (H, W), the only size of pictures; None: any.
        like: (H, W), a typical size.
        precision: fp32, fp16 or int8.
        pictures: gives those that ranges of 8 bits are taken from, (1, 3, H, W) uint8 each.
        checkpoint: the file that the model was loaded from.
        encoder_path: where its encoder lies now, if it has moved.
        name: of the folder that it goes to.
    """

    network: "OnePass"
    size: tuple[int, int] | None
    like: tuple[int, int]
    precision: str
    pictures: Callable[[], Iterator[NDArray[np.uint8]]]
    checkpoint: Path
    encoder_path: str | None
    name: str

    def program(self) -> Any:
        """The network as a program of ``torch.export``.

        Raises:
            ValueError: the model cannot be exported so.
        """
        from e2net.export import network

        return network.trace(self.network, self.like, self.size)


class Format(ABC):
    """A kind of file that runs a trained model."""

    # How the file's name ends, and that of its weights where they lie beside it.
    suffix: ClassVar[str]
    beside: ClassVar[str | None] = None
    # Packages beside e2net's own.
    needs: ClassVar[tuple[str, ...]] = ()
    precisions: ClassVar[tuple[str, ...]] = ("fp32",)
    # Whether it is made of a program of torch.export.
    traced: ClassVar[bool] = False
    # Whether it is the trained model itself, in its precision, at any size.
    whole: ClassVar[bool] = False

    @abstractmethod
    def write(self, asked: Asked, file: Path, metadata: Mapping[str, str]) -> None:
        """Writes the file, in a folder where nothing else is.

        Args:
            asked: what.
            file: where to.
            metadata: what the file is to say of itself, if the format can.

        Raises:
            ValueError: the model cannot be exported so.
        """

    @abstractmethod
    def open(self, file: Path, threads: int) -> Run:
        """The file, ready to run on the CPU with so many threads."""

    def files(self, stem: str) -> list[str]:
        """Names of all that is written."""
        return [stem + self.suffix, *([] if self.beside is None else [stem + self.beside])]


class Onnx(Format):
    """ONNX, for onnxruntime and most others."""

    suffix = ".onnx"
    beside = ".onnx.data"
    needs = ("onnx", "onnxscript", "onnxruntime")
    precisions = ("fp32", "fp16", "int8")
    traced = True

    def write(self, asked: Asked, file: Path, metadata: Mapping[str, str]) -> None:
        from e2net.export import onnx_file

        program = asked.program()
        if asked.precision != "int8":
            onnx_file.write_onnx(program, file, metadata)
            return
        plain = file.with_name("plain.onnx")
        onnx_file.write_onnx(program, plain, metadata)
        onnx_file.quantise(plain, file, asked.pictures(), file.parent)
        for one in file.parent.glob("plain.onnx*"):
            one.unlink()

    def open(self, file: Path, threads: int) -> Run:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        return lambda image: session.run(None, {"image": image})[0]


class Torch(Format):
    """A program of ``torch.export``."""

    suffix = ".pt2"
    precisions = ("fp32", "fp16")
    traced = True

    def write(self, asked: Asked, file: Path, metadata: Mapping[str, str]) -> None:
        import torch

        torch.export.save(asked.program(), file, extra_files={"metadata.json": json.dumps(metadata)})

    def open(self, file: Path, threads: int) -> Run:
        import torch

        torch.set_num_threads(threads)
        module = torch.export.load(file).module()

        def run(image: NDArray[np.uint8]) -> NDArray[np.float32]:
            with torch.inference_mode():
                return module(torch.from_numpy(image)).numpy()

        return run


class OpenVINO(Onnx):
    """An ONNX file as OpenVINO's own."""

    suffix = ".xml"
    beside = ".bin"
    needs = ("onnx", "onnxscript", "openvino")

    def write(self, asked: Asked, file: Path, metadata: Mapping[str, str]) -> None:
        import openvino

        source = file.with_suffix(".onnx")
        super().write(asked, source, metadata)
        model = openvino.Core().read_model(source)  # the same as convert_model, which reports its use over the network
        for key, value in metadata.items():
            model.set_rt_info(value, ["e2net", key])
        openvino.save_model(model, file, compress_to_fp16=asked.precision == "fp16")
        for one in source.parent.glob(f"{source.name}*"):
            one.unlink()

    def open(self, file: Path, threads: int) -> Run:
        import openvino

        # It computes in bf16 or fp16 where the processor has it, unless told otherwise.
        settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.Core().compile_model(str(file), "CPU", settings)
        return lambda image: compiled(image)[0].copy()


class Saved(Format):
    """What ``save_pretrained`` writes, for ``e2net.load``."""

    suffix = ".safetensors"
    whole = True

    def write(self, asked: Asked, file: Path, metadata: Mapping[str, str]) -> None:
        from e2net.hub import save_pretrained
        from e2net.runs.pretrained import FILES

        saved = file.parent / asked.name  # the card has the folder's name
        save_pretrained(asked.checkpoint, saved, encoder_path=asked.encoder_path)
        for name in FILES:
            (saved / name).replace(file.with_name(name))
        shutil.rmtree(saved)

    def open(self, file: Path, threads: int) -> Run:
        return open_model(file, threads)

    def files(self, stem: str) -> list[str]:
        from e2net.runs.pretrained import FILES

        return list(FILES)


FORMATS: dict[str, Format] = {"onnx": Onnx(), "torch": Torch(), "openvino": OpenVINO(), "safetensors": Saved()}


def find_format(name: str) -> Format:
    """The format of a name: one of ``FORMATS``, or a class of a module that ``E2NET_TRUST`` names.

    Raises:
        ValueError: there is none.
    """
    if name in FORMATS:
        return FORMATS[name]
    if "." not in name:
        raise ValueError(f"format={name}: expected {' or '.join(FORMATS)}, or MODULE.CLASS of one of your own")
    from e2net.runs.config import find_target

    found = find_target(name, "format")
    if not isinstance(found, type) or not issubclass(found, Format):
        raise ValueError(f"format={name}: expected a subclass of {Format.__module__}.Format, found {found}")
    return found()


def open_model(file: Path, threads: int, encoder_path: str | None = None) -> Run:
    """A checkpoint or a saved model in one pass of its own, with the ``sharpen`` of its run."""
    import torch

    from e2net.export.network import OnePass
    from e2net.runs import load_model
    from e2net.runs.checkpoint import trained_with

    torch.set_num_threads(threads)
    model, config = load_model(file, encoder_path)
    return run_of(OnePass(model, trained_with(config, "sharpen")).eval())


def run_of(network: "OnePass") -> Run:
    """One pass of a model, as the files have it."""
    import torch

    def run(image: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return network(torch.from_numpy(image)).numpy()

    return run
