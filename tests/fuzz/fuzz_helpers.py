"""What several tests of this folder need."""

import warnings
from pathlib import Path

from conftest import ROOT
from hydra import compose, initialize_config_dir

from e2net.evaluation import evaluate, prepare_evaluation
from e2net.runs import resolve


class Evil:
    """Makes a file where it is unpickled."""

    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return (open, (self.file, "w"))


def evaluate_maps(maps: Path, root: Path, name: str, output: Path):
    """Scores of maps on disk of one test set, given as Hydra takes it."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = resolve(compose("eval", ["predictions=x", "output=x", "data.root=x", "num_workers=0"]))
    tests = {"[red]x[-y]": "s"} if name.startswith("{") else [name]
    config |= {"predictions": str(maps), "output": str(output)}
    config["data"] |= {"root": str(root), "test": tests, "test_folder": ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return evaluate(prepare_evaluation(config))
