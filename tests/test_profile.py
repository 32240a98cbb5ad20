"""``python -m e2net.profile``: parts that add up, FLOPs that are right, and advice that fits what was found."""

import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT

from e2net.arguments import read_settings
from e2net.flops import count_flops
from e2net.profile import Parts, peak_flops, profile_job
from e2net.profile.__main__ import ProfileSettings, main
from e2net.profile.measure import PARTS
from e2net.profile.table import format_table, verdict
from e2net.runs import compose_training
from e2net.training import prepare_training

QUICK = ["size=64", "data.n_train=24", "data.num_workers=0", "data.batch_size=4", "data.val_fraction=0.3"]
QUICK += ["decoder.width=16", "trainer.accelerator=cpu"]


def _profile(folder, *overrides, steps=3, change=lambda job: None):
    job = prepare_training(compose_training([*QUICK, f"run_dir={folder}", *overrides]))
    change(job)
    return profile_job(job, steps)


def _found(step=0.1, flops=10**9, peak=10**11, facts=None, **shares):
    seconds = {part: 0.0 for part in PARTS} | {part.replace("_", " "): value for part, value in shares.items()}
    base = {"frozen": False, "cached": False, "compiled": False, "cuda": False, "batch_size": 8, "num_workers": 99}
    return Parts(seconds, step, flops, peak, "bfloat16", None, "about", base | (facts or {}))


def test_parts_of_a_step(tmp_path):
    found = _profile(tmp_path)
    assert set(found.seconds) == set(PARTS)
    assert all(found.seconds[part] > 0 for part in PARTS)
    inside = sum(found.seconds[part] for part in PARTS if part != "validation")
    assert 0.5 < inside / found.step < 1.5
    assert 0 < found.mfu < 1
    assert not any(tmp_path.iterdir())


def test_slow_parts_are_found(tmp_path):
    def slow(job):
        read = job.data.train_source().read
        job.data.train_source().read = lambda *args: time.sleep(0.15) or read(*args)

    found = _profile(tmp_path, steps=1, change=slow)
    assert found.seconds["data wait"] > 0.55  # four images
    assert "waiting for data" in verdict(found) and "data.num_workers" in verdict(found)


def test_a_feature_cache_leaves_the_encoder_nothing_to_do(tmp_path):
    cached = _profile(tmp_path, "tuning=frozen", "cache.views=1", f"cache.folder={tmp_path}")
    assert cached.facts["cached"] and cached.facts["frozen"]
    assert cached.seconds["encoder"] < 0.1 * cached.step


def test_without_a_validation_part(tmp_path):
    assert _profile(tmp_path, "data.val_fraction=0").seconds["validation"] == 0


def test_flops_of_a_product_forward_and_backward():
    a, b = torch.rand(10, 20, requires_grad=True), torch.rand(20, 30, requires_grad=True)
    assert count_flops(lambda: a @ b) == 2 * 10 * 20 * 30
    assert count_flops(lambda: (a @ b).sum().backward()) == 3 * 2 * 10 * 20 * 30
    assert peak_flops(torch.device("cpu"), torch.float32) > 1e8


def test_compiled_operations_are_counted():
    layer = torch.nn.Linear(4, 8)
    layer.compile(backend="eager")
    assert count_flops(lambda: layer(torch.rand(2, 4))) == 2 * 2 * 4 * 8


@pytest.mark.parametrize(
    ("shares", "facts", "words"),
    [
        ({"data_wait": 0.5, "backward": 0.5}, {"num_workers": 0}, ["waiting for data (50%)", "raise data.num_workers"]),
        ({"data_wait": 0.5, "backward": 0.5}, {}, ["read already", "store the images smaller"]),
        ({"data_wait": 0.5, "backward": 0.5}, {"frozen": True}, ["cache.views=1"]),
        ({"data_wait": 0.5, "backward": 0.5}, {"cached": True}, ["cache.folder"]),
        ({"validation": 0.5, "backward": 0.5}, {}, ["trainer.check_val_every_n_epoch"]),
        ({"encoder": 0.6, "decoder": 0.4}, {"frozen": True}, ["the encoder (60%)", "cache.views=1"]),
        ({"encoder": 0.3, "decoder": 0.1, "backward": 0.6}, {}, ["the encoder (75%)", "tuning=adapter"]),
        ({"encoder": 0.3, "decoder": 0.1, "backward": 0.6}, {"cuda": True}, ["compile=true"]),
        ({"encoder": 0.3, "decoder": 0.1, "backward": 0.6}, {"frozen": True}, ["the decoder (70%)", "decoder.width"]),
        ({"decoder": 1.0}, {"cuda": True}, ["MFU 10%", "data.batch_size=auto", "compile=true"]),
        ({"loss": 1.0}, {}, ["the loss", "loss="]),
        ({"optimiser": 1.0}, {}, ["trainer.accumulate_grad_batches"]),
        ({"transfer": 1.0}, {}, ["copying batches"]),
    ],
)
def test_the_verdict_names_bottleneck_and_remedy(shares, facts, words):
    text = verdict(_found(flops=999_999_999, facts=facts, **shares))
    assert all(word in text for word in words), text
    assert text.count(".\n") == 0 and text.endswith(".") and "\n" not in text


def test_the_table_fits_a_terminal():
    text = format_table(_found(step=0.1, data_wait=0.01, encoder=0.09))
    assert max(map(len, text.splitlines())) <= 80
    assert "80.0 images/s" in text and "MFU 10.0%" in text and "90.0%" in text


def test_arguments():
    assert read_settings(ProfileSettings, ["size=64", "steps=7"]) == ProfileSettings(7, ("size=64",))
    assert read_settings(ProfileSettings, []) == ProfileSettings(20, ())


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("steps=0", "expected a number of at least 1"),
        ("steps=x", "steps=x: expected int, found 'x'"),
        ("frog", "expected key=value, found 'frog'"),
        ("sizze=3", "sizze"),
        ("encoder=nope", "nope"),
        ("optim.lr=-1", "lr must be positive"),
        ("size=65", "not a multiple"),
        ("run_dir=x", "leave it out"),
        ("-m", "leave it out"),
        ("hydra.run.dir=x", "leave it out"),
    ],
)
def test_wrong_arguments_are_one_line(argument, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([argument, "data.n_train=12"])
    assert stopped.value.code == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and error[0].startswith("error: ") and words in error[0]


def test_help(capsys):
    assert main(["--help"]) == 0
    assert "steps=20" in capsys.readouterr().out


def test_the_command_line(tmp_path, capsys):
    assert main([*QUICK, "steps=2"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1].startswith("Bottleneck: ") and any(line.startswith("MFU ") for line in printed)


@pytest.mark.slow
def test_the_benchmark_and_the_python_api_need_no_hydra():
    code = (
        "import sys, runpy; sys.modules['hydra'] = sys.modules['omegaconf'] = None\n"
        "import torch, e2net.training, e2net.predict, e2net.profile\n"
        "from e2net.runs import user_errors\n"
        "try:\n    with user_errors():\n        raise ValueError('x')\n"
        "except SystemExit as error:\n    assert error.code == 2\n"
        "found = runpy.run_path('benchmarks/train_step.py', run_name='benchmark')\n"
        "case = found['Case']('vit_tiny', 'adapter', 'e2net', 32, 2, 'bf16', False, 16, 'cpu')\n"
        "step = found['Step'](case)\n"
        "assert step.flops() > 0 and step() > 0\n"
        "assert abs(found['exponent']([1, 2, 4], [3, 12, 48]) - 2) < 1e-9\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
