"""Vectors in 8 bits, whose products say how far from the true ones they can be: the nearest of very many, exactly."""

import numpy as np
import torch
from torch import Tensor

# Rows at a time, of the coding.
_ROWS = 1 << 16


class Codes:
    """Rows of length 1, each as whole numbers from -127 to 127 times a scale of its own.

    A product of codes is exact in 32 bits, and by Cauchy and Schwarz it differs from that of the vectors by no more
    than what coding took off them: with v = v' + r and q = q' + s, |q·v - q'·v'| <= |q'| |r| + |s| |v|. A quarter of
    the bytes are read of what float32 takes, and reading is what a query costs.

    Args:
        rows: (n, D) float32 of length 1.
    """

    def __init__(self, rows: Tensor) -> None:
        self._codes = torch.empty(rows.shape, dtype=torch.int8)
        self._scale, self._error = rows.new_empty(len(rows)), rows.new_empty(len(rows))
        for start in range(0, len(rows), _ROWS):
            part = slice(start, start + _ROWS)
            self._codes[part], self._scale[part], self._error[part] = _coded(rows[part])
        # What float32 itself may round: of products of D numbers, and of the errors above.
        self._rounding = 2e-7 * (rows.shape[1] + 4)

    def candidates(self, query: Tensor, k: int) -> Tensor:
        """Rows (m,) ascending, among which are all whose product with a query (D,) of length 1 is of the k largest."""
        code, scale, error = _coded(query[None])
        # Rows by one column of whole numbers, in 32 bits; PyTorch has no public name for it.
        whole = torch._int_mm(self._codes, code.T.contiguous())[:, 0]
        near = whole.float().mul_(self._scale).mul_(scale)
        length = scale * code.float().norm()
        radius = self._error * length + (error + self._rounding)
        # At least k rows have products of at least this.
        least = (near - radius).topk(k).values[-1]
        # NumPy finds the few among very many several times as fast as torch.nonzero.
        return torch.from_numpy(np.flatnonzero((near.add_(radius) >= least).numpy()))


def _coded(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (n, D) int8, scales (n,), and the length of what the codes leave out (n,)."""
    scale = rows.abs().amax(1).clamp_min(1e-30) / 127
    codes = (rows / scale[:, None]).round()
    return codes.to(torch.int8), scale, (rows - codes * scale[:, None]).norm(dim=1)
