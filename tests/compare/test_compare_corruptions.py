"""Scores on corrupted pictures beside runs: averaged, shown only where all of them can be compared."""

import json
import math

import pytest
from fake import fake_run

from e2net.compare.comparison import compare
from e2net.compare.corruptions import PLACE

PROTOCOL = {"quantise": True}


def _run(folder, shift=None, sha="c", kinds=("noise", "fog"), edit=None, **more):
    """A run, with scores on corrupted pictures if they are to be shifted by something."""
    fake_run(folder, **more)
    scores = json.loads((folder / "test_scores.json").read_text()) | {"checkpoint_sha256": "c"}
    (folder / "test_scores.json").write_text(json.dumps(scores))
    if shift is not None:
        by_kind = {
            kind: {str(s): {"S": 0.5 - 0.05 * s - 0.1 * k + shift, "MAE": 0.1 + 0.01 * s} for s in (1, 2)}
            for k, kind in enumerate(kinds)
        }
        clean = {"S": 0.6 + shift, "MAE": 0.1}
        one = {"file_list_sha256": "ab", "masks_sha256": "m", "clean": clean, "corrupted": by_kind}
        document = {"checkpoint_sha256": sha, "protocol": PROTOCOL, "strengths": [1, 2], "sets": {"test": one}}
        (folder / PLACE).parent.mkdir()
        (folder / PLACE).write_text(json.dumps(document) if edit is None else edit(document))
    return folder


def _compare(runs, output, **more):
    return compare(runs, output, cost=False, images=0, **more)


def test_scores_are_averaged_over_seeds_and_shown(tmp_path):
    runs = [_run(tmp_path / f"{w}{s}", shift=0.02 * w + 0.01 * s, width=w, seed=s) for w in (1, 2) for s in (0, 1)]
    found = _compare(runs, tmp_path / "out", names=["one", "two"])
    one, two = found.corruptions["test"]
    assert one.clean == pytest.approx(0.625) and two.clean == pytest.approx(0.645)
    assert one.kinds["noise"] == pytest.approx([0.475, 0.425]) and one.kinds["fog"] == pytest.approx([0.375, 0.325])
    assert one.mean == pytest.approx(0.4) and one.drop == pytest.approx((0.625 - 0.4) / 0.625)
    page, text = ((tmp_path / "out" / name).read_text() for name in ("report.html", "report.md"))
    assert 'id="corrupted-pictures"' in page and page.count("strength of fog") > 1 and "## Corrupted pictures" in text
    assert "| one | .625 | .400 | 36.0 % | .450 | .350 |" in text and "**.420**" in text
    document = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert document["corruptions"]["test"]["two"]["mean"] == pytest.approx(0.42) and not found.warnings


def test_a_falling_score_rises_where_it_is_worse(tmp_path):
    runs = [_run(tmp_path / str(w), shift=0.1 * w, width=w) for w in (1, 2)]
    found = _compare(runs, tmp_path / "out", score="MAE")
    assert found.corruptions["test"][0].drop == pytest.approx(0.15)


def test_a_drop_from_nothing_is_no_number_and_the_document_is_json(tmp_path):
    runs = [_run(tmp_path / str(w), shift=-0.6, width=w) for w in (1, 2)]
    found = _compare(runs, tmp_path / "out")
    assert math.isnan(found.corruptions["test"][0].drop)
    document = json.loads((tmp_path / "out" / "comparison.json").read_text(), parse_constant=pytest.fail)
    assert document["corruptions"]["test"][found.variants[1].name]["drop"] is None


def test_nothing_is_said_where_no_run_has_them(tmp_path):
    found = _compare([_run(tmp_path / str(w), width=w) for w in (1, 2)], tmp_path / "out")
    assert not found.corruptions and not found.warnings
    assert "orrupted" not in (tmp_path / "out" / "report.html").read_text()


def _without_noise(document):
    del document["sets"]["test"]["corrupted"]["noise"]["2"]
    return json.dumps(document)


def _other_masks(document):
    document["sets"]["test"]["masks_sha256"] = "n"
    return json.dumps(document)


def _nan(document):
    document["sets"]["test"]["corrupted"]["noise"]["2"]["S"] = None
    return json.dumps(document)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"shift": None}, "not all runs were evaluated on them"),
        ({"sha": "d"}, "of another checkpoint"),
        ({"kinds": ("noise", "blur")}, "different kinds"),
        ({"edit": lambda _: "{"}, "cannot be used"),
        ({"edit": lambda _: "[]"}, "cannot be used"),
        ({"edit": _without_noise}, "cannot be used"),
        ({"edit": _other_masks}, "is not that of test_scores"),
        ({"edit": _nan}, "expected a number"),
        ({"kinds": ()}, "no scores"),
    ],
)
def test_what_cannot_be_compared_is_left_out_and_said(tmp_path, other, words):
    runs = [_run(tmp_path / "a", shift=0.1, width=1), _run(tmp_path / "b", **{"shift": 0.1, **other}, width=2)]
    found = _compare(runs, tmp_path / "out")
    (said,) = found.warnings
    assert not found.corruptions and "Corrupted pictures are left out" in said and words in said
    assert said in (tmp_path / "out" / "report.html").read_text().replace("&#39;", "'").replace("&#34;", '"')
