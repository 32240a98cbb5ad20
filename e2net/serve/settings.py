"""The settings of ``python -m e2net.serve``: a typed schema, filled from key=value arguments."""

from dataclasses import dataclass
from typing import Annotated

from e2net.predict.settings import (
    THRESHOLD,
    Checkpoint,
    Device,
    EncoderPath,
    Flip,
    Precision,
    Size,
    Threshold,
    check_values,
)

USAGE = """\
Answers pictures with their maps over HTTP: an extra, pip install "e2net[serve]".

  python -m e2net.serve ckpt=RUN
  curl --data-binary @frog.jpg http://127.0.0.1:8000/predict > map.png
  curl --data-binary @frog.jpg http://127.0.0.1:8000/predict?format=json

  POST /predict   the bytes of a picture's file. format=map (the default), overlay or cutout: a PNG;
                  json: size, threshold and connected objects in COCO's format, where the task has objects
  GET  /health    200 while the model answers
  GET  /metrics   counts and times in Prometheus' text format, of the worker that is asked

Requests that come while others are computed go through the network together. 400: no readable picture; 413: it is too
large; 422: an unknown format; 500: an error of the model or of this machine; 503: too many are waiting; 504: it took
too long. SIGTERM: what has come is answered, then it ends. Whoever can reach the port can use it, so by default only
this machine can.
"""
# Of the settings that are whole numbers.
_RANGES = {"port": (1, 65535), "workers": (1, 64), "queue": (1, 65536), "max_mb": (1, 1024), "timeout": (1, 3600)}


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """All settings of one server, checked for type and range.

    Raises:
        ValueError: a value is of another type or out of its range.
    """

    ckpt: Checkpoint
    host: Annotated[str, "the address to listen at; 0.0.0.0: everybody who can reach this machine"] = "127.0.0.1"
    port: Annotated[int, "the port to listen at"] = 8000
    workers: Annotated[int, "processes, each with a model of its own"] = 1
    batch_size: Annotated[int, "pictures for each step of the network, at most"] = 8
    queue: Annotated[int, "pictures that may wait in each process; more are refused"] = 256
    max_mb: Annotated[int, "MB of a picture's file, at most"] = 32
    timeout: Annotated[int, "seconds for a request, at most; also how long the end waits for what has come"] = 60
    threads: Annotated[int | None, "that read pictures; null: one less than the cores, 8 at most"] = None
    threshold: Threshold = THRESHOLD
    size: Size = None
    flip: Flip = None
    device: Device = "auto"
    precision: Precision = "auto"
    encoder_path: EncoderPath = None

    def __post_init__(self) -> None:
        """Checks every value."""
        check_values(self, _RANGES)
