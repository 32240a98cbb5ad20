"""Thousands of damaged checkpoints and of configs with anything in the place of anything.

A checkpoint is read as it was written, or refused by a message that names it; whatever its config says, either a model
comes of it or one line. So with the folders of finished runs that are to be compared, and with the settings of a run.
"""

import collections
import copy
import io
import json
import shutil
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import bad_files
import numpy as np
import pytest
import torch
import yaml
from counts import fuzz
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_config

from e2net.compare.runs import check_comparable, group, read_run
from e2net.predict.segmenter import load
from e2net.runs.checkpoint import KEY, read_checkpoint
from e2net.runs.config import check_training

TESTS = Path(__file__).parent.parent
sys.path.append(str(TESTS / "compare"))
from fake import fake_run

CHECKPOINTS = sorted((TESTS / "runs" / "old").glob("*.ckpt"))
SECONDS = 20.0
counted = collections.Counter()
seeds = st.integers(0, 2**32 - 1)
HUGE = (2**31, -(2**63), 10**30, 1e308, float("nan"), float("inf"))
JUNK: tuple[Any, ...] = (None, True, False, 0, -1, 3, 1.5, *HUGE, "", "text", "../../etc", "\x1b[31m\n<b>")
JUNK += ("${oc.env:HOME}", "\ud800")
JUNK += ([], {}, [[]], [{}], {"a": {}}, [None], {"_target_": "os.system"}, {"_target_": None}, [1, "a", None])
JUNK += ({"_target_": "e2net.decoders.LinearDecoder"}, {"": 1}, {"_target_": "e2net.tasks.Camouflage", "x": [1]})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    yield tmp_path_factory.mktemp("configs")
    print("\n", "; ".join(f"{what}: {count}" for what, count in sorted(counted.items())))


def places(value, above=()):
    """Every way down to a value in nested containers."""
    yield above
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from places(part, (*above, key))


def changed(config, rng):
    """A copy in which something is another thing, is gone, has another name or comes twice; and what was done."""
    config, done = copy.deepcopy(config), []
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        ways = [way for way in places(config) if way]
        if not ways:
            break
        *above, key = ways[rng.integers(len(ways))]
        inside = config
        for step in above:
            inside = inside[step]
        how = str(rng.choice(["junk", "junk", "gone", "renamed", "elsewhere"]))
        old = inside[key]
        if how == "junk":
            inside[key] = copy.deepcopy(JUNK[rng.integers(len(JUNK))])
        elif how == "gone":
            del inside[key]
        elif how == "renamed" and isinstance(inside, dict):
            inside[str(rng.choice(["x", "_target_", "_partial_", "_args_", "path", "size", "é"]))] = inside.pop(key)
        elif how == "elsewhere":
            others = [way for way in places(config) if way]
            other = config
            for step in others[rng.integers(len(others))]:
                other = other[step]
            inside[key] = copy.deepcopy(other)
        done.append(f"{how} {'.'.join(map(str, (*above, key)))} (was {old!r:.60}, is {config!r:.0})")
    return config, "; ".join(done)


def outcome(what, work, names=None):
    """What some work gives; the message where it is refused, which must be ours and name what it is about."""
    start = time.monotonic()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = work()
    except (ValueError, OSError) as error:
        assert names is None or names in str(error), (what, error)
        assert str(error).strip(), what
        found = str(error)
    assert time.monotonic() - start < SECONDS, what
    counted[f"{what.partition(':')[0]} {'refused' if isinstance(found, str) else 'taken'}"] += 1
    return found


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a == b


@fuzz(0.1)
@given(
    seed=seeds, file=st.sampled_from(CHECKPOINTS), how=st.sampled_from([d for d in bad_files.DAMAGES if d != "size"])
)
def test_damaged_checkpoints(folder, seed, file, how):
    """No bit of one is another without a word: torch itself looks at no checksum."""
    rng, path = np.random.default_rng(seed), folder / "a.ckpt"
    path.write_bytes(bad_files.damaged(file.read_bytes(), how, rng))
    found = outcome(f"checkpoint: {file.name}, {how}, seed {seed}", lambda: read_checkpoint(path), str(path))
    assert isinstance(found, str) or same(found, read_checkpoint(file)), (file, how, seed)


@fuzz(0.06)
@given(seed=seeds, file=st.sampled_from(CHECKPOINTS))
def test_configs_of_checkpoints(folder, seed, file):
    rng, path = np.random.default_rng(seed), folder / "b.ckpt"
    content = torch.load(file, weights_only=True)
    content[KEY], what = changed(content[KEY], rng)
    torch.save(content, path)

    def work():
        return load(path, device="cpu").predict(np.zeros((8, 8, 3), np.uint8))

    outcome(f"config of a checkpoint: {file.name}, {what}, seed {seed}", work)


@fuzz(0.06)
@given(seed=seeds, file=st.sampled_from(["config.yaml", "test_scores.json", "test_per_image.csv"]), raw=st.booleans())
def test_runs_to_compare(folder, seed, file, raw):
    rng = np.random.default_rng(seed)
    for name in ("one", "two"):
        shutil.rmtree(folder / name, ignore_errors=True)
    runs = [fake_run(folder / "one"), fake_run(folder / "two", width=8)]
    path, what = runs[1] / file, "bytes"
    if raw or file.endswith("csv"):
        path.write_bytes(bad_files.damaged(path.read_bytes(), str(rng.choice(bad_files.DAMAGES[5:-1])), rng))
    else:
        known = yaml.safe_load(path.read_text())
        new, what = changed(known, rng)
        try:
            path.write_text(yaml.safe_dump(new, allow_unicode=True) if file.endswith("yaml") else json.dumps(new))
        except UnicodeEncodeError:
            return

    def work():
        found = [read_run(run) for run in runs]
        check_comparable(group(found))
        return [(run.images, run.curves()) for run in found]

    outcome(f"run to compare: {file}, {what}, seed {seed}", work)


@fuzz(0.06)
@given(seed=seeds)
def test_settings_of_a_run(folder, seed):
    config, what = changed(tiny_config(folder), np.random.default_rng(seed))
    outcome(f"settings: {what}, seed {seed}", lambda: check_training(config) or config)


def test_no_byte_of_a_small_checkpoint_may_be_another(folder):
    content = {"state_dict": {"a": torch.arange(5.0)}, KEY: {"config": {"x": 1, "name": "text"}, "format": 1}}
    file, path = io.BytesIO(), folder / "c.ckpt"
    torch.save(content, file)
    path.write_bytes(file.getvalue())
    right = read_checkpoint(path)
    refused = 0
    for at in range(len(file.getvalue())):
        data = bytearray(file.getvalue())
        data[at] ^= 1 << at % 8
        path.write_bytes(data)
        found = outcome(f"checkpoint: byte {at}", lambda: read_checkpoint(path), str(path))
        assert isinstance(found, str) or same(found, right), at
        refused += isinstance(found, str)
    assert refused > 500
