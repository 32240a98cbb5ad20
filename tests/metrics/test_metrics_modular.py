import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
import py_sod_metrics
import pytest
import torch
from gloo import in_two

from e2net.metrics import (
    ALL_SCORES,
    DEFAULT_SCORES,
    BalancedErrorRate,
    BoundaryMeasure,
    ContextMeasure,
    Dice,
    EMeasure,
    FMeasure,
    IoU,
    MapAbsoluteError,
    MapScores,
    MaskProtocol,
    PrecisionRecall,
    SMeasure,
    WeightedFMeasure,
    score_map,
)

SIZES = [(20, 31), (17, 17), (40, 9), (25, 26), (33, 14)]


def images(n=5):
    rng = np.random.default_rng(0)
    masks = [np.add.outer(np.arange(h), np.arange(w)) < rng.integers(8, 20) for h, w in SIZES[:n]]
    maps = [np.clip(m * 60 + rng.integers(0, 150, m.shape), 0, 255).astype(np.uint8) for m in masks]
    return maps, masks


def photographs(n=5):
    return [np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8) for i, size in enumerate(SIZES[:n])]


def oracle(maps, masks):
    s, e, f, w, m = (
        getattr(py_sod_metrics, n)() for n in ("Smeasure", "Emeasure", "Fmeasure", "WeightedFmeasure", "MAE")
    )
    for level_map, mask in zip(maps, masks, strict=True):
        for scorer in (s, e, f, w, m):
            scorer.step(level_map, mask.astype(np.uint8) * 255)
    fm, em = f.get_results(), e.get_results()["em"]
    p, r = fm["pr"]["p"], fm["pr"]["r"]
    fm = fm["fm"]
    return {
        "S": s.get_results()["sm"],
        "Fmax": fm["curve"].max(),
        "Fmean": fm["curve"].mean(),
        "Fadp": fm["adp"],
        "wF": w.get_results()["wfm"],
        "Emax": em["curve"].max(),
        "Emean": em["curve"].mean(),
        "Eadp": em["adp"],
        "MAE": m.get_results()["mae"],
        "FmaxPR": (1.3 * p * r / np.maximum(0.3 * p + r, 1e-300)).max(),
    }


def close(found, expected):
    assert {k: float(v) for k, v in found.items()} == pytest.approx(
        {k: float(v) for k, v in expected.items()}, abs=1e-9
    )


class TestMapScores:
    def test_equals_pysod_over_a_data_set(self):
        maps, masks = images()
        metric = MapScores(scores=(*DEFAULT_SCORES, "FmaxPR"))
        metric.update(maps, masks)
        expected = oracle(maps, masks)
        close(metric.compute(), expected)
        assert expected["FmaxPR"] != pytest.approx(expected["Fmax"], abs=1e-4), "the two definitions must be told apart"

    def test_names_and_order(self):
        assert DEFAULT_SCORES == ("S", "Fmax", "Fmean", "Fadp", "wF", "Emax", "Emean", "Eadp", "MAE")
        maps, masks = images(2)
        metric = MapScores(scores=ALL_SCORES)
        with pytest.raises(ValueError, match="wC: expected the image of the mask, found none"):
            metric.update(maps, masks)
        with pytest.raises(ValueError, match="2 maps, 2 indices, 2 names, 3 images"):
            metric.update(maps, masks, image=photographs(3))
        metric.update(maps, masks, image=photographs(2))
        assert tuple(metric.compute()) == ALL_SCORES
        assert all(v.dtype == torch.float64 and v.ndim == 0 for v in metric.compute().values())

    def test_batching_does_not_matter(self):
        maps, masks = images()
        whole, single, stacked = MapScores(), MapScores(), MapScores()
        whole.update(maps, masks, index=range(5))
        for i in (3, 1, 4, 0, 2):
            single.update(torch.from_numpy(maps[i]), torch.from_numpy(masks[i]), index=i)
        close(single.compute(), whole.compute())
        stacked.update(torch.from_numpy(maps[0])[None], torch.from_numpy(masks[0])[None], index=torch.tensor([0]))
        assert stacked.per_image() == whole.per_image()[:1]

    def test_repeats_count_once(self):
        maps, masks = images()
        once, twice = MapScores(), MapScores()
        once.update(maps, masks, index=list(range(5)))
        twice.update(maps, masks, index=list(range(5)))
        twice.update(maps[:2], masks[:2], index=[0, 1])
        close(twice.compute(), once.compute())
        assert len(twice.per_image()) == 5
        assert torch.equal(twice.compute_curves()["E"], once.compute_curves()["E"])

    def test_rows(self):
        maps, masks = images(3)
        metric = MapScores()
        metric.update(maps, masks, index=[7, 2, 5], name=["a", "bé", "c"])
        rows = metric.per_image()
        assert [(r["index"], r["name"]) for r in rows] == [(2, "bé"), (5, "c"), (7, "a")]
        assert rows[2]["S"] == score_map(maps[0], masks[0]).values["S"]
        metric.update(maps[0], masks[0], index=0)
        assert [r["name"] for r in metric.per_image()] == [None, "bé", "c", "a"], "rows must not be stale"

    def test_scores_collected_from_a_pool(self):
        maps, masks = images()
        direct, collected = MapScores(), MapScores()
        direct.update(maps, masks, index=range(5))
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            for i, scored in enumerate(pool.map(score_map, maps, masks)):
                collected.add(i, scored)
        assert collected.per_image() == direct.per_image()
        pickle.loads(pickle.dumps(collected))

    def test_boundary_scores_skip_masks_without_contour(self):
        maps, masks = images(2)
        empty = np.zeros((10, 10), dtype=bool)
        metric = MapScores(scores=("bMAE", "MAE"))
        metric.update(maps, masks)
        before = metric.compute()
        metric.update(np.full((10, 10), 90, dtype=np.uint8), empty)
        after = metric.compute()
        assert torch.equal(after["bMAE"], before["bMAE"]) and not torch.equal(after["MAE"], before["MAE"])

    def test_protocol_is_applied(self):
        maps, masks = images()
        maps = [m // 2 + 30 for m in maps]
        a, b = MapScores(), MapScores(protocol=MaskProtocol(normalize="as_is"))
        a.update(maps, masks)
        b.update(maps, masks)
        assert abs(float(a.compute()["MAE"] - b.compute()["MAE"])) > 0.01

    def test_kept_geometry_changes_nothing(self):
        maps, masks = images()
        plain, kept = MapScores(), MapScores(cache_bytes=1 << 20)
        plain.update(maps, masks, index=range(5))
        for _ in range(2):
            kept.reset()
            kept.update(maps, masks, index=range(5))
        assert kept.per_image() == plain.per_image()
        assert kept._geometries is not None and len(kept._geometries) == 5

    def test_reset(self):
        maps, masks = images(2)
        metric = MapScores()
        metric.update(maps, masks)
        metric.reset()
        metric.update(maps[0], masks[0], index=3)
        assert [r["index"] for r in metric.per_image()] == [3]

    def test_errors(self):
        maps, masks = images(2)
        metric = MapScores()
        with pytest.warns(UserWarning), pytest.raises(ValueError, match="no image was scored"):
            metric.compute()
        with pytest.raises(ValueError, match="2 maps and 1 masks"):
            metric.update(maps, masks[:1])
        with pytest.raises(ValueError, match="2 maps, 1 indices"):
            metric.update(maps, masks, index=[1])
        metric.update(maps[0], masks[0], index=0)
        with pytest.raises(ValueError, match="every image or for none"):
            metric.update(maps[1], masks[1])
        with pytest.raises(ValueError, match=r"\['wF'\] missing"):
            metric.add(1, score_map(maps[1], masks[1], scores=[s for s in DEFAULT_SCORES if s != "wF"]))
        with pytest.raises(ValueError, match="distinct names"):
            MapScores(scores=("S", "nonsense"))


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        (SMeasure(), "S"),
        (WeightedFMeasure(), "wF"),
        (MapAbsoluteError(), "MAE"),
        (FMeasure("max"), "Fmax"),
        (FMeasure("mean"), "Fmean"),
        (FMeasure("adaptive"), "Fadp"),
        (EMeasure("max"), "Emax"),
        (EMeasure("mean"), "Emean"),
        (EMeasure("adaptive"), "Eadp"),
    ],
)
def test_single_metrics_equal_pysod(metric, name):
    maps, masks = images()
    metric.update(maps[:2], masks[:2])
    for level_map, mask in zip(maps[2:], masks[2:], strict=True):
        metric.update(torch.from_numpy(level_map), torch.from_numpy(mask))
    assert float(metric.compute()) == pytest.approx(float(oracle(maps, masks)[name]), abs=1e-9)
    metric.reset()
    metric.update(maps[0], masks[0])
    assert float(metric.compute()) == pytest.approx(float(oracle(maps[:1], masks[:1])[name]), abs=1e-9)


def test_single_and_combined_metrics_agree():
    maps, masks = images()
    combined = MapScores(scores=ALL_SCORES)
    combined.update(maps, masks, image=photographs())
    expected = combined.compute()
    for metric, name in ((IoU(), "IoU"), (Dice(), "Dice"), (BalancedErrorRate(), "BER")):
        metric.update(maps, masks)
        assert float(metric.compute()) == pytest.approx(float(expected[name]), abs=1e-12)
    curves = PrecisionRecall()
    curves.update(maps, masks)
    for name, curve in curves.compute().items():
        assert torch.allclose(curve, combined.compute_curves()[name], rtol=0, atol=1e-12)
    plain, weighted = ContextMeasure(), ContextMeasure(camouflage=True)
    plain.update(maps, masks)
    weighted.update(maps[0], masks[0], photographs()[0])
    weighted.update(maps[1:], masks[1:], photographs()[1:])
    close({"C": plain.compute(), "wC": weighted.compute()}, {k: expected[k] for k in ("C", "wC")})
    boundary = BoundaryMeasure()
    boundary.update([*maps, np.zeros((5, 5), dtype=np.uint8)], [*masks, np.zeros((5, 5), dtype=bool)])
    close(boundary.compute(), {k: expected[k] for k in ("bMAE", "bwF")})


def test_precision_and_recall_at_a_half_equal_pysod():
    maps, masks = images()
    maps[2][:] = 0  # nothing is chosen
    metric = MapScores(scores=("P", "R"), protocol=MaskProtocol(normalize="as_is"))
    metric.update(maps, masks)
    theirs = py_sod_metrics.FmeasureV2(
        {
            "P": py_sod_metrics.PrecisionHandler(with_dynamic=False, with_adaptive=False, with_binary=True),
            "R": py_sod_metrics.RecallHandler(with_dynamic=False, with_adaptive=False, with_binary=True),
        }
    )
    for level_map, mask in zip(maps, masks, strict=True):
        theirs.step(level_map / 255, mask, normalize=False)
    for row, p, r in zip(metric.per_image(), *(_binary(theirs, k) for k in "PR"), strict=True):
        assert (row["P"], row["R"]) == pytest.approx((float(p), float(r)), abs=1e-9)


def _binary(scorer, name):
    return scorer._metric_handlers[name].binary_results


def test_context_measure_is_told_whether_images_come():
    maps, masks = images(1)
    with pytest.raises(ValueError, match=r"ContextMeasure\(camouflage=True\) expects the images"):
        ContextMeasure(camouflage=True).update(maps, masks)
    with pytest.raises(ValueError, match=r"ContextMeasure\(camouflage=False\) expects no images"):
        ContextMeasure().update(maps, masks, photographs(1))
    with pytest.raises(ValueError, match="1 maps and 2 images"):
        ContextMeasure(camouflage=True).update(maps, masks, photographs(2))
    with pytest.raises(ValueError, match="beta2, alpha: expected positive"):
        ContextMeasure(alpha=0)


def test_reduction_is_checked():
    with pytest.raises(ValueError, match="'max', 'mean' or 'adaptive', found 'best'"):
        FMeasure("best")  # type: ignore[arg-type]  # what is refused


def _in_parts(rank):
    """What one of two processes computes of five images."""
    maps, masks = images()
    out: dict[str, Any] = {}
    # A distributed sampler pads five images to six: the second process gets image 0 again.
    mine = [0, 2, 4] if rank == 0 else [1, 3, 0]
    metric = MapScores()
    metric.update([maps[i] for i in mine], [masks[i] for i in mine], index=mine, name=[f"image {i}" for i in mine])
    out["padded"] = {k: float(v) for k, v in metric.compute().items()}
    out["rows"] = metric.per_image()
    out["F"] = metric.compute_curves()["F"].tolist()
    idle = MapScores()
    if rank == 0:
        idle.update(maps, masks, index=range(5))
    out["idle"] = {k: float(v) for k, v in idle.compute().items()}
    for name, single in (("S", SMeasure()), ("Fmax", FMeasure())):
        for i in [0, 2, 4] if rank == 0 else [1, 3]:
            single.update(maps[i], masks[i])
        out[name] = float(single.compute())
    unnumbered = MapScores()
    unnumbered.update(maps, masks)
    try:
        unnumbered.compute()
    except ValueError as error:
        out["error"] = str(error)
    return out


def test_two_processes_equal_one(tmp_path):
    maps, masks = images()
    alone = MapScores()
    alone.update(maps, masks, index=range(5), name=[f"image {i}" for i in range(5)])
    expected = oracle(maps, masks)
    for found in in_two(_in_parts, tmp_path):
        assert found["padded"] == {k: float(v) for k, v in alone.compute().items()}
        assert found["idle"] == found["padded"]
        assert found["rows"] == alone.per_image()
        assert found["F"] == alone.compute_curves()["F"].tolist()
        assert found["S"] == pytest.approx(expected["S"], abs=1e-9)
        assert found["Fmax"] == pytest.approx(expected["Fmax"], abs=1e-9)
        assert "needs every image's index" in found["error"]
