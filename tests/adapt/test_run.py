"""A run from pictures to an encoder's folder: what it leaves, that it goes on to the bit, what stops it."""

import csv
import json
from types import SimpleNamespace

import cv2
import lightning as L
import numpy as np
import pytest
import torch
from conftest import mostly_slow
from small import small_config, small_job
from transformers import AutoModel

from e2net.adapt.follow import tokens_of
from e2net.adapt.probe import Probe
from e2net.adapt.run import adapt, prepare_adapting
from e2net.adapt.watch import CollapseError
from e2net.encoders import ViTEncoder

pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec:")


class Stop(L.Callback):
    """Interrupts a run after so many steps, as Ctrl-C would."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run with everything that changes: drop path, a queue, masks, an own Gram teacher, accumulation."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    job = small_job(folder, *EVERYTHING)
    adapt(job)
    return job


EVERYTHING = [
    "gram.start=0.3", "gram.renew_every=2", "adapt.drop_path=0.2", "encoder.config.pos_embed_rescale=2.0",
    "checkpoint_every_n_steps=1", "adapt.weight_decay={ramp:cosine,from:0.04,to:0.4}",
    "adapt.freeze_last_layer=2", "trainer.accumulate_grad_batches=2",
]  # fmt: skip


def _rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]


def test_what_a_run_leaves(finished):
    folder = finished.run_dir
    names = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "environment.json", "metrics.csv", "checkpoints", "probe.png", "features.png"} <= names
    for name in ("probe.png", "features.png"):
        assert cv2.imread(str(folder / name)).std() > 5
    watched = [row for row in _rows(folder) if "probe/S" in row]
    assert [int(row["step"]) for row in watched] == [0, 3, 6]
    assert float(watched[0]["watch/neighbour_agreement"]) == 1.0
    assert {"train/dino", "train/ibot", "train/koleo", "train/gram"} <= set().union(*_rows(folder))


def test_the_folder_holds_the_best_teacher_and_transformers_loads_it(finished):
    best = finished.follow.best
    assert best["probe/S"] == max(row["probe/S"] for row in finished.follow.rows[1:])
    ours = ViTEncoder.from_pretrained(str(finished.output))
    theirs = AutoModel.from_pretrained(finished.output).eval()
    images = finished.images
    got = tokens_of(ours, images)
    pixels = (images.float() / 255 - ours.mean) / ours.std
    with torch.no_grad():
        want = theirs(pixels).last_hidden_state
    torch.testing.assert_close(got.class_token, want[:, 0])
    torch.testing.assert_close(got.patches, want[:, 5:])
    # The probe says of the folder what it said of the teacher.
    assert finished.follow.probe(ours)["S"] == pytest.approx(best["probe/S"], abs=1e-4)
    assert not torch.allclose(got.patches, finished.before.patches, atol=1e-3)


@pytest.mark.parametrize("stop", mostly_slow([2, 3]))
def test_a_resumed_run_equals_a_straight_one_to_the_bit(finished, tmp_path, stop):
    """Interrupted at the end of an epoch and in the middle of one, where the Gram teacher has been copied."""
    job = small_job(tmp_path / "one", *EVERYTHING)
    job.trainer.callbacks.append(Stop(stop))
    with pytest.raises(KeyboardInterrupt):
        adapt(job)
    resumed = small_job(tmp_path / "two", *EVERYTHING, resume=tmp_path / "one")
    assert resumed.step == stop
    adapt(resumed)
    want, got = finished.module.state_dict(), resumed.module.state_dict()
    assert want.keys() == got.keys()
    different = [name for name in want if not torch.equal(want[name], got[name])]
    assert not different
    assert finished.follow.rows == resumed.follow.rows
    files = ("model.safetensors", "config.json")
    assert all((finished.output / f).read_bytes() == (resumed.output / f).read_bytes() for f in files)
    losses = [
        [row.get("train/loss") for row in _rows(job.run_dir) if "train/loss" in row] for job in (finished, resumed)
    ]
    assert losses[0] == losses[1]


def test_another_encoder_is_no_resumption(finished, tmp_path):
    with pytest.raises(ValueError, match=r"encoder.config.num_register_tokens=4, found 2"):
        small_job(tmp_path, *EVERYTHING, "encoder.config.num_register_tokens=2", resume=finished.run_dir)


def test_other_pictures_are_no_resumption(tmp_path):
    for name, count in (("some", 12), ("more", 13)):
        _photos(tmp_path / name, count)
    adapt(small_job(tmp_path / "run", "checkpoint_every_n_steps=1", "trainer.max_steps=2", data=_of(tmp_path / "some")))
    settings = ["checkpoint_every_n_steps=1", "trainer.max_steps=2"]
    with pytest.raises(ValueError, match="expected the pictures of that run, found others"):
        small_job(tmp_path / "new", *settings, data=_of(tmp_path / "more"), resume=tmp_path / "run")


def _photos(folder, count=12, side=48):
    rng = np.random.default_rng(0)
    for i in range(count):
        image = cv2.resize(rng.integers(0, 256, (6, 6, 3), np.uint8), (side, side))
        (folder / f"{i % 3}").mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(folder / f"{i % 3}" / f"{i}.jpg"), image)
    return folder


def _of(folder):
    return [f"data.root={folder}", "data.num_workers=0", "encoder=tiny", "encoder.config.hidden_size=24",
            "encoder.config.intermediate_size=32"]  # fmt: skip


def test_a_folder_without_labels(tmp_path, caplog):
    photos = _photos(tmp_path / "photos")
    (photos / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"probe.method=knn: there is no probe without probe.root=FOLDER"):
        small_job(tmp_path / "run", "probe.method=knn", data=_of(photos))
    job = small_job(tmp_path / "run", data=_of(photos))
    assert "1 broken files" in caplog.text and "broken.jpg" in caplog.text
    assert job.follow.probe is None
    adapt(job)
    assert job.follow.best is None and (tmp_path / "run" / "encoder" / "model.safetensors").is_file()
    card = (tmp_path / "run" / "encoder" / "README.md").read_text()
    assert "| pictures | 12 |" in card and "| steps | 6 |" in card


@pytest.mark.parametrize("tuning", mostly_slow(["explora", "lora", "partial"]))
def test_each_tuning_ends_in_a_plain_folder(tmp_path, tuning):
    job = small_job(tmp_path / "run", f"tuning={tuning}", "trainer.max_steps=3", "optim.lr=0.05")
    adapt(job)
    ours = ViTEncoder.from_pretrained(str(job.output))
    teacher = tokens_of(job.module.teacher.encoder, job.images)
    torch.testing.assert_close(tokens_of(ours, job.images).patches, teacher.patches, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(teacher.patches, job.before.patches, atol=1e-4)
    names = {name for name, _ in AutoModel.from_pretrained(job.output).named_parameters()}
    assert not any("lora" in name for name in names)


def test_what_it_takes_is_told(tmp_path, caplog):
    caplog.set_level("INFO")
    adapt(small_job(tmp_path / "run", "trainer.max_steps=2"))
    for words in (
        "parameters: encoder",
        "memory: about",
        "the largest batch that fits",
        "pictures a second",
        "2 steps of 4",
    ):
        assert words in caplog.text


def test_telling_it_changes_nothing(tmp_path, monkeypatch):
    """The random state, the weights and the queue stay as they are."""
    one = small_job(tmp_path / "one", "adapt.drop_path=0.2", "trainer.max_steps=3")
    adapt(one)
    monkeypatch.setattr("e2net.adapt.run.estimate", lambda *a: type("Silent", (), {"lines": lambda *a: []})())
    other = small_job(tmp_path / "other", "adapt.drop_path=0.2", "trainer.max_steps=3")
    adapt(other)
    one, other = (job.module.state_dict() for job in (one, other))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_collapse_stops_the_run(tmp_path):
    job = small_job(tmp_path / "run", "watch.rank=20")
    with pytest.raises(CollapseError, match="at step 3: the effective rank"):
        adapt(job)
    assert not job.output.exists()


@pytest.mark.parametrize("centred", [False, True])
def test_a_training_without_centring_collapses_and_is_stopped(tmp_path, centred):
    """At the first look, before which its prototypes may never have said anything; with a centre it is not."""
    config = small_config(
        tmp_path / "run", "trainer.max_steps=30", "watch.every=30", "watch.pictures=8", "adapt.head_steps=0",
        "gram.weight=0", "data.batch_size=8", "optim.lr=0.01", "adapt.koleo=0", "adapt.teacher_momentum=0.9",
    )  # fmt: skip
    config["watch"] |= {"rank": 1.5, "information": 1e-5}
    config["targets"] = {"_target_": "e2net.adapt.targets.Centre", "momentum": 0.9}
    job = prepare_adapting(config)
    job.follow.probe = None
    if centred:
        adapt(job)
        assert job.follow.rows[-1]["watch/information"] > 1e-3
        return
    for targets in job.module.targets.values():
        vars(targets)["update"] = lambda logits: None
    with pytest.raises(CollapseError, match=r"at step 30: the information of the prototypes is .*, below 1e-05"):
        adapt(job)


def test_what_was_better_before_a_collapse_is_kept(tmp_path):
    job = small_job(tmp_path / "run", "watch.every=2", "trainer.max_steps=6")
    scores = iter([0.1, 0.3, 0.2, 0.2])
    job.follow.probe.__class__ = _scoring(lambda self, encoder: {"S": next(scores), "MAE": 0.1})
    looks = iter([20.0, 20.0, 1.0])
    check = job.follow.watch.collapse.check
    job.follow.watch.collapse.rank = 2.0
    job.follow.watch.collapse.check = lambda step, rank, information: check(step, next(looks), None)
    next(looks)
    with pytest.raises(CollapseError, match=r"at step 4: the effective rank.*best encoder before that, of step 2, is"):
        adapt(job)
    assert "| steps | 2 |" in (job.output / "README.md").read_text()


def test_a_training_that_did_not_help_says_so(tmp_path, capsys):
    job = small_job(tmp_path / "run", "trainer.max_steps=3")
    job.follow.probe.__class__ = _scoring(_falling())
    adapt(job)
    assert "it did not help" in capsys.readouterr().out


def _scoring(call):
    return type("Scripted", (Probe,), {"__call__": call})


def _falling():
    scores = iter([0.5, 0.4, 0.3, 0.2])
    return lambda self, encoder: {"S": next(scores), "MAE": 0.1}


def test_batch_size_auto(tmp_path):
    job = small_job(tmp_path / "run", "data.batch_size=auto", "heads.prototypes=16")
    assert job.pictures.batch_size == 13 == job.module.config["data"]["batch_size"]
    assert json.dumps(job.module.config)


def test_shorter_epochs_are_more_of_them(tmp_path):
    job = small_job(tmp_path / "run", "+trainer.limit_train_batches=2")  # of three
    assert job.module.steps == 6 and job.trainer.max_epochs == 3


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["heads.prototypes=65536"], r"heads.prototypes=65536: expected at least 2048 pictures for so many, found 13"),
        (["data.batch_size=14"], r"expected at least data.batch_size=14 pictures, found 13"),
        (["data.batch_size=1"], r"adapt.koleo: expected two pictures and more in a batch, found 1"),
        (["adapt.head_steps=6"], r"adapt.head_steps=6: expected fewer than the 6 steps of the run"),
        (["size=36"], r"size: image size 36x36 .* is not a multiple of 8"),
        (["crops.local_size=20"], r"crops.local_size: image size 20x20 .* is not a multiple of 8"),
        (["tuning=frozen"], r"tuning=frozen: nothing of the encoder would train"),
        (["tuning=adapter"], r"output: adapters are layers of e2net's own.*tuning=lora"),
        (["schedule=plateau"], r"schedule=Plateau: expected a curve"),
        (["trainer.devices=2"], r"expected one device; give trainer.devices=1"),
        (["mix=[[32,16]]"], r"mix=\[\[32, 16\]\]: expected \[\[global side, local side, share of the batches\]"),
        (["mix=[[32,16,1],[36,16,1]]"], r"mix: image size 36x36 .* is not a multiple of 8"),
        (["adapt.dino=-1"], r"adapt.dino must be at least 0, found -1"),
        (["probe.task={_target_: e2net.tasks.Camouflage}"], r"probe.task=.*: generated pictures have masks"),
        (["callbacks=early_stopping"], r"callbacks=early_stopping: expected a validation whose score it goes by"),
    ],
)
def test_wrong_settings_end_before_the_training(tmp_path, overrides, words):
    with pytest.raises(ValueError, match=words):
        small_job(tmp_path / "run", *overrides)
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())


def test_a_disk_that_is_nearly_full(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(total=2**30, used=2**30, free=1000))
    with pytest.raises(ValueError, match=r"expected room for about \d+ MiB .* found 0; make room"):
        small_job(tmp_path / "run")


def test_encoders_that_lack_what_a_recipe_needs(tmp_path):
    siglip = {"model_type": "siglip_vision_model", "patch_size": 8, "hidden_size": 24, "num_hidden_layers": 4,
              "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32}  # fmt: skip
    for words, encoder, overrides in (
        ("has no class token", {"config": siglip}, ["adapt.ibot=0"]),
        ("no rotary positions", {"config": {**siglip, "model_type": "dinov2"}}, ["adapt.rope_rescale=2.0"]),
        ("mask", {"config": siglip}, ["adapt.dino=0", "adapt.koleo=0"]),
    ):
        config = small_config(tmp_path / "run", *overrides)
        if encoder["config"]["model_type"] == "dinov2":
            del encoder["config"]["intermediate_size"]
        config["encoder"] = {"_target_": config["encoder"]["_target_"], **encoder}
        with pytest.raises(ValueError, match=words):
            prepare_adapting(config)


def test_convnext_without_masks(tmp_path):
    config = small_config(tmp_path / "run", "adapt.ibot=0", "size=64", "crops.local_size=32", "gram.scale=1")
    config["encoder"] = {
        "_target_": "e2net.encoders.ConvNeXtEncoder.from_config",
        "config": {"model_type": "dinov3_convnext", "hidden_sizes": [8, 8, 16, 24], "depths": [1, 1, 1, 1]},
    }
    config["watch"]["neighbours"] = 2
    adapt(prepare_adapting(config))
    assert (tmp_path / "run" / "encoder" / "config.json").is_file()
