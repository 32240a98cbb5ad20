"""A stranger's files in and beside every folder that a program writes to: they are there afterwards, bit for bit."""

import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT
from hydra import compose, initialize_config_dir
from tiny import tiny_job

from e2net.compare import sweep
from e2net.compare.comparison import compare
from e2net.datasets.cached import remove_unused
from e2net.evaluation import evaluate, prepare_evaluation
from e2net.files import is_part, part_of
from e2net.predict.__main__ import main as predict
from e2net.runs import inherit, resolve
from e2net.training import train

# Such as are e2net's own there, or nearly: none of them did it write.
NAMES = [
    "old.ckpt", "last-v1.ckpt", "best.ckpt.bak", ".x.part", ".0123456789abcdef0123456789abcdef.part", "a.e2net.part",
    ".part", "lock", "notes.txt", "test_1.png", "test_other.png", "val_2.png", "sample.png", "problems.json",
    "events.out.tfevents.1.host", "metrics.csv.bak", "metrics_2.csv", "test_worst_best_mine.png", "worst_best_mine.png",
    "test_confusion_mine.png", "test_scores_old.json", "scores_2.json", "train.log.1", "objects.json.bak", "key.json",
    "features.bin", "masks.bin", "written.bin", ".sweep_mine/job/a.yaml", "0123456789abcdef/key.json",
    "0123456789abcdef/features.bin", "checkpoint/last.ckpt", "maps.old/a.png", "job/x.yaml", "tmp0123/x", "--x", "a\nb",
]  # fmt: skip


def plant(*folders):
    """Puts files there where there is none of the name; {path: content}."""
    planted = {}
    for folder in folders:
        for name in NAMES:
            path = folder / name
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"mine: {path}")
                planted[path] = path.read_bytes()
    return planted


def check(planted):
    gone = [str(path) for path, content in planted.items() if not path.is_file() or path.read_bytes() != content]
    assert not gone


def _evaluate(run, output, *more):
    given = [f"ckpt={run}", f"output={output}", "accelerator=cpu", *more]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return evaluate(prepare_evaluation(resolve(inherit(compose("eval", given), given))))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run with a stranger's files all over it, after each program has been there twice."""
    return tmp_path_factory.mktemp("strangers") / "runs" / "one"


def test_train_and_resume(run):
    beside = plant(run.parent)
    train(tiny_job(run, "decoder=linear"))
    planted = beside | plant(run, *(path for path in run.rglob("*") if path.is_dir()))
    (run / "checkpoints" / "best.ckpt").touch()
    ours = part_of(run / "checkpoints" / "last.ckpt")
    ours.write_bytes(b"half")  # as a killed process leaves it
    assert is_part(ours)
    train(tiny_job(run, "decoder=linear", f"resume={run}", "trainer.max_epochs=3"))
    check(planted)
    assert not ours.exists(), "and what is e2net's own is removed"
    train(tiny_job(run, "decoder=linear", f"resume={run}", "trainer.max_epochs=4"))
    check(planted)
    assert len(planted) > 100
    train(tiny_job(run.parent / "two", "decoder=linear", f"resume={run}", "trainer.max_epochs=5"))
    check(planted)


def test_evaluate(run, tmp_path):
    planted = plant(run, run / "samples", tmp_path)
    output = tmp_path / "eval"
    for _ in range(2):
        _evaluate(run, output, "num_samples=1")
        check(planted)
        (output / "problems.json").touch()  # what an evaluation writes there, and removes
        planted |= plant(output, *(path for path in output.rglob("*") if path.is_dir() and path != output / "maps"))
    check(planted)
    (output / "maps" / "another set").mkdir()
    (output / "maps" / "another set" / "a.png").write_bytes(b"mine")
    with pytest.raises(ValueError, match="another set"):
        _evaluate(run, output)
    assert (output / "maps" / "another set" / "a.png").read_bytes() == b"mine"
    check(planted)


def test_predict(run, tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(3):
        cv2.imwrite(str(tmp_path / "in" / f"{i}.png"), np.full((20, 30, 3), 80 * i, np.uint8))
    output = tmp_path / "out"
    planted = plant(tmp_path, output, output / "maps", output / "overlays", output / "cutouts")
    given = [f"ckpt={run}", f"input={tmp_path / 'in'}", f"output={output}", "device=cpu"]
    for _ in range(2):
        assert predict([*given, "overlays=true", "cutouts=true", "rle=true"]) == 0
        check(planted)


@pytest.mark.parametrize("kind", ["maps", "overlays", "cutouts"])
def test_predict_writes_over_nothing_that_is_not_its_own(run, tmp_path, kind, capsys):
    """A picture of somebody else's under a result's name stops the job before it begins."""
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "a.png"), np.zeros((20, 30, 3), np.uint8))
    file = tmp_path / "out" / kind / f"a.{'jpg' if kind == 'overlays' else 'png'}"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"mine")
    given = [f"ckpt={run}", f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}", "device=cpu"]
    given += [] if kind == "maps" else [f"{kind}=true"]
    with pytest.raises(SystemExit):
        predict(given)
    assert file.read_bytes() == b"mine"
    assert f"{file.name} is there and was not written by e2net" in capsys.readouterr().err
    file.unlink()
    for _ in range(2):  # and what is its own is replaced
        assert predict(given) == 0


def test_caches(run, tmp_path):
    cache = tmp_path / "cache"
    overrides = ["tuning=frozen", "cache.views=1", f"cache.folder={cache}", "trainer.max_epochs=1", "data.augment=null"]
    planted = plant(cache)
    job = tiny_job(tmp_path / "a", "decoder=linear", *overrides)
    train(job)
    stores = [path.parent for path in cache.glob("*/written.bin") if path not in planted]
    assert len(stores) == 1
    planted |= plant(stores[0])
    for path in planted:
        path.write_bytes(planted[path])
    remove_unused(cache)
    train(tiny_job(tmp_path / "b", "decoder=linear", *overrides, "seed=1", "encoder.config.hidden_size=48"))
    check(planted)


def test_compare_and_sweep(run, tmp_path, monkeypatch, capsys):
    sys.path.append(str(Path(__file__).parent.parent / "compare"))
    from fake import fake_run  # noqa: PLC0415

    runs = [fake_run(tmp_path / f"run{i}", width=i + 1) for i in range(2)]
    output = tmp_path / "report"
    planted = plant(output, *runs, tmp_path)
    for _ in range(2):
        compare(runs, output, images=0, cost=False, resamples=100)
        check(planted)
    job = sweep.PlannedRun(0, {"seed": 0}, tmp_path / "store" / "name-0123456789ab")
    planted |= plant(tmp_path / "store", job.folder, job.folder / "checkpoints", tmp_path / "work")
    (job.folder / "checkpoints" / "last.ckpt").write_bytes(b"broken")
    monkeypatch.setattr(sweep, "_launch", lambda *_: 0)  # a launcher that starts nothing
    for _ in range(2):
        sweep.run_sweep(sweep.Plan(["a"], [job], []), tmp_path / "work")
        assert job.fault is not None
        job.fault = None
        check(planted)
    assert sorted(p.name for p in (tmp_path / "work").glob(".sweep_*")) == [".sweep_mine"]
    assert sweep._folder(tmp_path / "store", "name", "ffffffffffff").name == "name-ffffffffffff"
    shutil.rmtree(tmp_path / "work")
