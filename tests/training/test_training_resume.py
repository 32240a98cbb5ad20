"""What may differ in a resumed run, and what a run folder holds after one."""

import json
import os
import shutil
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from conftest import ROOT
from hydra import compose, initialize_config_dir
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import TINY, rows_of, tiny_job

from e2net.compare.runs import read_run
from e2net.datasets import ProceduralPairs
from e2net.evaluation import evaluate, prepare_evaluation
from e2net.formats import write_map
from e2net.runs import inherit, resolve
from e2net.runs.checkpoint import read_checkpoint
from e2net.runs.resume import images_hash
from e2net.training import prepare_training, train
from e2net.training.callbacks import ResumeState


class Stop(L.Callback):
    """Interrupts a run in the middle of an epoch, as Ctrl-C would."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.current_epoch == self.epoch and batch_idx == 1:
            raise KeyboardInterrupt


def interrupted(job, epoch):
    job.trainer.callbacks.append(Stop(epoch))
    with pytest.raises(KeyboardInterrupt):
        train(job)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of two epochs."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(tiny_job(folder))
    return folder


def snapshot(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and p.name != ".lock"}


def test_all_that_differs_is_named_at_once(run, tmp_path):
    with pytest.raises(ValueError) as caught:
        tiny_job(tmp_path, f"resume={run}", "seed=3", "loss=v1", "size=40", "data.val_fraction=0.5", "optim.lr=0.1")
    for words in ("seed=0, found 3", "data.seed=0, found 3", "size=32, found 40", "data.val_fraction=0.3, found 0.5"):
        assert words in str(caught.value)
    assert "loss." in str(caught.value) and "optim.lr=" in str(caught.value) and "train anew" in str(caught.value)


def test_what_is_added_or_left_out_is_a_difference(run, tmp_path):
    with pytest.raises(ValueError, match=r"with the settings trainer.val_check_interval=2, found one without"):
        tiny_job(tmp_path, f"resume={run}", "+trainer.val_check_interval=2")
    with pytest.raises(ValueError, match=r"decoder.width=16, found none"):
        tiny_job(tmp_path, f"resume={run}", "~decoder.width")


def test_checkpoint_of_a_version_without_a_setting(run, tmp_path):
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    del content["e2net"]["config"]["ema"]
    torch.save(content, tmp_path / "old.ckpt")
    with pytest.raises(ValueError, match=r"settings ema=None, found one without them, by another version of e2net"):
        tiny_job(tmp_path / "new", f"resume={tmp_path}/old.ckpt")


def _pairs(root, names):
    source = ProceduralPairs(len(names), 0, 0.2, "train")
    for split in ("train", "test"):
        for i, name in enumerate(names):
            image, mask = source.read(i)
            write_map(root / split / "Image" / f"{name}.png", image[..., 0])
            write_map(root / split / "GT" / f"{name}.png", mask.astype("uint8") * 255)


def test_data_may_have_moved_but_not_changed(tmp_path):
    _pairs(tmp_path / "a", "abcdefgh")
    _pairs(tmp_path / "b", "abcdefgx")
    tiny = [option for option in TINY if not option.startswith(("data.n_", "data.sides"))]

    def config(folder, root, *more):
        options = ["data=folder", "data.val_fraction=0", f"data.root={root}", f"run_dir={folder}", *more]
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            return resolve(compose("train", [*tiny, *options]))

    train(prepare_training(config(tmp_path / "run", tmp_path / "a", "trainer.max_epochs=1")))
    (tmp_path / "a").rename(tmp_path / "moved")
    prepare_training(config(tmp_path / "on", tmp_path / "moved", f"resume={tmp_path}/run"))
    with pytest.raises(ValueError, match="expected the images of that run, found others"):
        prepare_training(config(tmp_path / "on2", tmp_path / "b", f"resume={tmp_path}/run"))


def test_extended_run_has_no_scores_of_its_earlier_state(run, tmp_path):
    """At the moment at which it says in config.yaml that it is another run, and from then on until it has its own."""
    shutil.copytree(run, tmp_path / "run")
    folder = tmp_path / "run"
    interrupted(tiny_job(folder, f"resume={folder}", "trainer.max_epochs=3"), 2)
    assert yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["max_epochs"] == 3
    assert [p.name for p in folder.glob("test_*")] == [] and not list((folder / "samples").glob("test_*"))
    with pytest.raises(FileNotFoundError, match="is not finished"):
        read_run(folder)
    train(tiny_job(folder, f"resume={folder}", "trainer.max_epochs=3"))
    assert read_run(folder).config["trainer"]["max_epochs"] == 3


@pytest.mark.parametrize(
    "file, said", [("config.yaml", "of other settings than config.yaml"), ("checkpoints/best.ckpt", "of another best")]
)
def test_scores_of_another_config_or_checkpoint_are_refused(run, tmp_path, file, said):
    shutil.copytree(run, tmp_path / "run")
    read_run(tmp_path / "run")
    with (tmp_path / "run" / file).open("ab") as stream:
        stream.write(b"\nmore: 1\n")
    with pytest.raises(ValueError, match=f"test_scores.json is {said}"):
        read_run(tmp_path / "run")


def test_maps_of_one_checkpoint_do_not_stay_beside_those_of_another(run, tmp_path):
    """Neither those of an image that an interrupted evaluation did not come to, nor those of another set."""

    def job(*more):
        given = [f"ckpt={run}", f"output={tmp_path}/out", "accelerator=cpu", "num_samples=0", *more]
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            return prepare_evaluation(resolve(inherit(compose("eval", given), given)))

    evaluate(job())
    maps = tmp_path / "out" / "maps" / "procedural"
    assert len(list(maps.iterdir())) == 3
    again = job()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(again.trainer, "test", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        evaluate(again)
    assert list(maps.iterdir()) == [] and not (tmp_path / "out" / "scores.json").exists()
    with pytest.raises(ValueError, match="found procedural of an earlier evaluation; give another output"):
        job("data=procedural", "data.n_test=3", "data.test={other: 0.1}")


def test_scores_outlive_their_checkpoints(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert read_run(tmp_path / "run").sets == ["procedural"]


def test_a_best_checkpoint_does_not_replace_later_epochs(run):
    before = snapshot(run)
    with pytest.raises(ValueError, match="expected a new folder"):
        tiny_job(run, f"resume={run}/checkpoints/best.ckpt")
    assert snapshot(run) == before


def test_finished_run_without_validation_goes_on_in_a_new_folder(tmp_path):
    scores = train(tiny_job(tmp_path / "run", "data.val_fraction=0"))
    (tmp_path / "run" / "checkpoints" / "best.ckpt").write_bytes(b"of another run, by an older version")
    assert train(tiny_job(tmp_path / "new", "data.val_fraction=0", f"resume={tmp_path}/run")) == scores
    assert [p.name for p in (tmp_path / "new" / "checkpoints").iterdir()] == ["last.ckpt"]
    assert rows_of(tmp_path / "new") == rows_of(tmp_path / "run")


@pytest.mark.parametrize("own", [True, False])
def test_metrics_of_a_resumed_run_are_those_of_an_uninterrupted_one(run, tmp_path, own):
    """Rows of before stay, those of the epoch that is run again do not come twice."""
    interrupted(tiny_job(tmp_path / "run"), 1)
    assert any(row.get("epoch") == "1" for row in rows_of(tmp_path / "run"))
    folder = tmp_path / ("run" if own else "new")
    train(tiny_job(folder, f"resume={tmp_path}/run"))
    assert rows_of(folder) == rows_of(run)
    assert (folder / "metrics.csv").read_bytes() == (run / "metrics.csv").read_bytes()
    curve = read_run(folder).curves()["train/mean_loss"]
    assert [epoch for epoch, _ in curve] == [1, 2]
    if not own:
        interrupted_too = json.loads((folder / "environment.json").read_text())["resumed"]
        assert interrupted_too.endswith("run/checkpoints/last.ckpt")


def test_tensorboard_hides_what_is_run_again(tmp_path):
    interrupted(tiny_job(tmp_path / "run", "decoder=linear"), 1)
    train(tiny_job(tmp_path / "run", "decoder=linear", f"resume={tmp_path}/run"))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    steps = [event.step for event in events.Scalars("train/loss")]
    assert steps == sorted(set(steps)) == [int(r["step"]) for r in rows_of(tmp_path / "run") if "train/loss" in r]


class EndSoon(L.Callback):
    """What Lightning's timer does, at a batch of an epoch."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        trainer.should_stop = trainer.current_epoch == 1 and batch_idx == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_that_was_to_end_within_an_epoch_goes_on_within_it(tmp_path, workers):
    options = ["decoder=linear", "data.n_train=30", "trainer.max_epochs=3", f"data.num_workers={workers}"]
    train(tiny_job(tmp_path / "whole", *options))
    job = tiny_job(tmp_path / "run", *options)
    job.trainer.callbacks.insert(0, EndSoon())
    train(job)
    assert (tmp_path / "run" / "test_scores.json").is_file()
    train(tiny_job(tmp_path / "run", *options, f"resume={tmp_path}/run"))
    assert [r["step"] for r in rows_of(tmp_path / "run") if "train/loss" in r] == [
        r["step"] for r in rows_of(tmp_path / "whole") if "train/loss" in r
    ]
    states = [read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt")["state_dict"] for name in ("run", "whole")]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.parametrize(("time", "told"), [("00:00:00:00", True), ("00:01:00:00", False)])
def test_a_resumed_run_whose_time_is_used_up_says_so(tmp_path, caplog, time, told):
    options = ["decoder=linear", "+trainer.max_time='00:01:00:00'", "data.test={}"]
    train(tiny_job(tmp_path / "run", *options, "trainer.max_epochs=1"))
    options[1] = f"+trainer.max_time='{time}'"
    job = tiny_job(tmp_path / "run", *options, "trainer.max_epochs=2", f"resume={tmp_path}/run")
    assert ("all that trainer.max_time gives it" in caplog.text) == told
    train(job)
    assert (job.trainer.global_step > job.step) != told


def test_a_run_of_so_many_steps_goes_on_within_an_epoch(tmp_path):
    """And ends where the uninterrupted one does, in the middle of another."""
    options = ["data.n_train=30", "data.num_workers=0", "trainer.max_epochs=100", "+trainer.max_steps=13"]
    options += ["decoder=linear", "checkpoint_every_n_steps=1"]
    train(tiny_job(tmp_path / "whole", *options))
    interrupted(tiny_job(tmp_path / "run", *options), epoch=1)
    train(tiny_job(tmp_path / "run", *options, f"resume={tmp_path}/run"))
    states = [read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("run", "whole")]
    assert states[0]["global_step"] == states[1]["global_step"] == 13
    assert all(torch.equal(v, states[1]["state_dict"][key]) for key, v in states[0]["state_dict"].items())


def test_images_are_told_apart_by_the_bytes_of_their_names():
    """Which need be no UTF-8."""
    names = [os.fsdecode(name) for name in (b"caf\xe9", b"caf\xe8", "caf\u00e9".encode())]
    sets: list[Any] = [SimpleNamespace(train_names=[one].copy, val_names=list) for one in names]
    assert len({images_hash(one) for one in sets}) == 3


@pytest.mark.parametrize(("before", "now", "times"), [(1, 2, "2 times"), (4, 2, "0.5 times"), (2, 2, "")])
def test_another_number_of_processes_is_warned_of_and_no_image_is_counted_twice(caplog, before, now, times):
    means = torch.tensor([[3.0, 2.0]] * before)  # sum of losses, and images
    finite = SimpleNamespace(load_state_dict=lambda state: None)
    found = []
    for rank in range(now):
        module: Any = SimpleNamespace(finite=finite)
        trainer: Any = SimpleNamespace(world_size=now, global_rank=rank, is_global_zero=rank == 0)
        state = {"resume": {"finite": {}, "mean_loss": means}}
        ResumeState().on_load_checkpoint(trainer, module, state)
        found.append(module.mean_loss)
    assert sum(found).tolist() == means.sum(0).tolist()
    assert [times in record.getMessage() for record in caplog.records] == [True] * bool(times)
