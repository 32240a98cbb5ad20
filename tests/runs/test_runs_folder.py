"""A run's folder: a name of its own, one process at a time, and at every moment files of one state of one run."""

import csv
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from hydra import compose, initialize_config_dir
from tiny import TINY, tiny_config

from e2net.compare.runs import read_run
from e2net.runs import load_model, resolve
from e2net.runs.checkpoint import find_checkpoint
from e2net.runs.config import flatten
from e2net.runs.folder import check_unused, new_folder, owned
from e2net.runs.provenance import config_hash, file_hash
from e2net.runs.resume import MAY_DIFFER, check_same_run
from e2net.training import prepare_training, train


def _config(folder, *overrides):
    return tiny_config(folder, "decoder=linear", *overrides)


def _train(folder, *overrides):
    return train(prepare_training(_config(folder, *overrides)))


def _epochs(folder):
    """Of each row with a loss, its epoch and step."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    return [(int(row["epoch"]), int(row["step"])) for row in rows]


def assert_consistent(folder):
    """Whatever is there can be read, and belongs together."""
    assert not list(folder.rglob("*.part")), "half a file"
    config = yaml.safe_load((folder / "config.yaml").read_text()) if (folder / "config.yaml").is_file() else None
    for file in folder.rglob("*.json"):
        json.loads(file.read_text())
    for file in (folder / "checkpoints").glob("*.ckpt"):
        load_model(file)
    if (folder / "test_scores.json").is_file():
        scores = json.loads((folder / "test_scores.json").read_text())
        assert scores["config_sha256"] == config_hash(config)
        assert scores["checkpoint_sha256"] == file_hash(Path(scores["checkpoint"]))
        assert Path(scores["checkpoint"]).parent.parent == folder


def test_every_caller_gets_a_folder_of_its_own(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(new_folder, [tmp_path / "runs" / "now"] * 32))
    assert len(set(made)) == 32 and min(made) == tmp_path / "runs" / "now"
    assert all(folder.is_dir() for folder in made)


def test_lock_ends_with_its_process(tmp_path):
    code = "from e2net.runs.folder import owned; from pathlib import Path; import os, time\n"
    code += f"with owned(Path({str(tmp_path)!r})): print('held', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    process.stdout.readline()
    with pytest.raises(ValueError, match="expected a folder that no other run"), owned(tmp_path):
        pass
    process.kill()
    process.wait()
    with owned(tmp_path):
        pass


def test_used_folder_is_refused(tmp_path):
    _train(tmp_path, "trainer.max_epochs=1")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    for overrides in ((), ("data.val_fraction=0",), ("seed=3", "trainer.max_epochs=2")):
        with pytest.raises(ValueError, match=r"expected a new folder for this run, found an earlier run's .*best.ckpt"):
            prepare_training(_config(tmp_path, *overrides))
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
    check_unused(tmp_path, tmp_path / "checkpoints" / "last.ckpt")


def test_extended_run_has_no_scores_until_it_has_new_ones(tmp_path, monkeypatch):
    first = _train(tmp_path, "trainer.max_epochs=1")
    old = _epochs(tmp_path)
    assert read_run(tmp_path).document["scores"] == first
    job = prepare_training(_config(tmp_path, "trainer.max_epochs=3", f"resume={tmp_path}"))
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
        patch.setattr(job.trainer, "fit", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("power cut")))
        train(job)
    assert not list(tmp_path.glob("test_*"))
    assert_consistent(tmp_path)
    with pytest.raises(FileNotFoundError, match="is not finished"):
        read_run(tmp_path)
    second = _train(tmp_path, "trainer.max_epochs=3", f"resume={tmp_path}")
    document = read_run(tmp_path).document
    assert document["scores"] == second
    # Not by other scores: the first epoch may have been the best one.
    assert document["checkpoint_sha256"] == file_hash(find_checkpoint(str(tmp_path)))
    assert_consistent(tmp_path)
    epochs = _epochs(tmp_path)
    assert epochs[: len(old)] == old and len(epochs) == 3 * len(old) == len(set(epochs))


def test_history_goes_along_into_a_new_folder(tmp_path):
    """Also that of a finished run without validation, which has nothing left to do."""
    _train(tmp_path / "a", "trainer.max_epochs=2", "data.val_fraction=0")
    rows = _epochs(tmp_path / "a")
    same = _train(tmp_path / "b", "trainer.max_epochs=2", "data.val_fraction=0", f"resume={tmp_path / 'a'}")
    assert same == read_run(tmp_path / "a").document["scores"] and _epochs(tmp_path / "b") == rows
    _train(tmp_path / "c", "trainer.max_epochs=3", "data.val_fraction=0", f"resume={tmp_path / 'a'}")
    assert _epochs(tmp_path / "c")[: len(rows)] == rows and len(_epochs(tmp_path / "c")) == len(rows) * 3 // 2
    for name in "abc":
        assert_consistent(tmp_path / name)


def test_rows_of_steps_that_are_run_again_go(tmp_path):
    _train(tmp_path / "a", "trainer.max_epochs=1")
    rows = _epochs(tmp_path / "a")
    with (tmp_path / "a" / "metrics.csv").open(newline="") as file:
        names = next(csv.reader(file))
    late = {"epoch": 1, "step": len(rows), "train/loss": 9}
    with (tmp_path / "a" / "metrics.csv").open("a", newline="") as file:
        csv.DictWriter(file, names).writerow(late)
    _train(tmp_path / "a", "trainer.max_epochs=2", f"resume={tmp_path / 'a'}")
    epochs = _epochs(tmp_path / "a")
    assert len(epochs) == len(set(epochs)) == 2 * len(rows)


@pytest.mark.parametrize("moment", [0, 1, 2, 4, 9])
def test_interrupted_at_a_write(tmp_path, monkeypatch, moment):
    """A disk that is full, or a process that is killed, between any two files: what is there belongs together."""
    _train(tmp_path, "trainer.max_epochs=1")
    job = prepare_training(_config(tmp_path, "trainer.max_epochs=2", f"resume={tmp_path}"))
    done, replace = [], Path.replace

    def fail(self, target):
        done.append(target)
        if len(done) > moment:
            raise OSError(28, "No space left on device")
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="No space left"):
            train(job)
    assert_consistent(tmp_path)
    # The first file says which names are e2net's; until then the run is as it was.
    assert (tmp_path / "test_scores.json").exists() == (moment == 0)
    _train(tmp_path, "trainer.max_epochs=2", f"resume={tmp_path}")
    assert_consistent(tmp_path)
    assert {epoch for epoch, _ in _epochs(tmp_path)} == {0, 1}


def _other(value):
    """A value unlike this one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return f"{value}x"


def test_every_setting_of_a_resumed_run_is_the_same_or_may_differ():
    """A walk over all keys of configs that together have every group's option."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        configs = [compose("train", ["run_dir=x", "resume=y"])]
        configs.append(compose("adapt", ["run_dir=x", "resume=y", "data.root=r"]))
        tasks = {file.stem for file in (ROOT / "conf" / "task").glob("*.yaml")}
        others = ("experiment", "adapt", "adapt_with")  # recipes, and what another program has
        groups = {p.name: sorted(p.glob("*.yaml")) for p in (ROOT / "conf").iterdir() if p.is_dir()}
        alone = ("data", "loss", "protocol", "task")
        for group in alone:
            for file in groups[group]:
                needed = ["data.root=r"] if group == "data" and "root: ???" in file.read_text() else []
                # A task's own loss and protocol look at its settings.
                needed += [f"task={file.stem}"] if group in ("loss", "protocol") and file.stem in tasks else []
                configs.append(compose("train", ["run_dir=x", "resume=y", f"{group}={file.stem}", *needed]))
        # What goes with everything is composed together, until each option was.
        free = {name: files for name, files in groups.items() if name not in (*others, *alone)}
        for i in range(max(map(len, free.values()))):
            chosen = {name: files[i % len(files)].stem for name, files in free.items()}
            needed = ["encoder.path=p"] if chosen["encoder"] in ("local", "timm", "timm_convnext") else []
            options = [f"{name}={option}" for name, option in chosen.items()]
            configs.append(compose("train", ["run_dir=x", "resume=y", *options, *needed]))
        resolved = [resolve(config) for config in configs]
    seen = set()
    for config in resolved:
        check_same_run(config, config)
        for key, value in flatten(config).items():
            if key in seen:
                continue
            seen.add(key)
            other = json.loads(json.dumps(config))
            *parents, last = key.split(".")
            place = other
            for parent in parents:
                place = place[parent]
            place[last] = _other(value)
            if any(key == allowed or key.startswith(f"{allowed}.") for allowed in MAY_DIFFER):
                check_same_run(config, other)
                continue
            with pytest.raises(ValueError, match=f"expected the settings of that run, {key}="):
                check_same_run(config, other)
            del place[last]
            with pytest.raises(ValueError, match="expected the settings of that run"):
                check_same_run(config, other)
            if place:
                with pytest.raises(ValueError, match=f"a run with the settings .*{key}=.*another version of e2net"):
                    check_same_run(other, config)
    assert len(seen) > 120
    # Of the Trainer, by +key; its strategy once was.
    for key in ("trainer.max_time", "trainer.num_nodes", "trainer.strategy", "trainer.enable_progress_bar"):
        seen.add(key)
    assert [key for key in MAY_DIFFER if key not in seen and not any(k.startswith(f"{key}.") for k in seen)] == []


def test_all_differing_settings_are_named(tmp_path):
    _train(tmp_path, "trainer.max_epochs=1")
    with pytest.raises(ValueError, match=r"loss.final.dice=1.0, found 2.0; data.seed=0, found 7.*|seed=0, found 7"):
        prepare_training(_config(tmp_path, f"resume={tmp_path}", "loss.final.dice=2.0", "seed=7"))
    allowed = ("trainer.max_epochs=2", "data.num_workers=1", "num_samples=0", "data.n_test=2")
    assert prepare_training(_config(tmp_path, f"resume={tmp_path}", *allowed)).checkpoint is not None


def test_automatic_batch_size_of_a_resumed_run_is_that_of_its_beginning(tmp_path):
    auto = [o for o in TINY if not o.startswith("data.batch_size")]
    auto += ["data.batch_size=auto", f"run_dir={tmp_path}", "trainer.max_epochs=1"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        first, again = (resolve(compose("train", [*auto, *more])) for more in ((), (f"resume={tmp_path}",)))
    job = prepare_training(first)
    size = job.data.batch_size
    train(job)
    assert prepare_training(again).module.config["data"]["batch_size"] == size > 1


def test_files_of_a_stranger_are_not_overwritten(tmp_path):
    for name in ("config.yaml", "checkpoints", "test_scores.csv", "environment.json"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text("{}")
        with pytest.raises(ValueError, match=f"{name} is there and was not written by e2net"):
            prepare_training(_config(folder))
