"""Every encoder and every decoder becomes a file for any size of picture, with the same maps."""

import operator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import mostly_slow
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import largest_difference, network

from e2net import symbolic
from e2net.decoders import layers, upernet
from e2net.export.formats import FORMATS
from e2net.export.network import OnePass, trace
from e2net.export.onnx_file import write_onnx
from e2net.export.settings import torch_suffices

pytest.importorskip("onnxruntime", reason="an extra: pip install 'e2net[export]'")
if not torch_suffices(torch.__version__):
    pytest.skip(f"torch {torch.__version__} does not export models of any size", allow_module_level=True)

# Each encoder, decoder, neck, tuning and task once; all pairs by a command in docs/export.md.
COVER = [
    ("convnext", "linear"),
    ("dinov3", "e2net"),
    ("dinov2", "caem", "norm", "lora"),
    ("dinov2_registers", "upernet", "none", "adapter"),
    ("siglip", "dpt", "none", "frozen", "semantic"),
    ("timm", "e2net_standard", "vitdet", "frozen", "depth"),
]


@pytest.mark.parametrize("names", mostly_slow([(names,) for names in COVER]), ids="+".join)
def test_a_file_has_the_model_s_maps(names, tmp_path):
    assert largest_difference(network(*names), tmp_path) < 1e-4


class Rounded(torch.nn.Module):
    """Sizes of all sorts of whole divisions; of a pyramid they are rounded up."""

    def forward(self, image):
        height, width = image.shape[-2:]
        pixels = image.float()
        up = F.interpolate(pixels, size=(-(-height // 32), -(-width // 5)), mode="bilinear")
        down = F.interpolate(pixels, size=((height + 7) // 8, 1 - (3 - width) // 7), mode="bilinear")
        return torch.cat((up.flatten(2), down.flatten(2)), 2).flatten(1)[:, :, None, None]


@pytest.fixture(scope="module")
def rounded(tmp_path_factory):
    """What runs such a file."""
    dim = torch.export.Dim
    shape = {0: dim("batch", min=1, max=64), 2: 16 * dim("rows", min=1, max=64), 3: dim("columns", min=6, max=999)}
    image = torch.zeros(2, 3, 64, 70, dtype=torch.uint8)
    program = torch.export.export(Rounded(), (image,), dynamic_shapes={"image": shape}, strict=False)
    assert [node for node in program.graph.nodes if node.target is operator.floordiv]
    file = tmp_path_factory.mktemp("rounded") / "model.onnx"
    write_onnx(program, file, {})
    return FORMATS["onnx"].open(file, 1)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 20), st.integers(6, 200))
def test_sizes_round_as_in_python(rounded, rows, columns):
    image = torch.randint(0, 256, (1, 3, 16 * rows, columns), dtype=torch.uint8)
    np.testing.assert_allclose(rounded(image.numpy()), Rounded()(image).numpy(), atol=0.05)


def test_timm_s_models_take_any_number_of_pictures():
    one = network("timm", "linear")
    program = trace(one, (64, 64), (48, 80)).module()
    image = torch.randint(0, 256, (3, 3, 48, 80), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(program(image), one(image), rtol=0, atol=1e-6)


def test_a_file_of_one_size_takes_no_other(tmp_path):
    one = network("dinov3", "linear")
    program = trace(one, (64, 64), (64, 48)).module()
    image = torch.randint(0, 256, (3, 3, 64, 48), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(program(image), one(image), rtol=0, atol=1e-6)
        with pytest.raises((AssertionError, RuntimeError)):
            program(image[..., :32])
    with pytest.raises(ValueError, match="not a multiple of 16"):
        trace(one, (64, 64), (64, 50))


def test_what_cannot_be_followed_says_what_to_do():
    one = network("dinov3", "linear")

    class Counting(OnePass):
        def forward(self, image):
            return super().forward(image) * float(image.float().mean())

    with pytest.raises(ValueError, match=r"DINOv3ViTModel: .* give size=\.\.\. for a file of one size"):
        trace(Counting(one.model).eval(), (64, 64))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(upernet.PyramidPooling.BINS))
def test_means_of_parts_are_those_of_adaptive_pooling(h, w, bins):
    x = torch.randn(2, 3, h, w)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(symbolic, "_is_exporting", lambda: True)
        found = upernet.BinMeans(bins)(x)
    torch.testing.assert_close(found, F.adaptive_avg_pool2d(x, bins), rtol=1e-5, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(*[st.integers(1, 24)] * 4)
def test_taps_may_come_first_at_any_sizes(h, w, height, width):
    """An exported file has one way for all sizes, also for those at which the other one would be the faster."""
    conv = torch.nn.Conv2d(2, 3, 3, padding=1)
    x = torch.randn(1, 2, h, w)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        found = []
        for first in (True, False):
            patch.setattr(layers, "_taps_first", lambda *_, first=first: first)
            found.append(layers.convolve(conv, x, (height, width)))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
