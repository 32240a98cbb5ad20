"""The encoders that conf/encoder/ describes: their size, their cost, and which of them a GPU can hold."""

import json
import sys
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import e2net.encoders
from e2net.arguments import read_settings
from e2net.encoders.base import Encoder
from e2net.encoders.hub import build_backbone, weights_on_disk
from e2net.encoders.options import ListingSettings
from e2net.encoders.tuning import Adapters, Full
from e2net.flops import FlopCounter
from e2net.installation import conf_folder

_BYTES = 4  # of a 32-bit number
# Of a weight that trains: itself, its gradient and AdamW's two moments.
_TRAINED_BYTES = 4 * _BYTES
_TUNINGS = ("frozen", "adapter", "full")


@dataclass(frozen=True)
class Cost:
    """What an encoder is and needs at one image size.

    Attributes:
        parameters: of the whole checkpoint's architecture.
        channels: of F1..F4.
        depth: residual blocks.
        size_multiple: pixels; the patch size, or the coarsest stride.
        special_tokens: before the patches; None for a model without tokens.
        size: pixels a side of the image.
        flop: of one image forward.
        frozen, adapter, full: bytes of activations of one image at the most, under these tuning policies.
        adapters: parameters of adapters after all blocks.
    """

    parameters: int
    channels: tuple[int, ...]
    depth: int
    size_multiple: int
    special_tokens: int | None
    size: int
    flop: int
    frozen: int
    adapter: int
    full: int
    adapters: int

    def memory(self, batch: int) -> dict[str, float]:
        """GiB for each way of tuning; ``options.USAGE`` says what is counted."""
        weights = self.parameters * _BYTES
        needed = {
            "frozen": weights + batch * self.frozen,
            "adapter": weights + self.adapters * _TRAINED_BYTES + batch * self.adapter,
            "full": self.parameters * _TRAINED_BYTES + batch * self.full,
        }
        return {name: size / 2**30 for name, size in needed.items()}


class _Meter(TorchDispatchMode):
    """Counts the bytes of tensors that are alive at a time and were made under this mode.

    Args:
        known: addresses of the storages that were there before; an operation may return a view of one.
    """

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.now = 0
        self.most = 0
        self._seen = known

    def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata  # views share it
        if key in self._seen:
            return
        self._seen.add(key)
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._release, key, storage.nbytes())

    def _release(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


class _FusedAttention(TorchFunctionMode):
    """Attention on the meta device as a GPU does it: without the matrix of all pairs of tokens in memory.

    What PyTorch would choose for tensors without data is another matter, and another one in each release.
    """

    def __torch_function__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is F.scaled_dot_product_attention:
            return _attend(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)[0]


def measure(encoder: Encoder, parameters: int, size: int, block: int | None = None, more: int = 0) -> Cost:
    """The cost of ``encoder``, built on the meta device, for images of about ``size`` pixels a side.

    Args:
        encoder: as it is to be measured; tuning policies are applied to it.
        parameters: of the whole checkpoint.
        size: pixels; rounded to the nearest multiple of the encoder's.
        block, more: count this block (0-based) so many times more, as if the encoder had that many others of its kind.
    """
    step = encoder.size_multiple
    size = max(1, round(size / step)) * step
    image = torch.empty(1, 3, size, size, device="meta")
    depth = len(encoder.layers()) + more
    with torch.no_grad():
        frozen = _read(encoder, image, block)
    Full().apply(encoder)
    full = _read(encoder, image, block)
    with torch.device("meta"):
        Adapters().apply(encoder)
    adapter = _read(encoder, image, block)
    adapters = _count_trained(encoder) + more * (_count_trained(encoder.layers()[block]) if block is not None else 0)
    return Cost(
        parameters,
        encoder.channels,
        depth,
        step,
        getattr(encoder, "num_special_tokens", None),
        size,
        frozen.flop + more * frozen.flop_of_block,
        frozen.most,  # without a graph a block leaves nothing behind
        adapter.most + more * adapter.left_by_block,
        full.most + more * full.left_by_block,
        adapters,
    )


def list_encoders(options: ListingSettings, conf: Path) -> Table:
    """A row for each file in ``conf`` that says which model it wants; ``encoder=local`` and ``timm`` take any.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not conf.is_dir():
        raise FileNotFoundError(
            f"expected the encoders' settings in {conf}, found no such folder; install e2net by pip install, from a "
            "wheel or a checkout"
        )
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("encoder", no_wrap=True)
    for title in ("params", "width", "depth", "patch", "extra", "size", "GFLOP", "activ.", *_TUNINGS, "files"):
        table.add_column(title, justify="right", no_wrap=True)
    rows = []
    for file in sorted(conf.glob("*.yaml")):
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
        if settings.get("config"):
            rows.append((file.stem, settings, _cost(_key(settings), options.size)))
    for name, settings, cost in sorted(rows, key=lambda row: (row[0].partition("_")[0], row[2].parameters)):
        table.add_row(name, *_cells(cost, options), _files(settings.get("path"), options.checkpoint_dir))
    return table


def show(arguments: Sequence[str], conf: Path | None = None) -> int:
    """Prints the table of encoders; returns the exit status."""
    try:
        options = read_settings(ListingSettings, arguments)
        table = list_encoders(options, conf or conf_folder() / "encoder")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    console = Console(width=100)
    console.print(table)
    console.print(
        f"[dim]GFLOP for one image, GiB for {options.batch}; python -m e2net.encoders --help says what is counted.[/]"
    )
    if options.gpu_gb is not None:
        console.print(f"[green]*[/] fits {options.gpu_gb:g} GiB, without the decoder")
    return 0


def _key(settings: Mapping[str, Any]) -> str:
    """The model as a string: two encoders that differ in their weights only are measured once."""
    class_name, norm = settings["_target_"].split(".")[-2], settings.get("norm", True)
    return json.dumps([class_name, settings["config"], norm], sort_keys=True)


@lru_cache
def _cost(key: str, size: int) -> Cost:
    import transformers.modeling_utils  # noqa: F401, PLC0415 - brings torch._dynamo, for torch 2.6 not on "meta"

    class_name, config, norm = json.loads(key)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in build_backbone(config).parameters())
    # Blocks of the same shape cost the same: a short model tells what the whole does, in a fraction of the time.
    short, block, more = _shorten(config)
    return measure(_build(class_name, short, norm), parameters, size, block, more)


def _build(class_name: str, config: Mapping[str, Any], norm: bool = True) -> Encoder:
    with torch.device("meta"):
        return getattr(e2net.encoders, class_name)(build_backbone(config), norm=norm)


def _shorten(config: Mapping[str, Any]) -> tuple[dict[str, Any], int, int]:
    """A config with fewer blocks, the index of a block that follows one of its kind, and how many are left out."""
    if "num_hidden_layers" in config:
        return {**config, "num_hidden_layers": 4}, 3, config["num_hidden_layers"] - 4
    depths = list(config["depths"])
    longest = depths.index(max(depths))
    more = depths[longest] - 2
    depths[longest] = 2
    return {**config, "depths": depths}, sum(depths[: longest + 1]) - 1, more


class _Reading(NamedTuple):
    """Of one forward pass: the most bytes alive, its FLOP, and what one block leaves alive and takes in FLOP."""

    most: int
    flop: int
    left_by_block: int
    flop_of_block: int


def _count_trained(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def _read(encoder: Encoder, image: torch.Tensor, block: int | None) -> _Reading:
    counter = FlopCounter()
    meter = _Meter({t.untyped_storage()._cdata for t in (*encoder.parameters(), *encoder.buffers(), image)})
    after: list[tuple[int, int]] = []
    watched = encoder.layers()[block - 1 : block + 1] if block else []
    hooks = [b.register_forward_hook(lambda *_: after.append((meter.now, counter.total))) for b in watched]
    with _FusedAttention(), counter, meter:
        encoder(image)
    for hook in hooks:
        hook.remove()
    (bytes_before, flop_before), (bytes_after, flop_after) = after or [(0, 0), (0, 0)]
    return _Reading(meter.most, counter.total, bytes_after - bytes_before, flop_after - flop_before)


def _cells(cost: Cost, options: ListingSettings) -> list[str]:
    count = f"{cost.parameters / 1e6:.1f}M" if cost.parameters < 1e8 else f"{cost.parameters / 1e6:.0f}M"
    first, last = cost.channels[0], cost.channels[-1]
    width = str(last) if first == last else f"{first}-{last}"
    patch = str(cost.size_multiple) if cost.special_tokens is not None else "4-32"
    extra = "" if cost.special_tokens is None else str(cost.special_tokens)
    flop = cost.flop / 1e9
    activations = [options.batch * size / 2**30 for size in (cost.frozen, cost.full)]
    memory = []
    for needed in cost.memory(options.batch).values():
        fits = options.gpu_gb is not None and needed <= options.gpu_gb
        memory.append(f"{needed:.1f}[green]{'*' if fits else ' '}[/]")
    return [
        count if cost.parameters < 1e9 else f"{cost.parameters / 1e9:.2f}B",
        width,
        str(cost.depth),
        patch,
        extra,
        str(cost.size),
        f"{flop:,.0f}" if flop >= 10 else f"{flop:.1f}",
        "/".join(f"{size:.{2 if size < 1 else 1}f}" for size in activations),
        *memory,
    ]


def _files(path: str | None, checkpoint_dir: str) -> str:
    if path is None:
        return ""
    return "yes" if weights_on_disk(path, checkpoint_dir) else "no"
