"""Bad input ends in one line that says what was expected, found and to be done, before training starts."""

import cv2
import numpy as np
import pytest
from conftest import ROOT
from hydra import compose, initialize_config_dir

from e2net.runs import resolve, user_errors
from e2net.training import prepare_training


def _write(root, image=(40, 60), mask=(40, 60), count=12):
    for i in range(count):
        for kind, suffix, shape in (("Image", "jpg", (*image, 3)), ("GT", "png", mask)):
            (root / kind).mkdir(parents=True, exist_ok=True)
            pixels = np.zeros(shape, np.uint8)
            pixels[10:20, 10:30] = 255
            cv2.imwrite(str(root / kind / f"{i}.{suffix}"), pixels)


def _missing_folder(root):
    pass


def _image_without_mask(root):
    _write(root / "train")
    (root / "train" / "GT" / "3.png").unlink()


def _other_size(root):
    _write(root / "train", mask=(40, 50))
    _write(root / "test")


def _unreadable(root):
    _write(root / "train")
    _write(root / "test")
    (root / "train" / "Image" / "5.jpg").write_bytes(b"not an image")


def _empty(root):
    (root / "train" / "Image").mkdir(parents=True)
    (root / "train" / "GT").mkdir()


def _bad_test_set(root):
    _write(root / "train")
    _write(root / "test")
    (root / "test" / "GT" / "7.png").write_bytes(b"")


@pytest.mark.parametrize(
    "make, words",
    [
        (_missing_folder, ["no folder", "train", "Image"]),
        (_image_without_mask, ["3", "mask"]),
        (_other_size, ["40", "50", "60"]),
        (_unreadable, ["5.jpg"]),
        (_empty, ["train", "Image"]),
        (_bad_test_set, ["7.png"]),
    ],
)
def test_bad_data(make, words, tmp_path, capsys):
    make(tmp_path / "data")
    _expect_one_line(tmp_path, capsys, words, "data=folder", f"data.root={tmp_path}/data")


def test_missing_encoder(tmp_path, capsys):
    _expect_one_line(
        tmp_path, capsys, ["nowhere", "does not exist"], "encoder=local", f"encoder.path={tmp_path}/nowhere"
    )


def test_missing_value(tmp_path, capsys):
    _expect_one_line(tmp_path, capsys, ["data.root has no value", "data.root=..."], "data=folder")


def test_impossible_value(tmp_path, capsys):
    _expect_one_line(tmp_path, capsys, ["decoder.width", "multiple", "30"], "decoder.width=30")
    _expect_one_line(tmp_path, capsys, ["batch_size"], "data.batch_size=0")
    _expect_one_line(tmp_path, capsys, ["loss.final.bce", "-1"], "loss.final.bce=-1")
    _expect_one_line(tmp_path, capsys, ["ema", "0.99", "1.5"], "ema=1.5")
    _expect_one_line(tmp_path, capsys, ["train_scales", "[0.75, 1, 1.25]", "[0]"], "train_scales=[0]")
    _expect_one_line(tmp_path, capsys, ["test_scales", "[]"], "test_scales=[]")


def _expect_one_line(tmp_path, capsys, words, *overrides):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", ["size=64", "data.num_workers=0", f"run_dir={tmp_path}/run", *overrides])
    with pytest.raises(SystemExit) as stopped, user_errors():
        prepare_training(resolve(config))
    assert stopped.value.code == 2
    shown = capsys.readouterr().err.strip().splitlines()[-1]
    assert shown.startswith("error: ") and "Traceback" not in shown
    assert all(word in shown for word in words), shown
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_traceback_on_request(tmp_path, monkeypatch):
    monkeypatch.setenv("E2NET_TRACEBACK", "1")
    with pytest.raises(ValueError, match="here"), user_errors():
        raise ValueError("here")


def test_encoder_config_of_another_model(tmp_path, capsys):
    _expect_one_line(tmp_path, capsys, ["unknown model_type"], "encoder.config.model_type=nothing")
