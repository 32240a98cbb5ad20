import numpy as np
import pytest
import torch
from py_sod_metrics.utils import prepare_data
from torch.nn import functional as F

from e2net.metrics import MaskProtocol, mae, score_map, to_map


def prob_map(seed=0, h=12, w=17):
    # Away from 0 and 1, so that the stretch does something.
    return torch.rand(h, w, generator=torch.Generator().manual_seed(seed)) * 0.5 + 0.2


MASK = torch.zeros(12, 17, dtype=torch.bool)
MASK[3:9, 4:11] = True


class TestToMap:
    def test_resizes_then_rounds(self):
        prob = prob_map()
        expected = F.interpolate(prob[None, None], size=(31, 23), mode="bilinear", align_corners=False)[0, 0]
        found = to_map(prob, (31, 23))
        assert found.dtype == torch.uint8 and found.shape == (31, 23)
        assert torch.equal(found, (expected * 255).round().byte())

    def test_rounds_to_nearest_not_down(self):
        assert to_map(torch.tensor([[0.9999, 0.0019]]), (1, 2)).tolist() == [[255, 0]]
        assert to_map(torch.tensor([[0.0021]]), (1, 1)).tolist() == [[1]]

    def test_half_precision_is_computed_in_float32(self):
        prob = prob_map().to(torch.bfloat16)
        assert torch.equal(to_map(prob, (24, 34)), to_map(prob.float(), (24, 34)))

    @pytest.mark.parametrize(
        ("prob", "error", "message"),
        [
            (torch.zeros(1, 1, 4, 4), ValueError, r"found shape \(1, 1, 4, 4\)"),
            (torch.full((4, 4), 3.0), ValueError, r"\[3, 3\]; pass logits through a sigmoid"),
            (torch.zeros(4, 4, dtype=torch.uint8), TypeError, "floating-point"),
        ],
    )
    def test_errors(self, prob, error, message):
        with pytest.raises(error, match=message):
            to_map(prob, (4, 4))

    def test_size_error(self):
        with pytest.raises(ValueError, match=r"size: expected \(h, w\)"):
            to_map(prob_map(), (0, 3))


class TestProtocol:
    def test_stretch_is_pysods(self):
        level_map = to_map(prob_map(), (12, 17))
        expected, _ = prepare_data(level_map.numpy(), MASK.numpy().astype(np.uint8) * 255)
        np.testing.assert_array_equal(MaskProtocol().apply(level_map), expected)

    def test_as_is(self):
        level_map = to_map(prob_map(), (12, 17))
        values = MaskProtocol(normalize="as_is").apply(level_map)
        np.testing.assert_array_equal(values, level_map.numpy() / 255)

    def test_constant_map_is_not_stretched(self):
        values = MaskProtocol().apply(torch.full((3, 3), 51, dtype=torch.uint8))
        np.testing.assert_allclose(values, 0.2)

    @pytest.mark.parametrize("normalize", ["minmax", "as_is"])
    @pytest.mark.parametrize("quantise", [True, False])
    @pytest.mark.parametrize("binarise", [True, False])
    def test_score_map_scores_what_apply_returns(self, normalize, quantise, binarise):
        protocol = MaskProtocol(quantise=quantise, normalize=normalize, binarise=binarise)
        prob = prob_map().double()
        values = protocol.apply(prob)
        found = score_map(prob, MASK, protocol=protocol).values
        assert found["MAE"] == pytest.approx(float(mae(values.double(), MASK)), abs=1e-12)
        expected = score_map(values, MASK, protocol=MaskProtocol(quantise=False, normalize="as_is")).values
        assert found == pytest.approx(expected, abs=1e-9)
        resized = protocol.resize_map(prob, (12, 17))
        assert score_map(resized, MASK, protocol=protocol).values == pytest.approx(found, abs=1e-12)

    def test_every_choice_changes_the_score(self):
        prob = prob_map()
        choices = [
            MaskProtocol(),
            MaskProtocol(quantise=False),
            MaskProtocol(normalize="as_is"),
            MaskProtocol(quantise=False, normalize="as_is"),
            MaskProtocol(binarise=True),
        ]
        assert len({score_map(prob, MASK, protocol=p).values["MAE"] for p in choices}) == len(choices)

    def test_binarised_8_bit_and_float_agree(self):
        prob = prob_map(3) * 0.99
        protocol = MaskProtocol(binarise=True)
        a = score_map(prob, MASK, protocol=protocol).values
        assert a == score_map(to_map(prob, (12, 17)), MASK, protocol=protocol).values
        assert set(protocol.apply(prob).unique().tolist()) == {0.0, 1.0}

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [({"normalize": "min-max"}, "'minmax', 'as_is'.*found 'min-max'"), ({"quantise": 1}, "quantise.*found 1")],
    )
    def test_values_are_checked(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            MaskProtocol(**arguments)

    def test_describe(self):
        described = MaskProtocol(normalize="as_is").describe()
        assert described["normalize"] == "as_is" and described["quantise"] is True and "bilinear" in described["resize"]
