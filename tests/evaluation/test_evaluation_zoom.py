"""The second look: where it looks, against a plain loop, and what becomes of both looks."""

from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TINY
from torch import nn
from torch.nn import functional as F

from e2net.compare.gallery import _write_maps
from e2net.compare.runs import read_run
from e2net.datasets.transforms import Resize
from e2net.evaluation.inference import SECOND, Predictor
from e2net.evaluation.zoom import check_zoom, cut_out, found_box
from e2net.runs import resolve
from e2net.structures import Output
from e2net.tasks import Camouflage, Depth, Semantic
from e2net.training import prepare_training, train


@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    zoom=st.floats(1, 4),
    blobs=st.lists(st.tuples(*[st.floats(0, 1)] * 5), max_size=3),
)
@settings(max_examples=100, deadline=None)
def test_box_holds_what_was_found_with_its_surroundings(size, zoom, blobs):
    height, width = size
    certainty = torch.zeros(size)
    for y, x, h, w, value in blobs:
        top, left = int(y * (height - 1)), int(x * (width - 1))
        certainty[top : top + 1 + int(h * height), left : left + 1 + int(w * width)] = value
    box = found_box(certainty, zoom)
    most = certainty.max().item()
    pixels = [
        (y, x)
        for y in range(height)
        for x in range(width)
        if (certainty[y, x] > 0.5 if most > 0.5 else certainty[y, x] >= most / 2)
    ]
    for axis, side in enumerate(size):
        start, end = box[2 * axis : 2 * axis + 2]
        first, last = min(p[axis] for p in pixels), max(p[axis] for p in pixels) + 1
        assert 0 <= start <= first and last <= end <= side
        asked = max((last - first) * zoom, 0.3 * side)
        assert abs((end - start) - min(side, asked)) < 1
        # In the middle, unless the image ends there.
        middle = (first + last) / 2
        assert abs((start + end) / 2 - middle) <= 1 or start == 0 or end == side


class _Bright(nn.Module):
    """Finds what is bright, and is surer where it sees it large: every logit grows with the share of bright pixels."""

    encoder = type("Encoder", (), {"size_multiple": 8})
    task = Camouflage()

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, image):
        self.seen.append(image)
        bright = (image.mean(1, keepdim=True) - 0.5) * 2
        return Output(bright * (1 + 10 * (bright > 0).float().mean((1, 2, 3), keepdim=True)))


_Model: Any = _Bright  # in place of a DenseModel


def _images():
    images = torch.zeros(3, 3, 64, 96, dtype=torch.uint8)
    images[0, :, 8:24, 16:40] = 255
    images[1, :, 40:64, 80:96] = 255
    images[2] = 255  # the whole image: nothing to look at again
    return images


@pytest.mark.parametrize("settings", [{}, {"flip": True}, {"flip": True, "scales": (0.75, 1.0)}])
def test_both_looks_are_averaged_in_the_box_and_nothing_else_changes(settings):
    model, images = _Model(), _images()
    first = Predictor(**settings)(model, images)
    model.seen.clear()
    both = Predictor(zoom=1.5, **settings)(model, images)
    passes = len(model.seen) // 2
    # The third too, as several processes must make equally many passes.
    assert [len(seen) for seen in model.seen] == [3] * 2 * passes
    torch.testing.assert_close(both[2], first[2], atol=1e-6, rtol=0)
    for b in range(2):
        top, low, left, right = found_box(first[b, 0], 1.5)
        crop = images[b, :, top:low, left:right].permute(1, 2, 0).numpy()
        enlarged = torch.from_numpy(Resize((64, 96)).image(crop)).permute(2, 0, 1)[None]
        second = Predictor(**settings)(model, enlarged, [crop].__getitem__)
        back = F.interpolate(second, size=(low - top, right - left), mode="bilinear", antialias=True)[0]
        inside = (1 - SECOND) * first[b, :, top:low, left:right] + SECOND * back
        torch.testing.assert_close(both[b, :, top:low, left:right], inside, atol=1e-5, rtol=0)
        assert both[b, 0, top:low, left:right].max() > first[b, 0].max()
        outside = torch.ones(64, 96, dtype=torch.bool)
        outside[top:low, left:right] = False
        assert torch.equal(both[b, 0][outside], first[b, 0][outside])


def test_the_second_look_is_at_the_pictures_own_pixels():
    """In the image a fine pattern is grey; only who looks at the picture sees where it is bright."""
    fine = np.zeros((640, 960, 3), np.uint8)
    fine[80:240:2, 160:400] = 255
    image = torch.from_numpy(Resize((64, 96)).image(fine).transpose(2, 0, 1).copy())[None]
    asked = []

    def pictures(index):
        asked.append(index)
        return fine

    model = _Model()
    Predictor(zoom=1.0)(model, image, pictures)
    assert asked == [0]
    top, low, left, right = found_box(_Model()(image.float() / 255).prediction[0, 0].sigmoid(), 1.0)
    crop = fine[top * 10 : low * 10, left * 10 : right * 10]
    expected = torch.from_numpy(Resize((64, 96)).image(crop).transpose(2, 0, 1).copy())[None].float() / 255
    assert torch.equal(model.seen[1], expected)
    # Without it, the image's.
    model.seen.clear()
    Predictor(zoom=1.0)(model, image)
    assert not torch.equal(model.seen[1], expected)
    Predictor()(model, image, pictures)  # not asked for nothing
    assert asked == [0]


@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    picture=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    begin=st.tuples(*[st.floats(0, 0.99)] * 2),
    end=st.tuples(*[st.floats(0.01, 1)] * 2),
)
@settings(max_examples=100, deadline=None)
def test_a_cut_out_shows_what_the_box_shows(size, picture, begin, end):
    """All of it and less than a pixel more, never nothing, and all of the picture where the box is all."""
    edges = []
    for side, first, last in zip(size, begin, end, strict=True):
        start = int(first * side)
        edges += [start, max(start + 1, int(last * side))]
    places = np.stack(np.meshgrid(*map(np.arange, picture), indexing="ij"), -1)
    top, low, left, right = edges
    part = cut_out(places, (top, low, left, right), size)
    assert part.size
    for axis in range(2):
        factor = picture[axis] / size[axis]
        first, last = part[0, 0, axis], part[-1, -1, axis] + 1
        assert last - first == part.shape[axis]
        assert -1e-9 <= edges[2 * axis] * factor - first < 1 and -1e-9 <= last - edges[2 * axis + 1] * factor < 1
    assert cut_out(places, (0, size[0], 0, size[1]), size).shape == places.shape


def test_a_map_without_any_number_is_left_to_who_refuses_it():
    for certainty in (torch.full((8, 6), torch.nan), torch.full((8, 6), 0.2).index_fill(1, torch.tensor(2), torch.nan)):
        assert found_box(certainty, 1.5) == (0, 8, 0, 6)


def test_off_is_the_first_look_alone():
    model, images = _Model(), _images()
    assert torch.equal(Predictor(zoom=0)(model, images), Predictor()(model, images)) and len(model.seen) == 2


def test_what_is_no_zoom_is_refused():
    for zoom in (0.5, -1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=r"zoom_test: expected 0 \(off\) or a number of at least 1"):
            check_zoom(zoom, Camouflage())
    for task in (Depth(), Semantic(classes=("a", "b"))):
        check_zoom(0, task)
        with pytest.raises(ValueError, match="has no objects to look at again"):
            check_zoom(1.5, task)


def test_validation_and_test_look_again_at_their_files(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("e2net.evaluation.inference.cut_out", lambda *args: seen.append(args[0]) or cut_out(*args))
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        short = ["trainer.max_epochs=1", "+trainer.num_sanity_val_steps=0", "num_samples=0", "zoom_test=1.5"]
        config = compose("train", [*TINY, *short, f"run_dir={tmp_path}"])
    job = prepare_training(resolve(config))
    train(job)
    (name,) = job.data.test_names
    learned, tested = job.data.source("train"), job.data.source("test", name)
    expected = [learned.read(i)[0] for i in job.data.split()[1]] + [tested.read(i)[0] for i in range(len(tested))]
    assert len(seen) == len(expected)
    assert all(np.array_equal(one, other) for one, other in zip(seen, expected, strict=True))
    seen.clear()
    _write_maps(read_run(tmp_path), {name: [tested.name(1)]}, tmp_path / "gallery", "cpu")
    assert len(seen) == 1 and np.array_equal(seen[0], tested.read(1)[0])
