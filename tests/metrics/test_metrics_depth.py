import math
import statistics

import numpy as np
import pytest
import torch

from e2net.metrics.depth import HIGHER_IS_BETTER, depth_scores, eigen_crop

NAN = math.nan


def _pair(seed, h, w):
    """Depths of 0 to 12 m (some outside 0.5 to 8), of targets that are up to twice as far; a fifth is unknown."""
    rng = np.random.default_rng(seed)
    target = rng.uniform(0.2, 12, (h, w))
    depth = target * np.exp(rng.normal(0, 0.4, (h, w)))
    target[rng.random((h, w)) < 0.2] = 0
    target[0, 0] = 3
    return depth, target


def _loop(depth, target, minimum, maximum, scaled=False, box=None):
    top, bottom, left, right = box or (0, len(target), 0, len(target[0]))
    pairs = [
        (float(depth[y][x]), float(target[y][x]))
        for y in range(top, bottom)
        for x in range(left, right)
        if minimum <= target[y][x] <= maximum
    ]
    factor = statistics.median(t for _, t in pairs) / statistics.median(p for p, _ in pairs) if scaled else 1
    pairs = [(min(max(p * factor, minimum), maximum), t) for p, t in pairs]
    n = len(pairs)
    g = [math.log(p) - math.log(t) for p, t in pairs]
    ratios = [max(p / t, t / p) for p, t in pairs]
    return {
        "AbsRel": sum(abs(p - t) / t for p, t in pairs) / n,
        "RMSE": math.sqrt(sum((p - t) ** 2 for p, t in pairs) / n),
        "RMSElog": math.sqrt(sum(x * x for x in g) / n),
        "log10": sum(abs(math.log10(p) - math.log10(t)) for p, t in pairs) / n,
        "SILog": 100 * math.sqrt(max(sum(x * x for x in g) / n - (sum(g) / n) ** 2, 0)),
        "d1": sum(r < 1.25 for r in ratios) / n,
        "d2": sum(r < 1.25**2 for r in ratios) / n,
        "d3": sum(r < 1.25**3 for r in ratios) / n,
    }


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("shape", [(37, 53), (2, 5), (1, 1)])
@pytest.mark.parametrize("seed", range(4))
def test_scores_equal_a_loop(seed, shape, scaled):
    depth, target = _pair(seed, *shape)
    found = depth_scores(depth, target, 0.5, 8, median_scaling=scaled)
    # A loop's mean of squares less square of mean has rounding of its own, whose root is 1e-8 where all is equal.
    if shape == (1, 1):
        assert found.pop("SILog") == 0
    expected = _loop(depth, target, 0.5, 8, scaled)
    assert found == pytest.approx({name: expected[name] for name in found}, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_of_any_precision_are_scored_as_they_are(dtype):
    depth, target = (torch.from_numpy(x).to(dtype) for x in _pair(7, 21, 33))
    expected = _loop(depth.double().numpy(), target.double().numpy(), 0.5, 8)
    assert depth_scores(depth, target, 0.5, 8) == pytest.approx(expected, abs=1e-9)
    if dtype != torch.bfloat16:
        assert depth_scores(depth.numpy(), target, 0.5, 8) == pytest.approx(expected, abs=1e-9)


def test_names_and_directions():
    assert list(depth_scores(*_pair(0, 3, 3))) == list(HIGHER_IS_BETTER)
    assert [name for name, higher in HIGHER_IS_BETTER.items() if higher] == ["d1", "d2", "d3"]


@pytest.mark.parametrize("scaled", [False, True])
def test_a_perfect_map(scaled):
    target = _pair(0, 9, 11)[1]
    found = depth_scores(target, target, median_scaling=scaled)
    assert found == {name: float(higher) for name, higher in HIGHER_IS_BETTER.items()}


def test_a_map_twice_as_far():
    target = np.array([[1.0, 2.0, 3.0, 0.0]])
    found = depth_scores(2 * target, target)
    expected = {"AbsRel": 1, "RMSE": math.sqrt(14 / 3), "RMSElog": math.log(2), "log10": math.log10(2), "SILog": 0}
    assert found == pytest.approx({**expected, "d1": 0, "d2": 0, "d3": 0}, abs=1e-12)
    # Median scaling takes the factor back.
    assert depth_scores(2 * target, target, median_scaling=True)["RMSE"] == pytest.approx(0, abs=1e-12)


def test_ratios_at_a_threshold_are_not_below_it():
    target = np.ones((1, 3))
    found = depth_scores(np.array([[1.25, 1.25**2, 1.25**3]]), target)
    assert (found["d1"], found["d2"], found["d3"]) == (0, pytest.approx(1 / 3), pytest.approx(2 / 3))


def test_predictions_are_moved_into_the_range_and_targets_outside_are_not_valid():
    target = np.array([[0.5, 8.0, 8.1, 0.4, NAN, np.inf, 0.0]])
    depth = np.array([[-3.0, np.inf, 1.0, 1.0, 1.0, 1.0, NAN]])
    found = depth_scores(depth, target, 0.5, 8)
    assert found == {name: float(higher) for name, higher in HIGHER_IS_BETTER.items()}


def test_both_ends_of_the_range_are_valid():
    found = depth_scores(np.array([[1.5, 4.0, 6.0]]), np.array([[0.5, 4.0, 8.0]]), 0.5, 8)
    assert found["AbsRel"] == pytest.approx((2 + 0 + 0.25) / 3)


def test_scaling_comes_before_the_range():
    # Of the wrong unit: without scaling all is at the maximum.
    target = np.array([[1.0, 2.0, 4.0]])
    assert depth_scores(1000 * target, target, 0.5, 8, median_scaling=True)["RMSE"] == pytest.approx(0, abs=1e-12)
    assert depth_scores(1000 * target, target, 0.5, 8)["RMSE"] == pytest.approx(
        _loop([[8, 8, 8]], target, 0.5, 8)["RMSE"]
    )


def test_the_median_of_an_even_number_is_between_two():
    target, depth = np.array([[1.0, 2.0, 3.0, 5.0]]), np.array([[1.0, 1.0, 2.0, 2.0]])
    found = depth_scores(depth, target, median_scaling=True)
    assert found["AbsRel"] == pytest.approx(np.mean(np.abs(depth * 2.5 / 1.5 - target) / target))


@pytest.mark.parametrize("target", [np.zeros((4, 5)), np.full((4, 5), 99.0), np.full((4, 5), NAN)])
@pytest.mark.parametrize("scaled", [False, True])
def test_no_valid_pixel_has_no_scores(target, scaled):
    found = depth_scores(np.ones((4, 5)), target, median_scaling=scaled)
    assert list(found) == list(HIGHER_IS_BETTER)
    assert all(math.isnan(value) for value in found.values())


def test_eigen_crop_of_the_published_size():
    rows, columns = eigen_crop(480, 640)
    assert (rows, columns) == (slice(45, 471), slice(41, 601))
    depth, target = _pair(0, 480, 640)
    inside = depth_scores(depth[45:471, 41:601], target[45:471, 41:601])
    assert depth_scores(depth, target, crop=True) == inside
    assert depth_scores(depth, target) != inside
    target[45:471, 41:601] = 0
    assert math.isnan(depth_scores(depth, target, crop=True)["RMSE"])


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (240, 320), (239, 318), (960, 1280), (1080, 1920)])
def test_eigen_crop_of_other_sizes_is_in_proportion(size):
    for share, length, (first, last, whole) in zip(
        eigen_crop(*size), size, [(45, 471, 480), (41, 601, 640)], strict=True
    ):
        assert 0 <= share.start < share.stop <= length
        assert abs(share.start - first / whole * length) <= 0.5
        assert abs(share.stop - last / whole * length) <= 0.5


class TestRefuses:
    def test_millimetres_as_in_a_file(self):
        with pytest.raises(TypeError, match="depth: expected metres in floating point, found uint16; divide by"):
            depth_scores(np.ones((2, 2), np.uint16), np.ones((2, 2)))
        with pytest.raises(TypeError, match="target: expected metres in floating point, found int64"):
            depth_scores(torch.ones(2, 2), torch.ones(2, 2, dtype=torch.int64))

    def test_another_size(self):
        with pytest.raises(ValueError, match=r"target's size \(2, 3\), found \(3, 2\)"):
            depth_scores(np.ones((3, 2)), np.ones((2, 3)))

    @pytest.mark.parametrize("shape", [(1, 2, 3), (0, 3), (5,)])
    def test_what_is_no_map(self, shape):
        with pytest.raises(ValueError, match="one non-empty depth map"):
            depth_scores(np.ones(shape), np.ones(shape))

    @pytest.mark.parametrize(("minimum", "maximum"), [(0, 10), (3, 3), (3, 1), (NAN, 1), (1, NAN)])
    def test_an_empty_range(self, minimum, maximum):
        with pytest.raises(ValueError, match="0 < minimum < maximum"):
            depth_scores(np.ones((2, 2)), np.ones((2, 2)), minimum, maximum)

    @pytest.mark.parametrize("scaled", [False, True])
    def test_nan_in_the_prediction(self, scaled):
        with pytest.raises(ValueError, match="NaN at 1 of 3 valid pixels"):
            depth_scores(np.array([[1, NAN, 2, NAN]]), np.array([[1.0, 1, 1, 0]]), median_scaling=scaled)

    @pytest.mark.parametrize("value", [0.0, -1.0, np.inf])
    def test_a_prediction_without_a_scale(self, value):
        with pytest.raises(ValueError, match="expected a median above 0"):
            depth_scores(np.full((2, 2), value), np.ones((2, 2)), median_scaling=True)
