"""Run folders that hold what a finished run leaves, without a run."""

import csv
import itertools
import json

import yaml

from e2net.compare.comparison import compare
from e2net.compare.corruptions import Corrupted
from e2net.compare.cost import Cost
from e2net.compare.gallery import Example
from e2net.page.pictures import Picture

SCORES = ("S", "MAE")


def fake_run(folder, images=None, seed=0, width=16, name="test", protocol=None, masks="m", scores=SCORES, **more):
    """Writes a run whose images, {stem: (S, MAE)}, were scored; ``more`` goes into its config."""
    images = images or {"a": (0.5, 0.2), "b": (0.7, 0.1)}
    config = {"seed": seed, "data": {"seed": seed, "size": 64}, "decoder": {"width": width}, "run_dir": str(folder)}
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, **more}))
    protocol = protocol or {"quantise": True}
    values = {s: sum(v[i] for v in images.values()) / len(images) for i, s in enumerate(scores)}
    document = {
        "protocol": protocol,
        "scores": {name: values},
        "sets": {name: {"protocol": protocol, "file_list_sha256": "".join(images), "masks_sha256": masks}},
    }
    (folder / "test_scores.json").write_text(json.dumps(document))
    with (folder / "test_per_image.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["test_set", "name", *scores], *([name, stem, *v] for stem, v in images.items())])
    return folder


def full_comparison(folder, evil=""):
    """A comparison of three variants with everything that a report can show, and ``evil`` in each of its strings."""
    runs, score = [], f"S{evil}"
    for width, seed in itertools.product((1, 2, 3), (0, 1)):
        images = {f"{s}{evil}": (0.4 + 0.1 * k * width + 0.01 * seed, 0.1 * k) for k, s in enumerate("abc")}
        more = {"scores": (score, f"MAE{evil}"), f"key{evil}": f"{width}{evil}"}
        place, rules = folder / f"{width}{seed}{evil}", {f"rule{evil}": f"x{evil}"}
        runs.append(fake_run(place, images, seed, width, f"set{evil}", rules, **more))
        with (place / "metrics.csv").open("w", newline="") as file:
            rows = [(epoch, 1 / (epoch + width), epoch * width / 10) for epoch in range(3)]
            csv.writer(file).writerows([("epoch", "train/loss", f"val/{score}"), *rows])
    names = [f"{n}{evil}" for n in ("one", "two", "three")]
    found = compare(runs, folder / "out", names=names, score=score, cost=False, images=0)
    size = ((64, 64), (4, 4), 8)
    found.costs = [Cost(10**6 * k, 10**5, 10**9 * 20**k, *size, [0.1 * k], [0.2], 2**28 * k) for k in (1, 2, 3)]
    kinds = {f"fog{evil}": [0.5, 0.4, 0.3, 0.2, 0.1], f"rain{evil}": [0.4, 0.4, 0.4, 0.2, 0.2]}
    found.corruptions = {f"set{evil}": [Corrupted(0.6, kinds, 0.31, drop) for drop in (0.5, -0.1, float("nan"))]}
    picture = Picture("data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA=", 64, 48)
    found.examples = [
        Example(f"set{evil}", f"{stem}{evil}", 0, other, (0.4, 0.5), (0.41, 0.5), (picture,) * 4)
        for other, stem in itertools.product((1, 2), "ab")
    ]
    found.machine, found.written = f"machine{evil}", "2026-01-01 00:00 UTC"
    found.failures, found.warnings = [f"failed{evil}"], [f"warning{evil}"]
    return found
