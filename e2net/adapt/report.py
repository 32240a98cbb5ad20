"""What a run leaves to look at: the curves of its watch and probe, and features before and after."""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from e2net.drawing import PANEL, contact_sheet
from e2net.evaluation.plots import lines_figure
from e2net.formats import encoded
from e2net.structures import Tokens

# Pictures of features.
SHOWN = 6


def curves(rows: Sequence[Mapping[str, float]]) -> bytes:
    """A panel for each score over the steps, as a PNG; those of the probe first."""
    names = sorted({name for row in rows for name in row if name != "step"}, key=lambda name: (name[0] != "p", name))
    return lines_figure(
        {name: [(row["step"], row[name]) for row in rows if name in row] for name in names}, "optimiser steps"
    )


def features_picture(images: Tensor, before: Tokens, after: Tokens) -> bytes:
    """Pictures beside their patches' features before and after, as colours: a PNG.

    Red, green and blue are the first three principal components of all patches of both encoders, each encoder's patches
    being centred and scaled by themselves: the basis is one.

    Args:
        images: (n, 3, S, S) uint8; the first few are shown.
        before, after: tokens for them, (n, N, D) patches.
    """
    count = min(SHOWN, len(images))
    old, new = (_standard(tokens.patches[:count].float()) for tokens in (before, after))
    together = torch.cat([old, new]).flatten(0, 1)
    _, _, basis = torch.pca_lowrank(together, q=3, center=False, niter=6)
    rows = []
    low, high = torch.quantile(together @ basis, torch.tensor([0.02, 0.98]), dim=0)
    for index in range(count):
        panels = [_panel(images[index].permute(1, 2, 0).numpy(), cv2.INTER_AREA)]
        for patches in (old, new):
            side = round(patches.shape[1] ** 0.5)
            shade = ((patches[index] @ basis - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
            panels.append(_panel((255 * shade).byte().reshape(side, side, 3).numpy(), cv2.INTER_NEAREST))
        rows.append(cv2.hconcat(panels))
    return encoded(contact_sheet(rows, columns=2 if count > 3 else 1))


def _standard(patches: Tensor) -> Tensor:
    """(n, N, D) with a mean of 0 and one scale for all."""
    centred = patches - patches.mean((0, 1))
    return centred / centred.square().mean().sqrt().clamp(min=1e-12)


def _panel(picture: np.ndarray, interpolation: int) -> np.ndarray:
    return cv2.resize(picture, (PANEL, PANEL), interpolation=interpolation)
