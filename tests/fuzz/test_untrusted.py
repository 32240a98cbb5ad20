"""What a stranger might send, tried: code in files, bombs, paths that lead elsewhere, names that command a terminal."""

import csv
import json
import os
import pickle
import resource
import struct
import time
import zipfile
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT
from fuzz_helpers import Evil, evaluate_maps
from PIL import EpsImagePlugin, Image
from PIL import features as pillow

from e2net.compare.runs import read_run
from e2net.datasets import FolderData, FolderPairs, ProceduralData
from e2net.datasets.cached import FeatureStore
from e2net.datasets.layouts import SemanticData
from e2net.encoders import ViTEncoder
from e2net.evaluation.predictions import UnusableMapsError
from e2net.files import read_yaml
from e2net.formats import read_depth, read_image, read_labels, read_map, read_mask, verify_image
from e2net.predict.segmenter import Failure, load
from e2net.runs.checkpoint import read_checkpoint
from e2net.runs.config import user_errors

READERS = (read_image, verify_image, read_mask, read_map, read_labels, read_depth)
OLD = ROOT / "tests" / "runs" / "old" / "format_1.ckpt"


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"


# bombs


def _png(width, height, packed):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def gigabyte():
    """A gigabyte of zeros in one megabyte."""
    packer, part = zlib.compressobj(1), bytes(1 << 24)
    return b"".join(packer.compress(part) for _ in range(64)) + packer.flush()


@pytest.fixture(scope="module")
def bombs(tmp_path_factory, gigabyte):
    """Small files of many pixels, or of far more bytes than their pixels need."""
    folder = tmp_path_factory.mktemp("bombs")
    files = {
        "header": _png(60000, 60000, zlib.compress(bytes(99))),
        "true": _png(32767, 32767, gigabyte),
        "more than its pixels": _png(16, 16, gigabyte),
    }
    tags = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 273: 8, 277: 1, 278: 16, 279: len(gigabyte)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    files["tiff"] = b"II*\0" + struct.pack("<I", 8 + len(gigabyte)) + gigabyte + struct.pack("<H", len(tags)) + entries
    files["tiff"] += bytes(4)
    for name, data in files.items():
        assert len(data) < 6 << 20
        (folder / f"{name}.png").write_bytes(data)
    return folder


def _peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["header", "true", "more than its pixels", "tiff"])
def test_a_small_file_never_takes_gigabytes(bombs, reader, name):
    before, start = _peak(), time.monotonic()
    try:
        found = reader(bombs / f"{name}.png")
        assert name not in ("header", "true") and (found if reader is verify_image else found.shape[:2]) == (16, 16)
    except ValueError as error:
        assert f"{name}.png" in str(error)
        assert name not in ("header", "true") or "at most 178 million pixels" in str(error)
    assert _peak() - before < 400 << 20 and time.monotonic() - start < 10


def test_a_bomb_is_a_fault_of_its_file_in_training_prediction_and_evaluation(bombs, tmp_path):
    for folder in ("set/Image", "set/GT", "maps/set"):
        (tmp_path / folder).mkdir(parents=True)
        for i, name in enumerate(("good", "true")):
            file = tmp_path / folder / f"{name}.png"
            if i == 0:
                cv2.imwrite(str(file), np.eye(24, dtype=np.uint8) * 255)
            else:
                os.link(bombs / "true.png", file)
    with pytest.raises(ValueError, match=r"1 of 2 pairs cannot be used.*true\.png: expected a \w+ of at most 178 mill"):
        FolderPairs(tmp_path / "set").check()
    with pytest.raises(UnusableMapsError):
        evaluate_maps(tmp_path / "maps", tmp_path, "set", tmp_path / "out")
    faults = json.loads((tmp_path / "out" / "problems.json").read_text())["set"]
    assert len(faults) == 1 and "at most 178 million pixels" in faults[0]
    good, bad = load(OLD, device="cpu").stream(sorted((tmp_path / "set" / "Image").iterdir()))
    assert good.prob.shape == (24, 24)
    assert isinstance(bad, Failure) and "at most 178 million pixels" in str(bad.error)


def test_a_packed_checkpoint_is_not_unpacked(tmp_path):
    """Torch writes no packed parts, and would make any size of them."""
    with zipfile.ZipFile(OLD) as old, zipfile.ZipFile(tmp_path / "a.ckpt", "w", zipfile.ZIP_DEFLATED) as new:
        for part in old.infolist():
            new.writestr(part.filename, old.read(part))
    torch.load(tmp_path / "a.ckpt", weights_only=True)  # it would have been
    with pytest.raises(ValueError, match=r"a\.ckpt is not a readable checkpoint .*is packed"):
        read_checkpoint(tmp_path / "a.ckpt")


def test_an_array_of_any_size_is_no_depth(tmp_path):
    for shape in ((10**6, 10**6), (10**9, 10**9), (2**40, 2**40), (-1, 5)):
        head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}".encode().ljust(117) + b"\n"
        (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + head + bytes(64))
        with pytest.raises(ValueError, match=r"a\.npy: truncated, or not an array"):
            read_depth(tmp_path / "a.npy")


# code


def test_no_reader_of_pictures_starts_an_interpreter(tmp_path, monkeypatch):
    """Pillow would give PostScript to Ghostscript, whatever the file is called."""
    (tmp_path / "bin").mkdir()
    (gs := tmp_path / "bin" / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin", prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    (file := tmp_path / "a.png").write_bytes(POSTSCRIPT)
    for reader in READERS:
        with pytest.raises(ValueError, match=r"a\.png: truncated, or not an image .*no PNG, JPEG, TIFF, BMP or WebP"):
            reader(file)
    assert not (tmp_path / "started").exists()
    with pytest.raises(OSError), Image.open(file) as picture:
        picture.load()
    assert (tmp_path / "started").exists(), "the trap does not work"


@pytest.mark.parametrize("where", ["checkpoint", "array", "encoder", "encoder, plain pickle", "encoder, safetensors"])
def test_no_pickle_is_run(tmp_path, encoder_folder, where):
    evil = Evil(tmp_path / "evil")
    if where == "checkpoint":
        torch.save({"state_dict": {}, "e2net": {"config": {}, "x": evil}}, tmp_path / "a.ckpt")
        with pytest.raises(ValueError, match=r"a\.ckpt is not a readable checkpoint") as caught:
            read_checkpoint(tmp_path / "a.ckpt")
        assert "weights_only" not in str(caught.value)
    elif where == "array":
        np.save(tmp_path / "a.npy", np.array([[evil]], dtype=object), allow_pickle=True)
        (tmp_path / "b.npy").write_bytes(pickle.dumps(evil))
        for name in ("a.npy", "b.npy"):
            with pytest.raises(ValueError, match=rf"{name}: truncated, or not an array"):
                read_depth(tmp_path / name)
    else:
        folder = encoder_folder("dinov2")
        if "safetensors" in where:
            (folder / "model.safetensors").write_bytes(pickle.dumps(evil))
        else:
            (folder / "model.safetensors").unlink()
            if "plain" in where:
                (folder / "pytorch_model.bin").write_bytes(pickle.dumps(evil))
            else:
                torch.save({"embeddings.cls_token": torch.ones(1, 1, 32), "x": evil}, folder / "pytorch_model.bin")
        with pytest.raises(ValueError, match=r"no file of plain weights|model\.safetensors cannot be read"):
            ViTEncoder.from_pretrained(path=str(folder))
    assert not (tmp_path / "evil").exists()
    pickle.loads(pickle.dumps(evil))
    assert (tmp_path / "evil").exists(), "the trap does not work"


def test_an_encoder_of_plain_weights_in_a_bin_file_loads(encoder_folder):
    folder = encoder_folder("dinov2")
    expected = ViTEncoder.from_pretrained(path=str(folder))
    torch.save(dict(expected.backbone.state_dict()), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert ViTEncoder.from_pretrained(path=str(folder)).fingerprint() == expected.fingerprint()


def test_a_caches_files_are_numbers_whatever_is_in_them(tmp_path):
    def store():
        return FeatureStore(tmp_path, "key", 2, [(2, 4, 4)], (8, 8))

    first = store()
    first.close()
    for name in ("features.bin", "masks.bin", "written.bin"):
        file = first.folder / name
        file.write_bytes(pickle.dumps(Evil(tmp_path / "evil")).ljust(file.stat().st_size, b"."))
    again = store()
    assert again.features(0)[0].shape == (2, 4, 4) and again.target(1).shape == (1, 8, 8)
    assert not (tmp_path / "evil").exists()


NINE = [",".join([f"*a{i}"] * 9) for i in range(40)]
HOSTILE_YAML = {
    "python": "!!python/object/apply:os.system ['touch EVIL']",
    "python, deep": "seed: 0\ndata: {a: [{b: !!python/object/new:os.system ['touch EVIL']}]}",
    "name": "a: !!python/name:os.system",
    "aliases": "a0: &a0 [x,x]\n" + "\n".join(f"a{i + 1}: &a{i + 1} [{nine}]" for i, nine in enumerate(NINE)),
    "merges": "a0: &a0 {k: v}\n" + "\n".join(f"a{i + 1}: &a{i + 1} {{<<: [{n}]}}" for i, n in enumerate(NINE)),
    "circle": "a: &a [1, *a]",
    "deep": "[" * 1000,
    "large": "a: " + "x" * (5 << 20),
    "two": "a: 1\n---\na: 2",
    "number": "a: " + "9" * 10000,
    "bytes": "a: \xff\xfe\0",
}


@pytest.mark.parametrize("name", HOSTILE_YAML)
def test_yaml_of_a_stranger_is_plain_or_refused_at_once(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start = time.monotonic()
    for file in (tmp_path / "config.yaml", tmp_path / "classes.yaml"):
        file.write_bytes(HOSTILE_YAML[name].encode("latin1"))
        with pytest.raises(ValueError, match=rf"{file.name}: expected YAML, found what cannot be read"):
            read_yaml(file)
    for other in ("test_scores.json", "test_per_image.csv"):
        (tmp_path / other).write_text("{}")
    with pytest.raises(ValueError, match=r"run .*config\.yaml or test_scores.json cannot be read"):
        read_run(tmp_path)
    with pytest.raises(ValueError, match=r"classes\.yaml"):
        FolderData.about({"root": str(tmp_path)})
    assert not (tmp_path / "EVIL").exists() and time.monotonic() - start < 20


def test_yaml_with_a_few_aliases_is_as_it_was(tmp_path):
    both = [{"a": [1, 2]}] * 3
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(both))
    assert "*id001" in (tmp_path / "a.yaml").read_text() and read_yaml(tmp_path / "a.yaml") == both


# paths


def _pairs(root, names=("a", "b", "c", "d")):
    for folder in ("Image", "GT"):
        (root / folder).mkdir(parents=True)
        for name in names:
            cv2.imwrite(str(root / folder / f"{name}.png"), np.eye(16, dtype=np.uint8) * 255)


CLIMBING = ["..", ".", "", "../x", "a/../../x", "/etc", "a\\..\\b", "..\\x", "\x1b[2J", "a\nb", "\0"]


@pytest.mark.parametrize("name", CLIMBING)
def test_names_of_test_sets_lead_nowhere(tmp_path, name):
    """Maps and pictures are written into folders of these names; a checkpoint brings its own."""
    for make in (
        lambda: ProceduralData(16, test={name: 0.1}),
        lambda: FolderData(str(tmp_path), 16, test={name: "train"}),
        lambda: SemanticData(str(tmp_path), 16, test={name: "train"}),
    ):
        with pytest.raises(ValueError, match="gives no plain name"):
            make()


@pytest.mark.parametrize("stem", ["../secret", "/etc/passwd", "..", "../train/GT/a", "a/../../secret"])
def test_lists_of_stems_name_files_of_their_folder_only(tmp_path, stem):
    for folder in ("JPEGImages", "SegmentationClass"):
        (tmp_path / folder).mkdir()
        for name in ("a", "b"):
            cv2.imwrite(str(tmp_path / folder / f"{name}.png"), np.eye(16, dtype=np.uint8))
    cv2.imwrite(str(tmp_path / "secret.png"), np.eye(16, dtype=np.uint8))
    (tmp_path / "ImageSets" / "Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Segmentation" / "train.txt").write_text(f"a\n{stem}\n")
    with pytest.raises(ValueError, match="expected a file of each of the 2 stems listed, found none of 1"):
        SemanticData(str(tmp_path), 16, "voc", val_fraction=0, test=()).setup("fit")
    _pairs(tmp_path / "train")
    (tmp_path / "val.txt").write_text(f"a\n{stem}\n")
    with pytest.raises(ValueError, match=r"expected data\.val as stems of"):
        FolderData(str(tmp_path), 16, val="val.txt", test=()).setup("fit")


def test_links_in_circles_end(tmp_path):
    _pairs(tmp_path / "set")
    (tmp_path / "set" / "again").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "Image" / "up").symlink_to("..")
    assert len(FolderPairs(tmp_path / "set")) == 4
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "set").symlink_to(tmp_path / "set" / "GT")
    (tmp_path / "set" / "GT" / "down").symlink_to(tmp_path / "maps")
    assert evaluate_maps(tmp_path / "maps", tmp_path, "set", tmp_path / "out")["set"]["MAE"] == 0
    (tmp_path / "set" / "Image" / "e.png").symlink_to("e.png")
    with pytest.raises(ValueError, match=r"found e\.png \(a link to nothing\)"):
        FolderPairs(tmp_path / "set")
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(OSError, match="circle"):
        FolderPairs(tmp_path / "circle")


# names


NAMES = ["\x1b[2J\x1b]0;owned\x07a", "b\nerror: c", "<script>alert(1)</script>", '"d",e', "=1+1", "[bold]f[/g]", "h\r"]


def test_names_of_files_command_nothing(tmp_path, capsys):
    """On the terminal, in tables, in CSV and JSON: all of a name, and nothing but a name."""
    usable = [name for name in NAMES if "/" not in name]
    for folder in ("s/GT", "maps/s"):
        (tmp_path / folder).mkdir(parents=True)
        for name in usable:
            cv2.imwrite(str(tmp_path / "x.png"), np.eye(16, dtype=np.uint8) * 255)
            (tmp_path / "x.png").rename(tmp_path / folder / f"{name}.png")
    for name in usable:
        (tmp_path / "maps" / "s" / f"{name}.extra.png").write_bytes(b"")
    evaluate_maps(tmp_path / "maps", tmp_path, "s", tmp_path / "out")
    output = capsys.readouterr()
    for text in (output.out, output.err):
        assert not set("\x1b\x07") & set(text) and "\nerror: c" not in text
    with (tmp_path / "out" / "per_image.csv").open(newline="") as file:
        assert sorted(row["name"] for row in csv.DictReader(file)) == sorted(usable)
    report = json.loads((tmp_path / "out" / "scores.json").read_text())["sets"]["s"]
    assert sorted(report["problems"]["extra"]) == sorted(f"{name}.extra.png" for name in usable)
    for file in (tmp_path / "out").glob("*.md"):
        assert "\x1b" not in file.read_text()


@pytest.mark.parametrize("name", NAMES)
def test_an_error_about_a_file_is_one_line_of_text(tmp_path, name, capsys):
    place = tmp_path / name.replace("/", "_")
    _pairs(place, ("a", "b"))
    (place / "GT" / "a.png").write_bytes(b"no picture")
    with pytest.raises(SystemExit), user_errors():
        FolderPairs(place).check()
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and error[:-1].isprintable()


def test_names_of_sets_are_no_markup(tmp_path, capsys):
    _pairs(tmp_path / "s")
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "[red]x[-y]").symlink_to(tmp_path / "s" / "GT")
    evaluate_maps(tmp_path / "maps", tmp_path, "{'[red]x[-y]': s}", tmp_path / "out")
    assert "[red]x[-y]" in capsys.readouterr().out


def test_the_traps_need_what_is_here():
    assert pillow.check("zlib") and Path(OLD).is_file()
