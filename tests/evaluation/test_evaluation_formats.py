"""Masks and maps as files of every mode, through eval.py's own path, against PySODMetrics on what they hold."""

import csv
import json
import os
import re
import shutil
import warnings

import cv2
import formats
import numpy as np
import pytest
import torch
from conftest import ROOT
from hydra import compose, initialize_config_dir
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sod import assert_equal

from e2net.datasets import EvalSet, FolderPairs, TrainSet, collate
from e2net.datasets.transforms import Augment
from e2net.evaluation import evaluate, prepare_evaluation
from e2net.evaluation.predictions import UnusableMapsError
from e2net.metrics import MapScores
from e2net.runs import resolve

FILES = 40


@pytest.fixture(scope="module")
def config():
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        defaults = ["predictions=maps", "data.root=data", "data.test=[S]", "output=out", "num_workers=0"]
        return resolve(compose("eval", defaults))


def score(config, root):
    """Per-image scores from eval.py's path: {stem: {score: value}}."""
    config = {**config, "predictions": str(root / "maps"), "output": str(root / "out")}
    config["data"] = {**config["data"], "root": str(root / "data")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fonts and figures
        evaluate(prepare_evaluation(config))
    with (root / "out" / "per_image.csv").open(newline="") as file:
        return {row["name"]: {k: float(v) for k, v in list(row.items())[2:]} for row in csv.DictReader(file)}


def folders(root, masks=(), maps=()):
    shutil.rmtree(root, ignore_errors=True)
    for folder, files in (("data/S/GT", masks), ("maps/S", maps)):
        (root / folder).mkdir(parents=True)
        for i, file in enumerate(files):
            (root / folder / f"f{i:03}{file.suffix}").write_bytes(file.data)


shapes = st.tuples(st.integers(2, 24), st.integers(2, 24))
pairs = shapes.flatmap(lambda shape: st.tuples(formats.masks(shape), formats.maps(shape)))


once = (Phase.explicit, Phase.generate)  # to shrink 40 files at a time would take minutes
slow = list(HealthCheck)


@settings(max_examples=12, deadline=None, derandomize=True, database=None, suppress_health_check=slow, phases=once)
@given(files=st.lists(pairs, min_size=FILES, max_size=FILES))
def test_files_of_every_mode_score_as_what_they_hold(files, config, tmp_path_factory):
    root = tmp_path_factory.getbasetemp() / "every_mode"
    folders(root, [mask for (mask, _), _ in files], [map for _, (map, _) in files])
    found = score(config, root)
    assert len(found) == FILES
    for i, ((mask_file, mask), (map_file, levels)) in enumerate(files):
        assert_equal(found[f"f{i:03}"], levels, mask, f"mask {mask_file.what}; map {map_file.what}")


def test_files_that_would_be_a_guess_are_named_and_nothing_is_scored(config, tmp_path):
    rng = np.random.default_rng(0)
    mask = np.tile([[False, True], [True, True]], (6, 7))
    plain = formats.File("", ".png", formats.png(mask * 255, 8, formats.GREY))
    bad = {"mask": formats.NO_MASKS, "map": formats.NO_MAPS}
    files = {
        kind: [formats.File(name, suffix, write(mask, rng)) for name, (suffix, write, _) in table.items()]
        for kind, table in bad.items()
    }
    masks = files["mask"] + [plain] * len(files["map"])
    maps = [plain] * len(files["mask"]) + files["map"]
    folders(tmp_path, masks, maps)
    with pytest.raises(UnusableMapsError, match=f"{len(masks)} files cannot be used, so nothing is reported"):
        score(config, tmp_path)
    faults = json.loads((tmp_path / "out" / "problems.json").read_text())["S"]
    words = [row[2] for table in bad.values() for row in table.values()]
    assert len(faults) == len(words)
    for i, (fault, expected) in enumerate(zip(faults, words, strict=True)):
        assert f"/f{i:03}." in fault
        assert re.search(expected, fault), (fault, expected)
        assert expected == "truncated" or "truncated" not in fault


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(mask=shapes.flatmap(formats.masks))
def test_masks_reach_the_module_in_one_form(mask, tmp_path_factory):
    """What validation scores, and what training is told, for files of every mode."""
    file, truth = mask
    root = tmp_path_factory.getbasetemp() / "one_form"
    shutil.rmtree(root, ignore_errors=True)
    for folder in ("Image", "GT"):
        (root / folder).mkdir(parents=True)
    (root / "GT" / f"a{file.suffix}").write_bytes(file.data)
    picture = np.random.default_rng(0).integers(0, 256, (*truth.shape, 3), dtype=np.uint8)
    cv2.imwrite(str(root / "Image" / "a.png"), picture)
    pairs = FolderPairs(root)
    pairs.check()
    batch = collate([EvalSet(pairs, [0], (16, 16))[0]])
    (native,) = batch.native_targets
    assert native.dtype == bool and native.flags.c_contiguous and native.view(np.uint8).max() <= 1
    np.testing.assert_array_equal(native, truth)
    scores = MapScores(cache_bytes=1 << 20)
    levels = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)
    scores.update(torch.from_numpy(levels), native, 0, "a")
    assert_equal(scores.per_image()[0], levels, truth, file.what)
    trained = TrainSet(pairs, [0], (16, 16), Augment(), 0)[0].target
    assert set(trained.unique().tolist()) <= {0.0, 1.0}
    assert truth.any() or not trained.any()


class Foreign:
    """A source of somebody else's, whose masks hold the bytes 0 and 255, and whose arrays are views."""

    def __init__(self, truth):
        self.truth = truth

    def __len__(self):
        return 1

    def name(self, index):
        return "a"

    def read(self, index, at_least=None):
        mask = (self.truth.astype(np.uint8) * 255).view(bool)
        image = np.zeros((*self.truth.shape, 3), np.uint8)
        mask.flags.writeable = image.flags.writeable = False
        return image[::-1], mask[::-1][::-1]

    def identity(self):
        return "foreign"

    def check(self):
        pass


def test_foreign_sources_are_brought_into_the_same_form():
    truth = np.random.default_rng(0).random((31, 22)) > 0.7
    native = EvalSet(Foreign(truth), [0], (16, 16))[0].native_target
    assert native.view(np.uint8).max() == 1
    np.testing.assert_array_equal(native, truth)
    for view in (EvalSet(Foreign(truth), [0], (31, 22)), TrainSet(Foreign(truth), [0], (31, 22), None, 0)):
        np.testing.assert_array_equal(view[0].target[0].numpy(), truth)

    class Labels(Foreign):
        def read(self, index, at_least=None):
            return np.zeros((4, 4, 3), np.uint8), np.full((4, 4), 255, np.uint8)

    with pytest.raises(TypeError, match=r"Labels\.read\(0\): expected a mask \(h, w\) bool, found \(4, 4\) uint8"):
        EvalSet(Labels(truth), [0], (16, 16))[0]


def test_names_that_are_no_utf8_reach_every_file_of_the_report(config, tmp_path, capsys):
    rng = np.random.default_rng(0)
    names = [os.fsdecode(b"caf\xe9"), "fröhlich", os.fsdecode(b"caf\xea")]
    mask = rng.random((20, 30)) > 0.5
    for folder in ("data/S/GT", "maps/S"):
        (tmp_path / folder).mkdir(parents=True)
    for name in names:
        (tmp_path / "data/S/GT" / f"{name}.png").write_bytes(formats.png(mask, 1, formats.GREY))
        (tmp_path / "maps/S" / f"{name}.png").write_bytes(by_size(mask))
    (tmp_path / "maps/S" / os.fsdecode(b"stranger\xff.png")).write_bytes(by_size(mask))
    found = score(config, tmp_path)
    assert set(found) == {r"caf\udce9", r"caf\udcea", "fröhlich"}
    report = json.loads((tmp_path / "out" / "scores.json").read_text())["sets"]["S"]
    assert report["problems"]["extra"] == [os.fsdecode(b"stranger\xff.png")]  # JSON's escape is the name itself
    assert "pictures" not in report["problems"]
    assert r"stranger\udcff.png" in capsys.readouterr().out
    (tmp_path / "maps/S" / f"{names[0]}.png").write_bytes(b"")
    with pytest.raises(UnusableMapsError):
        score(config, tmp_path)
    (fault,) = json.loads((tmp_path / "out" / "problems.json").read_text())["S"]
    assert f"{names[0]}.png: truncated" in fault


def by_size(mask):
    return formats.png(mask * 200, 8, formats.GREY)


REAL = {
    "sod300": "sod300/test/GT",
    "sod300 train": "sod300/train/GT",
    "horses": "horses/GT",
    "camo": "camo/train/GT",
    "davis": "davis/camel/GT",
}


@pytest.mark.parametrize("name", REAL)
def test_published_masks_score_as_independently_decoded(name, config, shared, tmp_path):
    """Masks as they were published, and every other one written anew with 1 bit; OpenCV decodes them here."""
    folder = shared / "data" / REAL[name]
    files = sorted(folder.iterdir())
    files = files[:: max(1, len(files) // 20)]
    (tmp_path / "data" / "S").mkdir(parents=True)
    (tmp_path / "data" / "S" / "GT").mkdir()
    (tmp_path / "maps" / "S").mkdir(parents=True)
    rng, truth = np.random.default_rng(0), {}
    for i, file in enumerate(files):
        mask = np.asarray(cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)) > 127
        if i % 2:
            (tmp_path / "data" / "S" / "GT" / file.name).symlink_to(file)
        else:
            (tmp_path / "data" / "S" / "GT" / f"{file.stem}.png").write_bytes(formats.png(mask, 1, formats.GREY))
        noise = cv2.GaussianBlur(rng.random(mask.shape), (0, 0), 5)
        levels = np.clip(cv2.GaussianBlur(mask.astype(float), (0, 0), 4) * 180 + noise * 60, 0, 255).astype(np.uint8)
        cv2.imwrite(str(tmp_path / "maps" / "S" / f"{file.stem}.png"), levels)
        truth[file.stem] = levels, mask
    found = score(config, tmp_path)
    assert set(found) == set(truth)
    for stem, (levels, mask) in truth.items():
        assert_equal(found[stem], levels, mask, stem)
