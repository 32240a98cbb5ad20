"""benchmarks/load.py over a few pictures, and that it would see what it looks for."""

import sys

import pytest
from conftest import ROOT

sys.path.append(str(ROOT / "benchmarks"))
from load import main, table, watch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")


def test_memory_of_a_program_and_its_children_is_seen(tmp_path):
    hold = "import sys, time; held = bytearray(int(sys.argv[1]) << 20); time.sleep(1.2)"
    start = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1], sys.argv[2]])"
    peaks = [max(watch([sys.executable, "-c", start, hold, mib], tmp_path)[1]) >> 20 for mib in ("1", "201")]
    assert 150 < peaks[1] - peaks[0] < 250
    with pytest.raises(RuntimeError, match="ended with 3"):
        watch([sys.executable, "-c", "raise SystemExit(3)"], tmp_path)


@pytest.mark.slow
def test_every_program_runs_over_a_few_pictures():
    found = main(24, workers=0)  # raises where one fails, or not every picture has its map
    assert list(found) == ["train", "eval", "eval of maps", "predict"]
    assert all(one["peak"] > 100 for one in found.values())
    assert table(found, found, 1).count("| 0.0 |") == 4
