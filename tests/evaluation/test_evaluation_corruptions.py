"""A checkpoint on corrupted pictures: its scores are those of a plain loop, for every task, whatever the batches."""

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT
from hydra import compose, initialize_config_dir
from tiny import TINY

from e2net import load
from e2net.datasets import ProceduralPairs, Resize
from e2net.datasets.corruptions import KINDS, STRENGTHS, corrupt, drawn_for
from e2net.datasets.datamodule import CorruptedSet
from e2net.evaluation import evaluate, prepare_evaluation
from e2net.evaluation.corruptions import summary
from e2net.runs import inherit, resolve
from e2net.tasks import Camouflage, Depth
from e2net.training import prepare_training, train

TASKS = {
    "camouflage": [],
    "semantic": ["task=semantic", "loss=semantic", "decoder=linear"],
    "depth": ["task=depth", "loss=depth", "decoder=linear"],
}
NAMES = ("corruptions.csv", "corruptions.png", "corruptions.json")


def _compose(name, *overrides):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose(name, list(overrides))
    return resolve(inherit(config, overrides) if name == "eval" else config)


def _evaluate(run, output, *overrides):
    job = prepare_evaluation(_compose("eval", f"ckpt={run}", f"output={output}", "accelerator=cpu", *overrides))
    return job, evaluate(job)


def _document(folder):
    return json.loads((folder / "corruptions.json").read_text())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A short run of each task."""
    folder = tmp_path_factory.mktemp("runs")
    for task, overrides in TASKS.items():
        tiny = [o for o in TINY if task == "camouflage" or o != "decoder.width=16"]
        short = ["trainer.max_epochs=1", "num_samples=0", f"run_dir={folder / task}"]
        train(prepare_training(_compose("train", *tiny, *overrides, *short)))
    return folder


@pytest.fixture(scope="module")
def run(runs):
    return runs / "camouflage"


def _plain_loop(run, kinds):
    """{kind: {strength: {score: value}}}, one picture and copy after the other, without e2net's evaluation."""
    model = load(run, device="cpu").model
    job = prepare_evaluation(_compose("eval", f"ckpt={run}", f"output={run}/none", "accelerator=cpu"))
    task, source = job.module.task, job.data.source("test", job.data.test_names[0])
    found = {}
    for kind in kinds:
        for strength in STRENGTHS:
            scored = []
            for i in range(len(source)):
                image, target = source.read(i)
                target = task.canonical(target)
                copy = corrupt(image, kind, strength, drawn_for(source.name(i), kind, strength))
                small = Resize(job.data.size, task).image(copy)
                with torch.no_grad():
                    pixels = torch.from_numpy(small).permute(2, 0, 1)[None].float() / 255
                    activated = task.activate(model(pixels).prediction)[0]
                result = task.finish(activated, target.shape[:2])
                scored.append((i, source.name(i), task.score(result, target)))
            found.setdefault(kind, {})[str(strength)] = task.tabulate(scored).values()
    return found


@pytest.mark.parametrize("task", TASKS)
def test_scores_are_those_of_a_plain_loop(task, runs, tmp_path, capsys):
    run = runs / task
    job, scores = _evaluate(run, tmp_path / "a", "corruptions=[noise,fog]")
    found = _document(tmp_path / "a")
    (name,) = found["sets"]
    one, monitor = found["sets"][name], job.module.task.monitor
    assert found["kinds"] == ["noise", "fog"] and found["score"] == monitor and one["images"] == 3
    assert one["clean"] == pytest.approx(scores[name], nan_ok=True)
    expected = _plain_loop(run, ["noise", "fog"])
    for kind, by_strength in expected.items():
        for strength, values in by_strength.items():
            assert one["corrupted"][kind][strength] == pytest.approx(values, abs=2e-3), (kind, strength)
    # Its mean and drop, by hand.
    values = [v[monitor] for by in one["corrupted"].values() for v in by.values()]
    assert len(values) == 10 and one["mean"][monitor] == pytest.approx(np.mean(values))
    clean, falling = scores[name][monitor], job.module.task.directions[monitor] == "min"
    drop = (clean - np.mean(values)) / clean if clean else None
    assert one["relative_drop"][monitor] == (None if drop is None else pytest.approx(-drop if falling else drop))
    printed = capsys.readouterr().out
    assert f"mean corrupted {monitor}" in printed and "noise" in printed and "blur" not in printed
    assert max(map(len, printed.splitlines())) <= 80


def test_a_second_look_is_at_the_copies_own_pixels(run, tmp_path):
    """As who corrupts a file and has it predicted."""
    job, _ = _evaluate(run, tmp_path, "corruptions=[noise]", "zoom_test=1.5", "data.batch_size=2")
    model = load(run, device="cpu", zoom=1.5)
    (name,) = job.data.test_names
    task, source, one = job.module.task, job.data.source("test", name), _document(tmp_path)["sets"][name]
    for strength in (0, 1, 5):
        scored = []
        for i in range(len(source)):
            image, target = source.read(i)
            drawn = drawn_for(source.name(i), "noise", strength)
            result = model.predict(corrupt(image, "noise", strength, drawn) if strength else image)
            scored.append((i, source.name(i), task.score(np.rint(result.prob * 255).astype(np.uint8), target)))
        expected = task.tabulate(scored).values()
        assert (one["corrupted"]["noise"][str(strength)] if strength else one["clean"]) == pytest.approx(expected)


def test_batches_workers_and_order_change_nothing(run, tmp_path):
    kinds = "corruptions=[noise,motion]"
    _evaluate(run, tmp_path / "a", kinds, "data.batch_size=1")
    _evaluate(run, tmp_path / "b", kinds, "data.batch_size=7", "data.num_workers=2")
    a, b = (_document(tmp_path / folder)["sets"] for folder in "ab")
    for name, one in a.items():
        for kind, by_strength in one["corrupted"].items():
            for strength, values in by_strength.items():
                assert b[name]["corrupted"][kind][strength] == pytest.approx(values, abs=2e-3)


def test_files_of_the_report(run, tmp_path):
    _evaluate(run, tmp_path, "corruptions=true", "method=mine")
    found = _document(tmp_path)
    assert found["kinds"] == list(KINDS) and found["strengths"] == [1, 2, 3, 4, 5] and found["method"] == "mine"
    assert found["checkpoint_sha256"] == json.loads((tmp_path / "scores.json").read_text())["checkpoint_sha256"]
    (name,) = found["sets"]
    with (tmp_path / "corruptions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 41 and rows[0]["kind"] == "clean" and {row["test_set"] for row in rows} == {name}
    for row in rows[1:]:
        value = found["sets"][name]["corrupted"][row["kind"]][row["strength"]][found["score"]]
        assert float(row[found["score"]]) == value
    picture = cv2.imread(str(tmp_path / "corruptions.png"))
    assert picture.shape[0] > 300 and picture.std() > 10
    left = {path.name.partition(".")[0] for path in tmp_path.iterdir() if not path.name.startswith(".")}
    assert left == {
        "scores", "intervals", "per_image", "curves", "table", "calibration", "corruptions", "worst_best_procedural",
        "maps", "samples", "eval_environment",
    }  # fmt: skip
    # An evaluation without them leaves none of another's.
    _evaluate(run, tmp_path)
    assert not any((tmp_path / file).exists() for file in NAMES) and (tmp_path / "scores.json").exists()


def test_clean_results_are_those_of_an_evaluation_without(run, tmp_path):
    (_, plain), (_, beside) = (
        _evaluate(run, tmp_path / name, *more) for name, more in (("a", []), ("b", ["corruptions=[blur]"]))
    )
    assert plain == beside
    a, b = (
        {p.relative_to(tmp_path / one): p.read_bytes() for p in (tmp_path / one).rglob("*.png")} for one in ("a", "b")
    )
    assert b.pop(Path("corruptions.png")) and a == b and len(a) > 4


def test_after_an_interruption_the_clean_scores_are_there(run, tmp_path, monkeypatch):
    def interrupted(*_args):
        raise KeyboardInterrupt

    (tmp_path / "corruptions.json").write_text('{"e2net": "of an earlier evaluation"}')
    (tmp_path / "scores.json").write_text('{"e2net": "of an earlier evaluation"}')
    monkeypatch.setattr("e2net.evaluation.test.score_corrupted", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _evaluate(run, tmp_path, "corruptions=[fog]")
    assert "procedural" in json.loads((tmp_path / "scores.json").read_text())["scores"]
    assert not any((tmp_path / file).exists() for file in NAMES)


# Without a run


def test_copies_of_an_image_are_read_once_and_follow_the_conditions(monkeypatch):
    source, reads = ProceduralPairs(3, 0, 0.2, "test"), []
    read = source.read
    monkeypatch.setattr(source, "read", lambda index, at_least=None: reads.append(index) or read(index, at_least))
    asked = [("fog", 2), ("noise", 5), ("fog", 1)]
    copies = CorruptedSet(source, (32, 48), asked, Camouflage())
    assert len(copies) == 3
    item = copies[1]
    assert reads == [1] and item.name == source.name(1) and item.position == 1
    image, mask = read(1)
    assert item.image.shape == (3, 3, 32, 48) and np.array_equal(item.native_target, mask)
    for tensor, (kind, strength) in zip(item.image, asked, strict=True):
        made = corrupt(image, kind, strength, drawn_for(source.name(1), kind, strength))
        assert np.array_equal(tensor.permute(1, 2, 0), Resize((32, 48)).image(made))


def test_drops_have_the_direction_of_the_score():
    up = summary(Camouflage(), {"S": 0.8, "MAE": 0.1}, {"fog": {1: {"S": 0.6, "MAE": 0.2}, 2: {"S": 0.4, "MAE": 0.3}}})
    assert up[0] == pytest.approx({"S": 0.5, "MAE": 0.25}) and up[1] == pytest.approx({"S": 0.375, "MAE": 1.5})
    down = summary(Depth(), {"RMSE": 2.0}, {"fog": {1: {"RMSE": 1.0}}})
    assert down[1] == pytest.approx({"RMSE": -0.5})
    assert np.isnan(summary(Camouflage(), {"S": 0.0}, {"fog": {1: {"S": 0.1}}})[1]["S"])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("[]", r"corruptions \(true, false, or some\): expected a list of kinds"),
        ("[rain]", r"corruptions \(true, false, or some\): expected a list of kinds"),
        ("noise", r"corruptions \(true, false, or some\): expected a list of kinds"),
        ("3", "corruptions"),
        ("null", "corruptions"),
    ],
)
def test_kinds_that_are_none_are_refused(given, words, run):
    with pytest.raises(ValueError, match=words):
        prepare_evaluation(_compose("eval", f"ckpt={run}", f"output={run}/none", f"corruptions={given}"))


@pytest.mark.parametrize("given", ["true", "[fog]", "false"])
def test_a_folder_of_maps_is_refused_in_one_line(given):
    with pytest.raises(ValueError, match="corruptions: an evaluation of maps that are there already has no use for it"):
        _compose("eval", "predictions=maps", "data=procedural", f"corruptions={given}")


def test_maps_cannot_be_those_of_corrupted_pictures(tmp_path):
    (tmp_path / "procedural").mkdir()
    config = _compose("eval", f"predictions={tmp_path}", "data=procedural", f"output={tmp_path}/out")
    with pytest.raises(ValueError, match=r"corruptions: maps on disk are of clean pictures alone; give ckpt="):
        prepare_evaluation({**config, "corruptions": True})
