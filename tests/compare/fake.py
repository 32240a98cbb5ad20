"""Run folders that hold what a finished run leaves, without a run."""

import csv
import json

import yaml

SCORES = ("S", "MAE")


def fake_run(folder, images=None, seed=0, width=16, name="test", protocol=None, masks="m", **more):
    """Writes a run whose images, {stem: (S, MAE)}, were scored; ``more`` goes into its config."""
    images = images or {"a": (0.5, 0.2), "b": (0.7, 0.1)}
    config = {"seed": seed, "data": {"seed": seed, "size": 64}, "decoder": {"width": width}, "run_dir": str(folder)}
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, **more}))
    protocol = protocol or {"quantise": True}
    values = {s: sum(v[i] for v in images.values()) / len(images) for i, s in enumerate(SCORES)}
    document = {
        "protocol": protocol,
        "scores": {name: values},
        "sets": {name: {"protocol": protocol, "file_list_sha256": "".join(images), "masks_sha256": masks}},
    }
    (folder / "test_scores.json").write_text(json.dumps(document))
    with (folder / "test_per_image.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["test_set", "name", *SCORES], *([name, stem, *v] for stem, v in images.items())])
    return folder
