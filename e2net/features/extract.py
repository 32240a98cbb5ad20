"""From pictures to features: class token, special tokens and patches of chosen blocks, as NumPy arrays."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor

from e2net.encoders import ConvNeXtEncoder, Encoder
from e2net.encoders.base import are_indices
from e2net.encoders.hub import find_folder, is_hub_id, read_json
from e2net.formats import printable
from e2net.installation import conf_folder
from e2net.pictures import Picture, check_many, decode, is_picture, take
from e2net.runs import build
from e2net.speed import AUTOCAST, choose_device
from e2net.structures import Tokens

# The short side of a picture for the network, pixels, unless another is given.
SIDE = 512
# Patches of one picture: beyond it a wrong number is more likely than a plan.
_MOST = 1 << 17
_RANDOM = ":random"
_CHECKPOINTS = "checkpoint"


class Features(NamedTuple):
    """What one block of an encoder says about one picture.

    Attributes:
        class_token: (D,) float32; None where the encoder has none.
        special: (S, D) float32, registers and other tokens that stand for no patch.
        patches: (h, w, D) float32.
        picture: (H, W, 3) uint8 RGB, as the encoder saw it: h and w times the stride.
        name: of the file, without extension; of anything else its number, from 0.
        size: (height, width) of the picture as it came, pixels.
    """

    class_token: NDArray[np.float32] | None
    special: NDArray[np.float32]
    patches: NDArray[np.float32]
    picture: NDArray[np.uint8]
    name: str
    size: tuple[int, int]


class Extractor:
    """Pictures in, features out.

    Attributes:
        encoder: in eval mode, on ``device``.
        name: of the encoder, for tables and captions.
        blocks: 0-based indices of the blocks, as given.
        stride: pixels of the encoder's picture a patch, of the last of ``blocks``.
        size: see the arguments.

    Args:
        encoder: see :func:`load_encoder`.
        size: short side of the picture for the encoder, pixels, made the nearest multiple of the patch size; the other
            side keeps the proportions, as near as patches allow. None is 512.
        blocks: 0-based indices of blocks, in any order, of a ConvNeXt of its stages; None is the last one.
        norm: apply the model's final norm; None is as in training.
        device: ``auto`` or None takes a GPU if there is one; else a name that torch knows.
        precision: ``auto``, ``32-true``, ``bf16-mixed`` or ``16-mixed``; None is ``32-true``.

    Raises:
        ValueError: a setting that this encoder or this machine cannot follow.
        FileNotFoundError: the encoder's files are not there.
    """

    def __init__(
        self,
        encoder: Encoder | str | Path,
        size: int | None = None,
        blocks: Sequence[int] | None = None,
        norm: bool | None = True,
        device: str | None = None,
        precision: str | None = None,
    ) -> None:
        self.device = choose_device(device or "auto")
        self._autocast = _autocast(precision, self.device)
        if size is not None and not 1 <= size <= 1 << 15:
            raise ValueError(f"size={size}: expected 1 to {1 << 15} pixels")
        self.name = encoder_name(encoder)
        loaded = encoder if isinstance(encoder, Encoder) else load_encoder(encoder)
        self.encoder = loaded.to(self.device).eval()
        self.size = size or SIDE
        depth = len(loaded.blocks) if isinstance(loaded, ConvNeXtEncoder) else len(loaded.layers())
        self.blocks = [depth - 1] if blocks is None else list(blocks)
        if not self.blocks or not are_indices(self.blocks, depth):
            raise ValueError(f"blocks={blocks}: expected different 0-based indices below {depth} for {self.name}")
        self.norm = norm
        self.stride = self.stride_of(self.blocks[-1])

    def __call__(self, pictures: Iterable[Picture] | Picture, batch_size: int = 8) -> Iterator[Features]:
        """The features of each picture in turn, of the last of ``blocks``.

        Args:
            pictures: one or several: files, arrays (h, w, 3) or (h, w) uint8 RGB, tensors, Pillow's pictures or the
                bytes of files; read when they are needed.
            batch_size: at most so many go through the network at a time; those that follow each other in one size do.

        Raises:
            TypeError: something is no picture.
            ValueError: a file that is no picture, an array of another form, or a picture that is too long for ``size``.
            OSError: a file is missing or cannot be read.
        """
        for levels in self.levels(pictures, batch_size):
            yield levels[-1]

    def levels(self, pictures: Iterable[Picture] | Picture, batch_size: int = 8) -> Iterator[list[Features]]:
        """The features of each picture in turn, one for each of ``blocks``; see :meth:`__call__`."""
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: expected at least 1")
        waiting: list[_Prepared] = []
        for index, source in enumerate(_several(pictures)):
            one = self._prepare(source, index)
            if waiting and (len(waiting) == batch_size or waiting[0].picture.shape != one.picture.shape):
                yield from self._run(waiting)
                waiting = []
            waiting.append(one)
        if waiting:
            yield from self._run(waiting)

    def stride_of(self, block: int) -> int:
        """Pixels of the encoder's picture that a patch of a block stands for."""
        return self.encoder.strides[block if isinstance(self.encoder, ConvNeXtEncoder) else -1]

    def sides(self, height: int, width: int) -> tuple[int, int]:
        """(H, W) for the encoder of a picture of (height, width) pixels."""
        unit = self.encoder.size_multiple
        short = max(1, int(self.size / unit + 0.5))
        long = max(short, int(short * max(height, width) / min(height, width) + 0.5))
        if short * long > _MOST:
            raise ValueError(
                f"size={self.size}: a picture of {height}x{width} would have {short}x{long} patches; expected at most "
                f"{_MOST}: take a smaller size, or cut the picture into parts"
            )
        return (short * unit, long * unit) if height <= width else (long * unit, short * unit)

    def tensor(self, picture: np.ndarray) -> Tensor:
        """A picture (H, W, 3) uint8 RGB as the encoder takes it: (1, 3, H, W) float32 in [0, 1], on ``device``."""
        return torch.from_numpy(picture).to(self.device).permute(2, 0, 1)[None].float() / 255

    def autocast(self) -> Any:
        """A context in which the encoder computes in the chosen precision."""
        return nullcontext() if self._autocast is None else torch.autocast(self.device.type, self._autocast)

    def prepare(self, source: Picture) -> NDArray[np.uint8]:
        """A picture as the encoder sees it, (H, W, 3) uint8 RGB."""
        return self._prepare(source, 0).picture

    def _prepare(self, source: Picture, index: int) -> "_Prepared":
        values = decode(take(source))
        height, width = values.shape[:2]
        name = Path(source).stem if isinstance(source, str | os.PathLike) else str(index)
        try:
            sides = self.sides(height, width)
        except ValueError as error:
            raise ValueError(f"{printable(name)}: {error}") from None
        return _Prepared(_resized(values, sides), name, (height, width))

    @torch.no_grad()
    def _run(self, batch: "list[_Prepared]") -> Iterator[list[Features]]:
        image = torch.cat([self.tensor(one.picture) for one in batch])
        with self.autocast():
            found = self.encoder.tokens(image, blocks=self.blocks, norm=self.norm)
        blocks = [_on_cpu(tokens) for tokens in found]
        for i, one in enumerate(batch):
            yield [self._features(tokens, i, one, block) for tokens, block in zip(blocks, self.blocks, strict=True)]

    def _features(self, tokens: Tokens, i: int, one: "_Prepared", block: int) -> Features:
        stride = self.stride_of(block)
        height, width = (side // stride for side in one.picture.shape[:2])
        patches = tokens.patches[i].numpy().reshape(height, width, -1)
        if not np.isfinite(patches).all():
            raise ValueError(
                f"{printable(one.name)}: the encoder's features are not finite; compute with more range "
                "(precision=32-true or bf16-mixed)"
            )
        class_token = None if tokens.class_token is None else tokens.class_token[i].numpy()
        return Features(class_token, tokens.special[i].numpy(), patches, one.picture, one.name, one.size)


class _Prepared(NamedTuple):
    picture: NDArray[np.uint8]
    name: str
    size: tuple[int, int]


def load_encoder(name: str | Path) -> Encoder:
    """An encoder in eval mode, with its whole depth.

    Args:
        name: one of conf/encoder, such as ``dinov3_s``; a folder with an encoder's files, of transformers or of timm; a
            Hub id such as ``facebook/dinov2-base``, or a timm model as ``timm/NAME``. With ``:random`` behind it, the
            same architecture with random weights, always the same, for comparison.

    Raises:
        ValueError: there is no such encoder, or its files are broken.
        FileNotFoundError: its files are not there.
    """
    text = str(name)
    settings = _settings(text.removesuffix(_RANDOM))
    if text.endswith(_RANDOM) and not settings["_target_"].endswith("from_config"):
        settings["weights"] = "random"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder: Encoder = build(settings)
    return encoder.eval()


def encoder_name(encoder: Encoder | str | Path) -> str:
    """What to call an encoder in tables and captions."""
    if isinstance(encoder, Encoder):
        return type(encoder.backbone).__name__
    text = str(encoder)
    if is_hub_id(text, _CHECKPOINTS) or _is_config(text):
        return text
    return Path(text).name


def short_names(encoders: Sequence[str]) -> list[str]:
    """What to call several encoders: see :func:`encoder_name`, or as they were given where that makes two alike."""
    short = [encoder_name(one) for one in encoders]
    return short if len(set(short)) == len(short) else list(encoders)


def encoder_names(text: str) -> list[str]:
    """The encoders of a setting such as ``encoder=dinov2_s,dinov3_s``.

    Raises:
        ValueError: one is empty or there twice.
    """
    names = [name.strip() for name in text.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise ValueError(f"encoder={text}: expected different encoders, separated by commas")
    return names


def _several(pictures: Iterable[Picture] | Picture) -> Iterable[Picture]:
    if is_picture(pictures):
        return [pictures]  # type: ignore[list-item]
    check_many(pictures)
    return pictures  # type: ignore[return-value]


def _on_cpu(tokens: Tokens) -> Tokens:
    whole = tokens.class_token
    whole = None if whole is None else whole.float().cpu()
    return Tokens(whole, tokens.special.float().cpu(), tokens.patches.float().cpu())


def _resized(values: np.ndarray, sides: tuple[int, int]) -> NDArray[np.uint8]:
    if values.shape[:2] == sides:
        return values
    smaller = sides[0] * sides[1] < values.shape[0] * values.shape[1]
    way = cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
    return cv2.resize(values, sides[::-1], interpolation=way)  # type: ignore[return-value]


def _autocast(precision: str | None, device: torch.device) -> torch.dtype | None:
    if precision == "auto":
        from e2net.evaluation.test import choose_precision  # noqa: PLC0415 - brings Lightning, which takes seconds

        precision = choose_precision(precision, device.type)
    if precision is not None and precision not in AUTOCAST:
        raise ValueError(f"precision={precision}: expected auto or one of {', '.join(AUTOCAST)}")
    return AUTOCAST[precision or "32-true"]


def _is_config(name: str) -> bool:
    return "/" not in name and (conf_folder() / "encoder" / f"{name.removesuffix(_RANDOM)}.yaml").is_file()


def _settings(name: str) -> dict[str, Any]:
    """What ``build`` makes the encoder of."""
    if _is_config(name):
        file = conf_folder() / "encoder" / f"{name}.yaml"
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
        settings.pop("defaults", None)
        if "???" in settings.values():
            raise ValueError(f"encoder={name} stands for any; expected a folder or a Hub id in its place")
        return settings
    folder = find_folder(name, _CHECKPOINTS)
    if folder is None and name.startswith("timm/"):
        return {"_target_": f"e2net.encoders.{_family(name)}.from_timm", "path": name}
    if folder is None and not is_hub_id(name, _CHECKPOINTS):
        known = ", ".join(sorted(file.stem for file in (conf_folder() / "encoder").glob("*.yaml")))
        raise ValueError(f"encoder={name}: expected a folder, a Hub id, or one of {known}; found none of these")
    config = read_json(folder / "config.json") if folder is not None and (folder / "config.json").is_file() else {}
    way = "from_timm" if "architecture" in config else "from_pretrained"
    family = _family(str(config.get("architecture") or config.get("model_type") or name))
    return {"_target_": f"e2net.encoders.{family}.{way}", "path": name}


def _family(name: str) -> str:
    return "ConvNeXtEncoder" if "convnext" in name.lower() else "ViTEncoder"
