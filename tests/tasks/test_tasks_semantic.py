"""Semantic segmentation through the whole program, on generated pictures and on small folders."""

import csv
import json
import struct
import zlib
from typing import Any, cast

import cv2
import lightning as L
import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT
from gloo import in_two
from hydra import compose, initialize_config_dir
from PIL import Image
from tiny import tiny_config

from e2net.datasets import SemanticData
from e2net.datasets.procedural import SURROUNDINGS
from e2net.evaluation import evaluate, prepare_evaluation
from e2net.evaluation.inference import Predictor
from e2net.formats import read_labels, write_labels
from e2net.losses.semantic import class_weights
from e2net.losses.semantic_loss import SemanticLoss
from e2net.metrics import LabelScores, LabelTable
from e2net.metrics.semantic import score_labels, scores_from
from e2net.runs import load_model, resolve
from e2net.runs.overrides import inherit
from e2net.structures import IGNORED
from e2net.tasks import Semantic
from e2net.training import prepare_training, train

NAMES = [*SURROUNDINGS, "object"]
THREE = {"sky": [10, 20, 30], "road": [200, 0, 0], "tree": [0, 99, 0]}


def _run(folder, *overrides):
    config = tiny_config(folder, "task=semantic", *overrides)
    return train(prepare_training(config))


def _evaluated(*overrides):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = resolve(inherit(compose("eval", list(overrides)), overrides))
    return evaluate(prepare_evaluation(config))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("semantic") / "run"
    return folder, _run(folder, "task.class_weights=auto", "loss.smoothing=0.1")


@pytest.fixture(scope="module")
def evaluated(run, tmp_path_factory):
    output = tmp_path_factory.mktemp("evaluated")
    return output, _evaluated(f"ckpt={run[0]}", f"output={output}", "accelerator=cpu")


def _pairs(root, part, labels, size=(32, 40)):
    """So many pictures as there are label maps (h, w) uint8, with them."""
    for folder in ("Image", "labels"):
        (root / part / folder).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for k, values in enumerate(labels):
        cv2.imwrite(str(root / part / "Image" / f"{k}.png"), rng.integers(0, 256, (*size, 3), np.uint8))
        cv2.imwrite(str(root / part / "labels" / f"{k}.png"), values)
    return root


@pytest.fixture
def street(tmp_path):
    """Twelve and three pictures with labels 0 to 2, and 255 to ignore."""
    root = tmp_path / "street"
    rng = np.random.default_rng(1)
    for part, count in (("train", 12), ("val", 3), ("test", 3)):
        _pairs(root, part, rng.choice(np.array([0, 1, 2, 255], np.uint8), (count, 32, 40)))
    (root / "classes.yaml").write_text(yaml.safe_dump(THREE, sort_keys=False))
    return root


def _folder_config(output, root, *more):
    keep = ["size=32", "decoder.width=16", "data.batch_size=4", "data.num_workers=0", "data.val_fraction=0.3"]
    keep += ["trainer.accelerator=cpu", "trainer.max_epochs=1", "num_samples=1", "encoder.config.hidden_size=24"]
    keep += ["encoder.config.intermediate_size=32", "encoder.config.num_attention_heads=2"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        overrides = ["task=semantic", "data=semantic", f"data.root={root}", *keep, f"run_dir={output}", *more]
        return resolve(compose("train", overrides))


def test_run_knows_its_classes_and_writes_a_row_for_each(run):
    folder, scores = run
    assert set(scores["procedural"]) == {"mIoU", "bIoU", "aAcc", "mAcc"}
    assert list(yaml.safe_load((folder / "config.yaml").read_text())["task"]["classes"]) == NAMES
    rows = list(csv.DictReader((folder / "test_per_class.csv").open()))
    assert [row["class"] for row in rows] == NAMES
    values = [float(row["IoU"]) for row in rows]
    assert np.nanmean(values) == pytest.approx(scores["procedural"]["mIoU"], abs=1e-12)
    assert cv2.imread(str(folder / "test_confusion_procedural.png")).shape[0] > 9 * 28
    assert cv2.imread(str(folder / "samples" / "test_procedural.png")) is not None


def test_evaluation_repeats_the_run_and_its_maps_score_alike(run, evaluated, tmp_path):
    folder, scores = run
    output, again = evaluated
    assert again == scores
    assert (output / "worst_best_procedural.png").is_file()
    with Image.open(next((output / "maps" / "procedural").iterdir())) as file:
        assert file.mode == "P"
    settings = yaml.safe_load((folder / "config.yaml").read_text())["data"]
    data = [f"data.{key}={settings[key]}" for key in ("n_test", "difficulty", "data_seed")] + ["data.sides=[32,40]"]
    maps = ["task=semantic", "data=procedural", *data, f"predictions={output / 'maps'}", f"output={tmp_path / 'out'}"]
    assert _evaluated(*maps, "num_workers=0") == scores
    assert (tmp_path / "out" / "per_class.csv").read_text() == (output / "per_class.csv").read_text()


@pytest.mark.parametrize(
    ("more", "views"),
    [
        (["flip_test=true"], {"flip": True}),
        (["test_scales=[1.0,2.0]"], {"scales": (1.0, 2.0)}),
        (["size=64", "window=32"], {"window": 32}),
    ],
)
def test_results_are_averaged_over_views(run, tmp_path, more, views):
    (scores,) = _evaluated(f"ckpt={run[0]}", f"output={tmp_path}", "accelerator=cpu", *more).values()
    assert 0 <= scores["mIoU"] <= scores["aAcc"] <= 1
    # Classes may stay what they are after so short a training; their probabilities do not.
    model = load_model(run[0])[0].eval()
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        once, averaged = Predictor()(model, image), Predictor(**views)(model, image)
    assert averaged.shape == once.shape and not torch.equal(averaged, once)
    torch.testing.assert_close(averaged.sum(1), torch.ones(1, 64, 64))


def test_cached_features_and_a_found_batch_size(tmp_path):
    frozen = ("tuning=frozen", "cache.views=2", f"cache.folder={tmp_path / 'cache'}", "data.augment.noise=0")
    scores = _run(tmp_path / "cached", *frozen, "data.batch_size=auto")
    assert 0 <= scores["procedural"]["mIoU"] <= 1
    # What was packed comes back.
    task = Semantic(classes=3)
    target = torch.tensor([[[[0, 2], [IGNORED, 1]]]])
    assert torch.equal(task.unpack(task.pack(target)[0], (2, 2)), target[0])


class Stop(L.Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt


def test_resumed_run_equals_one_that_was_not_interrupted(run, tmp_path):
    same = ("task.class_weights=auto", "loss.smoothing=0.1")
    job: Any = prepare_training(tiny_config(tmp_path / "half", "task=semantic", *same))
    job.trainer.callbacks.append(Stop())
    with pytest.raises(KeyboardInterrupt):
        train(job)
    assert _run(tmp_path / "half", *same, f"resume={tmp_path / 'half'}") == run[1]


def test_folder_with_a_validation_part_trains(street, tmp_path):
    job = prepare_training(_folder_config(tmp_path / "run", street, "data.val=val"))
    assert len(job.data.train_names()) == 12 and job.data.val_names() == ["val_0", "val_1", "val_2"]
    assert job.module.config["task"]["classes"] == THREE
    assert set(train(job)) == {"test"}
    # Without the file that named them.
    (street / "classes.yaml").unlink()
    scores = _evaluated(f"ckpt={tmp_path / 'run'}", f"output={tmp_path / 'again'}", "accelerator=cpu")
    written = read_labels(tmp_path / "again" / "maps" / "test" / "0.png")
    assert written.max() < 3 and 0 <= scores["test"]["mIoU"] <= 1
    files = json.loads((tmp_path / "again" / "scores.json").read_text())
    assert files["protocol"]["boundary"] == 0.02


def test_layouts_of_ade20k_and_voc(tmp_path):
    rng = np.random.default_rng(0)
    pictures, targets = ("images/training", "JPEGImages"), ("annotations/training", "SegmentationClass")
    for folder in (*pictures, *targets, "ImageSets/Segmentation"):
        (tmp_path / folder).mkdir(parents=True)
    for k in range(3):
        for folder in pictures:
            cv2.imwrite(str(tmp_path / folder / f"{k}.jpg"), rng.integers(0, 256, (8, 8, 3), np.uint8))
        for folder in targets:
            cv2.imwrite(str(tmp_path / folder / f"{k}.png"), rng.integers(0, 4, (8, 8), np.uint8))
    (tmp_path / "ImageSets" / "Segmentation" / "train.txt").write_text("2\n0\n")
    task = Semantic(classes=3, first_label=1)
    ade = SemanticData(str(tmp_path), 8, "ade20k", "training", test=["training"], task=task)
    raw = read_labels(tmp_path / "annotations" / "training" / "1.png")
    expected = np.where(raw == 0, IGNORED, raw.astype(int) - 1)
    assert np.array_equal(ade.test_source("training").read(1)[1], expected)
    voc = SemanticData(str(tmp_path), 8, "voc", test=["train"], task=Semantic(classes=4)).train_source()
    assert [voc.name(k) for k in range(len(voc))] == ["2", "0"]
    # A result is coded as the targets are.
    task.write(tmp_path / "result.png", expected.clip(0, 2).astype(np.uint16))
    assert np.array_equal(read_labels(tmp_path / "result.png"), expected.clip(0, 2) + 1)


@pytest.mark.parametrize("kind", ["8", "16", "palette", "palette4", "grey4"])
def test_label_files_are_read_as_numbers(tmp_path, kind):
    file = tmp_path / "labels.png"
    values = np.random.default_rng(0).integers(0, 4, (6, 7)).astype(np.uint16)
    if kind == "16":
        values = (values * 900).astype(np.uint16)
        cv2.imwrite(str(file), values)
    elif kind == "grey4":
        _four_bit_png(file, values)
    elif kind.startswith("palette"):
        picture = Image.fromarray(values.astype(np.uint8))
        picture.putpalette([200, 200, 200, 10, 10, 10, 10, 10, 10, 0, 0, 0])  # two numbers of one colour
        picture.save(file, bits=4 if kind == "palette4" else 8)
    else:
        cv2.imwrite(str(file), values.astype(np.uint8))
    assert np.array_equal(read_labels(file), values)


def _four_bit_png(file, values):
    padded = np.pad(values, ((0, 0), (0, values.shape[1] % 2))).astype(np.uint8)
    lines = b"".join(b"\0" + (line[::2] << 4 | line[1::2]).tobytes() for line in padded)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 4, 0, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    packed = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))


def test_labels_beyond_a_palette_are_written_with_16_bits(tmp_path):
    values = np.array([[0, 299], [1, 2]], np.uint16)
    write_labels(tmp_path / "x.png", values, [(0, 0, 0)] * 300)
    assert np.array_equal(read_labels(tmp_path / "x.png"), values)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ("outside", r"labels[/\\]1\.png: expected labels 0 to 2 \(sky to tree\) or 255 .* found 7, 9 at 2 of 1280"),
        ("picture", r"labels[/\\]1\.png: expected a label map, found a picture in RGB"),
        ("size", r"1\.png: the label map has 16x16 pixels, its image 1\.png 40x32"),
        ("silent", r"none of its 12 label maps has a pixel that counts.*task\.ignore"),
        ("silent and weighed", r"none of its 12 label maps has a pixel that counts.*task\.ignore"),
        ("names", r"task\.classes: the classes are not known; .*classes\.yaml"),
        ("twice", r"'sky' twice|expected 2 to"),
        ("loss", r"loss=semantic"),
    ],
)
def test_bad_input_is_named_before_training(street, tmp_path, spoil, said):
    more = []
    file = street / "train" / "labels" / "1.png"
    labels = read_labels(file).astype(np.uint8)
    if spoil == "outside":
        labels[0, :2] = 7, 9
        cv2.imwrite(str(file), labels)
    elif spoil == "picture":
        cv2.imwrite(str(file), np.random.default_rng(0).integers(0, 3, (32, 40, 3), np.uint8))
    elif spoil == "size":
        cv2.imwrite(str(file), labels[:16, :16])
    elif spoil.startswith("silent"):
        for one in (street / "train" / "labels").iterdir():
            cv2.imwrite(str(one), np.full_like(labels, 255))
        more = ["task.class_weights=auto"] if spoil == "silent and weighed" else []
    elif spoil == "names":
        (street / "classes.yaml").unlink()
    elif spoil == "twice":
        (street / "classes.yaml").write_text("[sky, sky, road]")
    elif spoil == "loss":
        more = ["loss=alpha"]
    with pytest.raises(ValueError, match=said) as caught:
        prepare_training(_folder_config(tmp_path / "run", street, *more))
    assert "\n" not in str(caught.value)


def test_checkpoint_of_another_task_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match=r"expected a checkpoint of task=e2net\.tasks\.Camouflage, found one of .*Sem"):
        _evaluated(f"ckpt={run[0]}", "task=camouflage", f"output={tmp_path}")
    with pytest.raises(ValueError, match=r"task\._target_=e2net\.tasks\.Semantic, found e2net\.tasks\.Camouflage"):
        prepare_training(tiny_config(tmp_path / "other", f"resume={run[0]}"))


def test_weights_are_those_of_the_training_part(run):
    config = tiny_config(run[0].parent / "weights", "task=semantic", "task.class_weights=auto")
    job = prepare_training(config)
    counts = np.zeros(9, int)
    for target in job.data.train_targets():
        counts += np.bincount(target.ravel(), minlength=9)
    assert torch.equal(cast(Any, job.module.criterion).class_weights, class_weights(torch.from_numpy(counts)))


def _images(count, classes=3):
    rng = np.random.default_rng(0)
    for index in range(count):
        target = rng.integers(0, classes, (9, 11)).astype(np.uint16)
        target[0, :3] = IGNORED
        yield index, rng.integers(0, classes, (9, 11)).astype(np.uint16), target


def test_an_ignored_label_that_a_class_has_is_told(caplog):
    targets = [np.array([[0, 1]], np.uint16)]
    for settings in ({"ignore": 2}, {"ignore": None}, {"ignore": 0, "first_label": 1}):
        Semantic(classes=["a", "b"], **settings).prepare_loss(SemanticLoss({"ce": 1}), targets)
    assert not caplog.records
    Semantic(classes=300).prepare_loss(SemanticLoss({"ce": 1}), targets)
    assert "task.ignore=255 is the label of class 255 too" in caplog.text


def test_collector_and_table_agree_with_plain_sums():
    collected, scored = LabelScores(3), []
    for index, prediction, target in _images(5):
        collected.update(prediction, target, index, f"im{index}")
        scored.append((index, f"im{index}", score_labels(prediction, target, 3, collected.protocol)))
    table = LabelTable.of(3, reversed(scored))
    counts = np.sum([one.counts for _, _, one in scored], axis=0)
    assert collected.table().values() == table.values() == scores_from(counts)
    assert np.array_equal(collected.table().matrix, table.matrix) and table.matrix.sum() == 5 * (99 - 3)
    assert np.array_equal(table.matrix.diagonal(), table.counts.sum(0)[0])
    assert collected.table().per_image() == table.per_image()
    assert set(table.intervals()) == set(table.values())


def _in_parts(rank):
    """What one of two processes computes of five images."""
    scores = LabelScores(3)
    for index, prediction, target in _images(5):
        if index % 2 == rank or index == 4:  # the last one twice, as a sampler pads
            scores.update(prediction, target, index)
    values = {k: float(v) for k, v in scores.compute().items()}
    return values, int(scores._table.matrix.sum()), len(scores._table)


def test_two_processes_count_each_image_once(tmp_path):
    alone = LabelScores(3)
    for index, prediction, target in _images(5):
        alone.update(prediction, target, index)
    values = {k: float(v) for k, v in alone.compute().items()}
    assert in_two(_in_parts, tmp_path) == [(values, 5 * 96, 5)] * 2
