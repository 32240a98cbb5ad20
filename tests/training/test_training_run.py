"""The main job from end to end, on tiny encoders and few pictures."""

import csv
import hashlib
import json
import os
import signal

import cv2
import lightning as L
import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, encoder_config
from hydra import compose, initialize_config_dir

from e2net.datasets import ProceduralPairs
from e2net.evaluation import evaluate, prepare_evaluation
from e2net.evaluation.test import choose_precision
from e2net.formats import read_mask
from e2net.metrics import MapScores, MaskProtocol, score_map
from e2net.runs import resolve
from e2net.runs.overrides import inherit
from e2net.training import prepare_training, train

QUICK = [
    "size=64",
    "data.n_train=24",
    "data.n_test=5",
    "data.num_workers=0",
    "data.batch_size=4",
    "data.val_fraction=0.3",
    "decoder.width=16",
    "trainer.max_epochs=2",
    "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=1",
    "num_samples=2",
]


def _compose(name, *overrides):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose(name, list(overrides))
        return resolve(inherit(config, overrides) if name == "eval" else config)


def _prepare(folder, *overrides, encoder=None):
    config = _compose("train", *QUICK, f"run_dir={folder}", *overrides)
    if encoder is not None:
        config["encoder"] = encoder
    return prepare_training(config)


def _evaluate(folder, output, *overrides):
    overrides = (f"ckpt={folder}", f"output={output}", "accelerator=cpu", *overrides)
    job = prepare_evaluation(_compose("eval", *overrides))
    return evaluate(job)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One finished default run: its folder and the scores it returned."""
    folder = tmp_path_factory.mktemp("default") / "run"
    return folder, train(_prepare(folder))


def test_run_folder_holds_what_it_promises(run):
    folder, scores = run
    assert yaml.safe_load((folder / "config.yaml").read_text())["size"] == 64
    assert (folder / "checkpoints" / "best.ckpt").is_file() and (folder / "checkpoints" / "last.ckpt").is_file()
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    assert {"train/loss", "train/final/dice", "train/coarse/bce", "val/S", "val/MAE", "val/wF"} <= set(rows[0])
    assert list((folder / "tensorboard").glob("events*"))
    for name in ("val", "test_procedural"):
        assert cv2.imread(str(folder / "samples" / f"{name}.png")).std() > 10
    written = json.loads((folder / "test_scores.json").read_text())
    assert written["scores"] == scores
    assert written["protocol"] == MaskProtocol().describe()
    assert set(scores) == {"procedural"}
    record = json.loads((folder / "environment.json").read_text())
    assert record["packages"]["torch"] and record["git"] and record["command"] and record["started"]
    assert record["device"]["type"] == "cpu" and len(record["encoder_sha256"]) == 64 and record["resumed"] is None


def test_checkpoint_loads_without_running_code(run):
    content = torch.load(run[0] / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["e2net"]["config"]["size"] == 64
    assert content["optimizer_states"]


def test_train_then_eval_gives_the_same_numbers(run, tmp_path):
    folder, scores = run
    assert _evaluate(folder, tmp_path) == scores
    assert json.loads((tmp_path / "scores.json").read_text())["scores"] == scores
    (row,) = csv.DictReader((tmp_path / "scores.csv").open())
    assert row["test_set"] == "procedural"
    assert {k: float(row[k]) for k in scores["procedural"]} == scores["procedural"]


def test_evaluation_at_other_scales_and_in_windows(run, tmp_path):
    """All of it together runs, is recorded, and changes the scores; what equals the plain pass scores as that."""
    folder, scores = run
    assert _evaluate(folder, tmp_path / "same", "test_scales=[1]", "window=64") == scores
    options = ("flip_test=true", "test_scales=[1.0,0.75]", "size=96", "window=64", "window_overlap=0.25")
    assert _evaluate(folder, tmp_path / "all", *options)["procedural"] != scores["procedural"]
    record = json.loads((tmp_path / "all" / "eval_environment.json").read_text())
    digest = hashlib.sha256((folder / "checkpoints" / "best.ckpt").read_bytes()).hexdigest()
    assert record["checkpoint_sha256"] == digest and len(record["encoder_sha256"]) == 64
    with pytest.raises(
        ValueError, match="window: expected sides that are multiples of the encoder's 8 pixels, found 60x60"
    ):
        _evaluate(folder, tmp_path / "bad", "window=60")


def test_evaluation_looks_as_the_training_run_did(tmp_path):
    """Its scales and its mirror images, unless told otherwise."""
    scores = train(
        _prepare(tmp_path / "run", "trainer.max_epochs=1", "test_scales=[1.0,1.5]", "flip_test=true", "sharpen=2")
    )
    assert _evaluate(tmp_path / "run", tmp_path / "eval") == scores
    assert _evaluate(tmp_path / "run", tmp_path / "soft", "sharpen=1") != scores
    assert _evaluate(tmp_path / "run", tmp_path / "plain", "test_scales=[1.0]", "flip_test=false") != scores


def test_printed_scores_are_those_of_the_written_maps(run, tmp_path):
    folder, _ = run
    scores = _evaluate(folder, tmp_path)["procedural"]
    pairs = ProceduralPairs(5, 0, yaml.safe_load((folder / "config.yaml").read_text())["data"]["difficulty"], "test")
    again = MapScores()
    for i in range(len(pairs)):
        mask = pairs.read(i)[1]
        file = tmp_path / "maps" / "procedural" / f"{pairs.name(i)}.png"
        written = np.asarray(cv2.imread(str(file), cv2.IMREAD_UNCHANGED))
        assert written.dtype == np.uint8 and written.shape == mask.shape
        again.add(i, score_map(written, mask, protocol=MaskProtocol()))
    assert {k: float(v) for k, v in again.compute().items()} == scores


def _write_folder(root, count, source):
    for i in range(count):
        image, mask = source.read(i % len(source))
        for kind, values in (("Image", image[..., ::-1]), ("GT", mask.astype(np.uint8) * 255)):
            (root / kind).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(root / kind / f"{i}.png"), values)


def test_folders_with_a_frozen_local_encoder(tmp_path, encoder_folder):
    """Frozen means bit-equal after training with sanity validation; what trains has moved; the rest is not stored."""
    for split, seed in (("train", 0), ("test", 1)):
        _write_folder(tmp_path / "data" / split, 12, ProceduralPairs(12, seed, 0.2, split))
    encoder = {
        "_target_": "e2net.encoders.ViTEncoder.from_pretrained",
        "path": str(encoder_folder("dinov3")),
    }
    overrides = [o for o in QUICK if not o.startswith("data.n_")] + [
        "encoder=local",
        "encoder.path=x",
        "data=folder",
        "loss=alpha",
    ]
    config = _compose("train", *overrides, f"data.root={tmp_path}/data", f"run_dir={tmp_path}/run")
    config["encoder"] = encoder
    job = prepare_training(config)
    model = job.module.model
    before = {k: v.clone() for k, v in model.state_dict().items()}
    scores = train(job)
    assert job.trainer.num_sanity_val_steps > 0
    after = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    for name, value in model.state_dict().items():
        if name.startswith("encoder."):
            assert torch.equal(value, before[name]), name
            assert name not in after
    # BatchNorm counts and every weight; a bias or a 1 may stand still only if nothing reaches it.
    assert [n for n, v in after.items() if torch.equal(v, before[n])] == []
    assert _evaluate(tmp_path / "run", tmp_path / "eval") == scores
    moved = _evaluate(
        tmp_path / "run", tmp_path / "eval2", "data=folder", f"data.root={tmp_path}/data", "data.test=[train]"
    )
    assert set(moved) == {"train"}


def test_overfits_two_images(tmp_path):
    """Which come eight times in an epoch, as an epoch's end takes longer than its step."""
    for name, count in (("train", 16), ("two", 2)):
        _write_folder(tmp_path / "data" / name, count, ProceduralPairs(2, 3, 0.3, "train"))
    config = _compose(
        "train", "data=folder", f"data.root={tmp_path}/data", "data.test=[two]", "data.val_fraction=0",
        "data.batch_size=2", "data.num_workers=0", "data.augment=null", "size=96", "decoder.width=32",
        "trainer.max_epochs=10", "trainer.accelerator=cpu", "optim.lr=1e-2", "trainer.gradient_clip_val=null",
        f"run_dir={tmp_path}/run",
    )  # fmt: skip
    scores = train(prepare_training(config))["two"]
    assert scores["S"] > 0.9 and scores["MAE"] < 0.05


def test_size_is_checked_before_training(tmp_path):
    with pytest.raises(ValueError, match=r"60x60 .* nearest legal sizes are 56x56 and 64x64"):
        _prepare(tmp_path / "run", "size=60")
    with pytest.raises(ValueError, match="seed=a: expected a whole number"):
        _prepare(tmp_path / "run", "seed=a")


def test_checkpoint_of_another_decoder_is_refused(run, tmp_path):
    for override in ("decoder.width=32", "optim.lr=1e-5", "schedule.warmup=0.1", "schedule=plateau"):
        key = override.partition("=")[0].replace("schedule", "optim.schedule")
        with pytest.raises(ValueError, match=rf"resume=.*: expected the settings of that run, .*{key}\S*="):
            _prepare(tmp_path / "run", f"resume={run[0]}", override)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_an_interrupted_run_says_so_and_can_be_resumed(tmp_path, sent):
    class Interrupt(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.current_epoch == 1:
                os.kill(os.getpid(), sent)

    job = _prepare(tmp_path, "trainer.max_epochs=2")
    job.trainer.callbacks.append(Interrupt())
    # A process that a shell started in the background ignores Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(job)
    finally:
        signal.signal(signal.SIGINT, before)  # Lightning ignores it from the first Ctrl-C on
    assert not (tmp_path / "test_scores.json").exists()
    assert "procedural" in train(_prepare(tmp_path, "trainer.max_epochs=2", f"resume={tmp_path}"))


@pytest.mark.parametrize(
    "cuda, bf16, accelerator, expected",
    [
        (False, False, "auto", "32-true"),
        (True, True, "auto", "bf16-mixed"),
        (True, False, "auto", "16-mixed"),
        (True, True, "cpu", "32-true"),
    ],
)
def test_precision_follows_the_device(monkeypatch, cuda, bf16, accelerator, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    assert choose_precision("auto", accelerator) == expected
    assert choose_precision("16-mixed", accelerator) == "16-mixed"


@pytest.mark.parametrize("cpu, accelerator, warnings", [("AVX2", "cpu", 1), ("AVX512", "cpu", 0), ("AVX2", "auto", 0)])
def test_imitated_bf16_is_warned_of(monkeypatch, caplog, cpu, accelerator, warnings):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: cpu)
    assert choose_precision("bf16-mixed", accelerator) == "bf16-mixed"
    assert len(caplog.records) == warnings


def test_frozen_tiny_encoder_config_is_stored(tmp_path):
    """Random weights lie nowhere else: a frozen random encoder must come back from the checkpoint."""
    encoder = {"_target_": "e2net.encoders.ViTEncoder.from_config", "config": encoder_config("dinov2_registers")}
    job = _prepare(tmp_path / "run", "tuning=frozen", "size=56", "trainer.max_epochs=1", encoder=encoder)
    scores = train(job)
    assert _evaluate(tmp_path / "run", tmp_path / "eval") == scores


def test_masks_are_read_at_their_own_size(tmp_path):
    _write_folder(tmp_path, 1, ProceduralPairs(1, 0, 0.5, "test"))
    mask = ProceduralPairs(1, 0, 0.5, "test").read(0)[1]
    assert np.array_equal(read_mask(tmp_path / "GT" / "0.png"), mask)
