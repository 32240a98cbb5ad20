"""A trained model as a folder: the same maps, with or without the encoder's weights, and nothing of this machine."""

import errno
import json
import resource
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from conftest import hf_model
from huggingface_hub import metadata_load
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from e2net import load
from e2net.compare.sweep import evaluation_config
from e2net.evaluation import evaluate, prepare_evaluation
from e2net.files import no_space
from e2net.hub import save_pretrained
from e2net.hub.card import _head
from e2net.predict.segmenter import Segmenter
from e2net.runs.about import about_of, without_places
from e2net.runs.checkpoint import KEY, checkpoint_entry, find_checkpoint, load_model, saved_state
from e2net.runs.config import build, build_model
from e2net.runs.folder import LAST
from e2net.runs.pretrained import read_saved, write_saved
from e2net.runs.provenance import file_hash, write_environment

TUNINGS = {
    "frozen": {"_target_": "e2net.encoders.Frozen"},
    "adapter": {"_target_": "e2net.encoders.Adapters", "blocks": [1, 3]},
    "lora": {"_target_": "e2net.encoders.LoRA", "rank": 2},
    "partial": {"_target_": "e2net.encoders.Partial", "last": 1},
    "full": {"_target_": "e2net.encoders.Full"},
}
CONVNEXT = {"model_type": "dinov3_convnext", "hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1]}


SIGLIP = {"model_type": "siglip_vision_model", "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
SIGLIP |= {"intermediate_size": 64, "image_size": 64, "patch_size": 16}
TIMM: dict[str, tuple[str, str, dict[str, Any]]] = {
    "timm": ("ViTEncoder", "vit_small_patch16_dinov3", {"embed_dim": 32, "depth": 4, "num_heads": 4}),
    "timm_convnext": ("ConvNeXtEncoder", "convnext_tiny", {"dims": [8, 16, 24, 32], "depths": [1] * 4}),
}


def encoder_of(kind, encoder_folder):
    """An encoder's config, with files in a folder of its own."""
    if kind in TIMM:
        built, name, keys = TIMM[kind]
        model: Any = timm.create_model(name, **keys)
        folder = encoder_folder("dinov3").with_name(kind)
        timm.models.save_for_hf(model, folder, model_args=keys, safe_serialization=True)
        return {"_target_": f"e2net.encoders.{built}.from_timm", "path": str(folder)}
    if kind == "siglip":
        folder = encoder_folder("dinov3")
        build({"_target_": "e2net.encoders.ViTEncoder.from_config", "config": SIGLIP}).backbone.save_pretrained(folder)
        return {"_target_": "e2net.encoders.ViTEncoder.from_pretrained", "path": str(folder)}
    if kind == "convnext":
        folder = encoder_folder("dinov3")
        built = build({"_target_": "e2net.encoders.ConvNeXtEncoder.from_config", "config": CONVNEXT})
        built.backbone.save_pretrained(folder)
        return {"_target_": "e2net.encoders.ConvNeXtEncoder.from_pretrained", "path": str(folder)}
    path = str(encoder_folder(kind))
    return {"_target_": "e2net.encoders.ViTEncoder.from_pretrained", "path": path, "blocks": [0, 1, 2, 3]}


def run_of(folder, encoder, tuning="frozen", **more):
    """A run folder as training leaves it, without the training."""
    config = {
        "task": {"_target_": "e2net.tasks.Camouflage"},
        "encoder": encoder,
        "neck": {"_target_": "e2net.decoders.necks.Identity"},
        "tuning": TUNINGS[tuning],
        "decoder": {"_target_": "e2net.decoders.LinearDecoder"},
        "data": {"_target_": "e2net.datasets.FolderData", "root": "/home/someone/pictures", "train": "train"},
        "size": 56 if "dinov2" in encoder["path"] else 64,
        "flip_test": True,
        "test_scales": [1.0],
        "run_dir": str(folder),
        **more,
    }
    torch.manual_seed(1)
    model = build_model(config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    file = folder / "checkpoints" / "best.ckpt"
    file.parent.mkdir(parents=True)
    entry = {**checkpoint_entry(model, config), "threshold": 0.375}
    torch.save({"state_dict": saved_state(model), KEY: entry}, file)
    return file


def picture():
    return np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)


@pytest.mark.parametrize(
    "kind, tuning",
    [
        *(("dinov3", one) for one in TUNINGS),
        *((one, "frozen") for one in ("dinov2", "dinov2_registers", "convnext", "siglip", *TIMM)),
    ],
)
def test_a_folder_with_the_encoder_needs_no_other_files(encoder_folder, tmp_path, kind, tuning):
    encoder = encoder_of(kind, encoder_folder)
    run_of(tmp_path / "run", encoder, tuning)
    model = load(tmp_path / "run", "cpu", threshold="auto")
    expected = model.predict(picture()).prob
    model.save_pretrained(tmp_path / "saved")
    shutil.rmtree(encoder["path"])
    shutil.rmtree(tmp_path / "run")
    again = load(tmp_path / "saved", "cpu", threshold="auto")
    assert np.array_equal(again.predict(picture()).prob, expected)
    assert (again.threshold, again.predictor.flip, again.size) == (0.375, True, model.size)
    # And what that one saves is the same model once more.
    again.save_pretrained(tmp_path / "twice")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("saved", "twice"))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize(
    "kind, tuning", [("dinov3", "frozen"), ("dinov3", "lora"), ("siglip", "frozen"), ("timm", "lora")]
)
def test_a_folder_without_it_is_small_and_takes_the_right_files(encoder_folder, tmp_path, kind, tuning):
    encoder = encoder_of(kind, encoder_folder)
    run_of(tmp_path / "run", encoder, tuning)
    expected = load(tmp_path / "run", "cpu").predict(picture()).prob
    save_pretrained(tmp_path / "run", tmp_path / "saved", encoder_weights=False)
    with safe_open(tmp_path / "saved" / "model.safetensors", "pt") as tensors:
        assert not [k for k in tensors.keys() if k.startswith("encoder.") and "lora" not in k]  # noqa: SIM118
    with pytest.raises(FileNotFoundError, match=f"{Path(encoder['path']).name} does not exist"):
        load(tmp_path / "saved", "cpu")
    again = load(tmp_path / "saved", "cpu", encoder_path=encoder["path"])
    assert np.array_equal(again.predict(picture()).prob, expected)
    (file,) = Path(encoder["path"]).glob("*.safetensors")
    save_file({key: value + 1 for key, value in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(ValueError, match="are not those of this checkpoint's training"):
        load(tmp_path / "saved", "cpu", encoder_path=encoder["path"])


def test_what_cannot_be_left_out_is_told(encoder_folder, tmp_path):
    encoder = encoder_of("dinov3", encoder_folder)
    run_of(tmp_path / "run", encoder, "full")
    with pytest.raises(ValueError, match="encoder_weights=false: expected a frozen encoder"):
        save_pretrained(tmp_path / "run", tmp_path / "saved", encoder_weights=False)
    assert not (tmp_path / "saved").exists()
    made = Segmenter(load_model(tmp_path / "run")[0], 64, "cpu")
    with pytest.raises(ValueError, match="found one made otherwise"):
        made.save_pretrained(tmp_path / "saved")


def told_run(folder, encoder, of_these=True):
    """One that has been tested, with files that name this machine."""
    file = run_of(folder, encoder)
    interval = {"S": [0.701, 0.899], "MAE": [0.05, 0.07]}
    document = {
        "checkpoint_sha256": file_hash(file) if of_these else "0" * 64,
        "protocol": {"quantise": True, "curve": "256 thresholds"},
        "scores": {"test|1": {"S": 0.8054321, "MAE": 0.06}},
        "intervals": {"test|1": interval},
        "sets": {"test|1": {"maps": 92, "masks": 92}},
    }
    (folder / "test_scores.json").write_text(json.dumps(document))
    return file


def test_the_card_tells_what_the_run_knows(encoder_folder, tmp_path, monkeypatch):
    command = ["/home/someone/e2net/train.py", "data.root=/home/someone/my pictures", "a=[/x/y/b,/c]", "size=64"]
    monkeypatch.setattr(sys, "argv", command)
    told_run(tmp_path / "run", encoder_of("dinov3", encoder_folder))
    write_environment(tmp_path / "run" / "environment.json", "cpu")
    save_pretrained(tmp_path / "run", tmp_path / "frog")
    card = (tmp_path / "frog" / "README.md").read_text(encoding="utf-8")
    assert "| test\\|1 | 92 | 0.805 [0.701, 0.899] | 0.060 [0.050, 0.070] |" in card
    assert "| test set | images | S ↑ | MAE ↓ |" in card
    assert "e2net train 'data.root=my pictures' 'a=[b,c]' size=64\n" in card
    for fact in ("task | camouflage", "64 x 64 pixels", "flip_test=True", "curve: 256 thresholds", "# frog\n"):
        assert fact in card, fact
    head: Any = metadata_load(tmp_path / "frog" / "README.md")
    assert head["library_name"] == "e2net" and head["pipeline_tag"] == "image-segmentation"
    # The encoder's weights are in there, and so its licence holds.
    assert head["license"] == "other" and head["license_name"] == "dinov3-license" and "DINOv3 License" in card
    assert "base_model" not in head  # a folder's name is none
    for file in (tmp_path / "frog").iterdir():
        assert b"someone" not in file.read_bytes() and str(tmp_path).encode() not in file.read_bytes(), file
    # What was told stays told.
    load(tmp_path / "frog", "cpu").save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "README.md").read_text(encoding="utf-8") == card.replace("frog\n", "again\n").replace(
        "ckpt=frog", "ckpt=again"
    ).replace('"frog"', '"again"')


def test_a_model_is_the_same_wherever_its_encoder_lies(encoder_folder, tmp_path):
    """Its licence, too, is that of the name by which it was trained; and of a training's state nothing is held."""
    encoder = encoder_of("dinov3", encoder_folder)
    file = run_of(tmp_path / "run", encoder)
    content = torch.load(file, weights_only=True)
    torch.save({**content, "optimizer_states": [torch.zeros(9)], "average": {"weights": torch.zeros(9)}}, file)
    save_pretrained(file, tmp_path / "here" / "frogs")
    Path(encoder["path"]).rename(tmp_path / "moved")
    model = load(file, "cpu", encoder_path=tmp_path / "moved")
    assert set(model.content) == {KEY} and model.content[KEY]["config"]["encoder"]["path"] == encoder["path"]
    model.save_pretrained(tmp_path / "there" / "frogs")
    here, there = (tmp_path / place / "frogs" for place in ("here", "there"))
    assert (there / "README.md").read_text() == (here / "README.md").read_text()
    one, other = (json.loads((place / "config.json").read_text())[KEY]["config"] for place in (here, there))
    assert one == other


def test_why_there_is_no_commit_is_told_without_a_place(tmp_path):
    git = {"commit": None, "dirty": None, "reason": "fatal: detected dubious ownership in repository at '/home/me/a'"}
    (tmp_path / "environment.json").write_text(json.dumps({"git": git, "started": "2026-01-31T12:00:00+00:00"}))
    found = about_of({}, tmp_path / "checkpoints" / "best.ckpt")
    assert found["git"]["reason"] == "fatal: detected dubious ownership in repository at 'a'"
    assert found["started"] == "2026-01-31T12:00:00+00:00"


@pytest.mark.parametrize("path", ["facebook/dinov2-base", "checkpoint/dinov2-base", "../dinov2-base", "~/base"])
def test_only_a_name_on_the_hub_is_a_base_model(path):
    """The Hub refuses a card with another one."""
    model: Any = SimpleNamespace(task=SimpleNamespace(pipeline="image-segmentation", name="camouflage"))
    head = _head(model, {"config": {"encoder": {"path": path}}, "encoder_fingerprint": None})
    assert ("base_model: facebook/dinov2-base\n" in head) == ("base_model" in head) == (path[0] == "f")


def test_scores_of_other_weights_are_not_told(encoder_folder, tmp_path):
    told_run(tmp_path / "run", encoder_of("dinov3", encoder_folder), of_these=False)
    save_pretrained(tmp_path / "run", tmp_path / "saved")
    assert "Scores" not in (tmp_path / "saved" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "value, expected",
    [
        ("/a/b/c", "c"),
        ("/a", "a"),
        ("/a/b/", "b/"),
        ("C:\\x\\y", "y"),
        ("facebook/dinov2-base", "facebook/dinov2-base"),
        ("**/GT/*.png", "**/GT/*.png"),
        ("https://a.b/c/d", "https://a.b/c/d"),
        ("../x/y", "../x/y"),
        ("{root:/a/b,test:[/c/d]}", "{root:b,test:[d]}"),
        (["/a/b", {"k": "x=/a/b"}, 3, None], ["b", {"k": "x=b"}, 3, None]),
    ],
)
def test_places_of_this_machine_are_cut_and_nothing_else(value, expected):
    assert without_places(value) == expected


def spoil(folder, how):
    weights, config = folder / "model.safetensors", folder / "config.json"
    document = json.loads(config.read_text())
    if how == "a bit":
        content = bytearray(weights.read_bytes())
        content[-5] ^= 1
        weights.write_bytes(content)
    elif how == "other weights":
        save_file({"a": torch.zeros(1)}, weights)
    elif how == "no config":
        config.unlink()
    elif how == "no JSON":
        config.write_text("{")
    elif how == "a list":
        config.write_text("[]")
    elif how == "newer":
        document[KEY]["format"] = 99
        config.write_text(json.dumps(document))
    elif how == "foreign":
        config.write_text(json.dumps({"model_type": "dinov2"}))
    elif how == "hostile":
        document[KEY]["config"]["decoder"]["_target_"] = "os.system"
        config.write_text(json.dumps(document))


@pytest.mark.parametrize(
    "how, said",
    [
        ("a bit", "is damaged, or not the one"),
        ("other weights", "is damaged, or not the one"),
        ("no config", "expected config.json beside it"),
        ("no JSON", "is no valid JSON"),
        ("a list", "expected a mapping, found a list"),
        ("newer", "written by a newer version"),
        ("foreign", "was not written by e2net"),
        ("hostile", "expected a class that e2net offers"),
    ],
)
def test_what_is_no_saved_model_is_refused(saved, tmp_path, how, said):
    shutil.copytree(saved, tmp_path / "broken")
    spoil(tmp_path / "broken", how)
    with pytest.raises((ValueError, OSError), match=said):
        load(tmp_path / "broken", "cpu")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The saved model of a run whose encoder was made at random."""
    place = tmp_path_factory.mktemp("saved")
    hf_model("dinov3").save_pretrained(place / "encoder")
    (place / "encoder" / "preprocessor_config.json").write_text('{"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}')
    path = str(place / "encoder")
    run_of(place / "run", {"_target_": "e2net.encoders.ViTEncoder.from_pretrained", "path": path})
    save_pretrained(place / "run", place / "model")
    return place / "model"


def test_files_of_others_are_never_replaced_and_ones_own_are(saved, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("mine")
    with pytest.raises(ValueError, match=r"README.md is there and was not written by e2net"):
        save_pretrained(saved, tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["README.md"]
    for _ in range(2):
        save_pretrained(saved, tmp_path / "new")
        (tmp_path / "new" / "notes.txt").write_text("mine")
    names = {p.name for p in (tmp_path / "new").iterdir()}
    assert names == {"config.json", "model.safetensors", "README.md", ".e2net.json", "notes.txt"}
    assert yaml.safe_load((tmp_path / "new" / "config.json").read_text())["library_name"] == "e2net"
    assert {p.name for p in tmp_path.iterdir()} == {"mine", "new"}


def test_no_training_goes_on_from_it(saved):
    with pytest.raises(FileNotFoundError, match="expected a checkpoint file or a run folder"):
        find_checkpoint(saved, prefer=LAST)
    with pytest.raises(ValueError, match="has no optimiser's state"):
        find_checkpoint(saved / "model.safetensors", prefer=LAST)


def test_an_evaluation_of_it_is_one_of_the_run(encoder_folder, tmp_path):
    encoder = encoder_of("dinov3", encoder_folder)
    data = {"_target_": "e2net.datasets.ProceduralData", "n_train": 4, "n_test": 3, "sides": [32, 40], "size": 64}
    more = {"data": {**data, "num_workers": 0}, "protocol": {"_target_": "e2net.metrics.MaskProtocol"}}
    run_of(tmp_path / "run", encoder, **more)
    save_pretrained(tmp_path / "run", tmp_path / "frogs")
    scores = []
    for name in ("run", "frogs"):
        config = evaluation_config(tmp_path / name, tmp_path / f"scores of {name}", "cpu")
        scores.append(evaluate(prepare_evaluation(config)))
        document = json.loads((tmp_path / f"scores of {name}" / "scores.json").read_text())
        assert document["method"] == name
    assert scores[0] == scores[1] and scores[0]["procedural"]["S"] > 0


def test_tensors_that_share_memory_are_written(tmp_path):
    one = torch.arange(12.0).view(3, 4)
    write_saved(tmp_path / "saved", {"a": one, "b": one[1], "c": one.T}, {}, "")
    found = read_saved(tmp_path / "saved" / "model.safetensors")["state_dict"]
    assert torch.equal(found["a"], one) and torch.equal(found["b"], one[1]) and torch.equal(found["c"], one.T)


@pytest.mark.parametrize("there", [False, True])
def test_a_disk_that_fills_up_is_an_oserror_and_leaves_what_was_there(tmp_path, there):
    """By the limit that the system sets, as safetensors' own error is none of Python's."""
    folder = tmp_path / "saved"
    if there:
        write_saved(folder, {"a": torch.zeros(3)}, {}, "the first")
    before = {path.name: path.read_bytes() for path in folder.iterdir()} if there else None
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, hard))
    try:
        with pytest.raises(OSError, match=r"saved.model\.safetensors") as told:
            write_saved(folder, {"a": torch.zeros(100_000)}, {}, "the second")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert told.value.errno == errno.EFBIG and no_space(told.value) is not None
    assert [path.name for path in tmp_path.iterdir()] == (["saved"] if there else [])
    assert not there or {path.name: path.read_bytes() for path in folder.iterdir()} == before
