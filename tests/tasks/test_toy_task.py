"""A task that e2net does not know, in one file and one YAML, through the whole program."""

import csv
import json

import cv2
import numpy as np
import pytest
from toy_normals import Normals

from e2net import load
from e2net.compare.__main__ import main as compare_main
from e2net.compare.comparison import compare
from e2net.compare.settings import CompareSettings
from e2net.compare.sweep import evaluation_config, make_plan
from e2net.compare.tables import is_significant
from e2net.datasets import Augment
from e2net.evaluation import evaluate, prepare_evaluation
from e2net.film import FilmReader, FilmWriter
from e2net.formats import read_image
from e2net.predict.__main__ import main as predict_main
from e2net.profile.__main__ import main as profile_main
from e2net.runs.config import compose_training
from e2net.training import prepare_training, train

SIZES = [(40, 56), (48, 48), (33, 47)]


@pytest.fixture(scope="module", autouse=True)
def trusted():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("E2NET_TRUST", "toy_normals")
        yield


def _write_pairs(folder, count, rng):
    """Hills under a light from the upper left, and their normals."""
    task = Normals()
    (folder / "Image").mkdir(parents=True)
    for i in range(count):
        height, width = SIZES[i % len(SIZES)]
        hills = cv2.GaussianBlur(rng.standard_normal((height, width)).astype(np.float32), (0, 0), 5) * 60
        slope_y, slope_x = np.gradient(hills)
        normals = np.dstack([-slope_x, -slope_y, np.ones_like(hills)])
        normals = (normals / np.linalg.norm(normals, axis=2, keepdims=True)).astype(np.float32)
        lights = np.array([[-0.6, y, 0.5] for y in (-0.6, 0, 0.6)], np.float32)
        image = np.clip(255 * np.stack([normals @ light for light in lights], axis=2), 0, 255)
        cv2.imwrite(str(folder / "Image" / f"{i}.png"), image.astype(np.uint8)[..., ::-1])
        task.write(folder / "Normals" / f"{i}.png", task.to_file(normals))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("normals"), np.random.default_rng(0)
    _write_pairs(folder / "train", 12, rng)
    _write_pairs(folder / "test", 3, rng)
    return folder


@pytest.fixture(scope="module")
def overrides(data, request):
    return [
        f"hydra.searchpath=[file://{request.path.parent / 'toy'}]", "experiment=normals", f"data.root={data}",
        "size=32", "decoder.width=16", "data.batch_size=4", "data.num_workers=0", "data.val_fraction=0.3",
        "trainer.accelerator=cpu", "trainer.max_epochs=8", "trainer.check_val_every_n_epoch=4", "num_samples=1",
        "encoder.config.hidden_size=24", "encoder.config.intermediate_size=32", "encoder.config.num_hidden_layers=4",
        "optim.lr=0.003",
    ]  # fmt: skip


def _train(overrides, folder, *more):
    train(prepare_training(compose_training([*overrides, *more, f"run_dir={folder}"])))
    return folder


@pytest.fixture(scope="module")
def run(overrides, tmp_path_factory):
    return _train(overrides, tmp_path_factory.mktemp("runs") / "e2net", "flip_test=true", "test_scales=[1,1.5]")


@pytest.fixture(scope="module")
def other(overrides, tmp_path_factory):
    """Of another decoder, on features from the cache."""
    folder = tmp_path_factory.mktemp("other")
    more = ["decoder=linear", "tuning=frozen", "cache.views=2", f"cache.folder={folder / 'cache'}", "flip_test=true"]
    return _train(_without_width(overrides), folder / "linear", *more)


def _without_width(overrides):
    return [o for o in overrides if o != "decoder.width=16"]


def test_a_run_has_its_scores_and_pictures(run, other):
    for folder in (run, other):
        document = json.loads((folder / "test_scores.json").read_text())
        assert set(document["scores"]["test"]) == {"angle", "within11"}
        assert 0 < document["scores"]["test"]["angle"] < 90 and document["sets"]["test"]["problems"] == {}
        assert (folder / "samples" / "val.png").is_file() and (folder / "samples" / "test_test.png").is_file()
        assert "val/angle" in (folder / "metrics.csv").read_text().splitlines()[0]
        assert "angle" in (folder / "test_table.md").read_text()


def test_a_mirror_image_changes_directions():
    task, rng = Normals(), np.random.default_rng(0)
    target = np.tile(np.array([0.6, 0, 0.8], np.float32), (32, 32, 1))
    image = np.zeros((32, 32, 3), np.uint8)
    _, flipped = Augment(1, (1, 1), 0, 0, 0)(image, target, (32, 32), rng, task)
    assert np.allclose(flipped, [-0.6, 0, 0.8], atol=1e-6)
    tensor = task.to_tensor(target)[None]
    assert np.array_equal(task.mirrored(tensor)[0], task.to_tensor(flipped))


def test_a_turn_turns_directions():
    """A slope has the normals of its own picture, however the two are turned: brightness falls along the normal."""
    task, rng = Normals(), np.random.default_rng(0)
    ramp = np.repeat(np.linspace(250, 5, 64).astype(np.uint8)[None, :, None], 64, 0).repeat(3, 2)
    target = np.tile(np.array([0.6, 0, 0.8], np.float32), (64, 64, 1))
    for _ in range(20):
        image, moved = Augment(0.5, (0.5, 1), 60, 0, 0)(ramp, target, (64, 64), rng, task)
        rows, columns = np.gradient(image[24:40, 24:40, 0].astype(float))
        downhill = -np.array([columns.mean(), rows.mean()])
        assert np.allclose(np.linalg.norm(moved, axis=2), 1, atol=1e-5)
        cosine = moved[32, 32, :2] @ downhill / 0.6 / np.linalg.norm(downhill)
        assert cosine > 0.99


def test_scores_of_a_checkpoint_are_those_of_its_maps(run, data, overrides, tmp_path):
    config = evaluation_config(run, tmp_path / "out", "cpu")
    config["breakdown"] = True
    scores = evaluate(prepare_evaluation({**config, "window": 32, "num_samples": 1}))
    again = {**config, "ckpt": None, "predictions": str(tmp_path / "out" / "maps"), "output": str(tmp_path / "again")}
    from_files = evaluate(prepare_evaluation({**again, "num_workers": 0}))
    # A file has 256 steps, which is about half a degree.
    assert from_files["test"]["angle"] == pytest.approx(scores["test"]["angle"], abs=0.3)
    assert (tmp_path / "out" / "worst_best_test.png").is_file()
    for name in ("out", "again"):
        assert json.loads((tmp_path / name / "scores.json").read_text())["sets"]["test"]["problems"] == {}
        told = json.loads((tmp_path / name / "breakdown.json").read_text())["sets"]["test"]["groups"]
        assert {side: group["images"] for side, group in told["side"].items()} == {"wide": 2, "high": 1}
        assert (tmp_path / name / "breakdown.html").read_text().count("<img") == 3
    for size, stem in zip(SIZES, "012", strict=True):
        assert read_image(tmp_path / "out" / "maps" / "test" / f"{stem}.png").shape == (*size, 3)
    with (tmp_path / "again" / "per_image.csv").open(newline="") as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["0", "1", "2"]


def test_prediction_of_pictures_and_films(run, data, tmp_path):
    image = read_image(data / "test" / "Image" / "0.png")
    with FilmWriter(tmp_path / "in" / "film.mp4", 5) as film:
        for _ in range(3):
            film.write(image)
    cv2.imwrite(str(tmp_path / "in" / "one.png"), image[..., ::-1])
    given = [f"ckpt={run}", f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}", "device=cpu", "threads=1"]
    assert predict_main(given) == 0
    result = load(run, device="cpu").predict(image)
    assert result.map.shape == image.shape and result.map.dtype == np.uint8
    assert np.array_equal(read_image(tmp_path / "out" / "maps" / "one.png"), result.map)
    overlay = read_image(tmp_path / "out" / "overlays" / "one.jpg").astype(int)
    assert np.abs(overlay - result.overlay()).mean() < 8 and np.abs(overlay - image).mean() > 8
    for kind in ("maps", "overlays"):
        assert len(list(FilmReader(tmp_path / "out" / kind / "film.mp4").frames())) == 3
    assert (
        np.abs(next(FilmReader(tmp_path / "out" / "maps" / "film.mp4").frames()).astype(int) - result.map).mean() < 15
    )


@pytest.mark.parametrize("option", ["cutouts=true", "rle=true", "min_area=3", "threshold=0.4"])
def test_what_is_of_objects_is_refused(run, data, option, tmp_path, capsys):
    given = [f"ckpt={run}", f"input={data / 'test' / 'Image'}", f"output={tmp_path}", "device=cpu", option]
    with pytest.raises(SystemExit) as stopped:
        predict_main(given)
    lines = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and len(lines) == 1
    assert option.partition("=")[0] in lines[0] and "task=normals" in lines[0] and "has no objects" in lines[0]


def test_a_result_without_objects_says_so(run, data):
    result = load(run, device="cpu").predict(data / "test" / "Image" / "0.png")
    for ask in (lambda: result.prob, lambda: result.mask, result.cutout, result.objects):
        with pytest.raises(ValueError, match="task=normals has no objects"):
            ask()


def test_two_decoders_are_compared(run, other, tmp_path):
    found = compare([run, other], tmp_path / "report", images=2, device="cpu")
    assert found.score == "angle" and found.scores == ["angle", "within11"] and len(found.costs) == 2
    change = found.differences["test"][1]
    assert set(change) == {"angle", "within11"} and found.warnings == []
    assert found.examples and all(len(e.pictures) == 4 for e in found.examples)
    gains = [e.means[1] < e.means[0] for e in found.examples]
    assert gains == sorted(gains, reverse=True)  # a smaller angle is a gain
    page, text = ((tmp_path / "report" / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert "angle\N{NO-BREAK SPACE}↓" in text and "within11\N{NO-BREAK SPACE}↑" in text
    assert "normal map" in page and "mask" not in page and "mask" not in text
    better = "better" if change["angle"].mean < 0 else "worse"
    assert (f"is {better} than" in text) == is_significant(change["angle"])


def test_runs_of_two_tasks_are_not_compared(run, other, tmp_path, capsys):
    config = (other / "config.yaml").read_text().replace("toy_normals.NormalsProtocol", "e2net.metrics.MaskProtocol")
    document = json.loads((other / "test_scores.json").read_text())
    del document["config_sha256"]
    (tmp_path / "config.yaml").write_text(config.replace("toy_normals.Normals\n", "e2net.tasks.Camouflage\n"))
    (tmp_path / "test_scores.json").write_text(json.dumps(document))
    (tmp_path / "test_per_image.csv").write_bytes((other / "test_per_image.csv").read_bytes())
    with pytest.raises(SystemExit):
        compare_main([f"runs=[{run}, {tmp_path}]", f"output={tmp_path / 'out'}"])
    line = capsys.readouterr().err
    assert "task=normals against task=camouflage" in line and len(line.splitlines()) == 1


def test_a_sweep_knows_the_task(overrides, tmp_path):
    given = (*_without_width(overrides), "decoder=linear,dpt")
    plan = make_plan(CompareSettings(overrides=given, store=str(tmp_path)))
    assert plan.names == ["linear", "dpt"] and plan.hydra == []
    assert {job.config["task"]["_target_"] for job in plan.jobs} == {"toy_normals.Normals"}
    with pytest.raises(ValueError, match="score=S: expected one of angle, within11"):
        make_plan(CompareSettings(overrides=given, store=str(tmp_path), score="S"))


def test_profile(overrides, capsys):
    assert profile_main([*overrides, "steps=2"]) == 0
    assert "Bottleneck:" in capsys.readouterr().out


def test_automatic_batches(overrides, tmp_path, monkeypatch):
    job = prepare_training(compose_training([*overrides, "data.batch_size=auto", f"run_dir={tmp_path / 'run'}"]))
    assert job.data.batch_size >= 1 and next(iter(job.data.train_dataloader())).target.shape[1:] == (3, 32, 32)
