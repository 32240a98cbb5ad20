"""The notebooks of examples/: plain files without outputs, which run from top to bottom on next to nothing."""

import ast
import re

import matplotlib as mpl
import nbformat
import numpy as np
import pytest
from conftest import ROOT

NOTEBOOKS = {file.stem: file for file in (ROOT / "examples").glob("*.ipynb")}


def test_there_are_three():
    assert set(NOTEBOOKS) == {"train_and_look", "score_maps", "features"}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_short_and_holds_no_results(name):
    text = NOTEBOOKS[name].read_text(encoding="utf-8")
    book = nbformat.reads(text, as_version=nbformat.NO_CONVERT)
    nbformat.validate(book)
    assert book.nbformat == 4 and 10 <= len(book.cells) <= 15 and len(text) < 16_000
    for cell in book.cells:
        assert "attachments" not in cell and "data:" not in cell.source and len(cell.source) < 1_700
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None
        for place in re.findall(r"\]\(([^)#]+)[^)]*\)", cell.source if cell.cell_type == "markdown" else ""):
            assert (NOTEBOOKS[name].parent / place).exists(), place


def run(name, parameters):
    """Runs the code cells in order, with other parameters, and shows what the last line of each is, as Jupyter does.

    Returns:
        All names, and for each figure the number of its panels that show something, 1 for a picture.
    """
    import matplotlib.pyplot as plt  # noqa: PLC0415 - half a second

    book = nbformat.read(NOTEBOOKS[name], as_version=4)
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.metadata.get("tags") for cell in cells] == [["parameters"]] + [None] * (len(cells) - 1)
    names, shown = {"__name__": "__main__"}, []

    def show():
        for number in plt.get_fignums():
            shown.append(sum(ax.has_data() for ax in plt.figure(number).axes))
            plt.figure(number).canvas.draw()
        plt.close("all")

    with pytest.MonkeyPatch.context() as patch:
        mpl.use("Agg")
        patch.setattr(plt, "show", show)
        for number, cell in enumerate(cells):
            tree = ast.parse(cell.source)
            last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, f"{name}:{cell.id}", "exec"), names)
            if number == 0:
                assert parameters.keys() <= names.keys(), "a parameter that the notebook does not have"
                names |= parameters
            if last is not None:
                value = eval(compile(ast.Expression(last.value), f"{name}:{cell.id}", "eval"), names)
                if hasattr(value, "_repr_png_"):
                    assert value._repr_png_().startswith(b"\x89PNG")
                    shown.append(1)
    return names, shown


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_train_and_look(elsewhere, capsys):
    settings = ["encoder.config.hidden_size=24", "encoder.config.intermediate_size=32", "decoder.width=16"]
    small = {"EPOCHS": 2, "PICTURES": 12, "SIZE": 32, "SETTINGS": [*settings, "data.n_test=4", "data.val_fraction=0.3"]}
    names, shown = run("train_and_look", small)
    assert shown == [6, 2, 1, 12, 12]
    assert set(names["scores"]) == {"procedural"} and len(names["results"]) == 4
    (folder,) = (elsewhere / "runs").iterdir()
    assert (folder / "test_scores.json").is_file() and (folder / "checkpoints" / "best.ckpt").is_file()
    # In order of their overlap.
    listed = [float(one) for one in re.findall(r"IoU ([\d.]+)", capsys.readouterr().out)]
    assert listed == sorted(listed[:3]) + sorted(listed[3:]) and listed[0] <= listed[-1]


def test_score_maps(tmp_path, capsys):
    folder = tmp_path / "made"
    methods = {name: folder / name for name in ("blurred", "shifted")}
    names, shown = run("score_maps", {"PICTURES": 5, "FOLDER": folder, "TRUTH": folder / "truth", "METHODS": methods})
    assert shown == [1, 9]
    assert len(list((folder / "truth" / "GT").iterdir())) == 5
    assert names["results"]["shifted"].values()["MAE"] < 0.2 and "difference of S" in capsys.readouterr().out
    worst = [row["S"] for row in names["rows"]]
    assert worst == sorted(row["S"] for row in names["result"].scores.per_image())[:3]


def test_features(encoder_folder, capsys):
    folder = encoder_folder("dinov2")
    names, shown = run("features", {"ENCODER": str(folder), "SIZE": 56, "PICTURES": 3})
    assert shown == [6, 6, 6, 6, 6]
    assert "dinov2 patches" in capsys.readouterr().out
    (x, y), mask = names["middle"], names["masks"][0]
    assert mask[y, x]
    cosines = names["cosines"]
    assert all(-1 - 1e-5 <= one.min() <= one.max() <= 1 + 1e-5 for one in cosines)
    assert np.unravel_index(cosines[0].argmax(), cosines[0].shape) == tuple(
        int((at + 0.5) * side / length) for at, side, length in zip((y, x), cosines[0].shape, mask.shape, strict=True)
    )
    assert [one.shape for one in names["found"]] == [one.shape for one in names["masks"]]
