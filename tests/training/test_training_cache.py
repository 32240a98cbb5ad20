"""The feature cache: the same scores as without, each view encoded once, and stores that never go stale."""

import contextlib
import csv
import json
import math
import random
import shutil
import subprocess
import sys
from typing import Any

import pytest
import torch
from conftest import ROOT, encoder_config
from hydra import compose, initialize_config_dir

from e2net.datasets.cached import FeatureStore, ViewSet, remove_unused
from e2net.encoders import ViTEncoder
from e2net.lock import lock
from e2net.runs import resolve
from e2net.runs.folder import new_folder
from e2net.training import prepare_training, train

FAST = ["data.n_train=24", "data.n_test=2", "data.sides=[64,80]", "data.num_workers=0", "data.val_fraction=0.3"]
FAST += ["size=64", "num_samples=0", "decoder=linear", "decoder.dropout=0", "tuning=frozen", "trainer.max_epochs=2"]


def _prepare(folder, *overrides, views=1):
    cache = [f"cache.views={views}", f"cache.folder={folder / 'cache'}", f"run_dir={new_folder(str(folder / 'run'))}"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = resolve(compose("train", [*FAST, *cache, *overrides]))
    if "tuning=full" not in overrides:
        config["encoder"] = {
            "_target_": "e2net.encoders.ViTEncoder.from_config",
            "config": encoder_config("dinov3"),
        }
    return prepare_training(config)


@pytest.fixture
def encoded(monkeypatch):
    """How many images the encoder has seen."""
    seen = []
    original = ViTEncoder.encode

    def counting(self, pixels):
        seen.append(len(pixels))
        return original(self, pixels)

    monkeypatch.setattr(ViTEncoder, "encode", counting)
    return seen


def _scores(folder):
    with (folder / "run" / "metrics.csv").open() as file:
        return [float(row["val/S"]) for row in csv.DictReader(file) if row["val/S"]]


def test_scores_are_those_without_a_cache(tmp_path):
    plain = ["data.augment=null", "flip_test=true"]
    train(_prepare(tmp_path / "with", *plain))
    train(_prepare(tmp_path / "without", *plain, views=0))
    expected = _scores(tmp_path / "without")
    assert len(expected) == 2
    assert _scores(tmp_path / "with") == pytest.approx(expected, abs=2e-3)
    assert not (tmp_path / "without" / "cache").exists()


def test_each_view_is_encoded_once_over_all_epochs_and_runs(tmp_path, encoded):
    job = _prepare(tmp_path, "flip_test=true", "data.test={}", views=3)
    train(job)
    images = len(job.data.train_names()) * 3 * 2 + len(job.data.val_names()) * 2
    assert sum(encoded) == images + 1  # one to learn the shapes
    encoded.clear()
    again = _prepare(tmp_path, "flip_test=true", "data.test={}", "trainer.max_epochs=3", views=3)
    train(again)
    assert sum(encoded) == 1


def test_an_interrupted_pass_goes_on_where_it_stopped(tmp_path, encoded, monkeypatch):
    job = _prepare(tmp_path, "data.test={}", "data.batch_size=4")
    total = 2 * len(job.data.train_names()) + len(job.data.val_names())
    write, calls = FeatureStore.write, []

    def failing(self, *args):
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt
        write(self, *args)

    monkeypatch.setattr(FeatureStore, "write", failing)
    with pytest.raises(KeyboardInterrupt):
        train(job)
    monkeypatch.setattr(FeatureStore, "write", write)
    encoded.clear()
    train(_prepare(tmp_path, "data.test={}", "data.batch_size=4"))
    assert sum(encoded) == total - 2 * 4 + 1


def test_records_are_the_features_of_view_and_mirror_image(tmp_path):
    job = _prepare(tmp_path, "data.test={}", views=2)
    train(job)
    store, source = job.data._cache.store, job.data.source("train")
    views: Any = ViewSet(source, job.data.split()[0], job.data.size, job.data.augment, 2, job.data.seed)
    encoder = job.module.model.encoder
    for entry in (0, 1, 5):
        sample = views[entry]
        assert torch.equal(sample.image, views[entry].image)
        pixels = sample.image[None].float() / 255
        for flip in (0, 1):
            expected = encoder(pixels.flip(-1) if flip else pixels)
            for a, b in zip(store.features(2 * entry + flip), expected, strict=True):
                torch.testing.assert_close(a.float(), b[0], rtol=1e-3, atol=1e-3)
            assert torch.equal(store.target(2 * entry + flip), sample.target.flip(-1) if flip else sample.target)
    assert not torch.equal(views[0].image, views[1].image)


def test_epochs_draw_views_and_mirror_images(tmp_path):
    job = _prepare(tmp_path, "data.test={}", views=3)
    train(job)
    dataset = job.data.train_dataloader().dataset
    drawn = {dataset[epoch, 0].image.maps[0].sum().item() for epoch in range(40)}
    assert len(drawn) == 6
    assert torch.equal(dataset[7, 3].image.maps[1], dataset[7, 3].image.maps[1])


@pytest.mark.parametrize("change", ["size=48", "data.batch_size=4", "data.val_fraction=0.5", "cache.dtype=bfloat16"])
def test_a_store_is_replaced_when_its_features_would_differ(tmp_path, encoded, change):
    first = _prepare(tmp_path, "data.test={}", "trainer.max_epochs=1")
    train(first)
    first.data._cache.store.close()
    folders = set((tmp_path / "cache").iterdir())
    encoded.clear()
    second = _prepare(tmp_path, "data.test={}", "trainer.max_epochs=1", change)
    train(second)
    if change == "data.batch_size=4":  # does not change a feature
        assert set((tmp_path / "cache").iterdir()) == folders and sum(encoded) == 1
    else:
        now = set((tmp_path / "cache").iterdir())
        assert len(now) == 1 and now != folders and sum(encoded) > 1


def _store(root, key, **kwargs):
    return FeatureStore(root, key, 3, [(2, 4, 4)], (8, 8), **kwargs)


def test_a_store_in_use_is_not_removed(tmp_path):
    first = _store(tmp_path, "first")
    second = _store(tmp_path, "second")
    assert first.folder.is_dir() and second.folder.is_dir()
    first.close()
    second.close()
    third = _store(tmp_path, "third")
    assert [f for f in (first, second, third) if f.folder.is_dir()] == [third]


def test_a_store_too_large_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"take 0\.0 GB, more than cache.max_gb=1e-08; expected fewer cache.views"):
        _store(tmp_path, "key", max_gb=1e-8)
    assert not any(tmp_path.iterdir())


def test_values_beyond_float16_are_refused(tmp_path):
    store = _store(tmp_path, "key")
    large = [torch.full((1, 2, 4, 4), 1e6)]
    with pytest.raises(ValueError, match=r"too large for cache.dtype=float16.*bfloat16"):
        store.write([0], large, torch.zeros(1, 1, 8, 8))
    assert store.missing() == [0, 1, 2]
    wide = _store(tmp_path, "key", dtype="bfloat16")
    wide.write([1], large, torch.ones(1, 1, 8, 8))
    assert math.isclose(wide.features(1)[0][0, 0, 0], 1e6, rel_tol=0.01) and wide.target(1).all()
    assert wide.missing() == [0, 2]


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["tuning=full"], "cache.views needs an encoder that does not change: tuning=frozen"),
        (["train_scales=[0.5,1]"], r"expected train_scales=\[1\]"),
        (["test_scales=[0.5,1]"], r"expected train_scales=\[1\]"),
        (["data.augment=null", "cache.views=2"], "keep equal views"),
        (["cache.dtype=int8"], "a dtype out of float16, bfloat16"),
        (["cache.views=-1"], "views of 0 .off. or more"),
    ],
)
def test_settings_that_exclude_a_cache(tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        _prepare(tmp_path, *overrides)


def _snapshot(root):
    """Every file and link below a folder, with what is in it, and every folder."""
    found = {}
    for path in sorted(root.rglob("*")):
        kind = "link" if path.is_symlink() else "folder" if path.is_dir() else path.read_bytes()
        found[path.relative_to(root)] = kind
    return found


def _strangers(root, seed):
    """A random tree of somebody else's files, some of which are called as those of a store are."""
    draw = random.Random(seed)
    names = ["lock", "key.json", "features.bin", "masks.bin", "written.bin", "a.txt", "0123456789abcdef", ".git", "x y"]
    for _ in range(draw.randint(1, 12)):
        path = root.joinpath(*draw.choices(names, k=draw.randint(1, 3)))
        with contextlib.suppress(OSError):  # a file is where a folder should be, or the other way round
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(draw.choice(["", "{}", "[]", json.dumps(["key", 3, [[2, 4, 4]], [8, 8], "float16"])]))
    if draw.random() < 0.3:
        (root / "linked").symlink_to(draw.choice([root, root / "nowhere", root.parent]))


@pytest.mark.parametrize("seed", range(60))
def test_a_strangers_files_beside_and_inside_stores_are_left_alone(tmp_path, seed):
    root = tmp_path / "cache"
    root.mkdir()
    old = _store(root, "old")
    old.close()
    own = {p.relative_to(root) for p in old.folder.iterdir()} | {old.folder.relative_to(root)}
    for folder in (root, old.folder, root / "a folder"):
        folder.mkdir(exist_ok=True)
        _strangers(folder, f"{seed} {folder.name}")
    before = {k: v for k, v in _snapshot(root).items() if k not in own}
    with contextlib.suppress(ValueError):
        _store(root, "too large", max_gb=1e-8)
    _store(root, "new").close()
    remove_unused(root)
    after = _snapshot(root)
    kept = {k: v for k, v in before.items() if v != "folder"}
    assert {k: after.get(k) for k in kept} == kept


def test_unused_stores_are_removed_and_their_like_are_not(tmp_path):
    """What has a store's files but not its name, and a link to a store, are somebody else's."""
    store = _store(tmp_path / "cache", "key")
    store.close()
    shutil.copytree(store.folder, tmp_path / "cache" / "kept")
    (tmp_path / "cache" / "link").symlink_to(tmp_path / "cache" / "kept", target_is_directory=True)
    before = _snapshot(tmp_path / "cache" / "kept")
    remove_unused(tmp_path / "cache")
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == ["kept", "link"]
    assert _snapshot(tmp_path / "cache" / "kept") == before


def test_a_lock_is_exclusive_or_shared_and_leaves_its_file_as_it_is(tmp_path):
    file = tmp_path / "lock"
    file.write_text("mine")
    with lock(file, shared=True), lock(file, shared=True), pytest.raises(BlockingIOError):
        lock(file)
    with lock(file):
        with pytest.raises(BlockingIOError):
            lock(file, shared=True)
        code = "import sys; from pathlib import Path; from e2net.lock import lock; lock(Path(sys.argv[1]))"
        other = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True, check=False)
        assert "BlockingIOError" in other.stderr
    lock(file).close()
    assert file.read_text() == "mine"
