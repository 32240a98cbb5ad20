"""What verbs leave in their folder: broken pictures, an earlier run's results, two runs at once; lines of the docs."""

import re

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT

from e2net import features
from e2net.datasets import ProceduralPairs
from e2net.features.__main__ import main as main_of
from e2net.runs.folder import owned


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Pictures in two folders, pairs with masks, and of each a second set that is one less; broken ones beside them."""
    root = tmp_path_factory.mktemp("data")
    pairs = ProceduralPairs(4, split="test", sides=(40, 56))
    for i in range(4):
        image, mask = (cv2.resize(one.astype(np.uint8), (64, 48)) for one in pairs.read(i))
        _, encoded = cv2.imencode(".png", image[..., ::-1])
        for few in ("few", "many")[i == 3 :]:
            for place in (f"{few}/{'ab'[i % 2]}", f"pairs_{few}/Image", f"frames_{few}", f"masks_{few}"):
                (root / place).mkdir(parents=True, exist_ok=True)
                values = mask * 255 if "masks" in place else image[..., ::-1]
                cv2.imwrite(str(root / place / f"{i}.png"), values)
            (root / f"pairs_{few}" / "GT").mkdir(exist_ok=True)
            cv2.imwrite(str(root / f"pairs_{few}" / "GT" / f"{i}.png"), mask * 255)
        if i == 3:
            (root / "many" / "a" / "cut.png").write_bytes(encoded.tobytes()[:-50])
            (root / "many" / "b" / "nothing.jpg").symlink_to("nowhere")
    return root


def _main(verb, *arguments):
    size = [] if verb == "probe" else ["size=32"]
    try:
        return main_of([verb, *map(str, arguments), "encoder=tiny", "device=cpu", *size])
    except SystemExit as end:
        return end.code


def _tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


VERBS = {
    "pca": ("input={}/many", "input={}/few", "pictures/3.png"),
    "attention": ("input={}/many", "input={}/few", "pictures/3.png"),
    "norms": ("input={}/many", "input={}/few", "pictures/3.png"),
    "foreground": ("input={}/many", "input={}/few", "masks/b/3.png"),
    "segment": ("examples={0}/pairs_few input={0}/many", "examples={0}/pairs_few input={0}/few", "maps/b/3.png"),
    "search": ("input={0}/many query={0}/many", "input={0}/few duplicates=0.9", "search.jpg"),
    "classify": ("examples={0}/many input={0}/many", "examples={0}/few", None),
}


@pytest.mark.parametrize("verb", VERBS)
def test_broken_pictures_are_left_out_and_results_do_not_mingle(verb, data, tmp_path, capsys):
    many, few, stale = (text and text.format(data) for text in VERBS[verb])
    output = tmp_path / "out"
    assert _main(verb, *many.split(), f"output={output}") == 1
    said = capsys.readouterr().err
    assert "cut.png" in said and "nothing.jpg: expected a file, found a link to nothing" in said
    assert "2 files cannot be read and were left out" in said
    mine = output / "masks" / "mine.png"
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    before = _tree(output)
    assert stale is None or stale in before
    with owned(output):
        assert _main(verb, *few.split(), f"output={output}") == 2
    assert "found one at work" in capsys.readouterr().err and _tree(output) == before
    assert _main(verb, *few.split(), f"output={output}") == 0
    after = _tree(output)
    assert stale not in after and after["masks/mine.png"] == b"mine"
    fresh = tmp_path / "fresh"
    assert _main(verb, *few.split(), f"output={fresh}") == 0
    assert {name for name in after if name != "masks/mine.png"} == set(_tree(fresh))


def test_other_verbs_do_not_mingle_results_either(data, tmp_path, capsys):
    output = tmp_path / "out"
    (data / "points.json").write_text('{"first": [[5, 6]], "second": [[7, 8]]}')
    pair = (f"input={data}/few/a/0.png", f"to={data}/few/b/1.png")
    runs: dict[str, list[tuple[str, ...]]] = {
        "track": [(f"input={data}/frames_{one}", f"mask={data}/masks_{one}/0.png") for one in ("many", "few")],
        "match": [(*pair, f"points={data}/points.json"), pair],
        "probe": [("tokens=4", "most=2", f"examples={data}/pairs_few", "draws=1")] * 2,
    }  # fmt: skip
    for verb, (first, second) in runs.items():
        assert _main(verb, *first, f"output={output / verb}") == 0
        with owned(output / verb):
            assert _main(verb, *second, f"output={output / verb}") == 2
        assert "found one at work" in capsys.readouterr().err
        assert _main(verb, *second, f"output={output / verb}") == 0
    assert "masks/2.png" in _tree(output / "track") and "masks/3.png" not in _tree(output / "track")
    assert set(_tree(output / "match")) == {".lock", ".e2net.json", "match.png", "match.json"}


def test_pictures_with_a_part_of_their_own_are_errors(data, tmp_path, capsys):
    output = tmp_path / "out"
    cut = data / "many" / "a" / "cut.png"
    assert _main("similarity", f"input={data}/many/a", "point=1,1", f"output={output}") == 1
    (tmp_path / "0.png").write_bytes(cut.read_bytes())
    (tmp_path / "1.png").write_bytes((data / "few" / "a" / "0.png").read_bytes())
    assert _main("similarity", f"input={tmp_path}/[01].png", "point=1,1", f"output={tmp_path / 'a'}") == 2
    assert "0.png: truncated" in capsys.readouterr().err
    assert _main("pca", f"input={cut}", f"output={tmp_path / 'b'}") == 2
    assert "cut.png: truncated" in capsys.readouterr().err and not (tmp_path / "b").exists()


def test_memory_that_does_not_suffice_is_one_line(data, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(features.Extractor, "levels", full)
    assert _main("pca", f"input={data}/few", f"output={tmp_path / 'out'}") == 2
    assert "try a smaller size" in capsys.readouterr().err


def test_vectors_are_kept_of_pictures_beside_broken_ones(data, tmp_path, capsys):
    words = ("search", f"input={data}/many", "duplicates=0.9", f"output={tmp_path / 'out'}")
    assert _main(*words) == _main(*words) == 1  # the second time only the broken one is new
    assert "cut.png" in capsys.readouterr().err


def test_the_lines_of_the_documentation_give_arrays(data):
    """Each as it stands, on one picture, with the shapes that it states."""
    text = (ROOT / "docs" / "features.md").read_text()
    found = re.search(r"The third line of every verb;.*?```python\n(.*?)```", text, re.DOTALL)
    lines = found.group(1).strip().splitlines()
    image, mask = (cv2.resize(one.astype(np.uint8), (160, 96)) for one in ProceduralPairs(1, split="test").read(0))
    names = {name: getattr(features, name) for name in features.__all__}
    names |= {"x": features.Extractor("tiny", size=48, device="cpu"), "picture": image, "example": 255 - image}
    names |= {"mask": mask > 0, "pictures": [image, 255 - image], "labels": [0, 1], "frames": [image] * 3}
    seen = set()
    for line in lines:
        code, comment = line.split("  # ")
        exec(code, names)
        seen |= {name for name in features.__all__ if f"{name}(" in code}
        found = names[re.match(r"\(?(\w+)", code).group(1)]
        array = getattr(found, "rows", found)
        shape = re.search(r"\(([^)]*)\)", comment).group(1).rstrip(",").split(", ")
        assert isinstance(array, np.ndarray) and array.ndim == len(shape), line
        sides = {"h": 6, "w": 10, "H": 96, "W": 160, "3": 3}  # what the others are is the encoder's
        assert all(sides.get(name, side) == side for name, side in zip(shape, array.shape, strict=True)), line
    assert {*VERBS, "similarity", "track", "match"} <= seen
