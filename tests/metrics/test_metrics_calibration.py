"""Reliability, calibration error and best threshold against loops over single pixels."""

import numpy as np
import pytest
import torch

from e2net.metrics import MapScores, MaskProtocol, ScoreTable, score_map
from e2net.metrics.calibration import BINS, Calibration
from e2net.metrics.scoring import DEFAULT_SCORES

SIZES = [(20, 31), (17, 17), (40, 9), (25, 26)]


def _pairs(seed=0, power=1.0):
    """Soft maps in part of the range, and masks that are drawn from their probabilities to a power."""
    rng = np.random.default_rng(seed)
    pairs = []
    for height, width in SIZES:
        prob = np.clip(rng.random((height, width)) * 0.7 + 0.1 * rng.random(), 0, 1)
        pairs.append((prob, rng.random(prob.shape) < prob**power))
    return pairs


def _calibration(pairs, protocol=None):
    images = [(i, None, score_map(torch.from_numpy(p), m, protocol=protocol)) for i, (p, m) in enumerate(pairs)]
    return ScoreTable.of(DEFAULT_SCORES, images).calibration()


PROTOCOLS = [
    MaskProtocol(),
    MaskProtocol(normalize="as_is"),
    MaskProtocol(quantise=False),
    MaskProtocol(quantise=False, normalize="as_is"),
]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("seed", range(3))
def test_reliability_is_that_of_single_pixels_before_any_stretch(protocol, seed):
    pairs = [*_pairs(seed), (np.full((5, 7), 0.25), np.zeros((5, 7), bool)), (np.ones((3, 4)), np.ones((3, 4), bool))]
    bins = [[] for _ in range(BINS)]
    for prob, mask in pairs:
        for p, inside in zip(prob.ravel(), mask.ravel(), strict=True):
            level = int(np.round(p * 255))
            bins[level * BINS // 256].append((level / 255, bool(inside)))
    found = _calibration(pairs, protocol)
    total = sum(map(len, bins))
    error = 0.0
    for i, pixels in enumerate(bins):
        assert found.reliability.pixels[i] == len(pixels)
        if not pixels:
            assert np.isnan(found.reliability.probability[i]) and np.isnan(found.reliability.frequency[i])
            continue
        probability, frequency = np.mean(pixels, 0)
        assert found.reliability.probability[i] == pytest.approx(probability)
        assert found.reliability.frequency[i] == pytest.approx(frequency)
        error += len(pixels) / total * abs(probability - frequency)
    assert found.error == pytest.approx(error)


def test_probabilities_are_told_from_what_is_none():
    rng = np.random.default_rng(0)
    prob = rng.random((400, 500))
    mask = rng.random(prob.shape) < prob
    assert _calibration([(prob, mask)]).error < 0.005
    assert _calibration([(prob**3, mask)]).error == pytest.approx(0.25, abs=0.01)  # the mean of p - p³


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("power", [0.5, 1, 3])
def test_threshold_is_the_best_of_all_for_maps_as_they_are(protocol, power):
    pairs = _pairs(1, power)
    found = _calibration(pairs, protocol)

    def mean_f(decide):
        found = []
        for prob, mask in pairs:
            decision = decide(prob)
            hits = np.sum(decision & mask)
            precision, recall = hits / max(1, decision.sum()), hits / max(1, mask.sum())
            found.append(1.3 * precision * recall / (0.3 * precision + recall) if hits else 0.0)
        return float(np.mean(found))

    every = [mean_f(lambda prob, t=t: np.round(prob * 255) >= t) for t in range(1, 256)]
    assert found.best_f == pytest.approx(max(every)) and 0 < found.threshold < 1
    # As prediction decides, by a probability that was never rounded.
    assert mean_f(lambda prob: prob > found.threshold) == pytest.approx(max(every))
    assert len({round(f, 6) for f in every}) > 20


def test_a_map_of_nothing_has_a_threshold_too():
    empty = Calibration(np.eye(1, 512, dtype=np.int32).reshape(1, 2, 256))
    assert 0 < empty.threshold < 1 and empty.best_f == 0 and empty.error == 0


def test_a_collector_gives_the_same():
    pairs = _pairs(2)
    scores = MapScores()
    for i in (2, 0, 3, 1, 0):  # one of them twice, as a distributed sampler has it
        scores.update(torch.from_numpy(pairs[i][0]), pairs[i][1], index=i)
    found, expected = scores.table().calibration(), _calibration(pairs)
    assert np.array_equal(found.levels, expected.levels) and found.threshold == expected.threshold
