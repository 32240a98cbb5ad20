"""What features do without training, against plain loops and other libraries."""

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from e2net.features.codes import Codes
from e2net.features.cut import as_probability, foreground_of, largest_part, oriented, principal, spectral
from e2net.features.extract import Features
from e2net.features.few import METHODS, coverage, fit, labelled, spherical_means
from e2net.features.index import ApproximateIndex, Index, describe, leave_one_out, unit
from e2net.features.logistic import fit_logistic
from e2net.features.whole import fit_classes, folds_of


def _scene(seed=0, shape=(9, 14), dim=12, noise=0.3, patch=4):
    """Patches of an object and a background that differ, and the mask (H, W)."""
    rng = np.random.default_rng(seed)
    front, back = np.random.default_rng(99).normal(size=(2, dim))
    top, left = rng.integers(1, shape[0] - 5), rng.integers(1, shape[1] - 6)
    share = np.zeros(shape, bool)
    share[top : top + 4, left : left + 5] = True
    patches = np.where(share[..., None], front, back) + rng.normal(size=(*shape, dim)) * noise
    return patches.astype(np.float32), np.kron(share, np.ones((patch, patch), bool)).astype(bool), share


def _unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _examples(count=2, **more):
    scenes = [_scene(seed, **more) for seed in range(count)]
    return [one[0] for one in scenes], [one[1] for one in scenes], [one[2] for one in scenes]


def test_coverage_is_the_mean_of_each_patch():
    mask = np.random.default_rng(0).random((24, 40)) > 0.6
    loop = [[mask[4 * i : 4 * i + 4, 8 * j : 8 * j + 8].mean() for j in range(5)] for i in range(6)]
    np.testing.assert_allclose(coverage(mask, (6, 5)), loop, atol=1e-6)
    odd = coverage(mask[:23, :37], (4, 7))  # patches that no pixel's edge falls on
    assert odd.shape == (4, 7) and odd.mean() == pytest.approx(mask[:23, :37].mean(), abs=1e-5)


def test_one_prototype_a_side_is_a_mean():
    patches, masks, shares = _examples(noise=1.5)
    new = _scene(7, noise=1.5)[0]
    rows = np.concatenate([_unit(p)[s] for p, s in zip(patches, shares, strict=True)])
    ground = np.concatenate([_unit(p)[~s] for p, s in zip(patches, shares, strict=True)])
    front, back = _unit(rows.mean(0)), _unit(ground.mean(0))
    found = fit("prototypes", patches, masks, count=1)(torch.from_numpy(new))
    for i, line in enumerate(new):
        for j, patch in enumerate(line):
            difference = _unit(patch) @ front - _unit(patch) @ back
            assert found[i, j] == pytest.approx(1 / (1 + np.exp(-difference / 0.1)), abs=1e-4)


def test_knn_is_a_weighted_vote():
    patches, masks, shares = _examples(noise=2)
    new = _scene(7, noise=2)[0]
    bank = np.concatenate([_unit(p).reshape(-1, 12) for p in patches]).astype(np.float64)
    votes = np.concatenate([s.ravel() for s in shares])
    found = fit("knn", patches, masks, neighbours=7)(torch.from_numpy(new))
    for i, line in enumerate(new):
        for j, patch in enumerate(line):
            cosines = bank @ _unit(patch)
            near = np.argsort(-cosines)[:7]
            weights = np.exp(cosines[near] / 0.07)
            assert found[i, j] == pytest.approx((votes[near] * weights).sum() / weights.sum(), abs=1e-3)


@pytest.mark.parametrize("classes", [2, 3])
def test_logistic_regression_is_at_the_minimum(classes):
    rng = np.random.default_rng(classes)
    x, labels = rng.normal(size=(60, 5)) + 3, rng.integers(0, classes, 60)
    outputs, c = 1 if classes == 2 else classes, 0.7

    def loss(flat):
        weight, bias = flat[: outputs * 5].reshape(outputs, 5), flat[outputs * 5 :]
        logits = x @ weight.T + bias
        logits = np.concatenate([np.zeros((60, 1)), logits], 1) if outputs == 1 else logits
        normal = np.log(np.exp(logits).sum(1))
        return (weight**2).sum() / 2 + c * (normal - logits[np.arange(60), labels]).sum()

    expected = scipy.optimize.minimize(loss, np.zeros(outputs * 6), tol=1e-8)
    found = fit_logistic(torch.from_numpy(x), torch.from_numpy(labels), classes, c)
    np.testing.assert_allclose(found.weight, expected.x[: outputs * 5].reshape(outputs, 5), atol=2e-4)
    shares = found.probability(torch.from_numpy(x).float())
    assert shares.shape == ((60,) if classes == 2 else (60, 3))
    with pytest.raises(ValueError, match="rows of each of"):
        fit_logistic(torch.from_numpy(x), torch.zeros(60), classes)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(9, 14), (16, 8)])
def test_every_method_finds_what_the_examples_show(method, shape):
    patches, masks, _ = _examples(3, shape=shape)
    new, _, share = _scene(11, shape=shape)
    found = fit(method, patches, masks)(torch.from_numpy(new))
    assert found.shape == shape and found.min() >= 0 and found.max() <= 1
    assert ((found > 0.5).numpy() == share).mean() > 0.97
    other = fit(method, patches, [~mask for mask in masks])(torch.from_numpy(new))
    assert ((other > 0.5).numpy() == ~share).mean() > 0.97


@pytest.mark.parametrize("method", METHODS)
def test_examples_of_one_kind_are_refused(method):
    patches, masks, _ = _examples(1)
    with pytest.raises(ValueError, match="masks without object"):
        fit(method, patches, [np.zeros_like(masks[0])])
    with pytest.raises(ValueError, match="masks without background"):
        fit(method, patches, [np.ones_like(masks[0])])


def test_an_object_smaller_than_a_patch_still_teaches():
    mask = np.zeros((36, 56), bool)
    mask[9, 9] = True
    share = torch.from_numpy(coverage(mask, (9, 14)))
    _, is_object = labelled([(torch.zeros(9, 14, 3), share)])
    assert is_object.sum() == 1 and is_object[2 * 14 + 2]


def test_spherical_means_are_fixed_points():
    unit = torch.nn.functional.normalize(torch.randn(200, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    centres = spherical_means(unit, 5, steps=500)
    group = (unit @ centres.T).argmax(1)
    for i in range(5):
        mean = torch.nn.functional.normalize(unit[group == i].mean(0), dim=0)
        torch.testing.assert_close(centres[i], mean, atol=1e-4, rtol=0)
    assert len(spherical_means(unit[:3], 16)) <= 16


@pytest.mark.parametrize("shape", [(7, 9), (12, 18)])
def test_the_spectral_cut_is_the_second_eigenvector(shape):
    """Of fewer and of more patches than all eigenvectors are found of."""
    patches, _, _ = _scene(2, shape=shape, noise=0.6)
    rows = patches.reshape(-1, 12).astype(np.float64)
    unit = _unit(rows - rows.mean(0))
    weights = np.maximum(unit @ unit.T > 0.1, 1e-5)
    degree = np.diag(weights.sum(1))
    _, vectors = scipy.linalg.eigh(degree - weights, degree)
    expected = vectors[:, 1] - vectors[:, 1].mean()
    found = spectral(patches, 0.1).ravel()
    assert abs(np.corrcoef(found, expected)[0, 1]) > 0.999
    clean, _, share = _scene(2, shape=shape)
    assert ((foreground_of(clean, "spectral") > 0.5) == share).mean() > 0.95


def test_the_principal_component_is_that_of_svd():
    patches, _, share = _scene(4)
    rows = patches.reshape(-1, 12) - patches.reshape(-1, 12).mean(0)
    expected = rows @ np.linalg.svd(rows, full_matrices=False)[2][0]
    assert abs(np.corrcoef(principal(patches).ravel(), expected)[0, 1]) > 0.9999
    assert ((foreground_of(patches) > 0.5) == share).mean() > 0.95


def test_the_side_with_less_rim_is_the_object():
    values = np.full((6, 8), -1, np.float32)
    values[2:4, 3:6] = 2
    for signed in (values, -values):
        assert (oriented(signed)[2:4, 3:6] > 0).all() and (oriented(signed)[0] < 0).all()
    assert (oriented(-values, "seed") > 0).sum() == 6
    values[5, 7] = 1  # hangs together with nothing
    kept = largest_part(values)
    assert (kept > 0).sum() == 6 and kept[5, 7] == -1
    assert as_probability(np.zeros((2, 3), np.float32)).tolist() == [[0.5] * 3] * 2


def test_the_index_is_exact():
    rng = np.random.default_rng(0)
    vectors, query = rng.normal(size=(50, 8)), rng.normal(size=8)
    vectors[7] = vectors[3] * 2  # the same direction: the lower row first
    expected = sorted(range(50), key=lambda i: (-round(float(_unit(vectors[i]) @ _unit(query)), 6), i))
    index = Index(vectors)
    found = index.query(query, 10)
    assert found.rows.tolist() == expected[:10]
    np.testing.assert_allclose(found.cosines, [_unit(vectors[i]) @ _unit(query) for i in expected[:10]], atol=1e-6)
    assert len(index.query(query, 99).rows) == 50
    loop = {(i, j) for i in range(50) for j in range(i + 1, 50) if _unit(vectors[i]) @ _unit(vectors[j]) >= 0.5}
    pairs = index.pairs(0.5)
    assert {pair[:2] for pair in pairs} == loop and pairs[0][:2] == (3, 7)
    assert [pair[2] for pair in pairs] == sorted((pair[2] for pair in pairs), reverse=True)
    with pytest.raises(ValueError, match="at least one"):
        Index(np.zeros((0, 8)))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 70), st.sampled_from([1, 7, 60]), st.booleans())
def test_codes_leave_none_of_the_nearest_out(seed, dim, k, outliers):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(300, dim)) + rng.normal(size=dim) * rng.integers(0, 5)
    rows[:, 0] *= 50 if outliers else 1  # a channel that takes the codes' range
    rows[rng.integers(0, 300, 40)] = rows[:40] + 1e-4 * rng.normal(size=(40, dim))
    rows[5], rows[9] = rows[8], 0
    vectors = unit(rows)
    query = unit(rows[3] + rng.normal(size=dim) * rng.random())
    found = Codes(torch.from_numpy(vectors)).candidates(torch.from_numpy(query), k)
    cosines = vectors.astype(np.float64) @ query
    assert set(np.flatnonzero(cosines >= np.sort(cosines)[-k])) <= set(found.tolist())


def test_codes_leave_few_in_and_change_nothing(monkeypatch):
    rng = np.random.default_rng(2)
    rows, queries = rng.normal(size=(3000, 64)), rng.normal(size=(20, 64))
    rows[50] = rows[7] * 3  # the same direction
    queries[0] = rows[7]
    plain = Index(rows)
    monkeypatch.setattr("e2net.features.index._MANY", 1)
    coded = Index(rows)
    for query in queries:
        assert len(coded._codes.candidates(torch.from_numpy(unit(query)), 10)) < 100
        for k in (1, 10):
            one, other = plain.query(query, k), coded.query(query, k)
            assert one.rows.tolist() == other.rows.tolist()
            np.testing.assert_allclose(one.cosines, other.cosines, atol=1e-6)
    assert coded.query(queries[0], 1).rows.tolist() == [7]
    assert len(coded.query(queries[0], 5000).rows) == 3000  # more than codes can tell apart


def test_faiss_finds_nearly_the_same():
    pytest.importorskip("faiss", reason="an extra: pip install 'e2net[search]'")
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(30, 1, 16)) + 0.2 * rng.normal(size=(30, 40, 16))
    vectors = vectors.reshape(-1, 16)
    exact, near = Index(vectors), ApproximateIndex(vectors, probes=8)
    same = [len(set(exact.query(v, 10).rows) & set(near.query(v, 10).rows)) for v in vectors[::50]]
    assert np.mean(same) > 9 and len(near) == 1200


def test_faiss_missing_is_said(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(ValueError, match="pip install"):
        ApproximateIndex(np.eye(3))


def test_leave_one_out_against_a_loop():
    rng = np.random.default_rng(5)
    vectors, labels = rng.normal(size=(23, 4)), [*"aabbbcccccddddddddddd", "e", "f"]
    first, average = [], []
    for i, label in enumerate(labels):
        if labels.count(label) == 1:
            continue
        order = sorted(set(range(23)) - {i}, key=lambda j: -float(_unit(vectors[i]) @ _unit(vectors[j])))
        same = [labels[j] == label for j in order]
        first.append(np.mean(same[:5]))
        average.append(np.mean([np.mean(same[: k + 1]) for k in range(22) if same[k]]))
    found = leave_one_out(vectors, labels)
    assert found["P@5"] == pytest.approx(np.mean(first)) and found["mAP"] == pytest.approx(np.mean(average))
    assert found["P@1"] == found["R@1"] <= found["R@5"]
    with pytest.raises(ValueError, match="2 classes of one each"):
        leave_one_out(vectors[:2], ["a", "b"])


def _features(class_token):
    patches = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
    return Features(class_token, np.zeros((0, 4), np.float32), patches, np.zeros((48, 80, 3), np.uint8), "a", (48, 80))


def test_descriptors():
    token = np.array([3, 0, 4, 0], np.float32)
    mean = _unit(_features(None).patches.reshape(-1, 4).mean(0))
    np.testing.assert_allclose(describe(_features(token)), [0.6, 0, 0.8, 0], atol=1e-6)
    np.testing.assert_allclose(describe(_features(None), "patches"), mean, atol=1e-6)
    both = describe(_features(token), "both")
    np.testing.assert_allclose(both, np.concatenate([[0.6, 0, 0.8, 0], mean]) / 2**0.5, atol=1e-6)
    for descriptor in ("class", "both"):
        with pytest.raises(ValueError, match="no class token; take descriptor=patches"):
            describe(_features(None), descriptor)


@pytest.mark.parametrize("classes", [2, 4])
def test_classes_of_vectors(classes):
    rng = np.random.default_rng(classes)
    labels = rng.integers(0, classes, 80)
    vectors = np.eye(classes, 6)[labels] + 0.2 * rng.normal(size=(80, 6))
    new = rng.normal(size=(9, 6))
    found = fit_classes("knn", vectors, labels, classes, neighbours=5)(new)
    for i, vector in enumerate(new):
        cosines = _unit(vectors) @ _unit(vector)
        near = np.argsort(-cosines)[:5]
        weights = np.exp(cosines[near] / 0.07)
        votes = [weights[labels[near] == one].sum() / weights.sum() for one in range(classes)]
        np.testing.assert_allclose(found[i], votes, atol=1e-4)
    for method in ("knn", "linear"):
        shares = fit_classes(method, vectors, labels, classes)(vectors)
        assert shares.shape == (80, classes) and np.allclose(shares.sum(1), 1, atol=1e-5)
        assert (shares.argmax(1) == labels).mean() > 0.9


def test_folds_are_even_in_each_class():
    labels = np.array([0] * 11 + [1] * 7)
    folds = folds_of(labels, 3)
    for one in (0, 1):
        counts = np.bincount(folds[labels == one], minlength=3)
        assert counts.max() - counts.min() <= 1
