"""A folder of maps scored by one call: what eval.py says of the same files, and what it refuses."""

import numpy as np
import pytest

from e2net.evaluation import evaluate, prepare_evaluation, score_folder
from e2net.evaluation.predictions import UnusableMapsError
from e2net.formats import write_map
from e2net.runs import compose_evaluation
from e2net.tasks import Camouflage


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("maps"), np.random.default_rng(0)
    for name in "abcd":
        mask = np.zeros((24, 32), bool)
        mask[4:15, rng.integers(0, 12) : 22] = True
        write_map(root / "data" / "set" / "GT" / f"{name}.png", mask.astype(np.uint8) * 255)
        noise = rng.random(mask.shape) * 120 + mask * 130
        write_map(root / "maps" / "set" / f"{name}.png", noise.astype(np.uint8))
    return root


def test_scores_are_those_of_the_program(folder, tmp_path, monkeypatch):
    given = [f"predictions={folder / 'maps'}", f"data.root={folder / 'data'}", "data.test=[set]", f"output={tmp_path}"]
    whole = evaluate(prepare_evaluation(compose_evaluation([*given, "num_workers=0", "scores=[IoU]"])))
    monkeypatch.chdir(folder / "maps" / "set")
    for maps in (folder / "maps" / "set", "."):
        found = score_folder(maps, folder / "data" / "set", scores=["IoU"], num_workers=0)
        assert (found.name, found.values()) == ("set", whole["set"])
    assert [row["name"] for row in found.scores.per_image()] == list("abcd") and not found.problems
    binarised = score_folder(".", folder / "data" / "set", Camouflage().binarised(), num_workers=0)
    assert binarised.protocol["binarise"] and binarised.values()["MAE"] < found.values()["MAE"]


def test_missing_and_broken_maps_are_errors(folder, tmp_path):
    truth, maps = folder / "data" / "set", tmp_path / "mine"
    with pytest.raises(FileNotFoundError, match="expected the maps of mine in"):
        score_folder(maps, truth)
    for name in "ab":
        write_map(maps / f"{name}.png", np.zeros((24, 32), np.uint8))
    with pytest.raises(UnusableMapsError, match=r"2 of 4 maps are missing \(c, d\).*allow_missing=True"):
        score_folder(maps, truth)
    found = score_folder(maps, truth, allow_missing=True, num_workers=0)
    assert len(found.scores) == 2 and found.problems["missing"] == ["c", "d"]
    (maps / "a.png").write_bytes(b"no picture")
    with pytest.raises(UnusableMapsError, match=r"1 files cannot be used: .*a\.png"):
        score_folder(maps, truth, allow_missing=True, num_workers=0)
