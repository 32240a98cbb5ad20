from itertools import pairwise

import pytest
import torch
from torch import nn

from e2net.evaluation.inference import Predictor, starts
from e2net.evaluation.scales import RandomScale, scaled_size
from e2net.structures import Output
from e2net.tasks import Camouflage


class _Encoder:
    size_multiple = 8


class _Model(nn.Module):
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
    ],
)
def test_impossible_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        Predictor(**arguments)


def test_window_must_suit_the_encoder():
    Predictor(window=(32, 48)).check(16, Camouflage())
    with pytest.raises(ValueError, match="multiples of the encoder's 16 pixels, got 32x40"):
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
    with pytest.raises(ValueError, match=r"train_scales: expected"):
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
