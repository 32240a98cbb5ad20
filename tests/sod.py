"""PySODMetrics' scores of one map and mask, and the comparison of ours with them."""

import warnings

import numpy as np
import py_sod_metrics


def oracle(levels, mask):
    """PySODMetrics' scores of one map of 8-bit levels and one mask."""
    scorers = {n: getattr(py_sod_metrics, n)() for n in ("Smeasure", "Emeasure", "Fmeasure", "WeightedFmeasure", "MAE")}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for scorer in scorers.values():
            scorer.step(levels, mask.astype(np.uint8) * 255)
    e, f = scorers["Emeasure"], scorers["Fmeasure"]
    return {
        "S": scorers["Smeasure"].sms[0],
        "Fmax": f.changeable_fms[0].max(),
        "Fmean": f.changeable_fms[0].mean(),
        "Fadp": f.adaptive_fms[0],
        "wF": scorers["WeightedFmeasure"].weighted_fms[0],
        "Emax": e.changeable_ems[0].max(),
        "Emean": e.changeable_ems[0].mean(),
        "Eadp": e.adaptive_ems[0],
        "MAE": scorers["MAE"].maes[0],
    }


def assert_equal(found, levels, mask, what):
    for name, expected in oracle(levels, mask).items():
        if np.isnan(expected):  # PySODMetrics' S where a quadrant is empty
            assert name == "S" and not np.isnan(found[name]), what
            continue
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=1e-9, err_msg=f"{name} of {what}")
