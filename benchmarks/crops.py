"""Pictures a second that one worker decodes, crops and augments, and how many workers a training wants.

    python benchmarks/crops.py PHOTOS                             one process, the default crops, with and without gram
    python benchmarks/crops.py PHOTOS --rate 400                  workers for a training of 400 pictures a second
    python benchmarks/crops.py PHOTOS --workers 1 2 4             measured, as the batches reach the training
    python benchmarks/crops.py PHOTOS --torchvision               beside torchvision's transforms, on the same pictures

PHOTOS is whatever data.root may be. The cases take turns; rates are medians over the turns, in brackets the lowest and
the highest. One thread a process. Without --workers the seconds are this process's CPU time, so that what else the
machine does counts little; with them they are those of the clock. The rate of a training is in pictures, not crops.
"""

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")  # before NumPy starts its threads

import torch  # noqa: E402

from e2net.adapt.crops import MultiCrop  # noqa: E402
from e2net.adapt.pictures import Pictures  # noqa: E402

# Global, local and gram crops' sides.
SIZES = {
    "224/96": (224, 96, None),
    "256/112, gram 512": (256, 112, 512),
    "512/112, gram 768": (512, 112, 768),
}


def main() -> None:
    """Prints a line for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="pictures, as data.root=")
    parser.add_argument("--batch", type=int, default=16, help="pictures in a batch")
    parser.add_argument("--batches", type=int, default=8, help="timed in each turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="*", default=[0], help="0: in this process")
    parser.add_argument("--rate", type=float, help="pictures a second that the training takes")
    parser.add_argument("--torchvision", action="store_true", help="compare with its transforms v2")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases: dict[str, Iterator[Any]] = {}
    for name, (global_, local, gram) in SIZES.items():
        for workers in options.workers:
            pictures = Pictures(options.root, batch_size=options.batch, num_workers=workers)
            loader = pictures.loader(MultiCrop(global_, local, gram_size=gram))
            cases[f"{name}, {workers} workers" if workers else name] = endless(loader)
        if options.torchvision:
            cases[f"{name}, torchvision"] = by_torchvision(pictures, global_, local, gram, options.batch)
    rates = measure(cases, options.batch, options.batches, options.turns)
    for name, found in rates.items():
        middle = statistics.median(found)
        line = f"{name:<32}{middle:7.1f} pictures/s ({min(found):.1f} to {max(found):.1f})"
        if options.rate and "workers" not in name and "torchvision" not in name:
            line += f"; {options.rate:g} pictures/s want {math.ceil(options.rate / middle)} workers"
        print(line)


def endless(loader: Any) -> Iterator[Any]:
    """Epoch after epoch of a loader."""
    while True:
        yield from loader


def measure(cases: dict[str, Iterator[Any]], batch: int, batches: int, turns: int) -> dict[str, list[float]]:
    """Pictures a second of each case in each turn."""
    rates: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(turns + 1):
        for name, source in cases.items():
            clock = time.perf_counter if "workers" in name else time.process_time
            start = clock()
            for _ in range(batches):
                next(source)
            if turn:  # the first starts workers and fills what they read ahead
                rates[name].append(batch * batches / (clock() - start))
    return rates


def by_torchvision(pictures: Pictures, global_: int, local: int, gram: int | None, batch: int) -> Iterator[Any]:
    """Batches by torchvision, of pictures decoded as a whole by e2net."""
    from torchvision.transforms import v2  # noqa: PLC0415 - timm brings it, e2net does not need it

    cubic = v2.InterpolationMode.BICUBIC

    def crop(side: int, scale: tuple[float, float]) -> list[Any]:
        return [v2.RandomResizedCrop(side, scale, interpolation=cubic), v2.RandomHorizontalFlip()]

    def colours(blur: float, solarise: float) -> list[Any]:
        return [
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(13, (0.1, 2.0))], blur),
            v2.RandomSolarize(128, solarise),
        ]

    kinds: list[tuple[Callable[..., Any], Callable[..., Any]]] = []
    for blur, solarise in ((1.0, 0.0), (0.1, 0.2)):
        shrink = [] if gram is None else [v2.Resize(global_, cubic)]
        kinds.append((v2.Compose(crop(gram or global_, (0.32, 1.0))), v2.Compose([*shrink, *colours(blur, solarise)])))
    small = v2.Compose(crop(local, (0.05, 0.32))), v2.Compose(colours(0.5, 0.0))
    kinds += [small] * 8
    index = 0
    while True:
        made = []
        for _ in range(batch):
            image = torch.from_numpy(pictures.read(index % len(pictures))).permute(2, 0, 1)
            made.append([after(before(image)) for before, after in kinds])
            index += 1
        yield [torch.stack(crops) for crops in zip(*made, strict=True)]


if __name__ == "__main__":
    main()
