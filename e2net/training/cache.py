"""The feature cache: a frozen encoder looks at every view of every image once, not once an epoch."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from e2net.datasets import DenseData
from e2net.datasets.cached import DTYPES, FeatureStore
from e2net.encoders import Encoder

log = logging.getLogger(__name__)

# Settings that say where an encoder lies, not what it is.
_PLACES = ("path", "checkpoint_dir")


class FeatureCache:
    """Settings of the cache, and the pass that fills it.

    Args:
        views: fixed views of each training image, the first of them the whole image, the others augmented; with
            their mirror images where ``data.augment.flip`` is above 0. 0: no cache, every epoch sees new views.
        folder: where it lies; kept from run to run, and replaced when anything that the features depend on changes.
        max_gb: largest size on disk, in 10⁹ bytes.
        dtype: ``float16`` or ``bfloat16``.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, views: int = 0, folder: str = "cache", max_gb: float = 20.0, dtype: str = "float16") -> None:
        if not folder:
            raise ValueError("cache.folder is empty; expected the name of a folder")
        if views < 0 or not max_gb > 0 or dtype not in DTYPES:
            raise ValueError(
                f"cache: expected views of 0 (off) or more, a positive max_gb and a dtype out of {', '.join(DTYPES)}, "
                f"found {views}, {max_gb:g} and {dtype!r}"
            )
        self.views, self.folder, self.max_gb, self.dtype = views, Path(folder), max_gb, dtype

    def check(self, encoder: Encoder, data: DenseData, plain: bool) -> None:
        """Raises ValueError where a run with these settings can't use its cache.

        Args:
            encoder: under its tuning policy.
            data: what it will look at.
            plain: whether training batches keep their size, and scores come from one look at one scale.
        """
        if not self.views:
            return
        if not encoder.frozen:
            raise ValueError("cache.views needs an encoder that does not change: tuning=frozen, or cache.views=0")
        if not plain:
            raise ValueError("cache.views keeps one size: expected train_scales=[1], test_scales=[1] and zoom_test=0")
        if self.views > 1 and data.augment is None:
            raise ValueError(
                f"cache.views={self.views} would keep equal views: data.augment is off; take cache.views=1"
            )

    def fill(
        self,
        encoder: Encoder,
        settings: Mapping[str, Any],
        data: DenseData,
        mirrored: bool,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager],
        precision: str,
    ) -> None:
        """Encodes what is not in the cache yet, and makes ``data`` read its training and validation features from it.

        Args:
            encoder: frozen.
            settings: the encoder's config, a part of the key: the features depend on more than the weights.
            data: set up for fitting.
            mirrored: whether validation needs the mirror images' features.
            device: where to encode.
            autocast: makes the context that the encoder runs in.
            precision: its name, a part of the key.
        """
        encoder.to(device)
        with torch.no_grad(), autocast():
            probe = encoder(torch.zeros(1, 3, *data.size, device=device))
        flips = data.augment is not None and data.augment.flip > 0
        views, validation = data.view_loader(self.views), data.val_dataloader()
        first_val = len(data.train_names()) * self.views * (1 + flips)
        parts = [(views, 0, flips)]
        if isinstance(validation, DataLoader):
            parts.append((validation, first_val, mirrored))
        key = {
            "encoder": [encoder.fingerprint(), {k: v for k, v in settings.items() if k not in _PLACES}],
            "precision": precision,
            "flips": [flips, mirrored],
            "data": data.view_key(self.views),
        }
        entries = first_val + (len(data.val_names()) * (1 + mirrored))
        shapes = [f.shape[1:] for f in probe]
        store = FeatureStore(self.folder, key, entries, shapes, data.size, self.dtype, self.max_gb, data.task)
        missing = set(store.missing())
        if missing:
            log.info("encoding %d views once, into %s", len(missing), self.folder)
        with tqdm(total=len(missing), desc="encoding", unit="view", disable=not missing or None) as bar:
            for loader, first, twice in parts:
                for entry, batch in _absent(loader, first, 1 + twice, missing):
                    image = batch.image.to(device).float() / 255
                    for flip in range(1 + twice):
                        with torch.no_grad(), autocast():
                            features = encoder(image.flip(-1) if flip else image)
                        targets = data.task.mirrored(batch.target) if flip else batch.target
                        store.write([e + flip for e in entry], features, targets)
                        bar.update(len(entry))
        data.read_features(store, self.views, first_val, mirrored)


def _absent(loader: DataLoader, first: int, count: int, missing: set[int]) -> Iterator[tuple[list[int], Any]]:
    """Batches of those samples of which an entry is missing, with each sample's first entry."""
    wanted = [
        i
        for i in range(len(loader.dataset))  # type: ignore[arg-type]
        if any(first + i * count + k in missing for k in range(count))
    ]
    if not wanted:
        return
    subset = DataLoader(
        Subset(loader.dataset, wanted),
        batch_size=loader.batch_size,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
    )
    at = 0
    for batch in subset:
        size = len(batch.names)
        yield [first + i * count for i in wanted[at : at + size]], batch
        at += size
