"""The program from end to end, with a tiny trained model."""

import json
import logging
import runpy
import shutil
import signal
import subprocess
import sys
import types

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT
from tiny import TINY

from e2net import load
from e2net.arguments import read_settings
from e2net.datasets import ProceduralData
from e2net.export import job, network, onnx_file
from e2net.export import settings as export_settings
from e2net.export.__main__ import main
from e2net.export.metadata import licence_words, metadata_of
from e2net.export.parity import Parity, compare_runs
from e2net.export.settings import ExportSettings, torch_suffices
from e2net.runs import compose_training, load_model
from e2net.tasks import Camouflage, Depth, Semantic
from e2net.training import prepare_training, train

onnxruntime = pytest.importorskip("onnxruntime", reason="an extra: pip install 'e2net[export]'")
if not torch_suffices(torch.__version__):
    pytest.skip(f"torch {torch.__version__} does not export models of any size", allow_module_level=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder."""
    folder = tmp_path_factory.mktemp("export") / "run"
    tiny = [one for one in TINY if not one.startswith("decoder.")]
    train(prepare_training(compose_training([*tiny, "decoder=linear", "sharpen=2", f"run_dir={folder}"])))
    return folder


@pytest.fixture(scope="module", autouse=True)
def traced_once(tmp_path_factory):
    """All tests export one model; to trace it, and to make ONNX of that, takes longest."""
    known, written = {}, {}
    plain_trace, plain_write = network.trace, onnx_file.write_onnx

    def trace(one, like, size):
        key = (one.dtype, one.sharpen, like, size)
        if key not in known:
            known[key] = plain_trace(one, like, size)
        return known[key]

    def write(program, file, about):
        if id(program) not in written:
            plain_write(program, file, about)
            written[id(program)] = tmp_path_factory.mktemp("onnx") / "model.onnx"
            shutil.copyfile(file, written[id(program)])
        else:
            shutil.copyfile(written[id(program)], file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "trace", trace)
        patch.setattr(onnx_file, "write_onnx", write)
        yield


@pytest.fixture(scope="module")
def exported(run):
    """The folder of an ONNX file and what was printed."""
    folder = run.parent / "out"
    assert main([f"ckpt={run}", f"output={folder}"]) == 0
    return folder


def test_an_onnx_file_is_written_with_its_figures(run, exported):
    assert {p.name for p in exported.iterdir()} == {"model.onnx", "model.onnx.json", ".e2net.json"}
    figures = json.loads((exported / "model.onnx.json").read_text())
    (found,) = figures["sets"].values()
    assert found["pictures"] == 3 and found["largest_difference"] < 1e-4
    for score in ("S", "wF", "MAE"):
        assert found["file"][score] == pytest.approx(found["model"][score], abs=1e-4)
    model, file = (figures["cost"][name] for name in ("model", "file"))
    assert 0 < file["p50"] <= file["p95"] and file["throughput"] > 0
    assert 1e7 < file["memory"] < model["memory"]  # without torch


def test_warnings_of_e2net_are_still_seen(exported, caplog):
    logging.getLogger("e2net.training.run").warning("a file lies in two sets")
    logging.warning("what an exporter says to its authors")
    assert "two sets" in caplog.text and "authors" not in caplog.text


def test_a_file_says_what_it_is(run, exported):
    session = onnxruntime.InferenceSession(str(exported / "model.onnx"), providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    assert (about["task"], about["size_multiple"], about["size"]) == ("camouflage", "8", "32")
    assert json.loads(about["mean"]) == pytest.approx([0.485, 0.456, 0.406])
    assert json.loads(about["sharpen"]) == 2
    assert json.loads(about["not_inside"]) == {"flip_test": False, "test_scales": [1.0], "zoom_test": 0.0}
    assert "random weights" in about["encoder_licence"]
    assert json.loads(about["training"])["decoder"]["_target_"].endswith("LinearDecoder")
    # Nothing of this machine.
    assert all(str(place).encode() not in (exported / "model.onnx").read_bytes() for place in (run, ROOT))
    (image,), (maps,) = session.get_inputs(), session.get_outputs()
    assert (image.name, image.type, image.shape) == ("image", "tensor(uint8)", ["batch", 3, "height", "width"])
    assert (maps.name, maps.type, maps.shape) == ("map", "tensor(float)", ["batch", 1, "height", "width"])


def test_the_example_predicts_as_the_model_does(run, exported, tmp_path):
    """Without e2net and without torch."""
    rng = np.random.default_rng(0)
    rgb = cv2.resize(rng.integers(0, 256, (8, 11, 3), np.uint8), (90, 70), interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(tmp_path / "frog.png"), cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    (tmp_path / "empty").mkdir()
    command = [
        ROOT / "examples" / "onnx_predict.py",
        exported / "model.onnx",
        tmp_path / "frog.png",
        tmp_path / "m.png",
    ]
    watched = [sys.executable, "-X", "importtime", *map(str, command)]
    done = subprocess.run(watched, check=True, capture_output=True, text=True, cwd=tmp_path / "empty")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "numpy" in imported and imported.isdisjoint({"torch", "transformers", "e2net"})
    expected = load(run, device="cpu", flip=False, zoom=0, scales=[1.0]).predict(rgb).prob
    found = np.asarray(cv2.imread(str(tmp_path / "m.png"), cv2.IMREAD_UNCHANGED))
    assert found.shape == rgb.shape[:2]
    np.testing.assert_allclose(found / 255, expected, atol=0.6 / 255)


@pytest.mark.parametrize("task", [Depth(maximum=80.0, result_scale=1 / 256), Semantic(classes=300, first_label=1)])
def test_the_example_writes_what_the_task_does(tmp_path, monkeypatch, task):
    """At the one size that the file has: depths beyond 65 m, and more classes than a byte holds."""
    file, sizes = ROOT / "tests" / "runs" / "old" / "format_1_depth.ckpt", []
    model, config = load_model(file)
    model.task = task
    config["task"] = {"_target_": "x", **({"result_scale": 1 / 256} if task.name == "depth" else {"first_label": 1})}
    about = metadata_of(network.OnePass(model), config, "", (32, 48))
    maps = np.full((1, task.out_channels, 32, 48), 79.3, np.float32)
    maps[:, -1] += 0.25

    class Session:
        def __init__(self, *args, **kwargs):
            pass

        def get_modelmeta(self):
            return types.SimpleNamespace(custom_metadata_map=about)

        def run(self, names, inputs):
            sizes.append(inputs["image"].shape)
            return [maps]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    cv2.imwrite(str(tmp_path / "in.png"), np.zeros((70, 90, 3), np.uint8))
    example = runpy.run_path(str(ROOT / "examples" / "onnx_predict.py"))
    example["main"]("model.onnx", str(tmp_path / "in.png"), str(tmp_path / "out.png"))
    task.write(tmp_path / "expected.png", task.to_file(task.finish(torch.from_numpy(maps[0]), (70, 90))))
    expected = cv2.imread(str(tmp_path / "expected.png"), cv2.IMREAD_UNCHANGED)
    assert sizes == [(1, 3, 32, 48)] and expected.min() == expected.max() > 256
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "out.png"), cv2.IMREAD_UNCHANGED), expected)
    with pytest.raises(SystemExit, match="cannot be written"):
        example["main"]("model.onnx", str(tmp_path / "in.png"), str(tmp_path / "nowhere" / "out.png"))


def test_8_bits_are_calibrated_on_training_pictures(run, tmp_path, capsys):
    given = [f"ckpt={run}", "precision=int8", "max_loss=0.1", "measure=false", "calibration_pictures=3"]
    assert main([*given, f"output={tmp_path}"]) == 0
    assert "model_int8.onnx" in capsys.readouterr().out
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(str(tmp_path / "model_int8.onnx")).graph
    weights = [one for one in graph.initializer if one.data_type == onnx.TensorProto.INT8 and len(one.dims) > 1]
    # Patches, four blocks of query, key, value, projection and two layers, four probes.
    assert len(weights) == 1 + 4 * 6 + 4
    figures = json.loads((tmp_path / "model_int8.onnx.json").read_text())
    (found,) = figures["sets"].values()
    assert 0 < found["largest_difference"] < 0.5


@pytest.mark.parametrize("given", [["format=torch", "precision=fp16"], ["format=openvino"]])
def test_other_formats(run, tmp_path, given):
    if "format=openvino" in given:
        pytest.importorskip("openvino", reason="an extra")
    assert main([f"ckpt={run}", f"output={tmp_path}", "measure=false", *given]) == 0
    expected = {"model_fp16.pt2"} if "format=torch" in given else {"model.xml", "model.bin"}
    files = [p for p in tmp_path.iterdir() if p.suffix != ".json"]
    assert {p.name for p in files} == expected
    assert not any(str(ROOT).encode() in p.read_bytes() for p in files)


def test_a_saved_model_is_compared_too(run, tmp_path, monkeypatch):
    given = [f"ckpt={run}", f"output={tmp_path / 'frogs'}", "measure=false", "format=safetensors"]
    assert main(given) == 0
    folder = tmp_path / "frogs"
    names = {"model.safetensors", "config.json", "README.md"}
    assert {p.name for p in folder.iterdir()} == names | {"model.safetensors.json", ".e2net.json"}
    assert "# frogs\n" in (folder / "README.md").read_text()
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    np.testing.assert_array_equal(*(load(one, device="cpu").predict(picture).prob for one in (run, folder)))

    def load_wrong(path, encoder_path):
        model, config = load_model(path, encoder_path)
        next(model.decoder.parameters()).data.add_(1)
        return model, config

    before = (folder / "model.safetensors").read_bytes()
    prepared = job.prepare_export(read_settings(ExportSettings, given))
    monkeypatch.setattr("e2net.runs.load_model", load_wrong)
    with pytest.raises(job.DifferentError, match="a map differs"):
        job.export(prepared)
    assert (folder / "model.safetensors").read_bytes() == before


def test_nothing_is_kept_of_a_file_that_differs(run, tmp_path, capsys, monkeypatch):
    """And what was there stays."""
    given = [f"ckpt={run}", f"output={tmp_path}", "format=safetensors", "measure=false"]  # the fastest
    assert main(given) == 0
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    right = job._open
    for wrong, message in ((0.01, "a map differs by 0.01"), (float("nan"), "expected finite results")):

        def differing(*file, wrong=wrong):
            exported = right(*file)
            return lambda image: exported(image) + np.float32(wrong)

        monkeypatch.setattr(job, "_open", differing)
        assert main(given) == 1
        assert message in capsys.readouterr().err
        assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert main([one.replace(str(tmp_path), str(tmp_path / "new")) for one in given]) == 1
    assert not (tmp_path / "new").exists()


def test_nothing_is_left_of_an_export_that_sigterm_ends(run, tmp_path, capsys, monkeypatch):
    given = [f"ckpt={run}", f"output={tmp_path / 'new'}", "format=safetensors", "measure=false"]
    monkeypatch.setattr(job, "_open", lambda *_: signal.raise_signal(signal.SIGTERM))
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        assert main(given) == 130
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "nothing was kept" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_the_model_itself_stays_as_it_was(run):
    model, _ = load_model(run)
    half = network.OnePass(model, dtype=torch.float16)
    assert all(p.dtype == torch.float16 for p in half.parameters())
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_somebody_else_s_file_is_not_replaced(run, tmp_path, capsys):
    (tmp_path / "model.onnx").write_text("mine")
    with pytest.raises(SystemExit) as stopped:
        main([f"ckpt={run}", f"output={tmp_path}"])
    assert stopped.value.code == 2
    assert "was not written by e2net" in capsys.readouterr().err
    assert (tmp_path / "model.onnx").read_text() == "mine"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["precison=fp16"], "unknown setting 'precison'; did you mean precision?"),
        (["trainer.max_epochs=3"], "unknown setting 'trainer.max_epochs'"),
        (["format=torch", "precision=int8"], "format=torch has no precision=int8"),
        (["format=coreml"], "format=coreml: expected onnx or torch or openvino or safetensors"),
        (["format=safetensors", "precision=fp16"], "leave precision, size and sharpen out"),
        (["format=safetensors", "size=32"], "leave precision, size and sharpen out"),
        (["size=[32]"], "expected pixels a side or"),
        (["pictures=0"], "pictures=0: expected from 1"),
        (["calibration=DIR"], "calibration=... is for precision=int8"),
        (["calibration_pictures=8", "precision=fp16"], "calibration_pictures=... is for precision=int8"),
    ],
)
def test_wrong_settings_are_told_at_once(given, message):
    with pytest.raises(ValueError) as told:
        read_settings(ExportSettings, ["ckpt=RUN", *given])
    assert message in str(told.value)


def test_a_missing_package_is_told_with_its_command(monkeypatch):
    monkeypatch.setattr(export_settings.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else 1)
    with pytest.raises(ValueError, match=r"found no onnxscript; install them by: pip install 'e2net\[export\]'"):
        ExportSettings(ckpt="RUN").check_packages()
    ExportSettings(ckpt="RUN", format="torch").check_packages()
    monkeypatch.setattr(export_settings.importlib.util, "find_spec", lambda name: None if name == "openvino" else 1)
    with pytest.raises(ValueError, match=r"found no openvino; install them by: pip install openvino$"):
        ExportSettings(ckpt="RUN", format="openvino").check_packages()


@pytest.mark.parametrize(
    ("task", "model", "file", "difference", "count"),
    [
        (Camouflage(), 0.8, 0.8, 0.0, 0),
        (Camouflage(), 0.8, 0.9, 0.0, 0),  # better is no fault
        (Camouflage(), 0.8, 0.79, 0.0, 1),
        (Camouflage(), 0.8, float("nan"), 0.0, 1),
        (Camouflage(), 0.8, 0.8, float("nan"), 1),
        (Camouflage(), 0.8, 0.7, 0.1, 2),
        (Depth(maximum=10.0), 0.2, 0.3, 0.0, 1),
        (Depth(maximum=10.0), 0.3, 0.2, 0.0, 0),
    ],
)
def test_what_is_beyond_a_tolerance(task, model, file, difference, count):
    found = Parity("test", 1, {task.monitor: model}, {task.monitor: file}, difference)
    assert len(found.faults(task, 1e-3, 5e-3)) == count


def test_licences():
    assert licence_words({"path": "facebook/dinov3-vitb16-pretrain-lvd1689m"}) == "DINOv3 License"
    assert licence_words({"path": "google/siglip2-base-patch16-256"}) == "Apache-2.0"
    assert licence_words({"path": "/home/me/frogs"}) == "not known to e2net; see frogs"
    drawn = licence_words({"path": "facebook/dinov2-base", "weights": "random"})
    assert drawn == licence_words({"config": {}}) == "none: the encoder was trained from random weights"


@pytest.mark.parametrize("pictures", [1, 2, 3])
def test_a_file_that_mixes_up_the_pictures_of_a_batch_differs(pictures):
    data = ProceduralData(size=32, n_train=1, n_test=3, sides=(32, 40), num_workers=0)

    def network(image):
        return image[:, :1].astype(np.float32) / 255

    def mixed(image):
        return network(image)[::-1].copy()

    for file in (network, mixed):
        (found,) = compare_runs(network, file, data, Camouflage(), pictures)
        assert found.reference == found.exported and found.pictures == pictures
        assert (found.difference > 0.1) == (file is mixed and pictures > 1)
