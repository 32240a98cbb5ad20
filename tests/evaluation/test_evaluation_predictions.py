"""Any method's maps against masks: what is found, what is scored, what is said, and what is left behind."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import lightning as L
import numpy as np
import pytest
from apart import Program
from conftest import ROOT
from gloo import on_two_devices
from hydra import compose, initialize_config_dir

from e2net.datasets import ProceduralData, ProceduralPairs
from e2net.evaluation import evaluate, prepare_evaluation
from e2net.evaluation.callbacks import MapWriter
from e2net.evaluation.data import DataModule
from e2net.evaluation.predictions import UnusableMapsError, check_task, find_maps, score_maps, targets_of
from e2net.evaluation.report import masks_hash, stems_hash
from e2net.metrics import ALL_SCORES, DEFAULT_SCORES, EXTRA_SCORES, MapScores, MaskProtocol, score_map
from e2net.runs import resolve, user_errors
from e2net.runs.overrides import inherit
from e2net.tasks import Camouflage
from e2net.training import prepare_training, train

COUNT = 7


@pytest.fixture
def folders(tmp_path):
    """Masks of a set, two of them of other sizes, and a soft map for each; no images."""
    _write(tmp_path)
    return tmp_path


def _write(root, name="CAMO", count=COUNT):
    rng = np.random.default_rng(count)
    (root / "data" / name / "GT").mkdir(parents=True)
    (root / "maps" / name).mkdir(parents=True)
    for i in range(count):
        mask, levels = _pair(rng, (30 + 4 * i, 40))
        cv2.imwrite(str(root / "data" / name / "GT" / f"m{i}.png"), mask.astype(np.uint8) * 255)
        cv2.imwrite(str(root / "maps" / name / f"m{i}.png"), levels)


def _pair(rng, shape):
    field = cv2.GaussianBlur(rng.random(shape), (0, 0), 4)
    mask = field > np.quantile(field, 0.7)
    return mask, np.round(20 + 180 * cv2.GaussianBlur(mask.astype(float), (0, 0), 3)).astype(np.uint8)


def _config(root, *overrides):
    defaults = [f"predictions={root}/maps", f"data.root={root}/data", "data.test=[CAMO]", f"output={root}/out"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return resolve(compose("eval", [*defaults, "num_workers=0", *overrides]))


def _run(root, *overrides):
    return evaluate(prepare_evaluation(_config(root, *overrides)))


def _report(root):
    return json.loads((root / "out" / "scores.json").read_text())


def _read(root, i, name="CAMO"):
    mask = np.asarray(cv2.imread(str(root / "data" / name / "GT" / f"m{i}.png"), cv2.IMREAD_GRAYSCALE)) > 127
    return cv2.imread(str(root / "maps" / name / f"m{i}.png"), cv2.IMREAD_GRAYSCALE), mask


def _expected(root, protocol, indices=range(COUNT)):
    scores = MapScores(protocol)
    for i in indices:
        scores.add(i, score_map(*_read(root, i), protocol=protocol))
    return {k: float(v) for k, v in scores.compute().items()}


def test_scores_are_those_of_a_plain_loop(folders):
    scores = _run(folders)
    assert scores == {"CAMO": _expected(folders, MaskProtocol())}
    written = _report(folders)
    assert written["scores"] == scores and written["method"] == "maps"
    about = written["sets"]["CAMO"]
    assert about["maps"] == about["masks"] == COUNT and about["problems"] == {}
    assert about["file_list_sha256"] == stems_hash([f"m{i}" for i in range(COUNT)])
    assert about["masks_sha256"] == masks_hash(
        {f"m{i}": Camouflage().digest(_read(folders, i)[1]) for i in range(COUNT)}
    )
    assert cv2.imread(str(folders / "out" / "worst_best_CAMO.png")) is not None


@pytest.mark.parametrize(
    "overrides, protocol",
    [
        (["protocol.normalize=as_is"], MaskProtocol(normalize="as_is")),
        (["protocol.binarise=true"], MaskProtocol(binarise=True)),
        (["protocol.quantise=false"], MaskProtocol(quantise=False)),
    ],
)
def test_protocol_is_followed_and_recorded(folders, overrides, protocol):
    scores = _run(folders, *overrides)["CAMO"]
    assert scores == _expected(folders, protocol)
    assert _report(folders)["protocol"] == protocol.describe()
    # maps that reach from 20 to 200: stretching them, or deciding at 0.5, shows
    assert (abs(scores["MAE"] - _run(folders)["CAMO"]["MAE"]) > 0.02) == protocol.quantise


def test_binarised_too_scores_both_ways(folders, capsys):
    scores = _run(folders, "binarised_too=true")
    assert scores == {
        "CAMO": _expected(folders, MaskProtocol()),
        "CAMO (binarised)": _expected(folders, MaskProtocol(binarise=True)),
    }
    assert "binarised" in capsys.readouterr().out
    written = _report(folders)
    assert written["sets"]["CAMO (binarised)"]["protocol"] == MaskProtocol(binarise=True).describe()
    assert set(written["intervals"]) == set(scores)
    assert [row["test_set"] for row in csv.DictReader((folders / "out" / "scores.csv").open())] == list(scores)
    assert len(list(csv.DictReader((folders / "out" / "per_image.csv").open()))) == 2 * COUNT
    assert "(binarised)" in (folders / "out" / "table.tex").read_text()
    with pytest.raises(ValueError, match="would score the same twice"):
        _run(folders, "binarised_too=true", "protocol.binarise=true")


@pytest.mark.parametrize("workers, start", [(1, None), (2, None), (2, "spawn")])
def test_processes_change_nothing(folders, workers, start):
    (folders / "maps" / "CAMO" / "m3.png").unlink()
    (folders / "maps" / "CAMO" / "m4.png").write_bytes(b"")
    data = prepare_evaluation(_config(folders, "allow_missing=true")).sets[0]
    protocols = [Camouflage(), Camouflage(MaskProtocol(binarise=True))]
    alone, alone_faults = score_maps(data, protocols, 0)
    shared, faults = score_maps(data, protocols, workers, start)
    assert faults == alone_faults and len(faults) == 1
    for one, other in zip(alone, shared, strict=True):
        assert one.scores.per_image() == other.scores.per_image()
        assert (one.masks_sha256, one.problems, one.label) == (other.masks_sha256, other.problems, other.label)
    assert [row["index"] for row in shared[0].scores.per_image()] == [0, 1, 2, 5, 6]


EXTRA = f"scores=[{','.join(EXTRA_SCORES)}]"


def test_further_scores_are_in_every_output(folders, capsys):
    _write_images(folders)
    scores = _run(folders, EXTRA, "binarised_too=true")
    shown = capsys.readouterr().out
    expected = MapScores(scores=ALL_SCORES)
    for i in range(COUNT):
        image = np.asarray(cv2.imread(str(folders / "data" / "CAMO" / "Imgs" / f"m{i}.png")))[..., ::-1]
        expected.add(i, score_map(*_read(folders, i), scores=ALL_SCORES, image=image))
    assert scores["CAMO"] == {k: float(v) for k, v in expected.compute().items()}
    assert scores["CAMO"]["wC"] != scores["CAMO"]["C"] and "wC" in scores["CAMO (binarised)"]
    written = _report(folders)
    assert written["scores"] == scores and set(written["intervals"]["CAMO"]) == set(ALL_SCORES)
    for name in ("scores.csv", "per_image.csv"):
        assert set(ALL_SCORES) < set(next(csv.DictReader((folders / "out" / name).open())))
    assert max(map(len, shown.splitlines())) <= 80 and all(f" {name} " in shown for name in ALL_SCORES)
    assert list(_run(folders, "scores=[BER]")["CAMO"]) == [*DEFAULT_SCORES, "BER"]


def _write_images(root):
    (root / "data" / "CAMO" / "Imgs").mkdir()
    for i in range(COUNT):
        noise = np.random.default_rng(i).integers(0, 256, (*_read(root, i)[1].shape, 3), dtype=np.uint8)
        cv2.imwrite(str(root / "data" / "CAMO" / "Imgs" / f"m{i}.png"), cv2.GaussianBlur(noise, (0, 0), 2))


def test_images_that_a_score_needs_must_be_there(folders):
    with pytest.raises(ValueError, match="CAMO: expected an image of mask m0 for the scores wC, found none; add it"):
        prepare_evaluation(_config(folders, "scores=[wC]"))
    _write_images(folders)
    images = folders / "data" / "CAMO" / "Imgs"
    (images / "m2.png").unlink()
    cv2.imwrite(str(images / "m4.png"), np.zeros((5, 6, 3), np.uint8))
    with pytest.raises(UnusableMapsError, match=r"2 files .* an image of mask m2 .* of mask m4 at .* 40x46, found 6x5"):
        _run(folders, "scores=[wC]")
    assert "wC" not in _run(folders)["CAMO"]


@pytest.mark.parametrize("scores", ["[IuO]", "[IoU,IoU]", "[S]", "IoU"])
def test_unknown_scores_are_refused_in_one_line(folders, scores):
    with pytest.raises(
        ValueError, match=r"expected scores as a list .* out of FmaxPR, IoU, .*wC \(S, Fmax.*, found"
    ) as e:
        _run(folders, f"scores={scores}")
    assert "\n" not in str(e.value)


def test_several_sets_and_their_names(folders):
    _write(folders, "other/place", count=3)
    (folders / "maps" / "other" / "place").rename(folders / "maps" / "mine")
    config = _config(folders, "method=Ours")
    config["data"]["test"] = {"CAMO": "CAMO", "mine": "other/place"}
    scores = evaluate(prepare_evaluation(config))
    assert list(scores) == ["CAMO", "mine"]
    assert _report(folders)["sets"]["mine"]["maps"] == 3
    assert (folders / "out" / "table.md").read_text().splitlines()[-1].startswith("| Ours |")


def test_missing_maps_are_an_error_that_names_them(folders):
    (folders / "out").mkdir()
    (folders / "out" / "scores.json").write_text(json.dumps({"e2net": "an earlier one"}))
    for i in range(5):
        (folders / "maps" / "CAMO" / f"m{i}.png").unlink()
    with pytest.raises(UnusableMapsError, match=r"5 of 7 maps are missing \(m0, m1, m2 and 2 more\).*allow_missing"):
        _run(folders)
    assert not (folders / "out" / "scores.json").exists()
    names = {"missing": [f"m{i}" for i in range(5)]}
    assert json.loads((folders / "out" / "problems.json").read_text()) == {"CAMO": names}


def test_files_that_lie_where_maps_are_missing_are_named(folders, capsys):
    maps = folders / "maps" / "CAMO"
    (maps / "m1.png").rename(maps / "m1.webp")
    (maps / "m2.png").rename(maps / "M2.png")
    (maps / "m3.txt").touch()  # not in the place of a map
    with pytest.raises(UnusableMapsError, match=r"2 of 7 maps are missing \(m1, m2\), these .*: m1\.webp, M2\.png\."):
        _run(folders)
    names = {"missing": ["m1", "m2"], "foreign": ["m1.webp"], "extra": ["M2.png"]}
    assert json.loads((folders / "out" / "problems.json").read_text()) == {"CAMO": names}
    _run(folders, "allow_missing=true")
    assert _report(folders)["sets"]["CAMO"]["problems"] == names
    assert "m1.webp" in capsys.readouterr().out
    for path in maps.glob("*.png"):
        path.rename(path.with_suffix(".npy"))
    with pytest.raises(ValueError, match=r"no map belongs to any .* found M2\.npy, m0\.npy.* ends in \.jpg, .*\.png"):
        _run(folders, "allow_missing=true")


def test_missing_maps_are_allowed_and_counted(folders, capsys):
    (folders / "maps" / "CAMO" / "m2.png").unlink()
    scores = _run(folders, "allow_missing=true")
    assert scores["CAMO"] == _expected(folders, MaskProtocol(), [0, 1, 3, 4, 5, 6])
    shown = capsys.readouterr().out
    assert "6/7" in shown and "1 of 7 missing" in shown and "m2" in shown
    about = _report(folders)["sets"]["CAMO"]
    assert (about["maps"], about["masks"], about["problems"]) == (6, 7, {"missing": ["m2"]})
    # the data set is the same one, whatever was scored of it
    assert about["masks_sha256"] == masks_hash({f"m{i}": Camouflage().digest(_mask(folders, i)) for i in range(COUNT)})
    assert "6 of 7 maps" in (folders / "out" / "table.tex").read_text()


def _mask(root, i):
    return np.asarray(cv2.imread(str(root / "data" / "CAMO" / "GT" / f"m{i}.png"), cv2.IMREAD_GRAYSCALE)) > 127


def test_extra_maps_are_reported_only(folders):
    before = _run(folders)
    cv2.imwrite(str(folders / "maps" / "CAMO" / "stranger.png"), np.zeros((4, 4), np.uint8))
    assert _run(folders) == before
    assert _report(folders)["sets"]["CAMO"]["problems"] == {"extra": ["stranger.png"]}


def test_maps_of_another_size_are_resized_and_reported(folders, capsys):
    levels, mask = _read(folders, 1)
    small = cv2.resize(levels, (20, 20))
    cv2.imwrite(str(folders / "maps" / "CAMO" / "m1.png"), small)
    _run(folders)
    row = list(csv.DictReader((folders / "out" / "per_image.csv").open()))[1]
    # bilinear as in the protocol; OpenCV's agrees with it, being another implementation, to a level
    resized = np.round(cv2.resize(small.astype(np.float64), mask.shape[::-1])).astype(np.uint8)
    assert float(row["S"]) == pytest.approx(score_map(resized, mask).values["S"], abs=2e-3)
    assert _report(folders)["sets"]["CAMO"]["problems"] == {"resized": ["m1"]}
    assert "1 resized" in capsys.readouterr().out


def test_jpegs_and_maps_of_zeros_and_ones_are_reported(folders):
    levels, _ = _read(folders, 0)
    (folders / "maps" / "CAMO" / "m0.png").unlink()
    cv2.imwrite(str(folders / "maps" / "CAMO" / "m0.jpg"), levels)
    cv2.imwrite(str(folders / "maps" / "CAMO" / "m1.png"), (_read(folders, 1)[1]).astype(np.uint8))
    _run(folders)
    assert _report(folders)["sets"]["CAMO"]["problems"] == {"lossy": ["m0"], "dark": ["m1"]}


@pytest.mark.parametrize("where", ["maps/CAMO", "data/CAMO/GT"])
def test_unreadable_files_are_an_error_whatever_is_allowed(folders, where):
    _run(folders)
    for i in (2, 4):
        (folders / where / f"m{i}.png").write_bytes(b"no image")
    with pytest.raises(UnusableMapsError, match=r"2 files cannot be used.*m2\.png: truncated.*problems\.json"):
        _run(folders, "allow_missing=true")
    assert not (folders / "out" / "scores.json").exists()
    faults = json.loads((folders / "out" / "problems.json").read_text())["CAMO"]
    assert len(faults) == 2 and "m4.png" in faults[1]


def test_coloured_map_is_refused_by_name(folders):
    colours = np.zeros((30, 40, 3), np.uint8)
    colours[..., 2] = 200
    cv2.imwrite(str(folders / "maps" / "CAMO" / "m0.png"), colours)
    with pytest.raises(UnusableMapsError, match=r"m0\.png: expected a grey map, found channels that differ"):
        _run(folders)


def test_two_maps_with_one_stem_are_refused(folders):
    cv2.imwrite(str(folders / "maps" / "CAMO" / "m0.bmp"), _read(folders, 0)[0])
    with pytest.raises(ValueError, match=r"the same stem twice: m0\.bmp and m0\.png"):
        _run(folders)


def test_folders_that_do_not_fit(folders):
    with pytest.raises(FileNotFoundError, match=r"expected the maps of CAMO in .*nowhere.CAMO, found no such folder"):
        _run(folders, f"predictions={folders}/nowhere")
    with pytest.raises(FileNotFoundError, match=r"found no folders and 7 maps: move them into"):
        _run(folders, f"predictions={folders}/maps/CAMO")
    with pytest.raises(FileNotFoundError, match=r"no folder .*NC4K .*holds the folders CAMO"):
        _run(folders, "data.test=[NC4K]")
    with pytest.raises(ValueError, match="choose another"):
        _run(folders, f"output={folders}/maps/CAMO")
    for i in range(COUNT):
        (folders / "maps" / "CAMO" / f"m{i}.png").rename(folders / "maps" / "CAMO" / f"m{i}_pred.png")
    with pytest.raises(ValueError, match=r"no map belongs to any of the 7 masks \(m0, .*found m0_pred\.png"):
        _run(folders, "allow_missing=true")


def test_options_are_checked(folders):
    for override in (
        "num_workers=-1",
        "bootstrap_seed=x",
        "binarised_too=2",
        "breakdown=2",
        "allow_missing=maybe",
        "method=' '",
    ):
        with pytest.raises(ValueError, match=override.split("=")[0]):
            _run(folders, override)
    with pytest.raises(ValueError, match="no test sets are named"):
        _run(folders, "data.test=[]")


def test_one_thing_is_evaluated_at_a_time(capsys):
    with pytest.raises(ValueError, match=r"exactly one of ckpt=.* found neither"):
        check_task({"ckpt": None, "predictions": None})
    with pytest.raises(SystemExit), user_errors():
        check_task({"ckpt": "a", "predictions": "b"})
    assert capsys.readouterr().err.startswith("error: expected exactly one") and not check_task(
        {"ckpt": None, "predictions": "b"}
    )


def test_interruption_leaves_no_score_file(folders, monkeypatch):
    _run(folders)
    seen, score = [], Camouflage.score

    def interrupted(*args, **kwargs):
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return score(*args, **kwargs)

    monkeypatch.setattr(Camouflage, "score", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _run(folders)
    assert not (folders / "out" / "scores.json").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="a patch reaches forked processes only")
def test_killed_worker_ends_the_run_without_a_score_file(folders, monkeypatch):
    _run(folders)
    monkeypatch.setattr(Camouflage, "score", lambda *args, **kwargs: os._exit(9))
    with pytest.raises(RuntimeError):
        _run(folders, "num_workers=2")
    assert not (folders / "out" / "scores.json").exists()


ENDLESS = """
import multiprocessing, os, sys, time
sys.path[:0] = [{root!r}]
from e2net.evaluation import predictions
def wait(task, position):
    with open({pids!r}, "a") as file:
        file.write(f"{{os.getpid()}}\\n")
    time.sleep({sleep})
    return predictions._Scored([])
predictions._score_one = wait
found = predictions.MapFolder("set", None, range(6), [None] * 6, [], [])
with predictions._results(predictions._Work(found, []), 2, "fork") as results:
    list(results)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a patch reaches forked processes only")
def test_workers_end_with_a_killed_run(tmp_path):
    """Without being told so: nobody is left to tell them."""
    pids = tmp_path / "pids"
    code = ENDLESS.format(root=str(ROOT), pids=str(pids), sleep=0.5)
    with subprocess.Popen([sys.executable, "-c", code]) as run:
        _until(lambda: pids.is_file() and len(set(pids.read_text().split())) == 2)
        run.kill()
    workers = [Path("/proc") / pid for pid in set(pids.read_text().split())]
    try:
        _until(lambda: not any(map(_alive, workers)), 10)
    finally:
        for worker in filter(_alive, workers):
            os.kill(int(worker.name), signal.SIGKILL)


def _alive(process):
    try:
        return process.joinpath("stat").read_text().rpartition(") ")[2][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_masks_of_generated_pairs(folders):
    masks = targets_of(ProceduralData(size=32, n_test=3, difficulty=0.2), "procedural")
    pairs = ProceduralPairs(3, 0, 0.2, "test")
    assert [masks.name(i) for i in range(3)] == [pairs.name(i) for i in range(3)]
    image = masks.image(1)
    assert image is not None and np.array_equal(image, pairs.read(1)[0])
    assert np.array_equal(masks.target(1), pairs.read(1)[1])
    with pytest.raises(FileNotFoundError):
        find_maps(folders / "maps", "procedural", masks, Camouflage())


# of a checkpoint

GENERATED = ["data.n_test=5", "data.n_train=8", "data.num_workers=0", "data.batch_size=4", "size=64"]


def _compose(name, *overrides):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose(name, list(overrides))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run, its folder, and the scores of its checkpoint evaluated both ways."""
    folder = tmp_path_factory.mktemp("short") / "run"
    config = _compose(
        "train", *GENERATED, "data.val_fraction=0", "decoder.width=16", "trainer.max_epochs=1",
        "trainer.accelerator=cpu", f"run_dir={folder}", "num_samples=0",
    )  # fmt: skip
    trained = train(prepare_training(resolve(config)))
    overrides = [f"ckpt={folder}", f"output={folder}/eval", "accelerator=cpu", "num_workers=0", "binarised_too=true"]
    config = inherit(_compose("eval", *overrides), overrides)
    return folder, trained, evaluate(prepare_evaluation(resolve(config)))


def test_training_writes_the_same_report(run):
    folder, trained, _ = run
    written = json.loads((folder / "test_scores.json").read_text())
    assert written["scores"] == trained and written["sets"]["procedural"]["masks_sha256"]
    for name in ("test_scores.csv", "test_per_image.csv", "test_table.tex", "test_curves.png"):
        assert (folder / name).stat().st_size > 0


def test_further_scores_of_a_checkpoint_and_its_maps_agree(run, tmp_path):
    folder, trained, _ = run
    overrides = (f"ckpt={folder}", "accelerator=cpu", EXTRA, f"output={tmp_path}/a", "num_samples=0")
    scores = evaluate(prepare_evaluation(resolve(inherit(_compose("eval", *overrides), overrides))))["procedural"]
    assert list(scores) == list(ALL_SCORES) and {k: scores[k] for k in DEFAULT_SCORES} == trained["procedural"]
    pairs = ProceduralPairs(
        5, 0, resolve(inherit(_compose("eval", *overrides), overrides))["data"]["difficulty"], "test"
    )
    again = MapScores(scores=ALL_SCORES)
    for i in range(5):
        image, mask = pairs.read(i)
        file = tmp_path / "a" / "maps" / "procedural" / f"{pairs.name(i)}.png"
        written = np.asarray(cv2.imread(str(file), cv2.IMREAD_GRAYSCALE))
        again.update(written, mask, i, image=image)
    assert scores == {k: float(v) for k, v in again.compute().items()}


def _score_a_part(ckpt, output):
    overrides = [f"ckpt={ckpt}", f"output={output}", "accelerator=cpu", "breakdown=true"]
    job = prepare_evaluation(resolve(inherit(_compose("eval", *overrides), overrides)))
    job.trainer = L.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", logger=False, callbacks=[MapWriter(job.output / "maps")],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    scores = evaluate(job)
    assert job.trainer.world_size == 2
    (job.output / f"process{job.trainer.global_rank}.json").write_text(json.dumps(scores))


def test_two_processes_score_as_one(run, tmp_path):
    """Five images for two processes: the sampler repeats one, which must count once."""
    output = tmp_path / "out"
    on_two_devices(lambda: _score_a_part(run[0], output))
    written = json.loads((output / "scores.json").read_text())
    assert written["sets"]["procedural"]["maps"] == 5
    assert all(json.loads((output / f"process{rank}.json").read_text()) == written["scores"] for rank in (0, 1))
    # Not to the last digit: these processes have one thread each, and sums over threads round differently.
    assert written["scores"]["procedural"] == pytest.approx(run[1]["procedural"], rel=1e-12, abs=0)
    assert written["scores"].keys() == run[1].keys()
    told = json.loads((output / "breakdown.json").read_text())["sets"]["procedural"]["images"]
    assert [image["position"] for image in told] == list(range(5))


def test_validation_keeps_what_depends_on_masks_alone(tmp_path, monkeypatch):
    """From the second epoch on no mask is measured again, and the scores are those of a module that keeps nothing."""
    rows = []
    for kept in (1 << 30, 0):
        monkeypatch.setattr("e2net.training.module._KEPT_BYTES", kept)
        config = _compose(
            "train", *GENERATED, "data.val_fraction=0.5", "decoder.width=16", "trainer.max_epochs=3",
            "trainer.accelerator=cpu", f"run_dir={tmp_path}/{kept}", "num_samples=0",
        )  # fmt: skip
        job = prepare_training(resolve(config))
        measured = _count_transforms(monkeypatch)
        job.trainer.fit(job.module, datamodule=DataModule(job.data))
        images = len(job.data.val_names())
        assert images >= 2 and measured[0] == images if kept else measured[0] >= 3 * images
        logged = list(csv.DictReader((tmp_path / str(kept) / "metrics.csv").open()))
        rows.append([{k: v for k, v in row.items() if k.startswith("val/")} for row in logged if row["val/wF"]])
    assert len(rows[0]) == 3 and rows[0] == rows[1]


def _count_transforms(monkeypatch):
    count, transform = [0], cv2.distanceTransform

    def counted(*args):
        count[0] += 1
        return transform(*args)

    monkeypatch.setattr(cv2, "distanceTransform", counted)
    return count


def test_checkpoint_report_and_its_maps_agree(run, tmp_path):
    """The numbers of a checkpoint are those of the maps it wrote, scored as anyone's maps."""
    folder, trained, scores = run
    assert scores["procedural"] == trained["procedural"]
    config = _compose(
        "eval", f"predictions={folder}/eval/maps", "data=procedural", "data.n_test=5", f"output={tmp_path}",
        "binarised_too=true", "num_workers=2",
    )  # fmt: skip
    assert evaluate(prepare_evaluation(resolve(config))) == scores
    of_model, of_maps = (json.loads((f / "scores.json").read_text()) for f in (folder / "eval", tmp_path))
    assert of_model["method"] == "run" and of_maps["method"] == "maps"
    for key in ("sets", "intervals", "protocol", "bootstrap", "e2net"):
        assert of_model[key] == of_maps[key], key
    names = {path.name for path in (folder / "eval").iterdir()} - {"maps", "samples"}
    assert names == {path.name for path in tmp_path.iterdir()} and "worst_best_procedural.png" in names
    per_image = [(f / "per_image.csv").read_text() for f in (folder / "eval", tmp_path)]
    assert per_image[0] == per_image[1]


# the command


def _cli(*overrides):
    return Program(ROOT / "eval.py", *overrides, cwd=ROOT, COLUMNS="80").finish()


def test_command(folders):
    status, out, errors = _cli(
        f"predictions={folders}/maps", f"data.root={folders}/data", "data.test=[CAMO]", f"output={folders}/out",
        "num_workers=2", f"hydra.run.dir={folders}/hydra",
    )  # fmt: skip
    assert status == 0, errors
    assert _report(folders)["scores"] == {"CAMO": _expected(folders, MaskProtocol())}
    assert f"{_expected(folders, MaskProtocol())['S']:.3f}"[1:] in out and "\r" not in errors


def test_command_says_in_one_line_what_is_wrong(folders):
    (folders / "maps" / "CAMO" / "m1.png").write_bytes(b"")
    status, _, errors = _cli(
        f"predictions={folders}/maps", f"data.root={folders}/data", "data.test=[CAMO]", f"output={folders}/out",
        f"hydra.run.dir={folders}/hydra",
    )  # fmt: skip
    assert status == 2 and "Traceback" not in errors
    (line,) = [line for line in errors.splitlines() if line.startswith("error:")]
    assert "m1.png: truncated" in line
