"""`load` and `predict` in Python: pictures of every kind, several threads, and values that nobody should give."""
# ruff: noqa: F401, F811

import io
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from test_predict import PAIRS, model, run

from e2net import load
from e2net.evaluation.inference import Predictor
from e2net.predict.segmenter import Failure, Segmenter

IMAGES = [cv2.resize(PAIRS.read(i)[0], size) for i, size in enumerate([(90, 60), (64, 64), (40, 110), (30, 30)])]
PREDICTORS = {
    "plain": Predictor(),
    "mirrored": Predictor(flip=True, scales=(0.75, 1)),
    "windows": Predictor(window=32, windows_at_once=3),
    "zoomed": Predictor(zoom=1.5),
}


@pytest.mark.parametrize("name", PREDICTORS)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_eight_threads_get_what_one_gets(model, name, precision):
    shared = Segmenter(model.model, 64, "cpu", PREDICTORS[name], precision)
    options = [{"keep_aspect": i % 2 == 0} for i in range(4)]
    alone = [shared.predict(image, **how).prob for image, how in zip(IMAGES, options, strict=True)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda i: shared.predict(IMAGES[i % 4], **options[i % 4]).prob, range(24)))
    assert all(np.array_equal(prob, alone[i % 4]) for i, prob in enumerate(together))


def test_threads_with_streams_of_their_own_and_one_they_share(model):
    alone = [result.prob for result in model.predict(IMAGES * 4, batch_size=3)]
    with ThreadPoolExecutor(4) as pool:
        for probs in pool.map(lambda _: [r.prob for r in model.predict(IMAGES * 4, batch_size=3)], range(8)):
            assert all(np.array_equal(a, b) for a, b in zip(probs, alone, strict=True))
    results, taken, lock = model.predict(iter(IMAGES * 4), batch_size=3), [], threading.Lock()

    def take():
        for result in results:
            with lock:
                taken.append(result)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 16
    for prob in alone:
        assert any(np.array_equal(prob, result.prob) for result in taken)


def _png(image):
    return cv2.imencode(".png", image)[1].tobytes()


def test_one_picture_in_every_form_gives_one_map(model, tmp_path):
    image = IMAGES[0]
    (tmp_path / "a.png").write_bytes(_png(image[..., ::-1]))
    expected = model.predict(tmp_path / "a.png")
    chw = torch.from_numpy(image.transpose(2, 0, 1).copy())
    data = (tmp_path / "a.png").read_bytes()
    same = {
        "array": image,
        "flipped view": np.ascontiguousarray(image[::-1])[::-1],
        "RGBA": np.dstack([image, image[..., 0]]),
        "PIL": Image.fromarray(image),
        "PIL RGBA": Image.fromarray(np.dstack([image, image[..., 0]])),
        "PIL from a file": Image.open(tmp_path / "a.png"),
        "tensor": chw,
        "floats": chw.double() / 255,
        "half floats with a gradient": (chw.float() / 255).requires_grad_(),
        "bytes": data,
        "bytearray": bytearray(data),
        "memoryview": memoryview(data),
        "text": str(tmp_path / "a.png"),
    }
    for name, picture in same.items():
        result = model.predict(picture)
        assert np.array_equal(result.image, image) and np.array_equal(result.prob, expected.prob), name
        assert (result.source is None) == (name != "text")
    for result in model.predict(same.values(), batch_size=1):
        assert np.array_equal(result.prob, expected.prob)
    grey = image[..., 1]
    for picture in (grey, grey[..., None], Image.fromarray(grey), torch.from_numpy(grey.copy())[None], _png(grey)):
        assert np.array_equal(model.predict(picture).image, np.dstack([grey] * 3))
    four = np.stack([image, image])
    assert len(list(model.predict(four))) == len(list(model.predict(torch.from_numpy(four).permute(0, 3, 1, 2)))) == 2


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_a_pil_image_is_what_its_file_is(model, mode, tmp_path):
    base = Image.fromarray(IMAGES[0])
    if mode == "I;16":
        base = Image.fromarray(IMAGES[0][..., 0].astype(np.uint16) * 257 - np.arange(90, dtype=np.uint16) % 3)
    picture = base if mode == "I;16" else base.convert(mode)
    picture.save(tmp_path / "a.png")
    found, expected = model.predict(Image.open(tmp_path / "a.png")), model.predict(tmp_path / "a.png")
    assert np.array_equal(found.image, expected.image) and np.array_equal(found.prob, expected.prob)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "RGBX", "RGBa", "La", "PA"])
def test_other_modes_of_pil_are_taken(model, mode):
    base = Image.fromarray(IMAGES[0])
    picture = {"RGBa": base.convert("RGBA"), "La": base.convert("LA"), "PA": base.convert("P")}.get(mode, base)
    result = model.predict(picture.convert(mode))
    assert result.image.shape == IMAGES[0].shape and result.image.std() > 1


def test_rotation_of_a_pil_image_is_honoured(model):
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(IMAGES[0]).save(file, "PNG", exif=exif)
    found = model.predict(Image.open(io.BytesIO(file.getvalue())))
    assert np.array_equal(found.image, np.rot90(IMAGES[0], -1))
    assert np.array_equal(found.image, model.predict(file.getvalue()).image)


@pytest.mark.parametrize(
    "picture, error, message",
    [
        (Image.new("F", (8, 8)), ValueError, "found floats"),
        (Image.fromarray(np.full((4, 4), 70000, np.int32)), ValueError, "found values from 70000"),
        (torch.zeros(8, 8), ValueError, r"tensor of shape \(3, h, w\), .* found \(8, 8\)"),
        (torch.zeros(8, 8, 3), ValueError, r"found \(8, 8, 3\)"),
        (torch.full((3, 4, 4), 1.5), ValueError, r"floats in \[0, 1\], found 1.5 to 1.5"),
        (torch.full((3, 4, 4), float("nan")), ValueError, r"floats in \[0, 1\], found nan"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), TypeError, "expected a tensor of uint8, .* found torch.int64"),
        (np.array(3, np.uint8), ValueError, r"found \(\)"),
        (np.zeros((4, 4, 3), bool), TypeError, "found bool"),
        (b"", ValueError, "0 bytes: "),
        (b"rubbish", ValueError, "7 bytes: "),
    ],
)
def test_wrong_pictures_are_named(model, picture, error, message):
    with pytest.raises(error, match=message):
        model.predict(picture)
    good, bad, last = model.stream([IMAGES[0], picture, IMAGES[1]])
    assert isinstance(bad, Failure) and not isinstance(good, Failure) and not isinstance(last, Failure)


@pytest.mark.parametrize("value", [None, 3, 2.5, True, object(), {"a": 1}, io.BytesIO(b"x"), io.StringIO("x"), len])
def test_what_is_no_picture_is_refused_at_once(model, value):
    with pytest.raises(TypeError, match=r"expected a path, a uint8 array .* or an iterable of them, found"):
        model.predict(value)
    with pytest.raises(TypeError, match=r"expected a path, a uint8 array .*, found"):
        list(model.predict([value]))


def test_folders_and_pipes_are_no_pictures(model, tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    for name, what in (("pipe.jpg", "a pipe"), ("", "a folder")):
        with pytest.raises(ValueError, match=f"expected a file, found {what}"):
            model.predict(tmp_path / name)
    with pytest.raises(ValueError, match="expected a file, found a device"):
        model.predict("/dev/zero")
    assert list(model.predict([])) == []


def test_a_buffer_that_is_used_again_is_no_trap(model):
    """As cv2.VideoCapture.read(buffer) gives frames; pictures are read ahead."""

    def frames():
        buffer = np.zeros_like(IMAGES[1])
        for i in range(12):
            buffer[:] = 20 * i
            yield (buffer, torch.from_numpy(buffer).permute(2, 0, 1), Image.fromarray(buffer))[i % 3]

    assert [int(r.image[0, 0, 0]) for r in model.predict(frames(), batch_size=5)] == [20 * i for i in range(12)]


NUMBERS = [float("nan"), float("inf"), -1, 0, True, "1", 10**30, [], [1, 2, 3], {}, b"1", 1j]
WRONG: dict[str, list[Any]] = {
    "flip": ["yes", 1, 0, 0.5, "true", [], np.float32(1)],
    "threshold": [*NUMBERS, None, 1, 0.0, "0.5"],
    "sharpen": [*NUMBERS, 0.0, 101, "2"],
    "size": [*NUMBERS, 63, 64.0, [64], [64, 64.0], [64, True], ["64", "64"], "64", [[64], 64], 10**6, "6464"],
    "window": [*NUMBERS, 63, 64.0, [64], [64, 64.0], "64"],
    "scales": [*NUMBERS, 1, 1.0, "1", [0], [-1], [float("nan")], [float("inf")], ["1"], [True], [10**9], [1, None]],
    "device": [None, 1, True, "", "abacus", "meta", "cuda:99", "xla", "cpu:x", b"cpu", "vulkan", "hpu", "mps:7"],
    "precision": [None, 1, True, "", "16", 32, "64-true", "bf16-true", b"32-true"],
    "encoder_path": [1, True, 2.5, [], "nowhere"],
    "path": [None, 1, [], "nowhere"],
}


@pytest.mark.parametrize("key", WRONG)
def test_load_refuses_what_is_no_value_of_a_setting(run, key):
    for value in WRONG[key]:
        if (key == "scales" and value == [1, 2, 3]) or (key == "sharpen" and value == 1):
            continue
        with pytest.raises((ValueError, TypeError, FileNotFoundError)) as error:
            load(**{"path": run, "device": "cpu", key: value})
        assert "\n" not in str(error.value) and len(str(error.value)) < 300, (value, error.value)


@pytest.mark.parametrize("key", ["batch_size", "threads", "keep_aspect"])
def test_predict_refuses_what_is_no_value_of_an_option(model, key):
    for value in [*NUMBERS, None, 2.0, "yes", [4]]:
        if (key, value) in (("threads", None), ("keep_aspect", True)) or (key == "keep_aspect" and value is True):
            continue
        with pytest.raises(ValueError, match=f"^{key}=.*: expected "):
            model.predict([IMAGES[0]], **{key: value})
        with pytest.raises(ValueError, match=f"^{key}=.*: expected "):
            model.predict(IMAGES[0], **{key: value})
    assert model.predict(IMAGES[0], **{key: np.int64(2) if key != "keep_aspect" else True}).prob.shape == (60, 90)


def test_numbers_of_numpy_are_numbers(run, model):
    half: Any = np.float32(0.5)  # none of Python's floats, as np.float64 is
    window: Any = np.int32(64)
    size: Any = (np.int64(64), 64)
    one: Any = np.float32(1)
    looks: Any = {"scales": (one,), "sharpen": one, "zoom": one - one}
    same = load(run, "cpu", size=np.array([64, 64]).tolist(), threshold=half, **looks)
    again = load(run, "cpu", size=size, threshold=np.float64(0.5), window=window)
    for other in (same, again):
        assert np.array_equal(other.predict(IMAGES[0]).prob, model.predict(IMAGES[0]).prob)


def test_large_pictures_are_taken_one_by_one(model, monkeypatch):
    """As many are held as have so many pixels together; the maps are the same."""
    expected = [result.prob for result in model.predict([IMAGES[i % 2] for i in range(9)])]
    asked, sizes, run = [], [], model._run

    def source():
        for i in range(9):
            asked.append(i)
            yield IMAGES[i % 2]

    monkeypatch.setattr(model, "_run", lambda batch: (sizes.append(len(batch)), run(batch))[1], raising=False)
    for most, batches in ((1, {1}), (3 * max(image.shape[0] * image.shape[1] for image in IMAGES[:2]), {1, 3})):
        monkeypatch.setattr("e2net.predict.segmenter.HELD_PIXELS", most)
        asked.clear()
        sizes.clear()
        for i, (prob, result) in enumerate(zip(expected, model.predict(source(), threads=2), strict=True)):
            assert np.allclose(prob, result.prob, atol=1e-5)
            assert len(asked) <= i + (3 if most == 1 else 8)
        assert set(sizes) <= batches and max(sizes) == max(batches)
