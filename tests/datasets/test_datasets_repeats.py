"""What training says of its data before it begins: the same file in two sets, and targets that are suspect."""

import itertools
import logging
import random
import shutil

import numpy as np
import pytest
from PIL import Image

from e2net.datasets import FolderData, ProceduralData
from e2net.datasets.repeats import same_files
from e2net.runs import compose_training
from e2net.training import prepare_training

QUICK = ["data=folder", "size=64", "data.num_workers=0", "decoder=linear", "trainer.accelerator=cpu", "logger=csv"]


def test_same_files_are_those_that_a_comparison_of_all_with_all_finds(tmp_path):
    draw = random.Random(0)
    sets = {}
    # Of few lengths and beginnings, so that all three steps have something to tell apart.
    for name in "abc":
        sets[name] = []
        for number in range(30):
            content = draw.choice([b"", b"x", b"y" * 200_000, b"y" * 99_000 + b"z" + b"y" * 101_000])
            content += bytes([draw.randrange(3)]) * draw.choice([0, 1, 1])
            path = tmp_path / f"{name}{number}"
            path.write_bytes(content)
            sets[name].append(path)
    places = [(name, path) for name, files in sets.items() for path in files]
    pairs = {
        (one, other) for one, other in itertools.combinations(places, 2) if one[1].read_bytes() == other[1].read_bytes()
    }
    groups = same_files(sets)
    assert all(len({name for name, _ in group}) > 1 for group in groups)
    crossing = {(one, other) for one, other in pairs if one[0] != other[0]}
    found = {pair for group in groups for pair in itertools.combinations(group, 2) if pair[0][0] != pair[1][0]}
    assert found == crossing and crossing


def _write(root, stems, seed):
    for folder in ("Image", "GT"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for number, stem in enumerate(stems):
        image = np.random.default_rng([seed, number]).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        mask = np.zeros((40, 50), np.uint8)
        mask[5:20, 10:30] = 255
        Image.fromarray(image).save(root / "Image" / f"{stem}.png")
        Image.fromarray(mask).save(root / "GT" / f"{stem}.png")


@pytest.fixture
def root(tmp_path):
    _write(tmp_path / "data" / "train", [*(f"t{n}" for n in range(6)), "v0", "v1"], 0)
    _write(tmp_path / "data" / "test", ["x0", "x1"], 1)
    return tmp_path / "data"


def _warnings(root, **more):
    data = FolderData(str(root), 32, val=["v*"], num_workers=0, **more)
    data.check()
    return data.warnings()


def test_clean_data_and_generated_data_give_no_warning(root):
    assert _warnings(root) == []
    assert ProceduralData(32, 8, 4, val_fraction=0.5).warnings() == []


def test_the_same_file_in_two_sets_is_a_warning(root):
    images = root / "train" / "Image", root / "test" / "Image"
    shutil.copy(images[0] / "t1.png", images[1] / "x1.png")
    shutil.copy(images[0] / "t2.png", images[0] / "v1.png")
    shutil.copy(images[0] / "t3.png", images[0] / "t4.png")  # both to train on: no leak
    assert sorted(_warnings(root)) == [
        "the same picture in training (t1) and test (test: x1)",
        "the same picture in training (t2) and validation (v1)",
    ]


def test_what_is_held_out_is_not_told_twice(root):
    shutil.copy(root / "train" / "Image" / "t2.png", root / "train" / "Image" / "v1.png")
    assert _warnings(root, test="validation") == ["the same picture in training (t2) and validation (v1)"]


def test_suspect_masks_are_counted(root):
    for stem, value in (("t1", 0), ("t2", 0), ("v0", 255)):
        Image.new("L", (50, 40), value).save(root / "train" / "GT" / f"{stem}.png")
    assert _warnings(root) == [
        "2 of 8 masks of the training set are suspect (empty): t1, t2",
        "1 of 8 masks of the training set are suspect (full): v0",
    ]


def _prepare(root, tmp_path, *more):
    overrides = [*QUICK, f"data.root={root}", "data.val=['v*']", f"run_dir={tmp_path / 'run'}", *more]
    return prepare_training(compose_training(overrides))


def test_training_warns_and_goes_on(root, tmp_path, caplog):
    for n in range(6):
        shutil.copy(root / "train" / "Image" / f"t{n}.png", root / "train" / "Image" / f"v{n}.png")
        shutil.copy(root / "train" / "GT" / f"t{n}.png", root / "train" / "GT" / f"v{n}.png")
    with caplog.at_level(logging.WARNING, "e2net"):
        _prepare(root, tmp_path)
    lines = [record.message for record in caplog.records if record.name == "e2net.training.run"]
    assert len(lines) == 6 and lines[0] == "the same picture in training (t0) and validation (v0)"
    assert lines[-1].startswith("1 more like these; python -m e2net.check")


def test_other_processes_of_a_run_say_nothing(root, tmp_path, caplog, monkeypatch):
    shutil.copy(root / "train" / "Image" / "t0.png", root / "train" / "Image" / "v0.png")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with caplog.at_level(logging.WARNING, "e2net"):
        _prepare(root, tmp_path)
    assert "the same picture" not in caplog.text


def test_training_without_any_object_is_refused(root, tmp_path):
    for path in (root / "train" / "GT").glob("t*.png"):
        Image.new("L", (50, 40)).save(path)
    with pytest.raises(ValueError, match="the training set has no object: all of its masks are empty"):
        _prepare(root, tmp_path)
    assert not any(tmp_path.glob("run/*.yaml"))
    Image.new("L", (50, 40), 255).save(root / "train" / "GT" / "t5.png")
    _prepare(root, tmp_path)
