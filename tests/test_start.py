"""Programs and tests do the same however they are started."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

# A home that is none, a narrow dumb terminal, and no UTF-8 anywhere.
HOSTILE = {
    "HOME": "/dev/null/home",
    "COLUMNS": "40",
    "LINES": "5",
    "TERM": "dumb",
    "LC_ALL": "C",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
    "PYTHONHASHSEED": "7",
}
KEPT = ("PATH", "LD_LIBRARY_PATH", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "SYSTEMROOT")


def _start(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Runs Python in the background, as a shell without job control does: no input, and deaf to Ctrl-C."""
    temporary = folder / "a folder with spaces"
    temporary.mkdir(exist_ok=True)
    environment = {k: os.environ[k] for k in KEPT if k in os.environ} | HOSTILE
    environment |= {"TMPDIR": str(temporary), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return subprocess.run(
            [sys.executable, *arguments],
            check=False,
            cwd=temporary,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=600,
        )
    finally:
        signal.signal(signal.SIGINT, before)


def test_some_of_each_kind_of_test_pass_in_a_hostile_environment(tmp_path):
    chosen = {
        "encoders/test_encoders_listing.py": "rows_within",
        "training/test_training_run.py": "Ctrl-C",
        "predict/test_predict_settings.py": "settings",
        "test_profile.py": "table_fits or wrong_arguments",
        "check/test_check_program.py": "clean_set",
    }
    names = " or ".join(chosen.values())
    files = [str(ROOT / "tests" / name) for name in chosen]
    options = ["-c", str(ROOT / "pyproject.toml"), "-n", "0", "-p", "no:cacheprovider", "-k", names]
    found = _start(tmp_path, "-m", "pytest", *options, *files)
    assert found.returncode == 0, found.stdout[-3000:].decode(errors="replace")


@pytest.mark.parametrize("program", ["predict", "check", "compare", "profile", "encoders"])
def test_help_takes_less_than_two_seconds(program):
    """Of the processor, as this machine may have others to serve."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", f"e2net.{program}", "--help"], check=True, cwd=ROOT, capture_output=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert b"key=value" in done.stdout
    assert after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime < 2


@pytest.mark.parametrize("program", ["train.py", "e2net.encoders", "e2net.check"])
def test_a_program_ends_well_in_a_terminal_that_is_not_utf_8(tmp_path, program):
    if program == "train.py":
        quick = ["size=64", "data.n_train=12", "data.n_test=2", "data.num_workers=0", "data.val_fraction=0.3"]
        quick += ["decoder=linear", "trainer.max_epochs=1", "trainer.accelerator=cpu"]
        found = _start(tmp_path, str(ROOT / program), *quick, f"hydra.run.dir={tmp_path}/a run")
        assert (tmp_path / "a run" / "test_scores.json").is_file()
    else:
        few = ["data.n_train=12", "data.n_test=2", "data.val_fraction=0.3", f"output={tmp_path}/a check"]
        more = few if program == "e2net.check" else []
        found = _start(tmp_path, "-m", program, "size=64", *more)
    assert found.returncode == 0, found.stderr[-3000:].decode(errors="replace")
