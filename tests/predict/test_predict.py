"""Prediction from end to end: from files of every kind to files of every kind, with a tiny trained model."""

import json
import shutil
import subprocess
import sys
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from apart import Program
from conftest import ROOT
from hydra import compose, initialize_config_dir
from PIL import Image

from e2net import load
from e2net.datasets import ProceduralPairs
from e2net.evaluation import evaluate, prepare_evaluation
from e2net.evaluation.data import DataModule
from e2net.film import FilmReader, FilmWriter
from e2net.formats import read_image
from e2net.predict.__main__ import main
from e2net.predict.result import Prediction
from e2net.predict.segmenter import Failure, Timing
from e2net.runs import resolve
from e2net.runs.overrides import inherit
from e2net.tasks import Camouflage
from e2net.training import prepare_training

PAIRS = ProceduralPairs(11, 0, 0.2, "test")


def _compose(name, *overrides):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose(name, list(overrides))
        return resolve(inherit(config, overrides) if name == "eval" else config)


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A run folder; trained just enough that maps are not flat."""
    folder = tmp_path_factory.mktemp("predict") / "run"
    job = prepare_training(
        _compose(
            "train",
            "size=64",
            "data.n_train=24",
            "data.n_test=1",
            "data.num_workers=0",
            "data.batch_size=4",
            "data.val_fraction=0",
            "decoder.width=16",
            "trainer.max_epochs=2",
            "trainer.accelerator=cpu",
            "trainer.log_every_n_steps=1",
            "num_samples=0",
            f"run_dir={folder}",
        )
    )
    job.trainer.fit(job.module, datamodule=DataModule(job.data))
    return folder


@pytest.fixture(scope="session")
def model(run):
    return load(run, device="cpu")


@pytest.fixture
def photos(tmp_path):
    """Seven pictures, two of them in a folder inside."""
    for i in range(7):
        file = tmp_path / "photos" / ("more/deep" if i > 4 else "") / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(file), PAIRS.read(i)[0][..., ::-1])
    return tmp_path / "photos"


def _predict(run, source, output, *more):
    return main([f"ckpt={run}", f"input={source}", f"output={output}", "device=cpu", *more])


def _file_names(folder):
    return sorted(
        f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file() and f.name != ".e2net.json"
    )


def _read(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


@pytest.mark.parametrize("flip", ["false", "true"])
def test_maps_are_those_of_evaluation(run, tmp_path, flip):
    """Bit for bit, over two batches and images of many sizes."""
    for i in range(len(PAIRS)):
        image, mask = PAIRS.read(i)
        for kind, values in (("Image", image[..., ::-1]), ("GT", mask.astype(np.uint8) * 255)):
            file = tmp_path / "data" / "some" / kind / f"{i:02d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(file), values)
    overrides = [f"data.root={tmp_path}/data", "data.test=[some]", "data.num_workers=0", "accelerator=cpu"]
    config = _compose("eval", f"ckpt={run}", f"output={tmp_path}/eval", f"flip_test={flip}", "data=folder", *overrides)
    evaluate(prepare_evaluation(config))
    size = f"batch_size={config['data']['batch_size']}"
    assert _predict(run, tmp_path / "data" / "some" / "Image", tmp_path / "out", f"flip={flip}", size) == 0
    assert _file_names(tmp_path / "out" / "maps") == [f"{i:02d}.png" for i in range(len(PAIRS))]
    for i in range(len(PAIRS)):
        ours = _read(tmp_path / "out" / "maps" / f"{i:02d}.png")
        assert ours.dtype == np.uint8 and ours.shape == PAIRS.read(i)[1].shape and len(np.unique(ours)) > 3
        assert np.array_equal(ours, _read(tmp_path / "eval" / "maps" / "some" / f"{i:02d}.png"))


def test_every_kind_of_output(run, model, photos, tmp_path, capsys):
    before = {f: (photos / f).read_bytes() for f in _file_names(photos)}
    out = photos / "out"  # inside of the input
    for _ in range(2):  # the second time, there are results of the first
        assert _predict(run, photos, out, "cutouts=true", "rle=true", "batch_size=3", "min_area=5") == 0
    assert "7 images in" in (shown := capsys.readouterr().out) and "images/s: network" in shown
    assert {f: (photos / f).read_bytes() for f in before} == before
    stems = [f.removesuffix(".png") for f in before]
    for kind, extension in (("maps", ".png"), ("overlays", ".jpg"), ("cutouts", ".png")):
        assert _file_names(out / kind) == [stem + extension for stem in stems]
    document = json.loads((out / "objects.json").read_text())
    assert [i["file_name"] for i in document["images"]] == list(before)
    for picture in document["images"]:
        result = model.predict(photos / picture["file_name"])
        stem = picture["file_name"].removesuffix(".png")
        assert (picture["height"], picture["width"]) == result.prob.shape
        near: dict[str, Any] = dict(rtol=0, atol=1)  # batches of another size may round differently
        assert np.allclose(_read(out / "maps" / f"{stem}.png").astype(int), result.map, **near)
        cutout = _read(out / "cutouts" / f"{stem}.png")
        assert cutout.shape[2] == 4 and np.allclose(cutout[..., 3].astype(int), result.map, **near)
        assert _read(out / "overlays" / f"{stem}.jpg").shape == result.image.shape
        found = [a for a in document["annotations"] if a["image_id"] == picture["id"]]
        assert [a["area"] for a in found] == [o["area"] for o in result.objects(5)]
    assert [a["id"] for a in document["annotations"]] == list(range(1, len(document["annotations"]) + 1))


def test_nothing_is_written_that_was_not_asked_for(run, photos, tmp_path):
    assert _predict(run, photos / "0.png", tmp_path / "out", "overlays=false") == 0
    assert _file_names(tmp_path / "out") == ["maps/0.png"]


def test_exif_rotation_is_honoured(run, model, tmp_path):
    image = PAIRS.read(0)[0]
    upright, turned = tmp_path / "in" / "upright.jpg", tmp_path / "in" / "turned.jpg"
    upright.parent.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    Image.fromarray(image).save(turned, exif=exif, quality=100)
    Image.fromarray(read_image(turned)).save(tmp_path / "in" / "upright.png")
    assert _predict(run, upright.parent, tmp_path / "out", "cutouts=true") == 0
    for kind in ("maps", "cutouts"):
        first, second = (_read(tmp_path / "out" / kind / f"{n}.png") for n in ("upright", "turned"))
        assert first.shape[:2] == image.shape[1::-1]
        assert np.allclose(first.astype(int), second, rtol=0, atol=1)


def test_a_broken_file_is_reported_and_does_not_stop_the_rest(run, photos, tmp_path, capsys):
    (photos / "2.png").write_bytes((photos / "2.png").read_bytes()[:400])
    (photos / "more" / "film.mp4").write_bytes(b"no film")
    assert _predict(run, photos, tmp_path / "out", "rle=true", "batch_size=2") == 1
    error = capsys.readouterr().err
    assert "2 of 8 files failed:" in error
    lines = [line for line in error.splitlines() if line.startswith("  ")]
    assert str(photos / "2.png") in lines[0] and str(photos / "more" / "film.mp4") in lines[1]
    assert _file_names(tmp_path / "out" / "maps") == [f"{i}.png" for i in (0, 1, 3, 4)] + [
        "more/deep/5.png",
        "more/deep/6.png",
    ]
    images = json.loads((tmp_path / "out" / "objects.json").read_text())["images"]
    assert [i["id"] for i in images] == [1, 2, 3, 4, 5, 6]


def test_a_result_that_cannot_be_written_is_reported(run, photos, tmp_path, capsys):
    (tmp_path / "out" / "overlays" / "1.jpg").mkdir(parents=True)
    assert _predict(run, photos, tmp_path / "out") == 1
    assert "1 of 7 files failed" in capsys.readouterr().err
    assert len(_file_names(tmp_path / "out" / "overlays")) == 6


@pytest.mark.parametrize(
    "change, message",
    [
        ({"ckpt": "nowhere"}, "expected a checkpoint file or a run folder"),
        ({"input": "broken.png"}, "truncated, or not an image that can be decoded"),
        ({"input": "broken.mp4"}, "expected a film that OpenCV can decode"),
        ({"output": "broken.png"}, "expected a folder or a free name, found a file"),
        ({"output": "broken.png/out"}, "expected a folder or a free name, found a file: broken.png"),
        ({"size": "60"}, "nearest legal sizes are 56x56 and 64x64"),
        ({"window": "60"}, "nearest legal sizes are 56x56 and 64x64"),
        ({"device": "abacus"}, "device=abacus is not to be had here"),
        ({"precision": "half"}, "precision=half: expected auto or one of 32-true"),
        ({"encoder_path": "elsewhere"}, "this checkpoint's encoder was not loaded from files"),
    ],
)
def test_what_is_wrong_is_said_on_one_line(run, photos, tmp_path, monkeypatch, capsys, change, message):
    monkeypatch.chdir(tmp_path)
    for name in ("broken.png", "broken.mp4"):
        (tmp_path / name).write_bytes(b"rubbish")
    settings = {"ckpt": run, "input": photos, "output": "out", **change}
    with pytest.raises(SystemExit) as stop:
        main([f"{k}={v}" for k, v in settings.items()])
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2
    assert error.startswith("error: ") and message in error and "\n" not in error
    assert not (tmp_path / "out").exists()


def test_the_module_runs_and_its_status_says_what_happened(run, photos, tmp_path):
    (photos / "3.png").write_bytes(b"")
    settings = [f"ckpt={run}", f"output={tmp_path}/out", f"input={photos}/*.png"]
    status, out, errors = Program("e2net.predict", *settings, cwd=tmp_path).finish()
    assert status == 1 and "4 images in" in out and "1 of 5 files failed" in errors


def _film(path, count=23, size=(50, 70), rate=12.5):
    """Frames whose brightness rises, so that their order shows; returns them."""
    image = cv2.resize(PAIRS.read(1)[0], size[::-1])
    frames = [(image * (0.2 + 0.8 * i / count)).astype(np.uint8) for i in range(count)]
    with FilmWriter(path, rate) as writer:
        for frame in frames:
            writer.write(frame)
    return frames


def test_film_in_film_out(run, model, tmp_path):
    _film(tmp_path / "in" / "night.mp4")
    assert _predict(run, tmp_path / "in", tmp_path / "out", "cutouts=true", "rle=true", "batch_size=4") == 0
    assert _file_names(tmp_path / "out" / "overlays") == ["night.mp4"] and _file_names(tmp_path / "out" / "maps") == [
        "night.mp4"
    ]
    assert _file_names(tmp_path / "out" / "cutouts") == [f"night.mp4/{i:06d}.png" for i in range(23)]
    source, maps, overlays = (
        FilmReader(tmp_path / folder / "night.mp4") for folder in ("in", "out/maps", "out/overlays")
    )
    assert maps.rate == overlays.rate == source.rate == 12.5
    seen = [list(reader.frames()) for reader in (source, maps, overlays)]
    assert [len(frames) for frames in seen] == [23, 23, 23]
    for frame, map, overlay in zip(*seen, strict=True):
        result = model.predict(frame)
        assert np.abs(map[..., 0].astype(int) - result.map).mean() < 4  # MPEG-4 is lossy
        assert np.abs(overlay.astype(int) - result.overlay()).mean() < 12
    brightness = [frame.mean() for frame in seen[2]]
    assert np.corrcoef(brightness, range(23))[0, 1] > 0.95
    images = json.loads((tmp_path / "out" / "objects.json").read_text())["images"]
    assert [(i["file_name"], i["frame"]) for i in images] == [("night.mp4", i) for i in range(23)]


def test_odd_sides_are_continued(tmp_path):
    frames = _film(tmp_path / "odd.mp4", 3, (51, 71))
    (read, *_) = FilmReader(tmp_path / "odd.mp4").frames()
    assert read.shape == (52, 72, 3)
    assert np.abs(read[:51, :71].astype(int) - frames[0]).mean() < 12


def test_a_film_that_ends_early_is_reported_and_what_is_there_written(run, tmp_path, monkeypatch, capsys):
    _film(tmp_path / "cut.mp4")
    real = FilmReader.__init__

    def promising(self, path):
        real(self, path)
        self.announced = 60

    monkeypatch.setattr(FilmReader, "__init__", promising)
    assert _predict(run, tmp_path / "cut.mp4", tmp_path / "out") == 1
    assert "expected 60 frames, found 23" in capsys.readouterr().err
    assert len(list(FilmReader(tmp_path / "out" / "maps" / "cut.mp4").frames())) == 23


def test_an_interruption_keeps_whole_files_only(run, photos, tmp_path, monkeypatch, capsys):
    _film(photos / "night.mp4")
    write = FilmWriter.write

    def interrupted(self, frame):
        write(self, frame)
        raise KeyboardInterrupt

    monkeypatch.setattr(FilmWriter, "write", interrupted)
    assert _predict(run, photos, tmp_path / "out") == 130
    assert "interrupted; what is written so far lies in" in capsys.readouterr().err
    assert len(_file_names(tmp_path / "out" / "maps")) == 7 and not (tmp_path / "out" / "maps" / "night.mp4").exists()


def test_an_error_leaves_no_half_film(tmp_path):
    with pytest.raises(ValueError, match="expected frames of"), FilmWriter(tmp_path / "half.mp4", 5) as writer:
        writer.write(np.zeros((16, 16, 3), np.uint8))
        writer.write(np.zeros((16, 18, 3), np.uint8))
    assert _file_names(tmp_path) == []


def test_one_picture_in_python(model, photos, tmp_path):
    result = model.predict(str(photos / "0.png"))
    height, width = PAIRS.read(0)[1].shape
    assert result.prob.shape == result.mask.shape == (height, width)
    assert result.prob.dtype == np.float32 and result.mask.dtype == bool
    assert 0 <= result.prob.min() < result.prob.max() <= 1
    assert np.array_equal(result.mask, result.prob > 0.5)
    again = model.predict(PAIRS.read(0)[0])
    assert np.array_equal(again.prob, result.prob) and again.source is None
    result.save(tmp_path / "new" / "map.png")
    result.save(tmp_path / "new" / "look.jpg", "overlay")
    result.save(tmp_path / "new" / "cut.png", "cutout")
    assert np.array_equal(_read(tmp_path / "new" / "map.png"), result.map)
    assert _file_names(tmp_path / "new") == ["cut.png", "look.jpg", "map.png"]
    with pytest.raises(ValueError, match="is the picture itself"):
        result.save(photos / "0.png")
    with pytest.raises(ValueError, match=r"expected a name of cutout that ends in \.png"):
        result.save(tmp_path / "cut.jpg", "cutout")


def test_settings_of_load_reach_the_network(run, model):
    image = PAIRS.read(2)[0]
    flipped = load(run, device="cpu", flip=True)
    both = flipped.predict(np.ascontiguousarray(image[:, ::-1])).prob[:, ::-1]
    assert np.allclose(both, flipped.predict(image).prob, atol=1e-5)
    assert load(run, device="cpu", size=[64, 128], threshold=0.3).size == (64, 128)
    scaled = load(run, device="cpu", scales=[1, 1.5])
    assert not np.allclose(scaled.predict(image).prob, model.predict(image).prob, atol=1e-4)


def test_many_pictures_come_one_by_one_and_in_order(model):
    """The source is read only a little ahead of what is taken."""
    asked = []

    def source():
        for i in range(200):
            asked.append(i)
            yield PAIRS.read(i % len(PAIRS))[0]

    results = model.predict(source(), batch_size=2, threads=2)
    for i in range(5):
        assert np.array_equal(next(results).image, PAIRS.read(i)[0])
    assert len(asked) <= 12
    results.close()


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_batches_do_not_change_the_maps(model, batch_size):
    images = [PAIRS.read(i)[0] for i in range(7)]
    results = list(model.predict(images, batch_size=batch_size))
    for image, result in zip(images, results, strict=True):
        assert np.allclose(result.prob, model.predict(image).prob, atol=1e-5)


def test_proportions_are_kept_on_request(model):
    """Shapes alternate, one is rare: all come in order, and each as if it were alone."""
    shapes = [(60, 120), (120, 60)] * 9 + [(200, 10)] + [(60, 120)] * 30
    images = [cv2.resize(PAIRS.read(0)[0], (w, h)) for h, w in shapes]
    seen = []
    plain = type(model).activated
    model.activated = lambda image, *more: seen.append(tuple(image.shape)) or plain(model, image, *more)
    try:
        results = list(model.predict(images, batch_size=4, keep_aspect=True))
        assert [r.prob.shape for r in results] == shapes
        assert {s[2:] for s in seen} == {(32, 64), (64, 32), (64, 8)}
        assert max(s[0] for s in seen) == 4
        for i in (0, 1, 18, 19, len(images) - 1):
            assert np.allclose(results[i].prob, model.predict(images[i], keep_aspect=True).prob, atol=1e-5)
    finally:
        del model.activated


def test_a_rare_shape_does_not_hold_back_the_others(model):
    asked = []

    def source():
        for i in range(300):
            asked.append(i)
            yield np.full((64, 16) if i == 0 else (64, 64), i % 256, np.uint8)[..., None].repeat(3, 2)

    results = model.predict(source(), batch_size=2, keep_aspect=True, threads=1)
    assert next(results).prob.shape == (64, 16)
    assert len(asked) < 20
    results.close()


@pytest.mark.parametrize(
    "image, error, message",
    [
        (
            np.zeros((8, 8, 2), np.uint8),
            ValueError,
            r"expected an image of shape \(h, w, 3\), RGB, .* found \(8, 8, 2\)",
        ),
        (np.zeros((0, 8, 3), np.uint8), ValueError, "found \\(0, 8, 3\\)"),
        (np.zeros((8, 8, 3), np.float32), TypeError, "expected an image of uint8, .* found float32"),
        ("nowhere.jpg", FileNotFoundError, "nowhere.jpg"),
    ],
)
def test_wrong_pictures_are_named(model, image, error, message):
    with pytest.raises(error, match=message):
        model.predict(image)
    with pytest.raises(error, match=message):
        list(model.predict([PAIRS.read(0)[0], image]))
    good, bad, last = model.stream([PAIRS.read(0)[0], image, PAIRS.read(1)[0]])
    assert isinstance(bad, Failure) and isinstance(good, Prediction) and isinstance(last, Prediction)


def test_time_is_accounted_for(model):
    timing = Timing()
    list(model.stream([PAIRS.read(i)[0] for i in range(5)], 2, timing=timing))
    assert timing.pictures == 5
    assert timing.network > 0 and timing.decode > 0 and timing.waited >= 0


def test_mixed_precision_is_near(run, model):
    image = PAIRS.read(3)[0]
    half = load(run, device="cpu", precision="bf16-mixed").predict(image)
    assert half.prob.dtype == np.float32
    assert 0 < np.abs(half.prob - model.predict(image).prob).max() < 0.1


def test_overlay_and_cutout_show_the_object():
    image = np.full((40, 60, 3), 100, np.uint8)
    prob = np.zeros((40, 60), np.float32)
    prob[10:30, 20:50] = 0.8
    task, certain = Camouflage(), torch.from_numpy(prob)
    result = Prediction(image, task, certain)
    overlay = result.overlay((255, 0, 0))
    assert (overlay[:8] == 100).all() and (overlay[:, :17] == 100).all()
    assert tuple(overlay[20, 35]) == (162, 60, 60)
    assert overlay[10, 35, 0] > 220 and overlay[10, 35, 1] < 30  # the outline, smooth at its edges
    assert (image == 100).all()
    cutout = result.cutout()
    assert tuple(cutout[20, 35]) == (100, 100, 100, 204) and not cutout[0].any()
    assert not Prediction(image, task, certain, threshold=0.9).mask.any()


def test_import_is_cheap_and_unknown_names_are_errors():
    code = (
        "import sys, e2net; assert len([m for m in sys.modules if m.startswith('e2net')]) == 1;"
        "assert 'torch' not in sys.modules; assert not hasattr(e2net, 'laod')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_moved_run_folder_still_loads(run, model, tmp_path):
    shutil.copytree(run, tmp_path / "elsewhere")
    image = PAIRS.read(0)[0]
    assert np.array_equal(load(tmp_path / "elsewhere", device="cpu").predict(image).prob, model.predict(image).prob)
