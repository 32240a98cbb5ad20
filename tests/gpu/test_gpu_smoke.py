"""The script for the first person who has a GPU: rehearsed on the CPU, and on the pretended GPU as far as that goes."""

import re
import runpy

import pytest
from conftest import ROOT
from pretend import install


def _lines(capsys):
    printed = capsys.readouterr().out.splitlines()
    found = [re.match(r"(pass|FAIL|skip)  (.{18})", line) for line in printed[1:-1]]
    return printed[0], {one.group(2): one.group(1) for one in found}, printed


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(ROOT / "benchmarks" / "gpu_smoke.py"), run_name="gpu_smoke")


@pytest.mark.slow
def test_the_rehearsal_passes_and_says_what_it_skips(script, capsys):
    assert script["main"](["--device", "cpu"]) == 0
    head, found, printed = _lines(capsys)
    assert "a rehearsal, which says nothing about a GPU" in head
    words = {name.strip(): word for name, word in found.items()}
    assert words.keys() == script["CHECKS"].keys()
    skipped = {name for name, word in words.items() if word == "skip"}
    assert skipped == {"run 16-mixed", "loss 16-mixed", "resume 16-mixed", "pinned memory", "compile"}
    assert printed[-1] == f"{len(words) - 5} passed, 0 failed, 5 skipped"


def test_a_failure_is_a_line_and_an_exit_status(script, capsys, monkeypatch):
    monkeypatch.setitem(script["CHECKS"], "profile", lambda at: 1 / 0)
    assert script["main"](["--device", "cpu", "--only", "profile"]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[1].startswith("FAIL  profile             ZeroDivisionError: division by zero")
    assert printed[-1] == "0 passed, 1 failed, 0 skipped"


@pytest.mark.parametrize("bf16", [True, False], ids=["bf16", "fp16"])
def test_on_a_gpu_that_is_pretended(bf16, script, capsys, monkeypatch):
    """What a GPU alone can show is left out: memory, pinned batches, NCCL, compiled kernels, its speed."""
    monkeypatch.setitem(script["Context"].prepare.__globals__, "SETTINGS", script["SETTINGS"] + script["REHEARSAL"])
    chosen = ["default run", "loss", *(["frozen", "predict"] if bf16 else ["run 16-mixed"])]
    with install(monkeypatch, bf16):
        assert script["main"](["--device", "cuda", "--only", *chosen]) == 0
    head, found, _ = _lines(capsys)
    assert head.startswith("Pretended GPU")
    skipped = [name.strip() for name, word in found.items() if word == "skip"]
    assert skipped == ([] if bf16 else ["loss bf16-mixed"])


def test_without_a_gpu_it_says_so(script, capsys):
    with pytest.raises(SystemExit) as stopped:
        script["main"](["--device", "cuda"])
    assert stopped.value.code == 2 and "--device cpu is a rehearsal" in capsys.readouterr().err
