"""Intervals, rows for papers, and files that are whole or not there."""

import csv
import io
import json

import cv2
import numpy as np
import pytest

from e2net.evaluation.plots import calibration_figure, corruption_figure, curve_figure, extremes_sheet
from e2net.evaluation.report import (
    SetResult,
    clear_report,
    latex_rows,
    markdown_rows,
    masks_hash,
    print_scores,
    report,
    stems_hash,
    write_atomically,
)
from e2net.metrics import ALL_SCORES, DEFAULT_SCORES, ImageScores, MapScores, MaskProtocol, score_map
from e2net.metrics.table import bootstrap_intervals
from e2net.tasks import Camouflage

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def drawn(monkeypatch):
    """Curves of each report; elsewhere they are those of the first one."""
    monkeypatch.setattr("e2net.evaluation.report.curve_figure", curve_figure)
    monkeypatch.setattr("e2net.evaluation.report.calibration_figure", calibration_figure)


def _image(seed):
    rng = np.random.default_rng(seed)
    mask = cv2.GaussianBlur(rng.random((20, 24)), (0, 0), 3) > 0.5
    return rng.integers(0, 256, mask.shape, dtype=np.uint8), mask


def _result(name="set", count=5, binarised=False, seed=0, names=DEFAULT_SCORES, **kwargs):
    protocol = MaskProtocol(binarise=binarised)
    scores = MapScores(protocol, names)
    for i in range(count):
        scores.add(i, score_map(*_image(seed + i), protocol=protocol, scores=names), f"n{i}")
    stems = [f"n{i}" for i in range(count)]
    return SetResult(name, Camouflage(protocol), scores.table(), stems, binarised=binarised, **kwargs)


def _scored(names, count):
    scores = MapScores(scores=names)
    for i in range(count):
        level_map, mask = _image(i)
        if i == 2:
            mask = np.zeros_like(mask)  # boundary scores are undefined there
        image = np.random.default_rng(i).integers(0, 256, (*mask.shape, 3), dtype=np.uint8)
        scores.add(i, score_map(level_map, mask, scores=names, image=image))
    table = scores.table()
    return scores, table.rows.numpy(), table.curves.numpy()


def test_bootstrap_equals_a_loop_over_the_drawn_images():
    scores, rows, curves = _scored(ALL_SCORES, 7)
    found = bootstrap_intervals(ALL_SCORES, rows, curves, seed=3, resamples=130)
    drawn = {name: [] for name in ALL_SCORES}
    for draw in np.random.default_rng(3).integers(0, 7, (130, 7)):
        again = MapScores(scores=ALL_SCORES)
        for index, image in enumerate(draw):
            values = dict(zip(ALL_SCORES, rows[image], strict=True))
            again.add(index, ImageScores(values, curves[image], np.zeros((2, 256), np.int32)))
        for name, value in again.compute().items():
            drawn[name].append(float(value))
    for name in ALL_SCORES:
        np.testing.assert_allclose(found[name], np.nanquantile(drawn[name], [0.025, 0.975]), rtol=0, atol=1e-12)
    for name, value in scores.compute().items():
        low, high = found[name]
        assert low < high and low - 0.05 < float(value) < high + 0.05


def test_bootstrap_of_equal_images_has_no_width():
    image = score_map(*_image(1))
    rows = np.repeat(np.array([list(image.values.values())]), 40, 0)
    found = bootstrap_intervals(tuple(image.values), rows, np.repeat(image.curves[None], 40, 0))
    assert all(low == high == pytest.approx(image.values[name]) for name, (low, high) in found.items())


def test_bootstrap_follows_its_seed():
    _, rows, curves = _scored(("S", "Emax"), 6)
    one, same, other = (bootstrap_intervals(("S", "Emax"), rows, curves, seed=s) for s in (0, 0, 1))
    assert one == same != other


def test_bootstrap_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"expected rows \(n, 2\).*at least one image, found \(0, 2\)"):
        bootstrap_intervals(("S", "MAE"), np.zeros((0, 2)), np.zeros((0, 4, 256)))


def test_rows_are_in_the_order_of_papers():
    results = [_result("CAMO"), _result("A_B", seed=9)]
    cells = [f"{results[i].values()[k]:.3f}".removeprefix("0") for i in (0, 1) for k in ("S", "Emean", "wF", "MAE")]
    *comments, row = latex_rows("Ours_50%", results).splitlines()
    assert row == " & ".join(["Ours\\_50\\%", *cells]) + r" \\"
    assert comments[3].startswith(r"% columns of CAMO: $S_\alpha\uparrow$ & $E_\phi\uparrow$")
    head, rule, line = markdown_rows("Ours|x", results).splitlines()[3:]
    assert line == "| " + " | ".join(["Ours\\|x", *cells]) + " |"
    assert head.startswith("| Method | CAMO S ↑ | CAMO E ↑ | CAMO wF ↑ | CAMO MAE ↓ | A_B S ↑")
    assert head.count("|") == rule.count("|")


@pytest.mark.parametrize("rows", [latex_rows, markdown_rows])
def test_tables_name_protocol_counts_and_file_lists(rows):
    results = [_result(), _result("part", binarised=False), _result(binarised=True)]
    results[1].stems = ["a", "b", *results[1].stems]
    first, *others = [line for line in rows("m", results).splitlines() if line.startswith(("%", "<!--"))]
    assert "quantise: True, normalize: minmax, binarise: False" in first
    for line, result, count in zip(others, results[:2], ("5 of 5", "5 of 7"), strict=False):
        assert f"{result.name}: {count} maps, file list {stems_hash(result.stems)}" in line


def test_binarised_maps_have_a_row_of_their_own():
    results = [_result(), _result(binarised=True)]
    assert latex_rows("m", results).count("\\\\\n") == 2
    assert markdown_rows("m", results).splitlines()[-1].startswith("| m (binarised) |")


@pytest.mark.parametrize("name", ["CAMO", "a-set-with-a-very-long-name"])
@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("names", [DEFAULT_SCORES, ALL_SCORES[:-1]])
def test_table_fits_the_terminal(capsys, monkeypatch, name, partial, names):
    monkeypatch.setenv("COLUMNS", "80")
    lossy = {"lossy": [f"file{i}" for i in range(90)]}
    results = [_result(name, names=names, problems=lossy), _result(name, names=names, binarised=True)]
    if partial:
        results[0].stems = results[1].stems = [f"n{i}" for i in range(4121)]
    intervals = {
        r.label: bootstrap_intervals(r.scores.scores, r.scores.rows.numpy(), r.scores.curves.numpy()) for r in results
    }
    print_scores(results, intervals)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    for result in results:
        assert all(f"{v:.3f}".removeprefix("0") in shown for v in result.values().values())
    assert all(column in shown for column in results[0].values())
    assert shown.count("± (95 %)") == shown.count("±") and shown.count("  binarised") == shown.count("±") / 2
    assert ("5/4121" in shown) == partial
    assert "90 lossy" in shown and "file2 and 87 more" in " ".join(shown.split()) and "binarised" in shown


def test_all_files(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(
        "e2net.evaluation.report.write_atomically", lambda p, c: (order.append(p), write_atomically(p, c))
    )
    image, mask = np.full((20, 24, 3), 99, np.uint8), _image(0)[1]

    def picture(position):
        return [image] * (position > 0) + Camouflage().side_by_side(mask, _image(position)[0])

    results = [_result("one", pictures=picture), _result("two", count=1, seed=7, problems={"extra": ["x.png"]})]
    scores = report(tmp_path, results, "method", {"predictions": "maps"})
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "scores.json", "scores.csv", "intervals.csv", "per_image.csv", "curves.csv", "curves.png", "table.tex",
        "table.md", "worst_best_one.png", "calibration.csv", "calibration.png",
    }  # fmt: skip
    assert order[-1] == tmp_path / "scores.json"
    for file in ("curves.png", "calibration.png", "worst_best_one.png"):
        assert cv2.imread(str(tmp_path / file)).std() > 5
    written = json.loads((tmp_path / "scores.json").read_text())
    assert written["scores"] == scores and set(scores) == {"one", "two"}
    expected = results[0].scores.calibration()
    assert set(written["calibration"]) == {"one", "two"}
    assert written["calibration"]["one"]["ECE"] == expected.error > 0
    with (tmp_path / "calibration.csv").open(newline="") as file:
        bins = [row for row in csv.DictReader(file) if row["test_set"] == "one"]
    assert len(bins) == 16 and [float(b["high"]) for b in bins[:-1]] == [float(b["low"]) for b in bins[1:]]
    assert sum(int(b["pixels"]) for b in bins) == results[0].scores.levels.sum()
    assert written["protocol"] == MaskProtocol().describe() and written["method"] == "method"
    assert written["sets"]["one"]["file_list_sha256"] == stems_hash(["n4", "n3", "n2", "n1", "n0"])
    assert written["sets"]["two"]["problems"] == {"extra": ["x.png"]}
    assert written["bootstrap"] == {"level": 0.95, "resamples": 1000, "seed": 0, "over": "images"}
    rows = list(csv.DictReader((tmp_path / "scores.csv").open()))
    assert [(r["test_set"], r["maps"], r["masks"], r["normalize"]) for r in rows] == [
        ("one", "5", "5", "minmax"),
        ("two", "1", "1", "minmax"),
    ]
    assert all(r["file_list_sha256"] == written["sets"][r["test_set"]]["file_list_sha256"] for r in rows)
    rows = list(csv.DictReader((tmp_path / "intervals.csv").open()))
    assert [float(rows[0][k]) for k in ("low", "high")] == written["intervals"]["one"]["S"]
    per_image = list(csv.DictReader((tmp_path / "per_image.csv").open()))
    assert len(per_image) == 6 and per_image[0]["name"] == "n0"
    assert np.mean([float(r["S"]) for r in per_image[:5]]) == pytest.approx(scores["one"]["S"], abs=1e-12)
    curves = list(csv.DictReader((tmp_path / "curves.csv").open()))
    assert len(curves) == 512
    assert max(float(r["F"]) for r in curves[:256]) == pytest.approx(scores["one"]["Fmax"], abs=1e-12)


def test_score_that_is_nowhere_defined(tmp_path):
    scores = MapScores(scores=("S", "bMAE"))
    for i in range(3):
        scores.add(i, score_map(_image(i)[0], np.zeros((20, 24), bool), scores=("S", "bMAE")), f"n{i}")
    report(tmp_path, [SetResult("set", Camouflage(), scores.table(), ["n0", "n1", "n2"])], "m", {})
    written = json.loads((tmp_path / "scores.json").read_text(), parse_constant=pytest.fail)
    assert written["scores"]["set"]["bMAE"] is None and written["intervals"]["set"]["bMAE"] == [None, None]
    assert 0 < written["scores"]["set"]["S"] < 1


def test_a_score_of_ones_own_that_is_infinite_does_not_lose_the_others(tmp_path):
    class Task(Camouflage):
        own_scores = {"PSNR": lambda values, mask: np.inf}  # noqa: RUF012
        directions = {**Camouflage.directions, "PSNR": "max"}  # noqa: RUF012

    task = Task(scores=("S", "PSNR"))
    scored = [(i, f"n{i}", task.score(_image(i)[0], _image(i)[1])) for i in range(3)]
    report(tmp_path, [SetResult("set", task, task.tabulate(scored), ["n0", "n1", "n2"])], "m", {})
    written = json.loads((tmp_path / "scores.json").read_text(), parse_constant=pytest.fail)
    assert written["scores"]["set"]["PSNR"] is None and 0 < written["scores"]["set"]["S"] < 1
    assert len(task.tabulate([])) == 0  # where no map could be read, those are told of


def test_picture_that_fails_does_not_lose_the_scores(tmp_path):
    def picture(position):
        raise ValueError("image is gone")

    report(tmp_path, [_result(pictures=picture)], "m", {}, name="test_scores")
    written = json.loads((tmp_path / "test_scores.json").read_text())
    assert written["sets"]["set"]["problems"] == {"pictures": ["worst_best_set.png: image is gone"]}
    assert (tmp_path / "test_curves.png").is_file() and not (tmp_path / "test_worst_best_set.png").exists()


def test_names_of_sets_are_no_formulas(monkeypatch):
    legends = []
    monkeypatch.setattr("e2net.evaluation.plots._png", lambda figure: _drawn(figure, legends))
    values = {name: np.linspace(1, 0, 256) for name in ("F", "recall", "precision")}
    for name in ("$^$", "_private", "$a"):
        curve_figure({name: values})
        corruption_figure({name: {"fog": [0.5, 0.4]}}, "S")
    assert legends == ["$^$", " _private", "$a"]


def _drawn(figure, legends):
    figure.savefig(io.BytesIO(), format="png")
    for legend in filter(None, (axes.get_legend() for axes in figure.axes)):
        legends += [text.get_text().replace(r"\$", "$") for text in legend.get_texts()]
    return b""


def test_interrupted_report_has_no_score_file(tmp_path, monkeypatch):
    def interrupted(values):
        raise KeyboardInterrupt

    monkeypatch.setattr("e2net.evaluation.report.curve_figure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        report(tmp_path, [_result()], "m", {})
    assert not (tmp_path / "scores.json").exists()
    assert not list(tmp_path.glob(".*"))


def test_files_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "a.json"
    write_atomically(path, "old")
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, "new")
    assert [p.name for p in path.parent.iterdir()] == ["a.json"] and path.read_text() == "old"


def test_clear_report_leaves_nothing_of_an_earlier_report(tmp_path):
    def picture(position):
        return Camouflage().side_by_side(_image(0)[1], _image(position)[0])

    for name in ("scores", "test_scores"):
        report(tmp_path, [_result("one", pictures=picture)], "method", {}, name=name)
    for name in ("problems.json", "eval_environment.json"):
        (tmp_path / name).touch()
    clear_report(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert "test_worst_best_one.png" in left and "test_scores.json" in left
    assert {name for name in left if not name.startswith("test_")} == {"eval_environment.json"}
    clear_report(tmp_path, "test_scores")
    assert [path.name for path in tmp_path.iterdir()] == ["eval_environment.json"]
    clear_report(tmp_path / "nowhere")


def test_hashes_name_the_data():
    mask = _image(0)[1]
    other = mask.copy()
    other[0, 0] ^= True
    assert Camouflage().digest(mask) == Camouflage().digest(mask.copy()) != Camouflage().digest(other)
    assert Camouflage().digest(np.zeros((2, 8), bool)) != Camouflage().digest(np.zeros((8, 2), bool))
    assert masks_hash({"a": "1", "b": "2"}) == masks_hash({"b": "2", "a": "1"}) != masks_hash({"a": "2", "b": "1"})
    assert stems_hash(["a", "b"]) == stems_hash(["b", "a"]) != stems_hash(["a"])


def test_sheet_shows_each_image_once():
    shown = []

    def picture(position):
        shown.append(position)
        return [np.full((9, 5, 3), 255, np.uint8), np.full((9, 5, 3), 200, np.uint8)]

    for count, expected in ((1, [0]), (5, [0, 1, 2, 4, 3]), (30, [*range(12), *range(29, 17, -1)])):
        shown.clear()
        extremes_sheet([(i / count, i, f"größe{i}" * 9) for i in range(count)], picture, "S")
        assert shown == expected
        shown.clear()  # less is better
        extremes_sheet([(-i / count, i, f"größe{i}") for i in range(count)], picture, "RMSE", falling=True)
        assert shown == expected
