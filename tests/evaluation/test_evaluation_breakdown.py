"""Where maps fail: every image in one group of each kind, means and intervals as SciPy has them, files and a page."""

import contextlib
import csv
import io
import json
import math
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from typing import Any

import cv2
import numpy as np
import pytest
import scipy.stats
from conftest import ROOT
from hydra import compose, initialize_config_dir

from e2net.evaluation import evaluate, prepare_evaluation
from e2net.evaluation.breakdown import break_down, mean_of, share_of, student_quantile
from e2net.evaluation.predictions import ReportOptions
from e2net.metrics import DEFAULT_SCORES, ScoreTable
from e2net.metrics.objects import ERRORS, error_of, measure_object
from e2net.runs import resolve
from e2net.runs.config import compose_training
from e2net.runs.overrides import inherit
from e2net.tasks import Camouflage, Depth, Semantic
from e2net.tasks.base import Placed
from e2net.training import prepare_training, train

COUNT = 32
EVIL = "<b>{{ 7 * 7 }}&[red]"


def _write(root, name, images=True, seed=0):
    """Pairs of many kinds, and maps that are right, shifted, cut, spread, faint, empty or noise."""
    rng = np.random.default_rng(seed)
    for i in range(COUNT):
        shape = tuple(rng.integers(20, 90, 2))
        field = cv2.GaussianBlur(rng.random(shape), (0, 0), float(rng.uniform(2, 9)))
        mask = field > np.quantile(field, 1 - rng.choice([0.004, 0.03, 0.1, 0.2, 0.5]))
        if i in (3, 4):
            mask[:] = i == 4
        if i == 5:
            mask[:] = False
            mask[7, 9] = True
        found = mask if i % 4 == 0 else np.roll(mask, rng.integers(-15, 16, 2), (0, 1)) if i % 4 == 1 else mask
        if i % 4 == 2:
            found = found & (np.indices(shape)[1] < shape[1] * rng.uniform(0.3, 0.8))
        if i % 4 == 3:
            found = cv2.dilate(found.astype(np.uint8), np.ones((9, 9))) > 0
        levels = found * 200.0 + rng.uniform(0, 30, shape)
        if i in (6, 7, 8):
            levels *= (0, 0.1, 0.5)[i - 6]
        if i == 4:
            levels[:] = 255
        files = {f"data/{name}/GT": mask * 255, f"maps/{name}": np.round(levels)}
        if images:
            files[f"data/{name}/Imgs"] = rng.integers(0, 256, (*shape, 3)) // np.where(mask, 1, 3)[..., None]
        for folder, values in files.items():
            (root / folder).mkdir(parents=True, exist_ok=True)
            stem = f"{EVIL}{i}" if i >= 10 else f"m{i}"
            assert cv2.imwrite(str(root / folder / f"{stem}.png"), values.astype(np.uint8))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("breakdown")
    _write(root, "A")
    _write(root, "B", images=False, seed=1)
    return root


def _run(root, output, *overrides, sets="A"):
    defaults = [f"predictions={root}/maps", f"data.root={root}/data", f"data.test=[{sets}]", f"output={output}"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = resolve(compose("eval", [*defaults, "num_workers=0", "breakdown=true", *overrides]))
    return evaluate(prepare_evaluation(config))


@pytest.fixture(scope="module")
def evaluated(folders, tmp_path_factory):
    output = tmp_path_factory.mktemp("evaluated")
    scores = _run(folders, output, "scores=[IoU,FmaxPR,bMAE]", "binarised_too=true", sets="A,B")
    return output, scores, json.loads((output / "breakdown.json").read_text())


@pytest.fixture(scope="module")
def plain(folders, tmp_path_factory):
    """An evaluation of one set, and what it has printed."""
    output, shown = tmp_path_factory.mktemp("plain") / "out", io.StringIO()
    with contextlib.redirect_stdout(shown):
        _run(folders, output)
    return output, shown.getvalue()


def _rows(output, label):
    with (output / "per_image.csv").open(newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file) if row["test_set"] == label}


def test_every_image_is_in_one_group_of_each_kind(evaluated):
    _, _, document = evaluated
    assert set(document["sets"]) == {"A", "A (binarised)", "B", "B (binarised)"}
    names = [grouping["name"] for grouping in document["groupings"]]
    assert names[0] == "error" and len(names) == len(set(names)) == 9
    for one in document["sets"].values():
        assert len(one["images"]) == COUNT and list(one["groups"]) == names
        for grouping in document["groupings"]:
            groups = one["groups"][grouping["name"]]
            assert list(groups) == [group["name"] for group in grouping["groups"]]
            told = Counter(image[grouping["name"]]["group"] for image in one["images"])
            assert {name: group["images"] for name, group in groups.items()} == {n: told[n] for n in groups}
            assert sum(group["images"] for group in groups.values()) == COUNT
            assert sum(group["share"]["value"] for group in groups.values()) == pytest.approx(1)
            for name, group in groups.items():
                inside = [i for i in one["images"] if i[grouping["name"]]["group"] == name]
                assert group["error"] == {k: sum(i["error"]["group"] == k for i in inside) for k in ERRORS}
    kinds = {kind for kind, group in document["sets"]["A"]["groups"]["error"].items() if group["images"]}
    assert len(kinds) >= 5, "too few kinds of error for a test"


def test_groups_are_where_their_names_say(evaluated):
    """The numbers in a group's name are its bounds: the lower one belongs to it, the upper one does not."""
    _, _, document = evaluated
    for one in document["sets"].values():
        for image in one["images"]:
            for grouping in document["groupings"][1:]:
                place = image[grouping["name"]]
                if place["group"] == "undefined":
                    assert "value" not in place
                    continue
                value = place["value"]
                ends = [
                    float(x) * (0.01 if "%" in place["group"] else 1) for x in re.findall(r"[\d.]+", place["group"])
                ]
                if grouping["name"] == "border":
                    assert place["group"] == ("touches" if value else "inside")
                elif place["group"].startswith("below"):
                    assert value < ends[0]
                elif place["group"].startswith("from") or "or more" in place["group"]:
                    assert value >= ends[0]
                else:
                    assert ends[0] <= value and (value == ends[0] if len(ends) == 1 else value < ends[1])


def test_a_bound_belongs_to_the_group_above():
    half = np.zeros((20, 20), bool)
    half[:3, :20] = True  # 15 % of all
    placed = Camouflage().place(half.astype(np.uint8) * 255, half)
    column = [grouping.name for grouping in Camouflage.groupings].index("object size")
    assert Camouflage.groupings[column].groups[placed.groups[column]].name == "15 to 30 %"


def test_means_and_intervals_are_those_of_scipy(evaluated):
    output, scores, document = evaluated
    columns = [*(s for s in DEFAULT_SCORES if s not in ("Fmax", "Emax")), "IoU", "bMAE"]  # FmaxPR is of a set only
    for label, one in document["sets"].items():
        rows = _rows(output, label)
        assert list(one["scores"]) == columns
        for name in columns:
            assert one["scores"][name]["value"] == pytest.approx(scores[label][name], abs=1e-12)
        for grouping, groups in one["groups"].items():
            for name, group in groups.items():
                inside = [i["name"] for i in one["images"] if i[grouping]["group"] == name]
                share = scipy.stats.binomtest(len(inside), COUNT).proportion_ci(method="wilson")
                found = group["share"]
                assert [found[k] for k in ("value", "low", "high")] == pytest.approx([len(inside) / COUNT, *share])
                for score in columns:
                    values = np.array([float(rows[stem][score]) for stem in inside])
                    _check_mean(group["scores"][score], values[~np.isnan(values)])


def _check_mean(found, values):
    ends: Any = (None, None)
    if len(values) > 1:
        spread = scipy.stats.sem(values)
        ends = scipy.stats.t.interval(0.95, len(values) - 1, values.mean(), spread) if spread else [values[0]] * 2
    assert found["value"] == (pytest.approx(values.mean(), abs=1e-12) if len(values) else None)
    assert (found["low"], found["high"]) == (ends if ends[0] is None else pytest.approx(tuple(ends), abs=1e-9))


def test_quantiles_of_student_are_those_of_scipy():
    for freedom in [*range(1, 60), 100, 999, 5000]:
        assert student_quantile(freedom) == pytest.approx(scipy.stats.t.ppf(0.975, freedom), rel=1e-8), freedom
    assert student_quantile(None) == pytest.approx(scipy.stats.norm.ppf(0.975))
    assert student_quantile(4, 0.5) == pytest.approx(scipy.stats.t.ppf(0.75, 4))


def test_intervals_hold_the_true_mean_as_often_as_they_say():
    rng = np.random.default_rng(0)
    for count in (2, 5, 30):
        drawn = [mean_of(rng.normal(0.7, 0.1, count)) for _ in range(2000)]
        assert np.mean([one.low <= 0.7 <= one.high for one in drawn]) == pytest.approx(0.95, abs=0.015)
    held = [one.low <= 0.1 <= one.high for one in (share_of(k, 40) for k in rng.binomial(40, 0.1, 2000))]
    assert np.mean(held) == pytest.approx(0.95, abs=0.02)
    assert math.isnan(mean_of(np.array([0.5])).low) and mean_of(np.array([0.5, 0.5])).half == 0


def test_kinds_and_measures_are_those_of_the_files(folders, evaluated):
    _, _, document = evaluated
    for label, place in (("A", "A"), ("A (binarised)", "A"), ("B", "B")):
        for image in document["sets"][label]["images"]:
            name = f"{image['name']}.png"
            mask = np.asarray(cv2.imread(str(folders / "data" / place / "GT" / name), cv2.IMREAD_GRAYSCALE)) > 127
            levels = cv2.imread(str(folders / "maps" / place / name), cv2.IMREAD_GRAYSCALE).astype(float)
            low, high = levels.min(), levels.max()
            if label == "A (binarised)":
                found = levels > 127
            else:  # stretched first, as the protocol has it; a constant map is left
                found = (levels - low) / (high - low) > 0.5 if high > low else levels > 127
            assert image["error"]["group"] == error_of(found, mask)
            picture = cv2.imread(str(folders / "data" / place / "Imgs" / name)) if place == "A" else None
            measures = measure_object(mask, None if picture is None else np.ascontiguousarray(picture[..., ::-1]))
            values = [image[grouping["name"]].get("value", math.nan) for grouping in document["groupings"][1:]]
            assert sorted(values, key=str) == pytest.approx(sorted(measures, key=str), nan_ok=True)
            assert ("value" in image["colour contrast"]) == (place == "A" and 0 < mask.mean() < 1)


def test_processes_change_nothing(folders, evaluated, tmp_path):
    _run(folders, tmp_path, "num_workers=2", "scores=[IoU,FmaxPR,bMAE]", "binarised_too=true", sets="A,B")
    assert json.loads((tmp_path / "breakdown.json").read_text()) == evaluated[2]


class _Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.elements, self.texts = Counter(), []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements[tag] += 1
        for name, value in attrs:
            assert name not in ("src", "href") or value.startswith("data:"), "the page fetches something"

    def handle_data(self, data):
        self.texts.append(data)


def test_the_page_shows_tables_and_the_worst_of_each_kind(evaluated):
    output, _, document = evaluated
    text = (output / "breakdown.html").read_text()
    found = _Elements(text)
    counts = [one["groups"]["error"] for label, one in document["sets"].items() if "binarised" not in label]
    shown = sum(min(6, group["images"]) for groups in counts for group in groups.values())
    assert found.elements["img"] == shown and found.elements["table"] == 4 * 9
    assert not found.elements["b"] and EVIL in "".join(found.texts)
    assert len(text) < 6_000_000
    expected = []
    for label in ("A", "B"):
        for kind in ERRORS:
            images = [i for i in document["sets"][label]["images"] if i["error"]["group"] == kind]
            worst = sorted(images, key=lambda image: (image["S"], image["position"]))[:6]
            expected += [f"{i['name']}, S {i['S']:.3f}".replace("S 0.", "S .") for i in worst]
    assert [one for one in found.texts if re.search(r", S (\.|1\.)\d{3}$", one)] == expected


def test_the_table_fits_a_terminal(plain):
    output, shown = plain
    lines = shown[shown.index("A: means by group") :].splitlines()
    assert max(map(len, lines)) <= 80
    listed = [line.split() for line in lines]
    assert ["all", str(COUNT)] in [words[:2] for words in listed]
    document = json.loads((output / "breakdown.json").read_text())
    for kind, group in document["sets"]["A"]["groups"]["error"].items():
        assert [*kind.split(), str(group["images"])] in [words[: len(kind.split()) + 1] for words in listed]


def test_an_evaluation_without_it_leaves_none(folders, plain, tmp_path):
    output = shutil.copytree(plain[0], tmp_path / "out")
    assert (output / "breakdown.json").exists() and (output / "breakdown.html").exists()
    _run(folders, output, "breakdown=false")
    assert not list(output.glob("breakdown*"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "breakdown.json").write_text("mine")
    with pytest.raises(ValueError, match=r"breakdown.json is there and was not written by e2net"):
        _run(folders, tmp_path / "other")
    assert (tmp_path / "other" / "breakdown.json").read_text() == "mine"


def test_missing_maps_are_in_no_group(folders, tmp_path):
    for path in (folders / "maps" / "A").glob("*.png"):
        if path.stem not in ("m1", "m2"):
            (tmp_path / "maps" / "A").mkdir(parents=True, exist_ok=True)
            (tmp_path / "maps" / "A" / path.name).write_bytes(path.read_bytes())
    _run(folders, tmp_path / "out", f"predictions={tmp_path}/maps", "allow_missing=true")
    one = json.loads((tmp_path / "out" / "breakdown.json").read_text())["sets"]["A"]
    assert len(one["images"]) == COUNT - 2 and {"m1", "m2"}.isdisjoint(image["name"] for image in one["images"])


def test_a_page_that_cannot_be_drawn_costs_no_score(folders, tmp_path, monkeypatch):
    def panel(*_):
        raise ValueError("no picture")

    monkeypatch.setattr(Camouflage, "panel", panel)
    _run(folders, tmp_path)
    report = json.loads((tmp_path / "scores.json").read_text())
    assert report["sets"]["A"]["problems"]["pictures"] == ["breakdown.html: no picture"]
    assert (tmp_path / "breakdown.json").exists() and not (tmp_path / "breakdown.html").exists()


@pytest.mark.parametrize("task", [Semantic(classes=3), Depth()])
def test_tasks_without_groups_refuse_in_one_line(task):
    with pytest.raises(ValueError, match=f"breakdown=true: task={task.name} has no groups of images to score apart"):
        ReportOptions(breakdown=True).check(task)
    ReportOptions().check(task)
    with pytest.raises(NotImplementedError):
        task.place(None, np.zeros((2, 2)))


def test_no_work_begins_where_it_is_refused(tmp_path):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        given = [
            "task=depth",
            f"predictions={tmp_path}",
            "data.root=nowhere",
            f"output={tmp_path}/out",
            "breakdown=true",
        ]
        config = resolve(compose("eval", given))
    with pytest.raises(ValueError, match="breakdown=true: task=depth"):
        prepare_evaluation(config)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_and_its_maps_fail_alike(folders, tmp_path):
    run = tmp_path / "run"
    short = [
        "data=folder",
        f"data.root={folders}/data",
        "data.train=A",
        "data.test=[A]",
        "data.num_workers=0",
        "size=32",
    ]
    short += ["data.batch_size=8", "trainer.max_epochs=1", "trainer.accelerator=cpu", f"run_dir={run}", "num_samples=0"]
    train(prepare_training(compose_training([*short, "decoder.width=16"])))
    given = [f"ckpt={run}", "accelerator=cpu", f"output={tmp_path}/a", "num_samples=0", "breakdown=true"]
    given += ["scores=[wC]"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        evaluate(prepare_evaluation(resolve(inherit(compose("eval", given), given))))
    _run(folders, tmp_path / "b", f"predictions={tmp_path}/a/maps", "scores=[wC]")
    documents = [json.loads((tmp_path / name / "breakdown.json").read_text()) for name in "ab"]
    assert documents[0]["sets"] == documents[1]["sets"] and documents[0]["groupings"] == documents[1]["groupings"]
    assert (tmp_path / "a" / "breakdown.html").exists()


def test_one_image_alone_has_a_breakdown():
    task = Camouflage()
    for mask in (np.zeros((1, 1), bool), np.ones((1, 1), bool), np.eye(7, dtype=bool)):
        for levels in (np.zeros(mask.shape, np.uint8), np.full(mask.shape, 255, np.uint8)):
            placed = task.place(levels, mask, None)
            assert isinstance(placed, Placed) and len(placed.groups) == len(placed.values) == len(task.groupings)
            table = ScoreTable.of(task.scores, [(0, "one", task.score(levels, mask))])
            found = break_down(task, table, {0: placed})
            for _, results in found.groupings:
                assert [result.positions for result in results if result.positions] == [[0]]
