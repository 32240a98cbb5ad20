"""Losses, decoders and scores in bf16 and fp16: finite and right, also where logits are far out."""

import pytest
import torch
from conftest import encoder_config

from e2net.decoders import CAEMDecoder, DPTDecoder, E2NetDecoder, LinearDecoder, UPerNetDecoder
from e2net.decoders.necks import LearnedPyramid, Norm
from e2net.encoders import Frozen, ViTEncoder
from e2net.evaluation.inference import Predictor
from e2net.losses import TERMS, Criterion
from e2net.metrics import MapScores, MaskProtocol, score_map
from e2net.model import DenseModel
from e2net.structures import Output
from e2net.training.step import precision_of

CPU = torch.device("cpu")
HALVES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
DECODERS = [CAEMDecoder, DPTDecoder, E2NetDecoder, LinearDecoder, UPerNetDecoder]
SIZE = (64, 96)


def _logits(far, right):
    """(2, 1, 32, 48) logits of ±``far`` and some in between, and the mask (2, 1, 32, 48) that they meet or miss."""
    torch.manual_seed(0)
    mask = (torch.rand(2, 1, 8, 12) > 0.5).float().repeat_interleave(4, 2).repeat_interleave(4, 3)
    sign = (2 * mask - 1) * (1 if right else -1)
    logits = sign * far
    logits[:, :, ::7] = torch.randn_like(logits[:, :, ::7])
    return logits, mask


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("far", [4.0, 60.0, 1e4])
@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize("term", TERMS)
def test_every_loss_is_computed_in_float32(term, name, far, right):
    logits, mask = _logits(far, right)
    criterion = Criterion({term: 1.0}, {term: 0.5}, {term: 0.3})
    found = []
    for dtype, precision in ((HALVES[name], precision_of(name, CPU)), (torch.float32, precision_of("32-true", CPU))):
        # A head's own output, in the precision's type; refined maps are smaller, and resized.
        leaves = [logits.to(HALVES[name]).to(dtype).requires_grad_(), logits[..., ::2, ::2].to(HALVES[name]).to(dtype)]
        with precision.forward_context():
            losses = criterion(Output(leaves[0], {"coarse": (leaves[0],), "refined": (leaves[1],)}), mask)
        losses["loss"].backward()
        assert all(v.dtype == torch.float32 and v.isfinite() for v in losses.values())
        assert leaves[0].grad.isfinite().all()
        found.append((losses["loss"].detach(), leaves[0].grad.float()))
    assert found[0][0] == found[1][0]
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-2, atol=1e-6)


def _features():
    torch.manual_seed(1)
    return [torch.randn(2, 24, SIZE[0] // 16, SIZE[1] // 16) for _ in range(4)]


def _set_heads(decoder, value):
    """Biases of the final 1x1 convolutions, so that logits lie around ``value``."""
    for module in decoder.modules():
        if isinstance(module, torch.nn.Conv2d) and module.out_channels == 1 and module.bias is not None:
            torch.nn.init.constant_(module.bias, value / (4 if isinstance(decoder, LinearDecoder) else 1))


@pytest.mark.parametrize("value", [0.0, 60.0, -60.0, 1e4, -1e4])
@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_in_half_is_nearly_that_in_float32(decoder, name, value):
    torch.manual_seed(0)
    options = {} if decoder is LinearDecoder else {"width": 16, "pyramid": "standard"}
    module = decoder((24,) * 4, (16,) * 4, **options).eval()
    _set_heads(module, value)
    expected = module(_features(), SIZE)
    with precision_of(name, CPU).forward_context():
        found = module(_features(), SIZE)
    tolerance = 0.05 if name == "bf16-mixed" else 0.01
    for a, b in zip(found.maps(), expected.maps(), strict=True):
        assert a.isfinite().all()
        torch.testing.assert_close(a.float(), b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("value", [0.0, 60.0, -1e4])
@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_trains_in_half(decoder, name, value):
    """A finite loss, finite gradients and finite statistics of BatchNorm, from large features too."""
    torch.manual_seed(0)
    options = {} if decoder is LinearDecoder else {"width": 16}
    module, loss = decoder((24,) * 4, (16,) * 4, **options).train(), {"dice": 1.0, "bce": 1.0, "edge": 1.0}
    _set_heads(module, value)
    mask = (torch.rand(2, 1, *SIZE) > 0.5).float()
    with precision_of(name, CPU).forward_context():
        output = module([300 * f for f in _features()], SIZE)
        total = Criterion(loss, loss, loss)(output, mask)["loss"]
    (total * 2.0**10).backward()
    assert total.isfinite() and all(p.grad.isfinite().all() for p in module.parameters())
    assert all(b.isfinite().all() for b in module.buffers())


@pytest.mark.parametrize("neck", [Norm, LearnedPyramid])
@pytest.mark.parametrize("name", HALVES)
def test_every_neck_in_half_is_nearly_that_in_float32(neck, name):
    torch.manual_seed(0)
    module = neck((24,) * 4, (16,) * 4).eval()
    expected = module(_features(), SIZE)
    with precision_of(name, CPU).forward_context():
        found = module(_features(), SIZE)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.float(), b, rtol=0.05, atol=0.05)


def _saying(logits, dtype):
    return lambda features, size: Output(logits.to(dtype))


@pytest.mark.parametrize("far", [60.0, 1e4])
@pytest.mark.parametrize("name", HALVES)
def test_scores_of_maps_from_half_logits(name, far):
    """Probabilities are made in float32, so that a score does not depend on the type of the logits."""
    torch.manual_seed(0)
    model = DenseModel(ViTEncoder.from_config(encoder_config("dinov3")), LinearDecoder, Frozen()).eval()
    logits, mask = _logits(far, right=True)
    image = torch.zeros(2, 3, 32, 48, dtype=torch.uint8)
    found = []
    for dtype in (HALVES[name], torch.float32):
        model.decode = _saying(logits.to(HALVES[name]), dtype)
        with precision_of(name, CPU).forward_context(), torch.no_grad():
            prob = Predictor(flip=True, scales=(1.0, 2.0))(model, image)
        assert prob.dtype == torch.float32 and prob.min() >= 0 and prob.max() <= 1
        scores = MapScores(MaskProtocol())
        for at in range(2):
            native = MaskProtocol().resize_map(prob[at, 0], (50, 60))
            truth = torch.nn.functional.interpolate(mask[at][None], size=(50, 60))[0, 0] > 0.5
            scores.add(at, score_map(native, truth))
        found.append({k: float(v) for k, v in scores.compute().items()})
    assert found[0] == found[1] and 0 <= found[0]["S"] <= 1
