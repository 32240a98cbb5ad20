"""The page in a real browser: drop, wait, slider, download, what is broken, on a desk and on a telephone."""

import io
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import cv2
import httpx
import numpy as np
import pytest
from chromium import Browser
from conftest import ROOT

from e2net import load
from e2net.demo.__main__ import main, silence_gradio
from e2net.demo.settings import DemoSettings
from e2net.film import FilmWriter
from e2net.predict.segmenter import Segmenter

QUEUE = 4
# What this process has asked for.
HOSTS = set()
RUN = ROOT / "tests" / "runs" / "old" / "format_1.ckpt"
# What the program sets in its environment, which here it shares with other tests.
SET = (
    "GRADIO_TEMP_DIR", "GRADIO_RUN_HISTORY", "GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY", "NO_PROXY",
    "no_proxy", "OPENCV_LOG_LEVEL", "OPENCV_FFMPEG_LOGLEVEL",
)  # fmt: skip
pytest.importorskip("gradio")


@pytest.fixture
def environment(monkeypatch):
    for key in SET:
        monkeypatch.setenv(key, os.environ.get(key, ""))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Pictures with objects of their own, a film, and what is none."""
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    for name, shape in (("frog.png", (60, 90)), ("toad.png", (50, 40))):
        cv2.imwrite(str(folder / name), cv2.resize(rng.integers(0, 256, (6, 9, 3), np.uint8), shape[::-1]))
    with FilmWriter(folder / "walk.webm", 10) as film:
        for _ in range(4):
            film.write(cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), (160, 120)))
    (folder / "broken.png").write_bytes((folder / "frog.png").read_bytes()[:40])
    (folder / "large.png").write_bytes(bytes(1_200_000))
    return folder


@pytest.fixture(scope="module")
def model():
    return load(RUN, "cpu")


@pytest.fixture(scope="module")
def page(model, tmp_path_factory):
    """Served with two checkpoints, as the program does it, and the folder of its files."""
    place = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        for key in SET:
            patch.setenv(key, "")
        known = socket.getaddrinfo
        patch.setattr(socket, "getaddrinfo", lambda host, *rest, **more: HOSTS.add(host) or known(host, *rest, **more))
        silence_gradio(place, "127.0.0.1")
        from e2net.demo.examples import find_examples  # noqa: PLC0415
        from e2net.demo.look import Model  # noqa: PLC0415
        from e2net.demo.page import launch_options, make_page  # noqa: PLC0415

        settings = DemoSettings(ckpt=str(RUN), port=free_port(), max_mb=1, max_frames=3, max_files=3, queue=QUEUE)
        models = [Model("one", model), Model("two<b>", model, features=False)]
        (place / "made").mkdir()
        page = make_page(models, settings, find_examples(None, place / "made"))
        page.launch(**launch_options(settings))
        yield page, f"http://127.0.0.1:{settings.port}/"
        page.close(verbose=False)


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Visitor(Browser):
    """Someone at the page."""

    def until(self, script, seconds=30):
        """Waits until an expression is true."""
        end = time.monotonic() + seconds
        while not self.run(f"!!({script})"):
            assert time.monotonic() < end, f"{script}: {self.text('body')}"
            time.sleep(0.05)

    def drop(self, *files):
        """Gives files to the page."""
        self.until("document.querySelector('#drop input[type=file]')")
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector="#drop input[type=file]")["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    def text(self, selector):
        """What stands in an element; nothing if there is none."""
        return self.run(f"document.querySelector({selector!r})?.innerText ?? ''")

    def picture(self, view, number=0):
        """The picture of a view, (h, w, 4) uint8 RGBA, as the browser has it."""
        self.until(f"document.querySelectorAll('.view-{view} img')[{number}]?.complete")
        data = self.run(
            f"fetch(document.querySelectorAll('.view-{view} img')[{number}].src).then((r) => r.arrayBuffer())"
            ".then((b) => Array.from(new Uint8Array(b)))"
        )
        found = cv2.imdecode(np.array(data, np.uint8), cv2.IMREAD_UNCHANGED)
        assert found is not None
        return cv2.cvtColor(found, cv2.COLOR_BGR2RGBA if found.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)


@pytest.fixture(scope="module")
def visitor(page, tmp_path_factory):
    visitor = Visitor(tmp_path_factory.mktemp("profile"))
    visitor.resize(1280)
    visitor.open(page[1])
    yield visitor
    visitor.close()


def objects(text):
    """Area in percent of each object in a list on the page."""
    return [float(one) for one in re.findall(r"([\d.]+) %", text)]


def expected(model, file, threshold):
    found = replace(model.predict(file), threshold=threshold)
    shares = [100 * one["area"] / found.pixels for one in found.objects(2)]
    return [round(share, 1 if share >= 1 else 2) for share in shares]


def test_a_picture_that_is_dropped_is_seen(visitor, model, files):
    visitor.until("document.querySelector('#hint')?.innerText.includes('choose an example')")
    visitor.drop(files / "frog.png")
    visitor.until("document.querySelector('#title h2')")
    assert visitor.text("#title") == "frog.png 90 × 60" and visitor.text("#said").strip() == ""
    found = model.predict(files / "frog.png")
    shown = visitor.picture("map")
    assert shown.shape == (60, 90, 4) and np.abs(shown[..., 0].astype(int) - found.map).mean() < 3
    assert np.abs(visitor.picture("overlay", 1)[..., :3].astype(int) - found.overlay()).mean() < 20
    assert np.abs(visitor.picture("cutout")[..., 3].astype(int) - found.cutout()[..., 3]).mean() < 3
    assert visitor.picture("features").shape == (60, 90, 4)
    assert visitor.run("document.querySelectorAll('.view-features').length") == 1  # of the first model alone
    assert objects(visitor.text(".objects")) == expected(model, files / "frog.png", 0.5)
    assert "two<b>" in visitor.text("header") and visitor.run("document.querySelectorAll('header b').length") == 0


def test_the_slider_does_without_the_network(visitor, model, files, monkeypatch):
    found = replace(model.predict(files / "frog.png"), threshold=0.4)
    wanted = expected(model, files / "frog.png", 0.4)
    assert wanted != expected(model, files / "frog.png", 0.5)
    runs = []
    monkeypatch.setattr(Segmenter, "activated", lambda *_: runs.append(1))
    before = visitor.picture("overlay")
    move(visitor, 0.4)
    end = time.monotonic() + 30
    while objects(visitor.text(".objects")) != wanted:  # what was on the way may come first
        assert time.monotonic() < end
    assert visitor.run("document.querySelector('#threshold input[type=number]').value") == "0.4"
    assert np.abs(visitor.picture("cutout")[..., 3].astype(int) - found.cutout()[..., 3]).mean() < 3
    assert not np.array_equal(visitor.picture("overlay"), before) and not runs


def move(visitor, value):
    """Draws the slider to a value, as a hand does: with values on the way."""
    for one in (0.9, 0.8, value):
        visitor.run(
            "(() => { const one = document.querySelector('#threshold input[type=range]');"
            f"one.value = {one}; one.dispatchEvent(new Event('input', {{bubbles: true}})); }})()"
        )


def test_everything_can_be_downloaded(visitor, model, files, tmp_path):
    visitor.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    for threshold in (0.4, 0.6):  # once more: not what the first one was
        move(visitor, threshold)
        visitor.run("document.querySelector('#save').click()")
        end = time.monotonic() + 30
        while not list(tmp_path.glob("*.zip")):
            assert time.monotonic() < end
            visitor.run("1")
            time.sleep(0.05)
        with zipfile.ZipFile(io.BytesIO((tmp_path / "e2net.zip").read_bytes())) as archive:
            data = archive.read("one/maps/frog.png")
            assert json.loads(archive.read("one/objects.json"))["info"]["threshold"] == threshold
            assert len(archive.namelist()) == 2 * 4 + 1
        found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        assert found is not None and np.array_equal(found, model.predict(files / "frog.png").map)
        (tmp_path / "e2net.zip").unlink()


def test_what_is_broken_is_a_line_and_the_rest_goes_on(visitor, files):
    visitor.drop(files / "broken.png", files / "toad.png", files / "walk.webm", files / "frog.png")
    visitor.until("document.querySelector('#title')?.innerText.startsWith('toad')")
    lines = visitor.text("#said").splitlines()
    assert lines[0] == "4 files are too many at once: the first 3 were taken"
    assert any(line.startswith("broken.png: ") for line in lines) and str(files) not in "".join(lines)
    assert "walk.webm: the first 3 of 4 frames (0.3 s) are shown" in lines and "Traceback" not in visitor.text("body")
    visitor.drop(files / "broken.png")
    visitor.until("document.querySelectorAll('#said .said').length === 1")
    assert visitor.text("#title").startswith("toad")  # and stays
    assert visitor.run("document.querySelectorAll('#yours button img').length") == 3  # frog, toad, walk


def test_one_can_go_back_and_a_film_plays(visitor):
    visitor.run("document.querySelectorAll('#yours button')[2].click()")
    visitor.until("document.querySelector('#title').innerText === 'walk.webm 160 × 120, 3 frames'")
    visitor.until("document.querySelectorAll('#results video').length === 4")
    visitor.until(
        "[...document.querySelectorAll('#results video')].every((v) => v.readyState > 1 && v.videoWidth === 160)"
    )
    assert visitor.run("document.querySelectorAll('.view img').length") == 0 and visitor.text(".objects").strip() == ""
    visitor.run("document.querySelectorAll('#yours button')[0].click()")
    visitor.until("document.querySelector('#title').innerText.startsWith('frog.png')")
    visitor.until("document.querySelectorAll('.view img').length === 7")
    assert visitor.run("document.querySelectorAll('#controls button').length") == 2  # reset, and download


def test_a_file_that_is_too_large_is_refused(visitor, page, files):
    """And all that came with it; the next one is taken."""
    visitor.drop(files / "large.png", files / "toad.png")
    visitor.until("document.querySelector('.toast-wrap').innerText.includes('maximum allowed size of 1.0 Mb')")
    assert visitor.text("#title").startswith("frog")
    visitor.drop(files / "toad.png")
    visitor.until("document.querySelector('#title').innerText.startsWith('toad')")
    sent = {"files": ("large.png", (files / "large.png").read_bytes())}
    assert httpx.post(f"{page[1]}gradio_api/upload", files=sent).status_code == 413


def test_a_telephone_shows_all_and_scrolls_to_results(visitor, page):
    visitor.resize(390, 844)
    visitor.open(page[1])
    visitor.until("document.querySelectorAll('#examples button').length >= 6")
    visitor.run("document.querySelectorAll('#examples button')[1].click()")
    visitor.until("document.querySelector('#title h2')?.innerText.startsWith('generated_2.png')")
    visitor.until("document.querySelector('#results').getBoundingClientRect().top < 100")
    assert visitor.run("[innerWidth, document.documentElement.scrollWidth]") == [390, 390]
    widths = visitor.run("[...document.querySelectorAll('.view img')].map((one) => one.getBoundingClientRect().width)")
    assert len(widths) == 7 and min(widths) > 250


def test_nothing_is_asked_of_anybody_else(visitor, page):
    """Neither by the page, whose requests the browser has told, nor by what it was made with."""
    asked = {e["params"]["request"]["url"] for e in visitor.events if e.get("method") == "Network.requestWillBeSent"}
    assert len(asked) > 10
    assert {url for url in asked if not url.startswith((page[1], "data:", "blob:"))} == set()
    said = [e["params"] for e in visitor.events if e.get("method") == "Runtime.exceptionThrown"]
    assert said == []
    assert "127.0.0.1" in HOSTS and {host for host in HOSTS if host} <= {"127.0.0.1", "localhost"}


def ask(client, blocks, path, session):
    """Sends what the browser sends after an upload."""
    number = next(one["id"] for one in blocks.config["dependencies"] if one["targets"][0][1] == "upload")
    file = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
    body = {"data": [[file], None, None, 0.5], "fn_index": number, "session_hash": session}
    return client.post("gradio_api/queue/join", json=body)


def succeeded(client, session):
    with client.stream("GET", "gradio_api/queue/data", params={"session_hash": session}) as answer:
        told = next(line for line in answer.iter_lines() if "process_completed" in line)
    return json.loads(told.removeprefix("data:"))["success"]


def test_no_more_wait_than_may_and_one_is_looked_at_at_a_time(page, files, monkeypatch):
    blocks, url = page
    may, running, most = threading.Event(), [], []

    def slow(*_):
        running.append(1)
        most.append(len(running))
        may.wait(30)
        running.pop()
        raise ValueError("slow.png: no picture")

    monkeypatch.setattr("e2net.demo.page.look", slow)
    with httpx.Client(base_url=url, timeout=30) as client:
        sent = {"files": ("frog.png", (files / "frog.png").read_bytes())}
        (uploaded,) = client.post("gradio_api/upload", files=sent).json()
        found = []
        for number in range(12):
            found.append(ask(client, blocks, uploaded, f"waiting{number}").status_code)
            end = time.monotonic() + 10
            while not running:
                assert time.monotonic() < end
                time.sleep(0.01)
        may.set()
        assert found == [200] * (1 + QUEUE) + [503] * (11 - QUEUE)
        assert all(succeeded(client, f"waiting{number}") for number in range(1 + QUEUE))
    assert most == [1] * (1 + QUEUE)


def test_no_other_file_of_this_machine_is_read(page, files):
    """Not even a picture, by a request that names its path as if it had been uploaded."""
    blocks, url = page
    with httpx.Client(base_url=url, timeout=30) as client:
        sent = {"files": ("frog.png", (files / "frog.png").read_bytes())}
        (uploaded,) = client.post("gradio_api/upload", files=sent).json()
        for number, path in enumerate([uploaded, files / "frog.png"]):
            assert ask(client, blocks, path, f"someone{number}").status_code == 200
            assert succeeded(client, f"someone{number}") == (path == uploaded)
        assert client.get(f"gradio_api/file={files / 'frog.png'}").status_code == 403


def test_files_that_came_and_were_made_are_deleted_when_they_are_old(visitor, page):
    from gradio.route_utils import delete_files_created_by_app  # noqa: PLC0415

    blocks = page[0]
    place = Path(os.environ["GRADIO_TEMP_DIR"])

    def kinds():
        return {file.suffix for file in place.rglob("*") if file.is_file() and file.stat().st_size}

    assert kinds() == {".png", ".webm", ".webp", ".zip"} and blocks.delete_cache == (60, 900)
    delete_files_created_by_app(blocks, 0)
    made = {file for file in (place / "made").iterdir()}
    left = {file for file in place.rglob("*") if file.is_file() and file.stat().st_size} - made
    assert len(made) == len(left) == 6 and {file.suffix for file in left} == {".webp"}  # the examples


@pytest.mark.parametrize("first", [0.003, 0.5, 0.998])
def test_the_slider_takes_every_first_threshold(page, first):
    from e2net.demo.page import _slider  # noqa: PLC0415

    slider = _slider(first)
    assert slider.preprocess(slider.value) == first


def test_the_program_ends_well_and_leaves_nothing(environment, monkeypatch, capsys):
    """As SIGTERM ends it, while it waits for that."""
    port, places = free_port(), []

    def pause():
        assert httpx.get(f"http://127.0.0.1:{port}/", timeout=30).status_code == 200
        places.append(Path(os.environ["GRADIO_TEMP_DIR"]))
        assert len(list(places[0].glob("generated_*.png"))) == 6
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(signal, "pause", pause)
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        assert main([f"ckpt={RUN}", f"port={port}", "device=cpu"]) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    told = capsys.readouterr()
    assert told.out == f"open http://127.0.0.1:{port} in a browser; Ctrl-C ends it\n" and told.err == ""
    assert not places[0].exists()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/")


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["ckpt=nowhere", "port=PORT"], "host=127.0.0.1 port=PORT: cannot listen there"),
        (["ckpt=nowhere", "prt=1"], "unknown setting 'prt'; did you mean port?"),
        (["port=1"], "ckpt has no value"),
    ],
)
def test_what_is_wrong_is_one_line(capsys, arguments, said):
    with socket.create_server(("127.0.0.1", 0)) as one:
        port = str(one.getsockname()[1])
        assert main([argument.replace("PORT", port) for argument in arguments]) == 2
    assert said.replace("PORT", port) in capsys.readouterr().err


def test_without_gradio_it_says_what_to_install(environment, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["ckpt=nowhere", f"port={free_port()}"]) == 2
    told = capsys.readouterr().err
    assert told == 'error: expected the packages of an extra, found none; pip install "e2net[demo]"\n'
