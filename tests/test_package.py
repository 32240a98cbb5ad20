"""What pip installs works without the checkout: every file travels, and every program runs from an empty folder."""

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT
from tiny import TINY

import e2net
from e2net import __main__ as console
from e2net import load

BUILD = "import setuptools.build_meta as backend; backend.build_{kind}({place!r})"
# Files by which someone tells one from another, but which no program reads.
CODE = {".py", ".pyi", ".yaml", ".html", ".css", ".js", ".typed"}


def built(kind, source, place):
    subprocess.run([sys.executable, "-c", BUILD.format(kind=kind, place=str(place))], check=True, cwd=source)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built as an installer does: out of the source distribution alone."""
    if int(version("setuptools").partition(".")[0]) < 77:
        pytest.skip(f"to build without network takes setuptools 77 or newer here, found {version('setuptools')}")
    place = tmp_path_factory.mktemp("build")
    for file in files_of(ROOT, "e2net", "conf", *(p.name for p in ROOT.iterdir() if p.is_file())):
        (place / "source" / file).parent.mkdir(parents=True, exist_ok=True)
        (place / "source" / file).write_bytes((ROOT / file).read_bytes())
    built("sdist", place / "source", place)
    (archive,) = place.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(place / "unpacked", filter="data")
    (unpacked,) = (place / "unpacked").iterdir()
    built("wheel", unpacked, place)
    return next(place.glob("*.whl"))


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """The folder of an installation, beside which no e2net is found."""
    place = tmp_path_factory.mktemp("site")
    options = ["--no-deps", "--no-index", "--no-compile", "--disable-pip-version-check", "--quiet"]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, "--target", place, wheel], check=True)
    return place


@pytest.fixture(scope="module")
def used(site, tmp_path_factory):
    """A folder, empty at first, in which the installed programs train, evaluate and predict; and its run."""
    folder = tmp_path_factory.mktemp("used")
    run(site, folder, "train", *TINY, "trainer.max_epochs=1", "num_samples=0")
    (trained,) = (folder / "runs").iterdir()
    cv2.imwrite(str(folder / "frog.png"), np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))
    run(site, folder, "eval", "-m", f"ckpt=runs/{trained.name}", "accelerator=cpu", "num_samples=0", "output=scores")
    run(site, folder, "predict", f"ckpt=runs/{trained.name}", "input=frog.png", "output=maps", "device=cpu")
    return folder, trained


def run(site, folder, *arguments):
    """Ends with status 0 and returns what it has printed."""
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    command = [site / "bin" / "e2net", *arguments]
    done = subprocess.run(command, check=False, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def files_of(root, *names):
    """All below some of a folder's files and folders, without what Python or a build leaves there."""
    found = [p for name in names for p in ([root / name] if (root / name).is_file() else (root / name).rglob("*"))]
    return sorted(p.relative_to(root) for p in found if p.is_file() and "__pycache__" not in p.parts)


def test_a_wheel_has_every_file_of_the_package_and_of_conf(wheel):
    expected = {file for file in files_of(ROOT, "e2net") if file.suffix in CODE}
    expected |= {Path("e2net") / file for file in files_of(ROOT, "conf")}
    assert {file.suffix for file in files_of(ROOT, "e2net")} <= CODE, "a new kind of file: pyproject.toml must know it"
    with zipfile.ZipFile(wheel) as archive:
        found = {Path(name) for name in archive.namelist() if ".dist-info/" not in name}
    assert found == expected


def test_programs_use_no_folder_but_the_one_they_run_in(used):
    folder, trained = used
    assert {p.name for p in folder.iterdir()} == {"runs", "scores", "maps", "frog.png"}
    environment = json.loads((trained / "environment.json").read_text())
    assert environment["git"]["commit"] is None  # of whatever repository it may lie in
    assert " -m e2net.train " in environment["command"] and environment["folder"] == str(folder)
    assert json.loads((folder / "scores" / "scores.json").read_text())["sets"]


def test_a_run_of_one_installation_is_read_by_the_other(used):
    folder, trained = used
    written = cv2.imread(str(folder / "maps" / "maps" / "frog.png"), cv2.IMREAD_UNCHANGED)
    again = load(trained, device="cpu").predict(folder / "frog.png").prob
    assert np.abs(written - 255 * again).max() <= 0.5 + 1e-3


def test_every_program_is_in_the_table():
    modules = {file.parent.name for file in (ROOT / "e2net").glob("*/__main__.py")}
    modules |= {p.stem for p in (ROOT / "e2net").glob("*.py") if p.stem != "__main__" and "__main__" in p.read_text()}
    assert set(console.PROGRAMS) == modules


def test_a_program_is_run_under_its_own_name(monkeypatch):
    """As DataLoaders' processes, and training on several GPUs, start it again by that."""
    seen = []
    monkeypatch.setattr(sys, "argv", ["e2net", "encoders", "size=64"])
    monkeypatch.setattr("runpy.run_module", lambda *given, **options: seen.append((given, options, sys.argv[1:])))
    assert console.main() == 0
    assert seen == [(("e2net.encoders",), {"run_name": "__main__", "alter_sys": True}, ["size=64"])]


@pytest.mark.parametrize(
    "arguments, status, said",
    [
        ([], 2, "Programs:"),
        (["--help"], 0, "Programs:"),
        (["--version"], 0, f"e2net {e2net.__version__}"),
        (["trian"], 2, "did you mean train?"),
        (["size=64"], 2, "expected one of train, eval"),
    ],
)
def test_what_names_no_program_is_told(monkeypatch, capsys, arguments, status, said):
    monkeypatch.setattr(sys, "argv", ["e2net", *arguments])
    assert console.main() == status
    told = capsys.readouterr()
    assert said in (told.err if status and arguments else told.out)
