"""Programs and tests do the same however they are started."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, mostly_slow
from tiny import TINY

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


@pytest.mark.slow
def test_some_of_each_kind_of_test_pass_in_a_hostile_environment(tmp_path):
    chosen = {
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


@pytest.mark.parametrize("program", mostly_slow(["train.py", "e2net.check", "e2net.encoders"]))
def test_a_program_ends_well_in_a_terminal_that_is_not_utf_8(tmp_path, program):
    if program == "train.py":
        found = _start(
            tmp_path,
            str(ROOT / program),
            *TINY,
            "trainer.max_epochs=1",
            "logger=csv",
            f"hydra.run.dir={tmp_path}/a run",
        )
        assert (tmp_path / "a run" / "test_scores.json").is_file()
        said = found.stdout + found.stderr
        assert b"\r" not in said and b"\x1b" not in said  # neither bars nor colours
        assert b"GPU available" not in said and b"epoch 1/1: loss " in found.stdout
    elif program == "e2net.check":
        few = ["data.n_train=12", "data.n_test=2", "data.val_fraction=0.3", f"output={tmp_path}/a check"]
        found = _start(tmp_path, "-m", program, "size=64", *few)
    else:
        for name in ("tiny", "dinov3_s", "convnext_t"):  # all would take most of the time
            shutil.copy(ROOT / "conf" / "encoder" / f"{name}.yaml", tmp_path)
        code = "import sys; from pathlib import Path; from e2net.encoders.listing import show\n"
        code += "sys.exit(show(['size=64'], Path(sys.argv[1])))"
        found = _start(tmp_path, "-c", code, str(tmp_path))
        assert b"dinov3_s" in found.stdout
    assert found.returncode == 0, found.stderr[-3000:].decode(errors="replace")
