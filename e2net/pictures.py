"""What counts as a picture in Python, and how each kind becomes RGB."""

import io
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from e2net.formats import read_image
from e2net.trees import other_kind

Picture = str | os.PathLike[str] | np.ndarray | Tensor | Image.Image | bytes | bytearray | memoryview
# What a single picture may be at fault for.
FAULTS = (ValueError, TypeError, OSError, SyntaxError, MemoryError, cv2.error)
EXPECTED = (
    "expected a path, a uint8 array (h, w, 3), (h, w) or (h, w, 4), a tensor (3, h, w), a PIL image or the bytes of "
    "a picture's file"
)


def is_picture(value: object) -> bool:
    """Whether this is one picture, well-formed or not, rather than several."""
    if isinstance(value, np.ndarray | Tensor):
        return value.ndim < 4
    return isinstance(value, str | os.PathLike | Image.Image | bytes | bytearray | memoryview)


def check_many(values: object) -> None:
    """Raises TypeError unless this can be several pictures."""
    # Open files give lines, and mappings their keys.
    if not isinstance(values, Iterable) or isinstance(values, io.IOBase | Mapping):
        raise TypeError(f"{EXPECTED}, or an iterable of them, found {type(values).__name__}")


def take(picture: Any) -> Path | bytes | NDArray[np.uint8]:
    """A picture in a form that nobody else changes; to be called before its giver goes on.

    What is cheap to hold, a path or the bytes of a file, is left for :func:`decode`, which may run in a thread.

    Raises:
        TypeError: no picture, or values of another type.
        ValueError: another shape, or values out of their range.
    """
    if isinstance(picture, str | os.PathLike):
        return Path(picture)
    if isinstance(picture, bytes | bytearray | memoryview):
        return bytes(picture)
    if isinstance(picture, Image.Image):
        return _from_pil(picture)
    if isinstance(picture, Tensor):
        return _from_tensor(picture)
    if isinstance(picture, np.ndarray):
        return _from_array(picture)
    raise TypeError(f"{EXPECTED}, found {type(picture).__name__}")


def decode(picture: Path | bytes | NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(h, w, 3) uint8 RGB of what :func:`take` gave; files are read as for training.

    Raises:
        OSError: the file is missing or cannot be read.
        ValueError: it is no file, broken or no picture.
    """
    if isinstance(picture, Path):
        if (other := other_kind(picture)) is not None:  # reading from a pipe would wait for ever
            raise ValueError(f"{picture}: expected a file, found {other}")
        return read_image(picture)
    if isinstance(picture, bytes):
        with tempfile.TemporaryDirectory(prefix="e2net-") as folder:
            file = Path(folder) / "bytes"
            file.write_bytes(picture)
            try:
                return read_image(file)
            except ValueError as error:
                raise ValueError(str(error).replace(str(file), f"{len(picture)} bytes")) from error
    return picture


def _from_array(array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.dtype != np.uint8:
        raise TypeError(f"expected an image of uint8, RGB from 0 to 255, found {array.dtype}")
    grey = array[..., None] if array.ndim == 2 else array
    if grey.ndim != 3 or grey.shape[2] not in (1, 3, 4) or grey.size == 0:
        raise ValueError(f"expected an image of shape (h, w, 3), RGB, (h, w) or (h, w, 4), found {array.shape}")
    channels = grey.repeat(3, 2) if grey.shape[2] == 1 else grey[..., :3]
    return np.array(channels, order="C")  # a copy, of plain layout


def _from_tensor(tensor: Tensor) -> NDArray[np.uint8]:
    if tensor.dtype != torch.uint8 and not tensor.dtype.is_floating_point:
        raise TypeError(f"expected a tensor of uint8, or of floats in [0, 1], found {tensor.dtype}")
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3, 4) or tensor.numel() == 0:
        raise ValueError(
            f"expected a tensor of shape (3, h, w), RGB, (1, h, w) or (4, h, w), found {tuple(tensor.shape)}"
        )
    values = tensor.detach().cpu()
    if values.dtype.is_floating_point:
        values = values.float()
        low, high = values.min().item(), values.max().item()
        if not (low >= 0 and high <= 1):  # also for NaN
            raise ValueError(
                f"expected a tensor of floats in [0, 1], found {low:.4g} to {high:.4g}; undo a normalisation, and clamp"
            )
        values = (values * 255).round().to(torch.uint8)
    return _from_array(values.permute(1, 2, 0).numpy())


def _from_pil(picture: Image.Image) -> NDArray[np.uint8]:
    """Turned as EXIF says, alpha dropped, 16-bit grey scaled to 8: as the same picture is read from its file."""
    turned = ImageOps.exif_transpose(picture)
    if turned.mode == "F":
        raise ValueError("expected an 8- or 16-bit image, found floats (mode F); scale it to 0..255 and convert to L")
    if turned.mode.startswith("I"):
        deep = np.asarray(turned)
        if deep.size and (deep.min() < 0 or deep.max() > 65535):
            raise ValueError(f"expected an 8- or 16-bit image, found values from {deep.min()} to {deep.max()} (mode I)")
        return _from_array((deep >> 8).astype(np.uint8))
    if turned.mode == "La":  # Pillow knows no direct way
        turned = turned.convert("LA")
    return _from_array(np.asarray(turned.convert("RGB")))
