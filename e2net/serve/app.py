"""The web application: one model, and the pictures of whoever asks."""

import asyncio
import contextlib
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.requests import ClientDisconnect

from e2net.predict.result import Prediction
from e2net.predict.segmenter import Segmenter, load
from e2net.serve.batching import Batcher, FullError, PictureError
from e2net.serve.settings import ServeSettings

# The environment variable by which worker processes get their settings.
SETTINGS = "E2NET_SERVE"
_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

Form = Literal["map", "overlay", "cutout", "json"]


def load_model(settings: ServeSettings) -> Segmenter:
    """The model that the settings name; errors as in :func:`e2net.load`."""
    return load(
        settings.ckpt,
        settings.device,
        settings.encoder_path,
        flip=settings.flip,
        size=settings.size,
        precision=settings.precision,
        threshold=settings.threshold,
    )


def from_environment() -> FastAPI:
    """The application of a worker process."""
    settings = ServeSettings(**json.loads(os.environ[SETTINGS]))
    return make_app(load_model(settings), settings)


def to_environment(settings: ServeSettings) -> None:
    """Leaves the settings for worker processes."""
    os.environ[SETTINGS] = json.dumps(asdict(settings))


class _Metrics:
    """Of one process, in Prometheus' text format."""

    def __init__(self) -> None:
        self.statuses: Counter[int] = Counter()
        self.buckets: Counter[float] = Counter()
        self.seconds = 0.0

    def add(self, status: int, seconds: float) -> None:
        self.statuses[status] += 1
        self.seconds += seconds
        self.buckets.update(limit for limit in _BUCKETS if seconds <= limit)

    def text(self, batcher: Batcher) -> str:
        count = sum(self.statuses.values())
        lines = ["# TYPE e2net_requests_total counter"]
        lines += [f'e2net_requests_total{{status="{key}"}} {n}' for key, n in sorted(self.statuses.items())]
        lines += ["# TYPE e2net_request_seconds histogram"]
        lines += [f'e2net_request_seconds_bucket{{le="{limit}"}} {self.buckets[limit]}' for limit in _BUCKETS]
        lines += [f'e2net_request_seconds_bucket{{le="+Inf"}} {count}']
        lines += [f"e2net_request_seconds_sum {self.seconds:.6f}", f"e2net_request_seconds_count {count}"]
        for name, value in (("batches", batcher.batches), ("pictures", batcher.pictures)):
            lines += [f"# TYPE e2net_{name}_total counter", f"e2net_{name}_total {value}"]
        lines += ["# TYPE e2net_waiting gauge", f"e2net_waiting {batcher.waiting}"]
        return "\n".join(lines) + "\n"


def make_app(model: Segmenter, settings: ServeSettings) -> FastAPI:
    """An ASGI application around a model; what it answers, ``settings.USAGE`` says."""
    batcher = Batcher(model, settings.batch_size, settings.queue, settings.threads)
    metrics = _Metrics()

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(batcher.close)

    app = FastAPI(title="e2net", lifespan=lifespan, docs_url=None, redoc_url=None)

    @app.middleware("http")
    async def measured(request: Request, call: Any) -> Response:
        start = time.perf_counter()
        status = 500  # where an error comes instead of an answer
        try:
            response: Response = await call(request)
            status = response.status_code
            return response
        finally:
            if request.url.path == "/predict":
                metrics.add(status, time.perf_counter() - start)

    @app.get("/health")
    async def health() -> Response:
        said = {"status": "ok" if batcher.alive else "failed", "task": model.model.task.name, "size": list(model.size)}
        return JSONResponse(said, 200 if batcher.alive else 500)

    @app.get("/metrics")
    async def shown() -> Response:
        return PlainTextResponse(metrics.text(batcher))

    @app.post("/predict")
    async def predict(request: Request, format: Form = "map") -> Response:
        if format in ("cutout", "json") and not model.model.task.objects:
            raise HTTPException(
                400, f"format={format}: task={model.model.task.name} has no objects; give map or overlay"
            )
        try:
            async with asyncio.timeout(settings.timeout):
                data = await _body(request, settings.max_mb * 1_000_000)
                result = await asyncio.wrap_future(batcher.submit(data))
                return await asyncio.to_thread(_answer, result, format)
        except TimeoutError:
            raise HTTPException(504, f"expected an answer within {settings.timeout} s, found none; try later") from None
        except FullError:
            raise HTTPException(
                503, f"{settings.queue} pictures wait already; try later", {"Retry-After": "1"}
            ) from None
        except ClientDisconnect:  # nobody reads this but the metrics
            raise HTTPException(400, "expected the rest of the file, found that the client has gone") from None
        except PictureError as error:
            raise HTTPException(400, f"expected the bytes of a picture's file, found what is none: {error}") from None

    return app


async def _body(request: Request, most: int) -> bytes:
    """What was sent, read no further than allowed."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise HTTPException(413, f"expected at most {most} bytes, found more")
        parts.append(part)
    return b"".join(parts)


def _answer(result: Prediction, form: Form) -> Response:
    height, width = result.image.shape[:2]
    if form == "json":
        objects = result.objects()
        return JSONResponse({"height": height, "width": width, "threshold": result.threshold, "objects": objects})
    with tempfile.TemporaryDirectory() as place:
        result.save(Path(place) / "result.png", form)
        return Response((Path(place) / "result.png").read_bytes(), media_type="image/png")
