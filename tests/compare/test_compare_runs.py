"""Which runs belong together, what differs between them, and what cannot be compared."""

import json
import os

import numpy as np
import pytest
import yaml
from fake import fake_run

from e2net.compare.comparison import compare
from e2net.compare.runs import (
    ABSENT,
    check_comparable,
    common_seeds,
    config_key,
    differing_keys,
    group,
    read_run,
)
from e2net.files import write_atomically
from e2net.runs.config import flatten
from e2net.runs.provenance import config_hash
from e2net.tasks import Camouflage


def _variants(tmp_path, *runs):
    return group([read_run(fake_run(tmp_path / str(i), **run)) for i, run in enumerate(runs)])


def test_runs_that_differ_in_the_seed_alone_are_one_variant(tmp_path):
    wide, narrow = _variants(
        tmp_path, {"width": 64, "seed": 1}, {"seed": 0}, {"width": 64, "seed": 0}, {"seed": 1, "num_samples": 3}
    )
    assert (wide.name, wide.seeds) == ("width=64", [0, 1])
    assert (narrow.name, narrow.seeds) == ("width=16", [0, 1])
    assert differing_keys([wide.config, narrow.config]) == {"decoder.width": [64, 16]}


def test_names_that_are_no_utf8_are_those_of_the_files(tmp_path):
    name = os.fsdecode(b"caf\xe9 \xff")
    file = fake_run(tmp_path / "run") / "test_per_image.csv"
    write_atomically(file, f"test_set,name,S,MAE\ntest,{name},0.5,0.1\n")
    assert list(read_run(tmp_path / "run").images["test"]) == [name]


def test_images_are_averaged_over_seeds(tmp_path):
    one, _ = _variants(
        tmp_path,
        {"images": {"a": (0.2, 0), "b": (0.6, 0)}},
        {"images": {"a": (0.4, 0), "b": (0.5, 0)}, "seed": 1},
        {"width": 8},
    )
    assert np.allclose(one.per_image("test", "S", ["b", "a"]), [0.55, 0.3])
    assert one.values("test", "S") == pytest.approx([0.4, 0.45])


def test_seeds_of_one_config_are_compared_to_each_other(tmp_path):
    assert [v.name for v in _variants(tmp_path, {"seed": 0}, {"seed": 1})] == ["0", "1"]


def test_names_tell_variants_apart_by_what_matters_first(tmp_path):
    more = [
        {"encoder": {"_target_": "a.ViT.from_pretrained", "path": f"x/{p}"}, "width": w}
        for p, w in (("b", 1), ("c", 2))
    ]
    assert [v.name for v in _variants(tmp_path, *more)] == ["b", "c"]


def test_a_run_of_before_classes_moved_is_the_same_variant(tmp_path):
    """Its config.yaml names classes where they lay then, and no task, as there was one."""
    # Written over both files, as fake_run has its own protocol.
    today = {
        "task": {"_target_": "e2net.tasks.Camouflage"},
        "metrics": {"_target_": "e2net.metrics.MaskProtocol"},
        "optim": {"_target_": "e2net.training.optim.AdamW", "lr": 0.1},
    }
    before = {
        "metrics": {"_target_": "e2net.metrics.Protocol"},
        "optim": {"_target_": "e2net.engine.optim.AdamW", "lr": 0.1},
    }
    folders = [fake_run(tmp_path / name, **config) for name, config in (("old", before), ("new", today))]
    config = yaml.safe_load((folders[0] / "config.yaml").read_text())
    scores = folders[0] / "test_scores.json"
    scores.write_text(json.dumps({**json.loads(scores.read_text()), "config_sha256": config_hash(config)}))
    runs = [read_run(folder) for folder in folders]
    assert differing_keys([run.config for run in runs]) == {}
    assert [type(run.task) for run in runs] == [Camouflage] * 2


def test_diff_shows_what_is_not_there():
    assert flatten({"a": {"b": [1, 2], "c": {}}}) == {"a.b": [1, 2], "a.c": {}}
    assert differing_keys([{"a": {"b": 1}}, {"a": {"b": 1, "c": None}}]) == {"a.c": [ABSENT, None]}


def test_key_depends_on_what_the_result_does():
    config = {"seed": 0, "lr": 0.1, "data": {"num_workers": 4}}
    assert config_key(config) == config_key({**config, "data": {"num_workers": 0}, "run_dir": "x", "resume": "y"})
    shown = {"logger": {"_target_": "a", "project": "b"}, "callbacks": {"progress": {"_target_": "c"}}}
    assert config_key(config) == config_key({**config, **shown})
    assert config_key(config) != config_key({**config, "callbacks": {"early_stopping": {"patience": 3}}})
    assert len({config_key(config), config_key({**config, "seed": 1}), config_key({**config, "lr": 0.2})}) == 3


def test_only_common_seeds_count(tmp_path):
    variants = _variants(tmp_path, {}, {"seed": 1}, {"width": 8, "seed": 1}, {"width": 8, "seed": 2})
    kept, said = common_seeds(variants)
    assert [v.seeds for v in kept] == [[1], [1]] and "0, 1" in said[0] and "1, 2" in said[0]
    variants = _variants(tmp_path / "other", {}, {"width": 8, "seed": 1})
    kept, said = common_seeds(variants)
    assert kept == variants and "no seed in common" in said[0]


def test_curves_are_means_over_epochs(tmp_path):
    folder = fake_run(tmp_path / "run")
    rows = "0,1,4,\n0,2,2,\n0,2,,.5\n0,2,nan,\n1,3,1,\n1,3,inf,\n1,4,,.75\n"
    (folder / "metrics.csv").write_text(f"epoch,step,train/loss,val/S\n{rows}")
    assert read_run(folder).curves() == {"train/loss": [(1, 3.0), (2, 1.0)], "val/S": [(1, 0.5), (2, 0.75)]}


@pytest.mark.parametrize(
    "other, words",
    [
        ({"name": "else"}, "test sets test against else"),
        ({"protocol": {"quantise": False}}, "protocols .quantise: True against False"),
        ({"images": {"a": (1, 0), "c": (1, 0)}}, "the images of test set test are not the same"),
        ({"masks": "n"}, "the masks of test set test are not the same"),
    ],
)
def test_what_cannot_be_compared(tmp_path, other, words):
    variants = _variants(tmp_path, {}, {"width": 8, **other})
    with pytest.raises(ValueError, match=f"runs .*0 and .*1 cannot be compared: .*{words}"):
        check_comparable(variants)


def test_runs_that_are_none(tmp_path):
    run = fake_run(tmp_path / "run")
    other = fake_run(tmp_path / "other", width=8)
    with pytest.raises(FileNotFoundError, match="nowhere: expected a run folder, found no such folder"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"config.yaml, found other, run"):
        read_run(tmp_path)
    with pytest.raises(ValueError, match=r"at least two finished runs to compare, found only .*run"):
        compare([run], tmp_path / "out")
    with pytest.raises(ValueError, match="given twice"):
        compare([run, run], tmp_path / "out")
    with pytest.raises(ValueError, match="the same config and seeds"):
        compare([run, fake_run(tmp_path / "again"), other], tmp_path / "out")
    with pytest.raises(ValueError, match="2 different names"):
        compare([run, other], tmp_path / "out", names=["a"])
    with pytest.raises(ValueError, match="score=F: expected one of S, MAE"):
        compare([run, other], tmp_path / "out", score="F")
    with pytest.raises(ValueError, match=r"output=.*found a file"):
        compare([run, other], run / "config.yaml")
    (other / "test_scores.json").write_text("{}")
    with pytest.raises(ValueError, match=r"test_scores.json"):
        read_run(other)
    (other / "test_scores.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"is not finished: expected test_scores\.json"):
        read_run(other)
    assert not (tmp_path / "out").exists()


def test_report_of_runs_without_checkpoints_says_what_it_lacks(tmp_path):
    """Scores are enough for a comparison; cost and pictures need more. And names are text, not markup."""
    evil = "<script>alert('x')</script> & |pipe| `code`"
    images = [{f"<i>{k}</i>": (s + d, 0.1) for k, s in (("a", 0.4), ("b", 0.6))} for d in (0, 0.1, 0.2)]
    runs = [fake_run(tmp_path / str(i), one, width=i + 1, name="<b>set") for i, one in enumerate(images)]
    found = compare(runs, tmp_path / "out", names=[evil, "two", "<!--BODY-->"])
    assert len(found.warnings) == 2 and not found.costs
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<script>") == 1 and "&lt;script&gt;alert" in page and "<b>set" not in page and "<i>" not in page
    assert page.count("&lt;!--BODY--&gt;") > 1 and "http://" not in page and "https://" not in page
    lines = (tmp_path / "out" / "report.md").read_text().splitlines()
    assert "<script>" not in "".join(lines)
    rows = [line.replace("\\|", "").count("|") for line in lines if line.startswith("|")]
    assert len(rows) > 20
    document = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert document["differences"]["<b>set"]["two"]["S"]["mean"] == pytest.approx(0.1)
    assert document["differing"] == {"decoder.width": [1, 2, 3]}
    # Every variant is compared to the first.
    assert set(document["differences"]["<b>set"]) == {"two", "<!--BODY-->"}


def test_the_task_says_which_scores_have_no_bootstrap(tmp_path):
    """With one image a maximum over mean curves is the image's own, and says as little about other images."""
    runs = [fake_run(tmp_path / str(w), {"a": (0.1 * w, 0.2)}, width=w, scores=("S", "Fmax")) for w in (1, 2)]
    found = compare(runs, tmp_path / "out", cost=False, images=0)
    assert found.score == "S" and list(found.differences["test"][1]) == ["S"]
