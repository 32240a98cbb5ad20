"""What the server makes of the model's speed: requests a second from many clients, against the model alone.

    python benchmarks/serve.py ckpt=RUN [requests=1000] [clients=32] [size=384] [batch_size=8]

Every picture is another one, sent as a JPEG and answered as a PNG; the model alone gets the same bytes and writes the
same maps. None may be lost.
"""

import io
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
from PIL import Image

from e2net import load


def main() -> None:
    """Measures both, one after the other, and prints a row."""
    given = dict(one.split("=", 1) for one in sys.argv[1:])
    count, clients = int(given.pop("requests", 1000)), int(given.pop("clients", 32))
    pictures = [_jpeg(i) for i in range(64)]
    port = _free_port()
    model = load(given["ckpt"], "cpu", size=int(given["size"]) if "size" in given else None)
    batch_size = int(given.get("batch_size", 8))
    list(model.predict(pictures[:batch_size], batch_size))  # warm
    start = time.perf_counter()
    for result in model.predict((pictures[i % 64] for i in range(count)), batch_size):
        Image.fromarray(result.map).save(io.BytesIO(), "png")
    alone = count / (time.perf_counter() - start)
    command = [
        sys.executable,
        "-m",
        "e2net.serve",
        f"port={port}",
        "device=cpu",
        *(f"{k}={v}" for k, v in given.items()),
    ]
    server = subprocess.Popen(command)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=300) as client:
            _wait(client, server)
            client.post("/predict", content=pictures[0]).raise_for_status()
            start = time.perf_counter()
            with ThreadPoolExecutor(clients) as pool:
                statuses = list(
                    pool.map(lambda i: client.post("/predict", content=pictures[i % 64]).status_code, range(count))
                )
            served = count / (time.perf_counter() - start)
            metrics = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if line[0] != "#")
    finally:
        server.terminate()
        server.wait(60)
    mean = float(metrics["e2net_pictures_total"]) / float(metrics["e2net_batches_total"])
    print(f"requests {count}, clients {clients}, lost {count - statuses.count(200)}, pictures a batch {mean:.1f}")
    print(f"the model alone {alone:.1f}, served {served:.1f} pictures a second: {served / alone:.0%}")


def _jpeg(seed: int) -> bytes:
    file = io.BytesIO()
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)
    Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC).save(file, "jpeg", quality=90)
    return file.getvalue()


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _wait(client: httpx.Client, server: subprocess.Popen) -> None:
    while True:
        try:
            client.get("/health").raise_for_status()
            return
        except httpx.ConnectError:
            if server.poll() is not None:
                raise SystemExit("the server has not come up") from None
            time.sleep(0.2)


if __name__ == "__main__":
    main()
