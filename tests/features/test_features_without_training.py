"""segment, foreground, search and classify as programs and in Python, with tiny encoders of random weights."""

import json

import cv2
import numpy as np
import pytest
from conftest import hf_model

from e2net.datasets import ProceduralPairs
from e2net.encoders import ViTEncoder
from e2net.features import Extractor, classify, foreground, search, segment
from e2net.features.__main__ import main as main_of
from e2net.formats import read_image, read_mask

PAIRS = ProceduralPairs(6, 0, 0.2, "test")


@pytest.fixture
def folder(tmp_path):
    """Five pairs that are not square, of two sizes."""
    for i in range(5):
        image, mask = PAIRS.read(i)
        size = (72, 48) if i % 2 else (40, 64)
        for name, values in (("Image", image[..., ::-1]), ("GT", mask.astype(np.uint8) * 255)):
            (tmp_path / "pairs" / name).mkdir(parents=True, exist_ok=True)
            resized = cv2.resize(values, size, interpolation=cv2.INTER_NEAREST)
            cv2.imwrite(str(tmp_path / "pairs" / name / f"{i}.png"), resized)
    return tmp_path / "pairs"


@pytest.fixture(params=["dinov2", "dinov3"])  # patches of 14 and 16 pixels
def encoder(request, encoder_folder):
    return str(encoder_folder(request.param))


def _main(verb, *arguments):
    try:
        return main_of([verb, *map(str, arguments), "size=48", "device=cpu"])
    except SystemExit as end:
        return end.code


def test_segment_writes_masks_of_each_pictures_size(encoder, folder, tmp_path, capsys):
    output = tmp_path / "out"
    words = (f"encoder={encoder}", f"examples={folder}", f"output={output}")
    assert _main("segment", *words, f"input={folder}", "method=prototypes", "sharp=true") == 0
    assert "5 pictures" in capsys.readouterr().out
    document = json.loads((output / "masks.json").read_text())
    assert 0 < document["scores"]["S"] < 1 and len(document["rows"]) == 5
    extractor = Extractor(encoder, 48, device="cpu")
    pairs = [(read_image(folder / "Image" / f"{i}.png"), read_mask(folder / "GT" / f"{i}.png")) for i in range(5)]
    maps = list(segment(extractor, pairs, [picture for picture, _ in pairs], "prototypes", sharp=True))
    for i, (values, (picture, _)) in enumerate(zip(maps, pairs, strict=True)):
        mask = read_mask(output / "masks" / f"{i}.png")
        assert mask.shape == values.shape == picture.shape[:2] and np.array_equal(mask, values > 0.5)
    with pytest.raises(ValueError, match="its picture's size"):
        segment(extractor, [(pairs[0][0], pairs[0][1].T)], [pairs[1][0]])
    # What e2net wrote it may write again; what it did not write stays.
    assert _main("segment", *words, f"input={folder / 'Image'}") == 0
    (tmp_path / "mine" / "masks").mkdir(parents=True)
    assert _main("segment", *words[:2], f"input={folder}", f"output={tmp_path / 'mine'}") == 2
    assert "not written by e2net" in capsys.readouterr().err


def test_shots_are_drawn_alike_for_all_methods(encoder, folder, tmp_path):
    words = (f"encoder={encoder}", f"examples={folder}", f"output={tmp_path / 'out'}", "shots=1,3", "draws=2")
    assert _main("segment", *words, "method=prototypes,knn,logistic,linear", "steps=5") == 0
    rows = json.loads((tmp_path / "out" / "shots.json").read_text())["rows"]
    assert [(row["method"], row["shots"]) for row in rows] == [
        (method, shots) for method in ("prototypes", "knn", "logistic", "linear") for shots in (1, 3)
    ]
    assert all(row["mean"]["S"] == np.mean([one["S"] for one in row["draws"]]) for row in rows)
    # All examples at once, as a draw and as the first mode has them.
    whole = (*words[:2], f"input={folder}", "method=knn", "neighbours=1")
    assert _main("segment", *whole, words[2], "shots=5", "draws=1") == 0
    assert _main("segment", *whole, f"output={tmp_path / 'all'}") == 0
    (row,) = json.loads((tmp_path / "out" / "shots.json").read_text())["rows"]
    assert row["mean"] == pytest.approx(json.loads((tmp_path / "all" / "masks.json").read_text())["scores"], abs=1e-4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["shots=5"], "at most 4"),
        (["shots=0"], "whole numbers from 1"),
        (["method=knn,linear", "input=X"], "shots="),
        (["method=nearest", "input=X"], "expected some of"),
        (["input=nowhere"], "nothing there"),
        ([], "input="),
        (["c=0", "input=X"], "more than 0"),
    ],
)
def test_segment_says_what_is_wrong(encoder_folder, folder, tmp_path, capsys, words, message):
    start = (f"encoder={encoder_folder('dinov2')}", f"examples={folder}", f"output={tmp_path / 'out'}")
    assert _main("segment", *start, *words) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["pca", "spectral"])
def test_foreground_divides_every_picture(encoder, folder, tmp_path, method):
    output = tmp_path / "out"
    assert _main("foreground", f"encoder={encoder}", f"input={folder}", f"output={output}", f"method={method}") == 0
    extractor = Extractor(encoder, 48, device="cpu")
    files = sorted((folder / "Image").iterdir())
    for file, values in zip(files, foreground(extractor, files, method), strict=True):
        mask = read_mask(output / "masks" / file.name)
        assert np.array_equal(mask, values > 0.5) and mask.shape == read_image(file).shape[:2]


def test_search_finds_the_picture_itself_and_keeps_vectors(encoder, folder, tmp_path, capsys):
    files, output = sorted((folder / "Image").iterdir()), tmp_path / "out"
    (folder / "Image" / "again.png").write_bytes(files[2].read_bytes())
    words = (f"encoder={encoder}", f"input={folder / 'Image'}", f"output={output}", "top=3")
    assert _main("search", *words, f"query={files[2]}", "duplicates=0.99999") == 0
    document = json.loads((output / "search.json").read_text())
    ((found,), pairs) = document["queries"], document["duplicates"]
    assert {one["picture"] for one in found["found"][:2]} == {str(files[2]), str(folder / "Image" / "again.png")}
    assert found["found"][0]["cosine"] == pytest.approx(1, abs=1e-5) and len(pairs) == 1
    kept = np.load(output / "vectors.npz")["vectors"]
    cv2.imwrite(str(files[0]), 255 - read_image(files[0]))  # another picture of the same name
    assert _main("search", *words, f"query={files[0]}") == 0
    again = np.load(output / "vectors.npz")["vectors"]
    assert (again != kept).any(1).tolist() == [True] + [False] * 5
    extractor = Extractor(encoder, 48, device="cpu")
    (one,) = search(extractor, files, files[3], top=2)
    assert one.rows[0] == 3 and one.cosines[0] == pytest.approx(1, abs=1e-5)
    assert _main("search", *words, "labelled=true") == 0 and "P@1 1.000" in capsys.readouterr().out
    for broken in (b"broken", (output / "vectors.npz").read_bytes()[:300]):
        (output / "vectors.npz").write_bytes(broken)
        assert _main("search", *words, "labelled=true") == 2
        assert "remove it" in capsys.readouterr().err


def test_classes_of_folders(encoder, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name, colour in (("blue", (200, 40, 40)), ("red", (40, 40, 200))):
        (tmp_path / "classes" / name).mkdir(parents=True)
        for i in range(4):
            picture = np.clip(np.array(colour) + rng.normal(size=(40, 60, 3)) * 9, 0, 255).astype(np.uint8)
            cv2.imwrite(str(tmp_path / "classes" / name / f"{i}.png"), picture)
    words = (f"encoder={encoder}", f"examples={tmp_path / 'classes'}", f"output={tmp_path / 'out'}", "neighbours=3")
    for more in ((), ("method=linear", "c=100", "descriptor=both"), (f"input={tmp_path / 'classes'}",)):
        assert _main("classify", *words, *more) == 0
        assert "accuracy 1.000 of 8 pictures, 2 classes" in capsys.readouterr().out
    files = sorted((tmp_path / "classes").rglob("*.png"))
    shares = classify(Extractor(encoder, 48, device="cpu"), files, [0] * 4 + [1] * 4, files, neighbours=1)
    assert shares.argmax(1).tolist() == [0] * 4 + [1] * 4
    assert _main("classify", words[0], f"examples={tmp_path / 'classes' / 'red'}") == 2
    assert "at least 2 classes" in capsys.readouterr().err


def test_an_encoder_without_class_token():
    config = {"model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4}
    bare = ViTEncoder.from_config({**config, "num_attention_heads": 4, "patch_size": 16, "image_size": 64})
    extractor = Extractor(bare, 64, device="cpu")
    picture, mask = PAIRS.read(0)
    assert len(search(extractor, [picture], [picture], descriptor="patches")) == 1
    with pytest.raises(ValueError, match="no class token; take descriptor=patches"):
        search(extractor, [picture], [picture])
    (found,) = segment(extractor, [(picture, mask)], picture, "prototypes")
    assert found.shape == mask.shape


def test_one_picture_in_three_lines():
    (found,) = foreground(Extractor(ViTEncoder(hf_model("dinov2_registers")), 42, device="cpu"), PAIRS.read(1)[0])
    assert found.dtype == np.float32 and found.shape == PAIRS.read(1)[1].shape
