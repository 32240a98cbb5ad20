"""Runs that are killed at random moments and go on: in the end as if nothing had happened, to the last bit.

E2NET_KILLS=N kills each of them N times; the moments differ from run to run, and the seed is printed.
"""

import json
import os
import random
import signal
import time

import pytest
import torch
from apart import start
from conftest import mostly_slow
from tiny import rows_of, tiny_config

from e2net.runs.checkpoint import read_checkpoint
from e2net.training import prepare_training, train

KILLS = int(os.environ.get("E2NET_KILLS", "1"))
RUNS = {
    "frozen": ["decoder=linear", "tuning=frozen", "data.num_workers=1"],
    "cached": ["decoder=linear", "tuning=frozen", "cache.views=2"],
    "adapter": [
        "decoder=e2net", "tuning=adapter", "tuning.reduction=2", "schedule=plateau", "schedule.monitor=train/mean_loss",
    ],
    "full": [
        "decoder=e2net", "tuning=full", "ema=0.9", "train_scales=[[0,[0.5,1.0]],[0.4,[1.0]]]",
        "trainer.accumulate_grad_batches=2",
    ],
    "epochs": ["decoder=linear", "tuning=scratch", "checkpoint_every_n_steps=null"],
}  # fmt: skip
COMMON = [
    "data.n_train=24", "decoder.dropout=0.3", "encoder.config.pos_embed_rescale=2.0",
    "checkpoint_every_n_steps=1", "trainer.max_epochs=2",
]  # fmt: skip


def child(config, when=None, with_signal=signal.SIGKILL):
    """Trains in a process of its own, which gets a signal as soon as ``when()``.

    Returns:
        Its exit status: 0, -9 where it was killed, 130 where it was interrupted.
    """

    def work():
        try:
            train(prepare_training(config))
        except KeyboardInterrupt:
            os._exit(130)

    process = start(work)
    while when is not None and process.exitcode is None:
        if when():
            os.kill(process.pid, with_signal)
            break
        time.sleep(0.002)
    process.join(300)
    return process.exitcode


def after(seconds):
    until = time.monotonic() + seconds
    return lambda: time.monotonic() > until


@pytest.fixture(scope="module", autouse=True)
def server():
    """So that the first run takes no longer than others."""
    start(int).join(300)


def goes_on(folder, options):
    resume = [f"resume={folder}"] if list((folder / "checkpoints").glob("*.ckpt")) else []
    return tiny_config(folder, *options, *resume)


def differences(one, other, path=""):
    """Where two states differ, tensors in any bit."""
    if isinstance(one, torch.Tensor):
        return [] if one.shape == other.shape and torch.equal(one, other) else [path]
    if isinstance(one, dict):
        missing = [f"{path}/{key}" for key in one.keys() ^ other.keys()]
        return missing + [d for k in one.keys() & other.keys() for d in differences(one[k], other[k], f"{path}/{k}")]
    if isinstance(one, list | tuple) and len(one) == len(other):
        return [d for i, (a, b) in enumerate(zip(one, other, strict=True)) for d in differences(a, b, f"{path}/{i}")]
    return [] if one == other or str(one) == str(other) else [path]  # also NaN


def assert_same(folder, expected, kills=0):
    """Of metrics.csv, a killed run may lack a row: Lightning logs a step, or an epoch's mean, behind its checkpoint."""
    for name in ("best.ckpt", "last.ckpt"):
        states = [read_checkpoint(place / "checkpoints" / name) for place in (folder, expected)]
        for state in states:
            del state["e2net"], state["callbacks"]  # which name places
        assert differences(*states) == [], name
    assert [p.name for p in folder.rglob("*.part")] == []
    found, wanted = rows_of(folder), rows_of(expected)
    assert len(wanted) - len(found) <= kills and [row for row in found if row not in wanted] == []
    scores = [json.loads((place / "test_scores.json").read_text())["scores"] for place in (folder, expected)]
    assert scores[0] == scores[1]


def options_of(name, folder):
    return [*COMMON, *RUNS[name], f"cache.folder={folder}/cache"]


@pytest.mark.parametrize("name", mostly_slow(RUNS, quick=(1, 3)))
def test_killed_at_random_moments(name, tmp_path):
    options = options_of(name, tmp_path)
    start = time.monotonic()
    assert child(tiny_config(tmp_path / "whole", *options)) == 0
    lasts = time.monotonic() - start
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    moments, kills = random.Random(seed), 0
    while kills < KILLS:
        status = child(goes_on(tmp_path / "run", options), after(moments.uniform(0, lasts)))
        assert status in (0, -signal.SIGKILL)
        kills += status != 0
        if status == 0 and kills < KILLS:
            assert_same(tmp_path / "run", tmp_path / "whole", kills)
            (tmp_path / "run").rename(tmp_path / f"done_{kills}_{time.monotonic_ns()}")
    assert child(goes_on(tmp_path / "run", options)) == 0
    assert_same(tmp_path / "run", tmp_path / "whole", kills)


@pytest.fixture(scope="module", params=mostly_slow(["full", "frozen"]))
def uninterrupted(request, tmp_path_factory):
    """A run without checkpoints within epochs: its options and its folder."""
    place = tmp_path_factory.mktemp("uninterrupted")
    options = [*options_of(request.param, place), "checkpoint_every_n_steps=null", "data.n_train=60"]
    assert child(tiny_config(place / "run", *options)) == 0
    return options, place / "run"


@pytest.mark.parametrize("rows", mostly_slow([2, 9]))
def test_sigterm_saves_first(uninterrupted, rows, tmp_path):
    """At the step at which it came, though no checkpoint was asked for within epochs."""
    options, whole = uninterrupted
    folder, metrics = tmp_path / "run", tmp_path / "run" / "metrics.csv"
    status = child(
        tiny_config(folder, *options),
        lambda: metrics.is_file() and metrics.read_bytes().count(b"\n") > rows,
        signal.SIGTERM,
    )
    assert status == 130
    content = read_checkpoint(folder / "checkpoints" / "last.ckpt")
    losses = [row for row in rows_of(folder) if "train/loss" in row]
    assert 0 < len(losses) == content["global_step"]
    assert child(goes_on(folder, options)) == 0
    assert_same(folder, whole)
