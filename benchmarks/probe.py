"""What frozen patch features of encoders know of labelled pictures, beside those of random weights. Prints one table.

    python benchmarks/probe.py runs/adapt_1/encoder runs/adapt_2/encoder --roots DATA/camo/train DATA/sod300/train

Each root holds Image/ and GT/; half of its pictures, by their stems, are learned from, the others scored at their own
size. See e2net.adapt.probe.
"""

import argparse
import statistics

import torch

from e2net.adapt.probe import Probe
from e2net.encoders import Encoder, ViTEncoder


def main() -> None:
    """Prints a line for each root and encoder, and for random weights with their spread over seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", help="of encoders, vision transformers of transformers")
    parser.add_argument("--roots", nargs="+", required=True, help="labelled sets")
    parser.add_argument("--size", type=int, default=224, help="pixels a side")
    parser.add_argument("--method", choices=("linear", "knn"), default="linear")
    parser.add_argument("--pictures", type=int, default=100, help="the most to learn from, and to score on")
    parser.add_argument("--random", type=int, default=0, help="seeds of random weights of the first one's architecture")
    options = parser.parse_args()
    for root in options.roots:
        probe = Probe(root, method=options.method, size=options.size, pictures=options.pictures)
        print(f"{root}: {len(probe.train)} pictures to learn from, {len(probe.test)} scored")
        for folder in options.folders:
            _tell(folder, [probe(ViTEncoder.from_pretrained(folder))])
        if options.random:
            drawn = [probe(_random(options.folders[0], seed)) for seed in range(options.random)]
            _tell("random weights", drawn)


def _random(folder: str, seed: int) -> Encoder:
    torch.manual_seed(seed)
    return ViTEncoder.from_pretrained(folder, weights="random")


def _tell(name: str, scores: list[dict[str, float]]) -> None:
    shown = []
    for key in scores[0]:
        values = [one[key] for one in scores]
        spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
        shown.append(f"{key} {statistics.mean(values):.4f}{spread}")
    print(f"  {name:<50} {', '.join(shown)}", flush=True)


if __name__ == "__main__":
    main()
