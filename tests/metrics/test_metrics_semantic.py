import math
import tracemalloc
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassJaccardIndex

from e2net.metrics import semantic
from e2net.metrics.semantic import (
    HIGHER_IS_BETTER,
    bootstrap_intervals,
    class_scores,
    confusion,
    image_counts,
    scores_from,
)


def _pair(seed, h, w, classes, ignore=255, known=None, dtype=np.int64):
    """A prediction and labels in patches of 3 pixels, a sixth of them to ignore; of the ``known`` classes only."""
    rng = np.random.default_rng(seed)
    known = np.arange(classes) if known is None else np.array(known)
    coarse = known[rng.integers(0, len(known), (h // 3 + 1, w // 3 + 1))]
    labels = coarse.repeat(3, 0).repeat(3, 1)[:h, :w]
    moved = np.roll(labels, 1, rng.integers(0, 2))
    prediction = np.where(rng.random((h, w)) < 0.2, rng.integers(0, classes, (h, w)), moved)
    labels = np.where(rng.random((h, w)) < 1 / 6, ignore, labels)
    return prediction.astype(dtype), labels.astype(dtype)


def _confusion_loop(prediction, labels, classes, ignore):
    found = np.zeros((classes, classes), np.int64)
    for p, t in zip(prediction.ravel().tolist(), labels.ravel().tolist(), strict=True):
        if t != ignore:
            found[t, p] += 1
    return found


def _eroded(mask, times):
    """Cheng et al.'s code: a frame of zeros, then a 3x3 erosion as often as the band is wide."""
    h, w = mask.shape
    for _ in range(times):
        framed = np.pad(mask, 1)
        mask = np.min([framed[i : i + h, j : j + w] for i in range(3) for j in range(3)], axis=0)
    return mask


def _boundary_loop(prediction, labels, classes, ignore):
    void = labels == ignore
    times = max(1, round(0.02 * math.sqrt(labels.shape[0] ** 2 + labels.shape[1] ** 2)))
    both, either = [], []
    for k in range(classes):
        bands = []
        for array in (prediction, labels):
            mask = (array == k) & ~void
            bands.append(mask & ~_eroded(mask | void, times))
        both.append((bands[0] & bands[1]).sum())
        either.append((bands[0] | bands[1]).sum())
    return np.array([both, either])


def _scores_loop(matrix):
    """Name to value, and the IoU of each class, from the matrix alone."""
    classes = len(matrix)
    rows, columns = matrix.sum(1).tolist(), matrix.sum(0).tolist()
    diagonal = [int(matrix[k, k]) for k in range(classes)]
    iou = [
        diagonal[k] / (rows[k] + columns[k] - diagonal[k]) if rows[k] + columns[k] else math.nan for k in range(classes)
    ]
    accuracy = [diagonal[k] / rows[k] if rows[k] else math.nan for k in range(classes)]
    defined = [[v for v in values if not math.isnan(v)] for values in (iou, accuracy)]
    miou, macc = [sum(v) / len(v) if v else math.nan for v in defined]
    return {"mIoU": miou, "aAcc": sum(diagonal) / sum(rows) if sum(rows) else math.nan, "mAcc": macc}, iou


def _check(prediction, labels, classes, ignore):
    matrix = confusion(prediction, labels, classes, ignore)
    counts = image_counts(prediction, labels, classes, ignore)
    assert matrix.dtype == counts.dtype == np.int64
    first, second = (np.asarray(x).astype(np.int64) for x in (prediction, labels))
    np.testing.assert_array_equal(matrix, _confusion_loop(first, second, classes, ignore))
    np.testing.assert_array_equal(counts[:3], [matrix.diagonal(), matrix.sum(1), matrix.sum(0)])
    np.testing.assert_array_equal(counts[3:], _boundary_loop(first, second, classes, ignore))
    expected, iou = _scores_loop(matrix)
    found = scores_from(counts)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-12, nan_ok=True)
    np.testing.assert_allclose(class_scores(counts)["IoU"], iou, rtol=0, atol=1e-12)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 30), st.sampled_from([1, 2, 5, 20]))
def test_counts_and_scores_equal_loops(seed, h, w, classes):
    prediction, labels = _pair(seed, h, w, classes)
    _check(prediction, labels, classes, 255)


def test_bands_wider_than_a_pixel_equal_the_published_code():
    # 2 % of these diagonals are 2, 3 and 5 pixels.
    for seed, (h, w) in enumerate([(71, 83), (40, 141), (150, 201)]):
        coarse = np.random.default_rng(seed).integers(0, 4, (h // 20 + 1, w // 20 + 1))
        labels = coarse.repeat(20, 0).repeat(20, 1)[:h, :w]
        prediction = np.roll(labels, (3, -2), (0, 1))
        _check(prediction, labels, 4, 255)
        labels = labels.copy()
        labels[10:25, 30:60] = 255
        _check(prediction, labels, 4, 255)


@pytest.mark.parametrize(
    ("dtype", "ignore"),
    [(np.uint8, 255), (np.uint16, 65535), (np.uint16, 255), (np.int64, -1), (np.int32, -100), (np.uint8, 0)],
)
@pytest.mark.parametrize("tensors", [False, True])
def test_any_integers_on_either_side(dtype, ignore, tensors):
    prediction, labels = _pair(1, 17, 23, 6, ignore, dtype=dtype)
    if tensors:
        _check(torch.from_numpy(prediction), torch.from_numpy(labels), 6, ignore)
    _check(prediction, labels.astype(np.int64), 6, ignore)


def test_more_classes_than_8_bits():
    prediction, labels = _pair(3, 40, 41, 400, 65535, dtype=np.uint16)
    assert labels[labels != 65535].max() > 300
    _check(prediction, labels, 400, 65535)


@pytest.mark.parametrize("seed", range(3))
def test_a_set_equals_torchmetrics(seed):
    classes, known = 7, [0, 1, 2, 4]  # 3, 5 and 6 are in no target; 6 nowhere
    matrix_metric = MulticlassConfusionMatrix(classes, ignore_index=255)
    macro = MulticlassJaccardIndex(classes, average="macro", ignore_index=255)
    each = MulticlassJaccardIndex(classes, average="none", ignore_index=255)
    total, matrix = np.zeros((5, classes), np.int64), np.zeros((classes, classes), np.int64)
    for i in range(4):
        prediction, labels = _pair(10 * seed + i, 19 + i, 33, classes, known=known)
        prediction[prediction == 6] = 0
        total = total + image_counts(prediction, labels, classes)
        matrix = matrix + confusion(prediction, labels, classes)
        for metric in (matrix_metric, macro, each):
            metric.update(torch.from_numpy(prediction)[None], torch.from_numpy(labels)[None])
    np.testing.assert_array_equal(matrix, matrix_metric.compute().numpy())
    iou = class_scores(total)["IoU"]
    np.testing.assert_allclose(np.nan_to_num(iou), each.compute().numpy(), atol=1e-6)
    assert np.isnan(iou).tolist() == [False] * 6 + [True]
    assert iou[3] == iou[5] == 0  # predicted, never a target: they count
    assert scores_from(total)["mIoU"] == pytest.approx(float(macro.compute()), abs=1e-6)
    assert scores_from(total)["mIoU"] == pytest.approx(np.nanmean(iou))


def test_a_set_is_no_mean_over_images():
    first = image_counts(np.array([[0, 0, 0, 0]]), np.array([[0, 0, 0, 1]]), 2)
    second = image_counts(np.array([[1]]), np.array([[1]]), 2)
    found = scores_from(first + second)
    assert found["mIoU"] == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert found["aAcc"] == pytest.approx(4 / 5)
    assert found["mAcc"] == pytest.approx((1 + 1 / 2) / 2)


def test_absent_classes():
    # 0: right; 1: in the target, missed; 2: predicted only; 3: nowhere.
    counts = image_counts(np.array([[0, 0, 2]]), np.array([[0, 0, 1]]), 4)
    found = class_scores(counts)
    np.testing.assert_array_equal(found["IoU"], [1, 0, 0, math.nan])
    np.testing.assert_array_equal(found["Acc"], [1, 0, math.nan, math.nan])
    assert scores_from(counts)["mIoU"] == pytest.approx(1 / 3)
    assert scores_from(counts)["mAcc"] == pytest.approx(1 / 2)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (30, 41)])
def test_a_perfect_map_has_scores_of_1(shape):
    labels = np.random.default_rng(0).integers(0, 3, shape)
    assert scores_from(image_counts(labels, labels, 5)) == dict.fromkeys(HIGHER_IS_BETTER, 1.0)


def test_all_ignored_has_no_scores_and_adds_nothing():
    # The prediction may be anything there.
    counts = image_counts(np.full((5, 7), 99), np.full((5, 7), 255), 3)
    assert (counts == 0).all()
    assert (confusion(np.full((5, 7), 99), np.full((5, 7), 255), 3) == 0).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(math.isnan(value) for value in scores_from(counts).values())


def test_a_single_class_and_pixel():
    assert scores_from(image_counts(np.zeros((9, 9), int), np.zeros((9, 9), int), 1))["mIoU"] == 1
    wrong = scores_from(image_counts(np.array([[1]]), np.array([[0]]), 2))
    assert wrong == dict.fromkeys(HIGHER_IS_BETTER, 0.0)


def test_the_outline_along_what_is_ignored_is_none():
    labels = np.zeros((100, 100), int)
    labels[:, 48:52] = 255
    counts = image_counts(np.zeros((100, 100), int), labels, 2)
    # A frame of 3 pixels, 2 % of the diagonal, less the 4 columns that are ignored.
    assert counts[4, 0] == 100**2 - 94**2 - 4 * 6
    # An outline somewhere within it is seen by both from either side, as far as the band reaches beyond it.
    labels[:, 52:] = 1
    prediction = np.zeros((100, 100), int)
    prediction[:, 50:] = 1
    assert scores_from(image_counts(prediction, labels, 2)) == dict.fromkeys(HIGHER_IS_BETTER, 1.0)


@pytest.mark.parametrize("function", [confusion, image_counts])
class TestRefuses:
    def test_a_label_outside_the_classes(self, function):
        with pytest.raises(
            ValueError, match=r"labels: expected classes 0 to 2 or 255 to ignore, found 3, 7; check the number"
        ):
            function(np.zeros((2, 2), int), np.array([[0, 3], [7, 255]]), 3)
        with pytest.raises(ValueError, match=r"labels: .*found -1"):
            function(np.zeros((1, 1), int), np.array([[-1]]), 3)

    def test_a_prediction_outside_the_classes(self, function):
        with pytest.raises(ValueError, match=r"prediction: expected classes 0 to 2, found 255"):
            function(np.array([[0, 255]]), np.array([[0, 1]]), 3)

    def test_another_size(self, function):
        with pytest.raises(ValueError, match=r"labels' size \(2, 3\), found \(3, 2\)"):
            function(np.zeros((3, 2), int), np.zeros((2, 3), int), 3)

    @pytest.mark.parametrize("shape", [(2, 3, 1), (0, 4), (4,)])
    def test_what_is_no_label_map(self, function, shape):
        with pytest.raises(ValueError, match="one non-empty label map"):
            function(np.zeros(shape, int), np.zeros(shape, int), 3)

    @pytest.mark.parametrize("dtype", [np.float32, np.bool_])
    def test_what_are_no_integers(self, function, dtype):
        with pytest.raises(TypeError, match="labels: expected labels of an integer type, found"):
            function(np.zeros((2, 2), int), np.zeros((2, 2), dtype), 3)


def _set(n, classes, seed=0):
    """Counts of n images; the last class is in few of them."""
    rng = np.random.default_rng(seed)
    counts = []
    for i in range(n):
        prediction, labels = _pair(seed + i, 12, 15, classes, known=range(classes if i == 0 else classes - 1))
        if i:
            prediction[prediction == classes - 1] = rng.integers(0, classes - 1)
        counts.append(image_counts(prediction, labels, classes))
    return np.stack(counts)


def test_bootstrap_equals_a_loop_over_draws():
    counts = _set(9, 4)
    found = bootstrap_intervals(counts, seed=3, resamples=230)
    draws = np.random.default_rng(3).integers(0, 9, (230, 9))
    sums = [counts[draw].sum(0) for draw in draws]
    for name in HIGHER_IS_BETTER:
        drawn = sorted(scores_from(s)[name] for s in sums)
        assert found.scores[name] == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=1e-12)
        low, high = found.scores[name]
        assert low < scores_from(counts.sum(0))[name] < high
    for name, (low, high) in found.classes.items():
        values = np.array([class_scores(s)[name] for s in sums])
        assert np.isnan(values[:, 3]).any()  # the rare class is not in every draw
        np.testing.assert_allclose([low, high], np.nanquantile(values, [0.025, 0.975], axis=0), rtol=0, atol=1e-12)


def test_bootstrap_of_equal_images_has_no_width():
    prediction, labels = _pair(5, 20, 31, 4)
    one = image_counts(prediction, labels, 4)
    found = bootstrap_intervals(np.stack([one] * 7), resamples=50)
    for name, value in scores_from(one).items():
        assert found.scores[name] == (value, value)
    single = bootstrap_intervals(one[None], resamples=3)
    assert single.scores == found.scores


def test_bootstrap_of_classes_that_never_occur():
    counts = np.zeros((3, 5, 2), np.int64)
    counts[:, :, 0] = 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = bootstrap_intervals(counts, resamples=20)
        assert found.scores["mIoU"] == (1, 1)
        assert np.isnan(found.classes["IoU"][:, 1]).all()
        nothing = bootstrap_intervals(counts * 0, resamples=20)
    assert all(math.isnan(low) and math.isnan(high) for low, high in nothing.scores.values())


def test_bootstrap_of_a_large_set_is_small():
    counts = np.random.default_rng(0).integers(0, 1000, (500, 5, 150))
    tracemalloc.start()
    try:
        bootstrap_intervals(counts)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 * 2**20  # the draws' confusion matrices would be 180 MB, those of the images 90


@pytest.mark.parametrize("shape", [(0, 5, 3), (4, 4, 3), (5, 3)])
def test_bootstrap_refuses_what_are_no_counts(shape):
    with pytest.raises(ValueError, match=r"expected counts \(n, 5, K\) of at least one image"):
        bootstrap_intervals(np.zeros(shape, int))


def test_scores_have_a_direction():
    assert set(scores_from(np.zeros((5, 2), int))) == set(HIGHER_IS_BETTER)
    assert set(class_scores(np.zeros((5, 2), int))) == set(semantic.CLASS_SCORES)
