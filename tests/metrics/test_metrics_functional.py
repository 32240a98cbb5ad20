"""Every score against PySODMetrics, and the cases where the two differ on purpose."""

import os
import warnings

import cv2
import numpy as np
import py_sod_metrics
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from py_sod_metrics import fmeasurev2
from scipy.ndimage import distance_transform_edt

from e2net.metrics import (
    GeometryCache,
    MaskGeometry,
    MaskProtocol,
    ber,
    boundary_scores,
    dice,
    e_measure,
    f_measure,
    iou,
    mae,
    map_statistics,
    precision_recall,
    s_measure,
    score_map,
    weighted_f_measure,
)

TOLERANCE = 1e-9
# E2NET_FUZZ=5000 for more.
many = settings(max_examples=int(os.environ.get("E2NET_FUZZ", "200")), deadline=None, derandomize=True)
PREDICTIONS = ("noise", "smooth", "binary", "constant", "zeros", "ones", "few", "half flat")
MASKS = ("noise", "blob", "empty", "full", "pixel", "corner", "hole", "stripe")


def make_map(kind, shape, rng):
    noise = rng.integers(0, 256, shape, dtype=np.uint8)
    match kind:
        case "noise":
            return noise
        case "smooth":
            return cv2.GaussianBlur(noise, (0, 0), 2.0).reshape(shape)
        case "binary":
            return (noise > 127).astype(np.uint8) * 255
        case "constant":
            return np.full(shape, rng.integers(1, 255), dtype=np.uint8)
        case "few":
            return (noise % 4) * 10
        case "half flat":
            return np.where(np.arange(shape[1]) < shape[1] // 2, np.uint8(70), noise)
    return np.full(shape, 0 if kind == "zeros" else 255, dtype=np.uint8)


def make_mask(kind, shape, rng):
    h, w = shape
    mask = np.zeros(shape, dtype=bool)
    match kind:
        case "noise":
            mask = rng.random(shape) < rng.choice([0.03, 0.3, 0.8])
        case "blob":
            mask = cv2.GaussianBlur(rng.random(shape), (0, 0), 3.0).reshape(shape) > 0.5
        case "full":
            mask[:] = True
        case "pixel":
            mask[rng.integers(h), rng.integers(w)] = True
        case "corner":
            mask[-1, -1] = True
        case "hole":
            mask[:] = True
            mask[rng.integers(h), rng.integers(w)] = False
        case "stripe":
            mask[:, : max(1, w // 3)] = True
    return mask


@st.composite
def pairs(draw):
    shape = draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    level_map = make_map(draw(st.sampled_from(PREDICTIONS)), shape, rng)
    return level_map, make_mask(draw(st.sampled_from(MASKS)), shape, rng)


def oracle(level_map, mask, normalize):
    """PySODMetrics' scores of one pair, its curves turned to ascending thresholds."""
    arguments = (level_map, mask.astype(np.uint8) * 255) if normalize else (level_map / 255, mask)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with np.errstate(all="ignore"):
            s, e, f, w, m = (
                getattr(py_sod_metrics, n)() for n in ("Smeasure", "Emeasure", "Fmeasure", "WeightedFmeasure", "MAE")
            )
            handlers = {
                n: getattr(fmeasurev2, f"{n}Handler")(with_dynamic=False, with_adaptive=False, with_binary=True)
                for n in ("IOU", "DICE", "BER")
            }
            v2 = py_sod_metrics.FmeasureV2(handlers)
            for scorer in (s, e, f, w, m, v2):
                scorer.step(*arguments, normalize=normalize)
    overlap = {n: r["binary"] for n, r in v2.get_results().items()}
    return {
        "S": s.sms[0],
        "E": e.changeable_ems[0][::-1],
        "Eadp": e.adaptive_ems[0],
        "F": f.changeable_fms[0][::-1],
        "Fadp": f.adaptive_fms[0],
        "P": f.precisions[0][::-1],
        "R": f.recalls[0][::-1],
        "wF": w.weighted_fms[0],
        "MAE": m.maes[0],
        "IoU": overlap["IOU"],
        "Dice": overlap["DICE"],
        "BER": overlap["BER"],
    }


def scores(map, mask, statistics=None, **wf):
    f = f_measure(map, mask, statistics=statistics)
    e = e_measure(map, mask, statistics=statistics)
    return {
        "S": s_measure(map, mask, statistics=statistics),
        "E": e.curve,
        "Eadp": e.adaptive,
        "F": f.curve,
        "Fadp": f.adaptive,
        "P": f.precision,
        "R": f.recall,
        "wF": weighted_f_measure(map, mask, **wf),
        "MAE": mae(map, mask, statistics=statistics),
        "IoU": iou(map, mask, statistics=statistics),
        "Dice": dice(map, mask, statistics=statistics),
        "BER": ber(map, mask, statistics=statistics),
    }


def assert_equal(found, expected, tolerance=TOLERANCE, skip=()):
    for name, value in found.items():
        if name in skip:
            continue
        if name == "S" and np.isnan(expected[name]):
            assert not torch.isnan(value)
            continue
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=tolerance, err_msg=name)


def one_pixel(mask):
    return ("E", "Eadp") if mask.size == 1 else ()


@many
@given(pairs())
def test_8_bit_map_as_it_is(pair):
    level_map, mask = pair
    found = scores(torch.from_numpy(level_map), torch.from_numpy(mask))
    assert_equal(found, oracle(level_map, mask, normalize=False), skip=one_pixel(mask))


@many
@given(pairs())
def test_stretched_by_histogram_and_directly(pair):
    level_map, mask = pair
    expected = oracle(level_map, mask, normalize=True)
    values = MaskProtocol().apply(torch.from_numpy(level_map))
    assert values.dtype == torch.float64
    bool_mask = torch.from_numpy(mask)
    histogram = map_statistics(level_map, mask, protocol=MaskProtocol())
    assert_equal(scores(values, bool_mask, histogram), expected, skip=one_pixel(mask))
    assert_equal(scores(values, bool_mask), expected, skip=one_pixel(mask))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.integers(2, 30), st.sampled_from(MASKS))
def test_float_maps_of_any_value(seed, h, w, kind):
    rng = np.random.default_rng(seed)
    values, mask = rng.random((h, w)), make_mask(kind, (h, w), rng)
    expected = {}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for name, scorer in (("S", "Smeasure"), ("MAE", "MAE"), ("wF", "WeightedFmeasure"), ("E", "Emeasure")):
            one = getattr(py_sod_metrics, scorer)()
            one.step(values, mask, normalize=False)
            expected[name] = one.changeable_ems[0][::-1] if name == "E" else next(iter(one.get_results().values()))
    tensor, bool_mask = torch.from_numpy(values), torch.from_numpy(mask)
    found = {k: v for k, v in scores(tensor, bool_mask).items() if k in expected}
    assert_equal(found, expected)
    single = scores(tensor.float(), bool_mask)
    for name in ("S", "MAE", "wF"):
        np.testing.assert_allclose(single[name], found[name], rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("shape", [(150, 211), (64, 256), (300, 12)])
@pytest.mark.parametrize("kind", ["noise", "blob", "pixel", "corner"])
def test_larger_maps(shape, kind):
    """Sizes where the distance transform is padded, cropped and saturated."""
    rng = np.random.default_rng(3)
    level_map, mask = make_map("smooth", shape, rng), make_mask(kind, shape, rng)
    values = MaskProtocol().apply(torch.from_numpy(level_map))
    assert_equal(scores(values, torch.from_numpy(mask)), oracle(level_map, mask, normalize=True))


def test_weighted_f_far_from_the_foreground():
    """Beyond 256 pixels, outside the crop that the distance transform looks at."""
    mask = np.zeros((40, 900), dtype=bool)
    mask[20:25, 300:310] = True
    level_map = np.random.default_rng(0).integers(0, 256, mask.shape, dtype=np.uint8)
    found = weighted_f_measure(torch.from_numpy(level_map), torch.from_numpy(mask))
    assert abs(float(found) - oracle(level_map, mask, normalize=False)["wF"]) < TOLERANCE


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.sampled_from(MASKS))
def test_distances_and_ties_are_scipys(h, w, seed, kind):
    mask = make_mask(kind, (h, w), np.random.default_rng(seed))
    if not mask.any():
        return
    geometry = MaskGeometry(mask)
    distance, nearest = distance_transform_edt(~mask, return_indices=True)
    np.testing.assert_array_equal(geometry.squared_distance, np.round(distance**2))
    rows, columns = geometry.window
    rim, source = geometry.rim
    width = columns.stop - columns.start
    y, x = rim // width + rows.start, rim % width + columns.start
    np.testing.assert_array_equal(source // width + rows.start, nearest[0, y, x])
    np.testing.assert_array_equal(source % width + columns.start, nearest[1, y, x])
    reached = cv2.dilate(mask.view(np.uint8), np.ones((7, 7), np.uint8)).astype(bool) & ~mask
    seen = np.zeros_like(mask)
    seen[y, x] = True
    assert not (reached & ~seen).any()


def test_distances_of_a_large_mask_are_exact():
    """Intel's transform, which OpenCV calls by itself, is off by a squared pixel here and there from 3000 px on."""
    mask = np.zeros((300, 5000), dtype=bool)
    rng = np.random.default_rng(3)
    mask[rng.integers(0, 300, 60), rng.integers(0, 5000, 60)] = True
    squared = np.round(distance_transform_edt(~mask) ** 2)
    np.testing.assert_array_equal(MaskGeometry(mask).squared_distance, np.minimum(squared, 65535))


def test_geometry_kept_gives_the_same_score():
    rng = np.random.default_rng(1)
    mask = make_mask("blob", (60, 80), rng)
    geometry = MaskGeometry(mask)
    for seed in range(3):
        level_map = torch.from_numpy(make_map("smooth", mask.shape, np.random.default_rng(seed)))
        fresh = scores(level_map, torch.from_numpy(mask))
        kept = scores(level_map, torch.from_numpy(mask), geometry=geometry)
        assert all(torch.equal(fresh[name], kept[name]) for name in fresh)


@pytest.mark.parametrize("mask", [np.eye(1, dtype=bool), ~np.eye(1, dtype=bool)])
def test_one_pixel_image(mask):
    """PySODMetrics divides by the machine epsilon; here a right answer is 1 and a wrong one 0."""
    right = torch.from_numpy(mask.astype(np.float64))
    assert float(e_measure(right, torch.from_numpy(mask)).adaptive) in (0.0, 1.0)
    curve = e_measure(1 - right, torch.from_numpy(mask)).curve
    assert float(e_measure(right, torch.from_numpy(mask)).curve[128]) == 1.0
    assert float(curve[128]) == 0.0


class TestEmptyQuadrants:
    """A centroid in the last row or column leaves quadrants without pixels: NaN in PySODMetrics."""

    @pytest.mark.parametrize("where", [(slice(None), -1), (-1, slice(None)), (-1, -1)])
    def test_oracle_has_nan_and_we_have_the_limit(self, where):
        rng = np.random.default_rng(2)
        mask = np.zeros((30, 40), dtype=bool)
        mask[where] = True
        level_map = make_map("smooth", mask.shape, rng)
        assert np.isnan(oracle(level_map, mask, normalize=False)["S"])
        found = s_measure(torch.from_numpy(level_map), torch.from_numpy(mask))
        assert 0 <= float(found) <= 1
        assert float(found) == pytest.approx(
            float(s_measure(torch.from_numpy(level_map / 255), torch.from_numpy(mask)))
        )

    def test_value_by_hand(self):
        """A column at the right edge: quadrants left (all pixels) and right (none), so S_region is one SSIM."""
        mask = np.zeros((4, 4), dtype=bool)
        mask[:, 3] = True
        prob = np.linspace(0, 1, 16).reshape(4, 4)
        upper, lower = (0.0, 0.0)
        for rows, weight in ((slice(0, 3), 0.75), (slice(3, 4), 0.25)):  # the centroid's row, 1.5, rounds to 2
            p, g = prob[rows], mask[rows].astype(float)
            cov = np.cov(p.ravel(), g.ravel())
            x, y = p.mean(), g.mean()
            upper += weight * 4 * x * y * cov[0, 1] / ((x * x + y * y) * (cov[0, 0] + cov[1, 1]))
        foreground, background = prob[mask], 1 - prob[~mask]
        for part, weight in ((foreground, 0.25), (background, 0.75)):
            lower += weight * 2 * part.mean() / (part.mean() ** 2 + 1 + part.std(ddof=1))
        found = s_measure(torch.from_numpy(prob), torch.from_numpy(mask))
        assert float(found) == pytest.approx((upper + lower) / 2, abs=1e-12)

    def test_perfect_map_scores_one(self):
        mask = torch.zeros(20, 20, dtype=torch.bool)
        mask[3:17, -1] = True
        assert float(s_measure(mask.double(), mask)) == pytest.approx(1.0, abs=1e-9)


def test_known_values():
    """Small enough to check by hand: 2 of 4 foreground pixels found, 1 false alarm among 8 pixels."""
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0]], dtype=torch.bool)
    prob = torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0]], dtype=torch.float64)
    assert float(iou(prob, mask)) == 2 / 5
    assert float(dice(prob, mask)) == 4 / 7
    assert float(ber(prob, mask)) == pytest.approx(1 - (2 / 4 + 3 / 4) / 2)
    assert float(mae(prob, mask)) == 3 / 8
    precision, recall = precision_recall(prob, mask)
    assert float(precision[255]) == 2 / 3 and float(recall[255]) == 0.5
    assert float(precision[0]) == 0.5 and float(recall[0]) == 1.0
    f = f_measure(prob, mask)
    assert float(f.curve[200]) == pytest.approx(1.3 * (2 / 3) * 0.5 / (0.3 * 2 / 3 + 0.5))
    assert float(f.max) == float(f.curve.max()) and float(f.mean) == float(f.curve.mean())
    assert float(f_measure(prob, mask, beta2=1.0).curve[200]) == pytest.approx(4 / 7)


def test_alpha_weighs_objects_against_regions():
    rng = np.random.default_rng(4)
    level_map, mask = (
        torch.from_numpy(x) for x in (make_map("smooth", (30, 40), rng), make_mask("blob", (30, 40), rng))
    )
    objects, regions = s_measure(level_map, mask, alpha=1.0), s_measure(level_map, mask, alpha=0.0)
    assert abs(float(objects - regions)) > 1e-3
    assert float(s_measure(level_map, mask, alpha=0.25)) == pytest.approx(float(0.25 * objects + 0.75 * regions))


class TestBoundary:
    def mask(self):
        mask = np.zeros((80, 100), dtype=bool)
        mask[30:50, 30:60] = True
        return mask

    def test_band_is_15_pixels_on_either_side(self):
        mask = self.mask()
        distance = np.maximum(distance_transform_edt(mask), distance_transform_edt(~mask))
        np.testing.assert_array_equal(MaskGeometry(mask).band, distance <= 15)
        assert MaskGeometry(mask).band[40, 74] and not MaskGeometry(mask).band[40, 75]

    def test_only_the_band_counts(self):
        mask = self.mask()
        prob = mask.astype(np.float64)
        prob[0, 0] = 1.0  # 42 px from the object
        error, weighted = boundary_scores(torch.from_numpy(prob), torch.from_numpy(mask))
        assert float(error) == 0.0 and float(weighted) == pytest.approx(1.0)
        prob[40, 70] = 1.0
        error, weighted = boundary_scores(torch.from_numpy(prob), torch.from_numpy(mask))
        assert float(error) == pytest.approx(1 / MaskGeometry(mask).band.sum())
        assert 0.99 < float(weighted) < 1.0

    def test_equals_the_plain_scores_where_the_band_is_everything(self):
        rng = np.random.default_rng(0)
        mask = make_mask("blob", (12, 14), rng)
        level_map = torch.from_numpy(make_map("smooth", mask.shape, rng))
        assert MaskGeometry(mask).band.all()
        error, weighted = boundary_scores(level_map, torch.from_numpy(mask))
        assert float(error) == pytest.approx(float(mae(level_map, torch.from_numpy(mask))), abs=1e-12)
        assert float(weighted) == pytest.approx(float(weighted_f_measure(level_map, torch.from_numpy(mask))), abs=1e-12)

    @pytest.mark.parametrize("value", [False, True])
    def test_without_a_contour(self, value):
        mask = torch.full((20, 20), value)
        assert all(torch.isnan(x) for x in boundary_scores(mask.double(), mask))


class TestErrors:
    mask = torch.zeros(4, 5, dtype=torch.bool)

    def test_zero_one_mask_is_refused(self):
        """PySODMetrics, normalising, reads such a mask as empty and returns plausible scores."""
        with pytest.raises(TypeError, match=r"mask: expected bool, found uint8.*0/1"):
            s_measure(torch.zeros(4, 5), torch.ones(4, 5, dtype=torch.uint8))

    @pytest.mark.parametrize("score", [s_measure, e_measure, f_measure, mae, iou, weighted_f_measure, boundary_scores])
    def test_sizes_must_agree(self, score):
        with pytest.raises(ValueError, match=r"map \(5, 4\), mask \(4, 5\); resize the map"):
            score(torch.zeros(5, 4), self.mask)

    @pytest.mark.parametrize("bad", [1.5, -0.1, float("nan")])
    def test_range(self, bad):
        with pytest.raises(ValueError, match=r"expected values in \[0, 1\].*sigmoid"):
            mae(torch.full((4, 5), bad), self.mask)

    def test_type(self):
        with pytest.raises(TypeError, match="floating-point tensor of probabilities, found torch"):
            mae(torch.zeros(4, 5, dtype=torch.int64), self.mask)

    def test_batch_is_refused(self):
        with pytest.raises(ValueError, match=r"one non-empty map \(h, w\), found shape \(1, 4, 5\)"):
            mae(torch.zeros(1, 4, 5), self.mask)
        with pytest.raises(ValueError, match=r"one non-empty mask \(h, w\)"):
            mae(torch.zeros(4, 5), self.mask[None])

    def test_weights(self):
        with pytest.raises(ValueError, match="alpha"):
            s_measure(torch.zeros(4, 5), self.mask, alpha=1.5)
        with pytest.raises(ValueError, match="beta2"):
            f_measure(torch.zeros(4, 5), self.mask, beta2=0)

    def test_someone_elses_geometry_and_statistics(self):
        other = self.mask.clone()
        other[0, 0] = True
        with pytest.raises(ValueError, match="geometry belongs to another mask"):
            weighted_f_measure(torch.zeros(4, 5), self.mask, geometry=MaskGeometry(other))
        with pytest.raises(ValueError, match="statistics belong to another map"):
            mae(
                torch.zeros(2, 2),
                torch.zeros(2, 2, dtype=torch.bool),
                statistics=map_statistics(torch.zeros(4, 5), other),
            )


class TestCache:
    def test_what_came_first_stays_within_the_budget(self):
        masks = [make_mask("blob", (50, 50), np.random.default_rng(i)) for i in range(6)]
        cache = GeometryCache(max_bytes=40_000)
        rounds = []
        for _ in range(3):  # in the same order each time, as validation goes
            rounds.append([])
            for i, mask in enumerate(masks):
                rounds[-1].append(cache.get(i, mask))
                rounds[-1][-1].rim  # noqa: B018
        same = [a is b for a, b in zip(rounds[1], rounds[2], strict=True)]
        assert any(same) and not all(same) and same == sorted(same, reverse=True)
        cache.get(9, masks[0])
        assert cache.nbytes <= 40_000
        cache.clear()
        assert len(cache) == 0

    def test_changed_mask_is_noticed(self):
        cache = GeometryCache()
        cache.get("a", np.zeros((4, 4), dtype=bool))
        with pytest.raises(ValueError, match="kept under 'a' belongs to another mask"):
            cache.get("a", np.ones((4, 4), dtype=bool))
        diagonal = np.eye(4, dtype=bool)
        cache.get("b", diagonal)
        with pytest.raises(ValueError, match="another mask"):
            cache.get("b", diagonal[::-1])  # as many pixels, elsewhere

    def test_loads_only_on_a_miss(self):
        cache, calls = GeometryCache(), []
        for _ in range(2):
            cache.get("a", lambda: calls.append(1) or np.zeros((4, 4), dtype=bool))
        assert len(calls) == 1


def test_score_map_takes_arrays_and_tensors_alike():
    rng = np.random.default_rng(5)
    level_map, mask = make_map("smooth", (30, 41), rng), make_mask("blob", (30, 41), rng)
    a = score_map(level_map, mask)
    b = score_map(torch.from_numpy(level_map), torch.from_numpy(mask))
    c = score_map(np.asfortranarray(level_map), np.asfortranarray(mask))
    assert a.values == b.values == c.values
    expected = oracle(level_map, mask, normalize=True)
    assert a.values["S"] == pytest.approx(expected["S"], abs=TOLERANCE)
    assert a.values["Fmax"] == pytest.approx(expected["F"].max(), abs=TOLERANCE)
    assert a.values["wF"] == pytest.approx(expected["wF"], abs=TOLERANCE)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_maps_on_a_gpu():
    rng = np.random.default_rng(6)
    level_map, mask = (
        torch.from_numpy(x) for x in (make_map("smooth", (60, 81), rng), make_mask("blob", (60, 81), rng))
    )
    expected = scores(level_map / 255.0, mask)
    for there in (level_map.cuda(), level_map.cuda() / 255.0):
        assert_equal(scores(there, mask.cuda()), {k: v.numpy() for k, v in expected.items()}, tolerance=1e-5)
