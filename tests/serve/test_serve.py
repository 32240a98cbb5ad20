"""The server over real HTTP: what the model says comes back, for many clients at once, and for broken pictures too."""

import asyncio
import errno
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
import uvicorn
from conftest import ROOT

from e2net import load
from e2net.predict.segmenter import Failure
from e2net.serve import Batcher, make_app
from e2net.serve.__main__ import main
from e2net.serve.app import SETTINGS, from_environment, to_environment
from e2net.serve.batching import FAILURES, FullError, PictureError
from e2net.serve.settings import ServeSettings

RUN = ROOT / "tests" / "runs" / "old" / "format_1.ckpt"
CLIENTS = 32


@pytest.fixture(scope="module")
def model():
    return load(RUN, "cpu")


@pytest.fixture(scope="module")
def pictures():
    """The bytes of a few files, no two of one size."""
    rng = np.random.default_rng(0)
    shapes = [(20 + 3 * i, 50 - 2 * i, 3) for i in range(8)]
    return [cv2.imencode(".png", rng.integers(0, 256, shape, np.uint8))[1].tobytes() for shape in shapes]


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Running:
    """A server in a thread, for a block."""

    def __init__(self, model, **settings):
        self.port = free_port()
        app = make_app(model, ServeSettings(ckpt=str(RUN), **settings))
        self._server = uvicorn.Server(uvicorn.Config(app, port=self.port, log_level="error"))
        self._thread = threading.Thread(target=self._server.run)

    def __enter__(self):
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
            time.sleep(0.01)
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)

    def __exit__(self, *_):
        self._server.should_exit = True
        self._thread.join(60)
        assert not self._thread.is_alive()


@pytest.fixture(scope="module")
def client(model):
    with Running(model, max_mb=1) as client:
        yield client


def counts(client):
    return dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if line[0] != "#")


def decoded(content):
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)


def test_what_the_model_says_comes_back(client, model, pictures):
    expected = model.predict(pictures[0])
    found = client.post("/predict", content=pictures[0])
    assert found.status_code == 200 and found.headers["content-type"] == "image/png"
    assert np.array_equal(decoded(found.content), expected.map)
    overlay = decoded(client.post("/predict?format=overlay", content=pictures[0]).content)
    assert np.array_equal(overlay[..., ::-1], expected.overlay())
    assert decoded(client.post("/predict?format=cutout", content=pictures[0]).content).shape == (20, 50, 4)
    document = client.post("/predict?format=json", content=pictures[0]).json()
    assert document == {"height": 20, "width": 50, "threshold": 0.5, "objects": expected.objects()}


@pytest.mark.parametrize(
    "path, content, status, said",
    [
        ("/predict", b"", 400, "found what is none"),
        ("/predict", b"no picture", 400, "found what is none"),
        ("/predict", "half", 400, "found what is none"),
        ("/predict", bytes(1_000_001), 413, "expected at most 1000000 bytes"),
        ("/predict?format=gif", "whole", 422, "format"),
    ],
)
def test_broken_uploads_are_the_clients_fault(client, pictures, path, content, status, said):
    content = {"half": pictures[0][: len(pictures[0]) // 2], "whole": pictures[0]}.get(content, content)
    found = client.post(path, content=content)
    assert found.status_code == status and said in found.text
    assert client.post("/predict", content=pictures[0]).status_code == 200  # and the next one is none the worse


def test_none_of_many_requests_at_once_is_lost_or_mixed_up(model, pictures):
    """Some broken ones among them: each gets its own answer."""
    expected = [model.predict(one).map for one in pictures]
    count = 5 * CLIENTS
    with Running(model) as client:

        def ask(i):
            if i % 10 == 9:
                return client.post("/predict", content=b"broken").status_code == 400
            found = client.post("/predict", content=pictures[i % len(pictures)])
            same = np.abs(decoded(found.content).astype(int) - expected[i % len(pictures)].astype(int)).max() <= 1
            return found.status_code == 200 and same

        with ThreadPoolExecutor(CLIENTS) as pool:
            answers = list(pool.map(ask, range(count)))
        assert all(answers)
        assert client.get("/health").json()["status"] == "ok"
        metrics = counts(client)
    broken = len([i for i in range(count) if i % 10 == 9])
    assert int(metrics['e2net_requests_total{status="200"}']) == count - broken
    assert int(metrics['e2net_requests_total{status="400"}']) == broken
    assert int(metrics["e2net_request_seconds_count"]) == count
    # Together through the network, or 32 clients would wait for one another.
    assert int(metrics["e2net_batches_total"]) < count / 2


class Slow:
    """A model that says nothing until it may."""

    def __init__(self):
        self.may, self.batches = threading.Event(), []

    def stream(self, images, batch_size, threads):
        self.may.wait(30)
        self.batches.append(len(images))
        return iter(images)


def test_what_waits_becomes_one_batch_and_more_than_that_is_refused():
    slow: Any = Slow()
    batcher = Batcher(slow, batch_size=4, limit=6)
    first = batcher.submit(b"0")
    while batcher.waiting:
        time.sleep(0.01)
    others = [batcher.submit(str(i).encode()) for i in range(1, 7)]
    with pytest.raises(FullError):
        batcher.submit(b"7")
    assert others[1].cancel()  # whoever asked has gone
    slow.may.set()
    batcher.close()
    assert [one.result(0) for one in (first, others[0], *others[2:])] == [b"0", b"1", b"3", b"4", b"5", b"6"]
    assert slow.batches == [1, 3, 2] and (batcher.batches, batcher.pictures) == (3, 6) and not batcher.alive


def test_an_error_of_the_model_is_told_and_the_next_batch_goes_on():
    """Nor is it that of those which came with the bad one."""
    failing: Any = Failing()
    batcher = Batcher(failing)
    first = batcher.submit(b"0")
    while batcher.waiting:
        time.sleep(0.01)
    several = [batcher.submit(one) for one in (b"1", b"bad", b"2")]
    failing.may.set()
    with pytest.raises(RuntimeError, match="out of memory"):
        several.pop(1).result(10)
    assert [one.result(10) for one in (first, *several)] == [b"0", b"1", b"2"]
    assert batcher.submit(b"good").result(10) == b"good"
    batcher.close()


class Failing(Slow):
    def stream(self, images, batch_size, threads):
        if b"bad" in images:
            raise RuntimeError("out of memory")
        return super().stream(images, batch_size, threads)


def test_a_model_that_fails_on_one_picture_after_the_other_is_not_healthy():
    """As on a GPU that is lost; a picture that it does predict shows that it is back."""
    failing: Any = Failing()
    failing.may.set()
    batcher = Batcher(failing)
    for left in range(FAILURES, 0, -1):
        assert batcher.alive, left
        assert isinstance(batcher.submit(b"bad").exception(10), RuntimeError)
    assert not batcher.alive
    batcher.submit(b"good").result(10)
    batcher.close()
    assert batcher.failures == 0


def test_what_this_machine_lacks_is_not_the_clients_fault():
    errors = [OSError(errno.ENOSPC, "no space"), MemoryError(), OSError("truncated"), ValueError("no picture")]

    class Unread:
        def stream(self, images, batch_size, threads):
            return iter([Failure(None, errors[int(image)]) for image in images])

    unread: Any = Unread()
    batcher = Batcher(unread)
    found = [batcher.submit(b"%d" % i).exception(10) for i in range(4)]
    batcher.close()
    assert found[:2] == errors[:2] and [type(one) for one in found[2:]] == [PictureError] * 2
    assert batcher.failures == 2


def test_errors_and_clients_that_have_gone_are_counted():
    """As 500 and 400; the latter without a traceback in the log."""
    failing: Any = Failing()
    app = make_app(failing, ServeSettings(ckpt=str(RUN)))
    with pytest.raises(RuntimeError, match="out of memory"):
        asked(app, b"bad", "map")
    scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "headers": []}
    came = [{"type": "http.disconnect"}, {"type": "http.request", "body": b"half", "more_body": True}]

    async def receive():
        return came.pop() if came else {"type": "http.disconnect"}

    async def send(message):
        pass

    asyncio.run(app(scope, receive, send))

    async def counted():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
            return (await client.get("/metrics")).text

    metrics = asyncio.run(counted())
    assert all(f'e2net_requests_total{{status="{status}"}} 1\n' in metrics for status in (400, 500))


def test_an_address_that_is_taken_is_told_before_a_model_is_loaded(capsys):
    with socket.create_server(("127.0.0.1", 0)) as one:
        port = one.getsockname()[1]
        assert main(["ckpt=nowhere", f"port={port}"]) == 2
    told = capsys.readouterr()
    assert f"host=127.0.0.1 port={port}: cannot listen there" in told.err and told.out == ""


def test_a_request_that_takes_too_long_is_ended(model, pictures):
    app = make_app(model, ServeSettings(ckpt=str(RUN), timeout=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Batcher, "submit", lambda self, data: Future())
        found = asked(app, pictures[0])
    assert found.status_code == 504 and "within 1 s" in found.text


def asked(app, picture, form="json"):
    """What an application answers, without a server."""

    async def ask():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
            return await client.post(f"/predict?format={form}", content=picture)

    return asyncio.run(ask())


def test_a_worker_gets_every_setting(monkeypatch, pictures):
    settings = ServeSettings(ckpt=str(RUN), device="cpu", workers=2, threshold=0.25, size=[32, 64], flip=True)
    monkeypatch.setenv(SETTINGS, "")  # and so it is gone in the end
    to_environment(settings)
    alone = load(RUN, "cpu", threshold=0.25, size=[32, 64], flip=True).predict(pictures[1])
    assert asked(from_environment(), pictures[1]).json()["objects"] == alone.objects()


def test_a_worker_that_is_busy_is_not_taken_for_one_that_hangs(monkeypatch):
    found = {}
    monkeypatch.setenv(SETTINGS, "")
    monkeypatch.setattr("e2net.serve.app.load_model", lambda settings: None)
    monkeypatch.setattr(uvicorn, "run", lambda app, **options: found.update(options))
    assert main(["ckpt=x", "workers=2", "timeout=70", f"port={free_port()}"]) == 0
    config = uvicorn.Config("x", **found)
    assert (config.workers, config.timeout_worker_healthcheck) == (2, 70)


@pytest.mark.parametrize("key, value", [("port", 0), ("workers", 0), ("max_mb", -1), ("batch_size", 0), ("timeout", 0)])
def test_settings_out_of_their_range_are_refused(key, value):
    with pytest.raises(ValueError, match=f"{key}={value}: expected at least"):
        ServeSettings(ckpt="x", **{key: value})


@pytest.fixture
def server(tmp_path):
    """The program itself, where it listens, and the file of what it says."""
    port, log = free_port(), tmp_path / "log"
    # One by one at a size that takes a while: most of what has come is waiting when the signal does.
    slow = ["device=cpu", "batch_size=1", "size=256"]
    command = [sys.executable, "-m", "e2net.serve", f"ckpt={RUN}", f"port={port}", *slow]
    with log.open("wb") as stream:
        process = subprocess.Popen(command, cwd=ROOT, stdout=stream, stderr=stream)
    yield process, f"http://127.0.0.1:{port}", log
    process.kill()
    process.wait()


def test_sigterm_answers_what_has_come(server, pictures):
    process, url, log = server
    with httpx.Client(base_url=url, timeout=300) as client:
        while True:
            try:
                client.get("/health").raise_for_status()
                break
            except httpx.ConnectError:
                assert process.poll() is None, log.read_text()
                time.sleep(0.1)
        with ThreadPoolExecutor(16) as pool:
            asked = [pool.submit(client.post, "/predict", content=pictures[0]) for _ in range(16)]
            came = waiting = 0
            while came < 16:
                metrics = counts(client)
                waiting = int(metrics["e2net_waiting"])
                came = waiting + int(metrics["e2net_pictures_total"])
            assert waiting  # or nothing would be left to drain
            process.send_signal(signal.SIGTERM)
            found = [one.result().status_code for one in asked]
    assert found == [200] * 16 and process.wait(300) in (0, -signal.SIGTERM), log.read_text()
