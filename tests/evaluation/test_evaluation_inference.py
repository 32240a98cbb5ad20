import weakref
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from e2net.datasets.transforms import Resize
from e2net.evaluation.inference import Predictor, predictor_of, starts
from e2net.evaluation.scales import RandomScale, resize, scaled_size
from e2net.structures import Output
from e2net.tasks import Camouflage, Depth


class _Encoder:
    size_multiple = 8


class _Pixels(nn.Module):
    """Logits that depend on each pixel alone, or also on the mean of all that the model sees."""

    encoder = _Encoder()
    task = Camouflage()

    def __init__(self, context=0.0):
        super().__init__()
        self.context = context
        self.seen = []

    def forward(self, image):
        assert image.shape[-2] % 8 == 0 and image.shape[-1] % 8 == 0 and image.is_floating_point()
        self.seen.append(tuple(image.shape))
        grey = image.mean(1, keepdim=True)
        position = torch.linspace(-1, 1, image.shape[-1])  # not symmetric: a mirror image gives other logits
        return Output(4 * grey + position + self.context * grey.mean((-2, -1), keepdim=True))


_Model: Any = _Pixels  # in place of a DenseModel


def _image(height=64, width=96, batch=2):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, 3, height, width), generator=generator, dtype=torch.uint8)


def _plain(model, image):
    return model(image.float() / 255).prediction.sigmoid()


def test_without_arguments_it_is_the_model():
    image = _image()
    assert torch.equal(Predictor()(_Model(), image), _plain(_Model(), image))


def test_flip_is_the_mean_with_the_mirror_image():
    model, image = _Model(), _image()
    expected = (_plain(model, image) + _plain(model, image.flip(-1)).flip(-1)) / 2
    assert torch.equal(Predictor(flip=True)(model, image), expected)


def test_scales_are_averaged_at_the_base_size():
    model, image = _Model(), _image()
    prob = Predictor(scales=(0.75, 1.0, 1.3))(model, image)
    assert [shape[-2:] for shape in model.seen] == [(48, 72), (64, 96), (80, 128)]  # multiples of 8
    assert prob.shape == (2, 1, 64, 96) and prob.min() >= 0 and prob.max() <= 1
    uniform = torch.full((1, 3, 64, 96), 51, dtype=torch.uint8)
    # All that scales change in a uniform image are the positions, by less than a pixel.
    assert torch.allclose(Predictor(scales=(0.5, 2))(model, uniform), _plain(model, uniform), atol=0.01)


def test_scales_are_made_from_the_pictures():
    """A fine pattern is grey in the image of 64 x 96; twice as large it is seen."""
    picture = np.zeros((640, 960, 3), np.uint8)
    picture[:, ::20] = 255
    image = torch.from_numpy(Resize((64, 96)).image(picture)).permute(2, 0, 1)[None]
    seen, model = [], _Model()
    model.forward = lambda pixels: Output(seen.append(pixels) or pixels.mean(1, keepdim=True))
    predictor = Predictor(scales=(1.0, 2.0))
    assert predictor.reads_pictures and not Predictor(flip=True, sharpen=2.0, window=32).reads_pictures
    predictor(model, image, lambda index: picture)
    larger = torch.from_numpy(Resize((128, 192)).image(picture)).permute(2, 0, 1)[None].float() / 255
    assert torch.equal(seen[1], larger) and torch.equal(seen[0], image.float() / 255)
    predictor(model, image)
    assert seen[3].std() < seen[1].std() / 2


@pytest.mark.parametrize("window", [(64, 96), (200, 200), 96])
def test_image_of_a_window_is_predicted_as_a_whole(window):
    image = _image()
    assert torch.equal(Predictor(window=window)(_Model(1.0), image), _plain(_Model(1.0), image))


@pytest.mark.parametrize("overlap", [0, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("at_once", [1, 5, 100])
def test_windows_of_a_local_model_blend_into_the_whole(overlap, at_once):
    """What depends on each pixel alone must come out exactly, wherever windows begin and end."""
    image = _image(72, 104)
    model = _Model()
    model.forward = lambda pixels: Output(model.seen.append(pixels.shape) or 4 * pixels.mean(1, keepdim=True))
    whole = _plain(model, image)
    model.seen.clear()
    prob = Predictor(window=(32, 40), overlap=overlap, windows_at_once=at_once)(model, image)
    assert torch.allclose(prob, whole, atol=1e-5)
    assert {shape[-2:] for shape in model.seen} == {(32, 40)} and max(shape[0] for shape in model.seen) <= at_once


def test_windows_end_in_no_edge():
    """Each window sees another mean: the step between neighbouring pixels stays far below that between windows."""
    image = torch.zeros(1, 3, 64, 256, dtype=torch.uint8)
    image[..., 128:] = 120
    model = _Model()
    model.forward = lambda pixels: Output(20 * pixels.mean((1, 2, 3), keepdim=True).expand(-1, 1, *pixels.shape[-2:]))
    prob = Predictor(window=64)(model, image)[0, 0, 0]
    assert prob[0] == 0.5 and prob[-1] > 0.99
    assert prob.diff().abs().max() < 0.03 and (prob.diff() >= -1e-6).all()


def test_windows_run_at_every_scale_and_flip():
    model = _Model()
    Predictor(flip=True, scales=(1.0, 0.5), window=32)(model, _image(64, 64, 1))
    assert model.seen == [(8, 3, 32, 32), (1, 3, 32, 32)] * 2 + [(1, 3, 32, 32)] * 2


def test_starts_cover_a_side_with_as_few_windows_as_the_overlap_allows():
    assert starts(64, 64, 0.5) == [0]
    assert starts(128, 64, 0.5) == [0, 32, 64]
    assert starts(128, 64, 0) == [0, 64]
    for length in range(64, 200):
        begins = starts(length, 64, 0.25)
        assert begins[0] == 0 and begins[-1] == length - 64
        assert all(0 < b - a <= 48 for a, b in pairwise(begins))
        assert len(begins) == 1 + -(-(length - 64) // 48)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"scales": ()}, "test_scales"),
        ({"scales": (1, 0)}, "positive"),
        ({"scales": 1.0}, "list"),
        ({"window": 0}, "window"),
        ({"window": (1, 2, 3)}, "window"),
        ({"window": ()}, "window"),
        ({"overlap": 1.0}, "window_overlap"),
        ({"windows_at_once": 0}, "windows_at_once"),
        ({"sharpen": 0}, "sharpen"),
        ({"sharpen": float("nan")}, "sharpen"),
    ],
)
def test_impossible_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        Predictor(**arguments)


def test_window_must_suit_the_encoder():
    Predictor(window=(32, 48)).check(16, Camouflage())
    with pytest.raises(ValueError, match="multiples of the encoder's 16 pixels, found 32x40"):
        Predictor(window=(32, 40)).check(16, Camouflage())


def test_scaled_sizes():
    assert scaled_size((384, 512), 0.75, 16) == (288, 384)
    assert scaled_size((128, 128), 1.3, 16) == (160, 160)
    assert scaled_size((64, 64), 0.01, 16) == (16, 16)
    assert scaled_size((60, 60), 1, 16) == (60, 60)  # the encoder's error, not another size


def test_training_sizes_are_drawn_from_seed_epoch_and_batch():
    rescale = RandomScale((0.5, 1.0, 1.5), seed=3)
    drawn = [rescale.draw(epoch, batch) for epoch in range(10) for batch in range(30)]
    assert drawn == [RandomScale((0.5, 1.0, 1.5), 3).draw(epoch, batch) for epoch in range(10) for batch in range(30)]
    assert all(70 < drawn.count(scale) < 130 for scale in (0.5, 1.0, 1.5))
    assert drawn != [RandomScale((0.5, 1.0, 1.5), 4).draw(epoch, batch) for epoch in range(10) for batch in range(30)]


def test_training_sizes_change_in_steps():
    rescale = RandomScale([[0, [0.5, 0.75]], [0.6, [1.0]]])
    assert rescale.scales == (0.5, 0.75, 1.0)
    assert {rescale.draw(0, batch, 0.59) for batch in range(20)} == {0.5, 0.75}
    assert {rescale.draw(0, batch, progress) for batch in range(20) for progress in (0.6, 1.0)} == {1.0}
    image = torch.rand(1, 3, 64, 64)
    sides = [rescale(image, image[:, :1], 16, 0, 0, Camouflage(), x)[0].shape[-1] for x in (0.0, 0.7)]
    assert sides[0] in (32, 48) and sides[1] == 64


@pytest.mark.parametrize(
    "wrong",
    [[[0.1, [1.0]]], [[0, [1.0]], [0.5, [0.5]], [0.5, [1.0]]], [[0, [1.0]], 0.5], [[0, 1.0]], [[0, []]], [[0]],
     [["a", [1]]], [[0, [1.0]], [1.0, [0.5]]], ["ab"], [[0, ["x"]]], [[]]],
)  # fmt: skip
def test_wrong_steps_of_training_sizes_are_refused(wrong):
    with pytest.raises(ValueError, match=r"train_scales(: expected| must)"):
        RandomScale(wrong)


def test_training_batches_are_resized():
    image = torch.rand(2, 3, 64, 96)
    mask = torch.zeros(2, 1, 64, 96)
    mask[..., :32, 48:] = 1
    small, small_mask = RandomScale((0.5,))(image, mask, 16, 0, 0, Camouflage())
    assert small.shape == (2, 3, 32, 48) and small_mask.shape == (2, 1, 32, 48)
    assert torch.equal(small_mask, mask[..., ::2, ::2])  # edges lie between pixels at both sizes
    assert torch.allclose(small.mean((-2, -1)), image.mean((-2, -1)), atol=0.02)
    same, same_mask = RandomScale()(image, mask, 16, 0, 0, Camouflage())
    assert same is image and same_mask is mask
    with pytest.raises(ValueError, match="train_scales"):
        RandomScale((-1.0,))


class _Places(nn.Module):
    """Logits that depend on the place within a window alone, the worst case; alike in no two corners."""

    encoder, task = _Encoder(), Camouflage()

    def forward(self, image):
        height, width = image.shape[-2:]
        y = torch.linspace(-3, 2, height)[:, None]
        return Output((y + torch.linspace(-2, 4, width)).expand(len(image), 1, height, width))


_Positions: Any = _Places  # in place of a DenseModel


def _steps(prob, starts_of_rows, starts_of_columns, window):
    """The largest steps between neighbouring pixels: where windows begin or end, and elsewhere."""
    at, elsewhere = [], []
    for axis, begins in ((0, starts_of_rows), (1, starts_of_columns)):
        step = prob.diff(dim=axis).abs().amax(1 - axis)
        borders = {b - 1 for b in begins if b} | {b + window[axis] - 1 for b in begins[:-1]}
        at += [float(step[i]) for i in range(len(step)) if i in borders]
        elsewhere += [float(step[i]) for i in range(len(step)) if i not in borders]
    return max(at), max(elsewhere)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("overlap", [0.25, 0.5, 0.7])
@pytest.mark.parametrize("size", [(200, 264), (128, 400), (96, 96)])
def test_no_seam_where_windows_begin_and_end(monkeypatch, size, overlap, flip):
    window = (48, 64)
    rows, columns = (starts(length, side, overlap) for length, side in zip(size, window, strict=True))
    image = torch.zeros(1, 3, *size, dtype=torch.uint8)
    predictor = Predictor(flip=flip, window=window, overlap=overlap)
    at, elsewhere = _steps(predictor(_Positions(), image)[0, 0], rows, columns, window)
    assert at <= 1.05 * elsewhere < 0.25
    # Without the weights there is one, so that this test would see it.
    monkeypatch.setattr("e2net.evaluation.inference._bump", lambda length, device: torch.ones(length))
    at, elsewhere = _steps(predictor(_Positions(), image)[0, 0], rows, columns, window)
    assert at > 1.3 * elsewhere


@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0, 1.7)])
def test_a_constant_stays_constant(scales):
    model = _Positions()
    model.forward = lambda image: Output(torch.full((len(image), 1, *image.shape[-2:]), 0.3))
    prob = Predictor(flip=True, scales=scales, window=32)(model, _image(104, 136, 1))
    assert torch.allclose(prob, torch.tensor(0.3).sigmoid().expand_as(prob), rtol=0, atol=1e-6)


def _by_whole_images(model, image, flip, scales, window, overlap):
    """The plain way: whole images of floating point, and sums as large as they."""
    found = []
    for scale in scales:
        size = scaled_size(image.shape[-2:], scale, 8)
        passes = []
        for mirror in (False, True)[: 1 + flip]:
            resized = np.stack([Resize(size).image(one.permute(1, 2, 0).numpy()) for one in image])
            scaled = torch.from_numpy(resized).permute(0, 3, 1, 2) / 255
            scaled = scaled.flip(-1) if mirror else scaled
            h, w = min(size[0], window[0]), min(size[1], window[1])
            bumps = [torch.sin(torch.pi * (torch.arange(n) + 0.5) / n) ** 2 for n in (h, w)]
            weight = bumps[0][:, None] * bumps[1]
            total, weights = torch.zeros(len(image), 1, *size), torch.zeros(size)
            for y in starts(size[0], h, overlap):
                for x in starts(size[1], w, overlap):
                    place = (..., slice(y, y + h), slice(x, x + w))
                    total[place] += weight * model(scaled[place]).prediction.sigmoid()
                    weights[place] += weight
            prob: Any = total / weights
            passes.append(prob.flip(-1) if mirror else prob)
        prob = sum(passes) / len(passes)
        found.append(prob if size == tuple(image.shape[-2:]) else resize(prob, image.shape[-2:]))
    return sum(found) / len(found)


@pytest.mark.parametrize("seed", range(12))
def test_bands_of_windows_are_the_sum_over_the_whole_image(seed):
    rng = np.random.default_rng(seed)
    height, width, h, w = (int(side) for side in 8 * rng.integers([6, 6, 2, 2], [14, 14, 9, 9]))
    options = {
        "flip": bool(rng.integers(2)),
        "scales": [(1.0,), (0.75, 1.0, 1.25), (0.5, 2.0)][seed % 3],
        "window": (h, w),
        "overlap": float(rng.choice([0, 0.3, 0.5, 0.8])),
    }
    image = _image(height, width, int(rng.integers(1, 4)))
    prob = Predictor(**options, windows_at_once=int(rng.integers(1, 9)))(_Model(1.0), image)
    torch.testing.assert_close(prob, _by_whole_images(_Model(1.0), image, **options), rtol=0, atol=2e-6)


def test_memory_of_windows_grows_by_the_result_alone():
    """Bytes of all tensors that are alive at once: of each pixel those of image and result, the others of a band."""

    def peak(height):
        image, most = torch.zeros(1, 3, height, 128, dtype=torch.uint8), 0

        class Watch(TorchDispatchMode):
            def __init__(self):
                super().__init__()
                self.alive = {}

            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                nonlocal most
                found = function(*args, **(kwargs or {}))
                for one in found if isinstance(found, tuple | list) else [found]:
                    if isinstance(one, torch.Tensor):
                        storage = one.untyped_storage()
                        self.alive[storage._cdata] = (weakref.ref(storage), storage.nbytes())
                self.alive = {k: v for k, v in self.alive.items() if v[0]() is not None}
                most = max(most, sum(size for _, size in self.alive.values()))
                return found

        with torch.no_grad(), Watch():
            Predictor(flip=True, window=64)(_Positions(), image)
        return most

    small, large = peak(512), peak(1024)
    assert large - small < 1.05 * (3 + 4) * 512 * 128, (small, large)


@pytest.mark.parametrize("factor", [0.5, 2.0, 100.0])
def test_sharpened_are_the_log_odds_of_the_mean(factor):
    model, image = _Model(), _image()
    mean = Predictor(flip=True, scales=(0.5, 1.0))(model, image).double()
    expected = (factor * (mean / (1 - mean)).log()).sigmoid()
    found = Predictor(flip=True, scales=(0.5, 1.0), sharpen=factor)(model, image)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)


def test_what_is_certain_stays_certain_and_only_objects_are_sharpened():
    certain = torch.tensor([0.0, 0.5, 1.0, 1.0 + 1e-7])
    for factor in (0.01, 3.0, 100.0):
        assert torch.equal(Camouflage().sharpened(certain, factor), torch.tensor([0.0, 0.5, 1.0, 1.0]))
    with pytest.raises(ValueError, match="sharpen=2: task=depth has no probability of objects"):
        Predictor(sharpen=2.0).check(8, Depth())


RUN: Any = {"flip_test": True, "test_scales": [1.0, 0.5], "zoom_test": 1.5, "sharpen": 2.0}


@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"flip": False, "zoom": 0.0},  # off is a choice too
        {"scales": (1.0,), "sharpen": 1.0},
        {"window": (32, 48), "overlap": 0.25, "flip": None},
        {"window": None, "scales": None},
    ],
)
def test_a_run_is_looked_at_as_in_its_test_but_for_what_is_chosen(chosen):
    expected = Predictor(flip=True, scales=(1.0, 0.5), zoom=1.5, sharpen=2.0)
    for name, value in chosen.items():
        setattr(expected, name, getattr(expected, name) if value is None else value)
    assert vars(predictor_of(RUN, **chosen)) == vars(expected)


def test_runs_of_before_a_setting_look_once():
    assert vars(predictor_of({"zoom_test": 0.0, "sharpen": 1.0})) == vars(Predictor())
    with pytest.raises(ValueError, match="checkpoint's config: zoom_test"):
        predictor_of({**RUN, "zoom_test": "twice"})
