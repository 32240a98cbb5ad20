"""The paired bootstrap against its definition, written out in plain loops."""

import random

import numpy as np
import pytest
from scipy import stats

from e2net.compare.statistics import Difference, mean_and_deviation, paired_bootstrap
from e2net.compare.tables import is_significant, p_value


def _by_hand(first, second, resamples, seed):
    """One score, one draw at a time, sorted lists instead of quantile functions."""
    change = [b - a for a, b in zip(first, second, strict=True)]
    n = len(change)
    means = []
    for draw in np.random.default_rng(seed).integers(0, n, (resamples, n)):
        means.append(sum(change[i] for i in draw) / n)
    ordered = sorted(means)

    def quantile(q):
        place = q * (resamples - 1)
        low = int(place)
        high = min(low + 1, resamples - 1)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])

    least = min(sum(m <= 0 for m in means), sum(m >= 0 for m in means))
    return sum(change) / n, quantile(0.025), quantile(0.975), min(1.0, 2 * (1 + least) / (resamples + 1))


@pytest.mark.parametrize("seed, shift", [(0, 0.0), (1, 0.02), (2, -0.3)])
def test_paired_bootstrap_is_what_it_says(seed, shift):
    rng = np.random.default_rng(seed)
    first = rng.random((37, 2))
    second = first + rng.normal(shift, 0.1, (37, 2))
    found = paired_bootstrap(first, second, resamples=1300, seed=seed)
    for column, one in enumerate(found):
        expected = _by_hand(first[:, column].tolist(), second[:, column].tolist(), 1300, seed)
        assert (one.mean, one.low, one.high, one.p) == pytest.approx(expected, abs=1e-12)


def test_interval_and_p_agree_with_the_paired_t_test_on_many_images():
    """Another method, the same answer: for a mean over many images both are normal."""
    rng = np.random.default_rng(0)
    first = rng.random((800, 1))
    second = first + rng.normal(0.01, 0.15, (800, 1))
    (found,) = paired_bootstrap(first, second)
    t = stats.ttest_rel(second[:, 0], first[:, 0])
    low, high = t.confidence_interval()
    assert found.low == pytest.approx(low, abs=0.0008) and found.high == pytest.approx(high, abs=0.0008)
    assert found.p == pytest.approx(t.pvalue, abs=0.015)


def test_pairing_tells_what_independent_samples_would_not():
    """A small constant gain on images of very different difficulty is certain."""
    first = np.linspace(0, 1, 20)[:, None]
    (found,) = paired_bootstrap(first, first + 0.01)
    assert found.low == pytest.approx(0.01) and found.p < 0.001
    assert stats.ttest_ind(first[:, 0], first[:, 0] + 0.01).pvalue > 0.5


def test_no_difference_and_no_images():
    same = np.array([[random.Random(i).random()] for i in range(9)])
    assert paired_bootstrap(same, same) == [Difference(0.0, 0.0, 0.0, 1.0)]
    for wrong in (np.empty((0, 1)), np.ones((9, 2))):
        with pytest.raises(ValueError, match="two arrays"):
            paired_bootstrap(wrong, same if len(wrong) else wrong)


def test_deviation_is_that_of_a_sample():
    assert mean_and_deviation([1.0, 2.0, 4.0]) == pytest.approx((7 / 3, np.sqrt(7 / 3)))
    assert mean_and_deviation([0.5]) == (0.5, None)


@pytest.mark.parametrize("n", range(1, 9))
def test_few_images_are_not_sure_of_anything(n):
    """The p of all that have one sign is at least that of the sign test, which is exact."""
    change = np.random.default_rng(n).uniform(0.01, 0.02, (n, 1))
    (found,) = paired_bootstrap(np.zeros((n, 1)), change)
    assert found.p == pytest.approx(stats.binomtest(n, n).pvalue)
    assert is_significant(found) == (n >= 6)


@pytest.mark.parametrize("resamples", [100, 150, 199, 1000, 1500, 9999, 10000, 15000])
def test_the_smallest_p_is_below_what_is_shown(resamples):
    least = 2 / (resamples + 1)
    shown = p_value(least, resamples)
    assert shown.startswith("< ") and least < float(shown[2:]) <= 2 * least + 1e-12
