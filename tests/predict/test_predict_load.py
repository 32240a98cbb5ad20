"""A hundred predictions at a time, from as many threads on one model."""

import threading

import cv2
import numpy as np
import pytest
from conftest import ROOT, mostly_slow

from e2net.evaluation.inference import Predictor
from e2net.predict.segmenter import Segmenter
from e2net.runs import load_model

COUNT = 100


@pytest.mark.parametrize("way", mostly_slow(["arrays", "files", "mirrored", "windows"], quick=(0, 1)))
def test_a_hundred_threads_get_what_one_gets(tmp_path, way):
    rng = np.random.default_rng(0)
    predictor = {"mirrored": Predictor(flip=True, scales=(1.0, 2.0)), "windows": Predictor(window=32)}.get(way)
    size = 64 if way == "windows" else 32
    model, _ = load_model(ROOT / "tests" / "runs" / "old" / "format_1.ckpt")
    shared = Segmenter(model, size, "cpu", predictor)
    pictures = [rng.integers(0, 256, (*rng.integers(8, 60, 2), 3), dtype=np.uint8) for _ in range(COUNT)]
    given = pictures
    if way == "files":
        given = [tmp_path / f"{i}.png" for i in range(COUNT)]
        for path, picture in zip(given, pictures, strict=True):
            cv2.imwrite(str(path), picture)
    alone = [shared.predict(one).prob for one in given]
    together: list = [None] * COUNT
    gate = threading.Barrier(COUNT)

    def work(i):
        gate.wait()  # all of them at once
        together[i] = shared.predict(given[i]).prob

    threads = [threading.Thread(target=work, args=(i,)) for i in range(COUNT)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert all(found is not None and np.array_equal(found, one) for found, one in zip(together, alone, strict=True))
    assert len({prob.tobytes() for prob in alone}) == COUNT
