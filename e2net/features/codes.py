"""Vectors in 8 bits, whose products say how far from the true ones they can be: the nearest of very many, exactly."""

from concurrent.futures import ThreadPoolExecutor

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
        column, length = code.T.contiguous(), float(code.float().norm())

        def bounds(part: slice) -> tuple[np.ndarray, Tensor]:
            """The most that each product can be, and the k largest of what they are at least."""
            # Rows by one column of whole numbers, in 32 bits; PyTorch has no public name for it.
            near = torch._int_mm(self._codes[part], column)[:, 0].numpy().astype(np.float32)
            near *= self._scale[part].numpy()
            near *= float(scale)
            radius = self._error[part].numpy() * (float(scale) * length)
            radius += float(error) + self._rounding
            least = torch.from_numpy(near - radius)
            near += radius
            return near, least.topk(min(k, len(least))).values

        # A part for each thread, as PyTorch takes but one for so narrow a product.
        step = max(k, -(-len(self._codes) // torch.get_num_threads()))
        parts = [slice(start, start + step) for start in range(0, len(self._codes), step)]
        with ThreadPoolExecutor(len(parts)) as pool:
            found = list(pool.map(bounds, parts))
        # At least k rows have products of at least this.
        least = float(torch.cat([largest for _, largest in found]).topk(k).values[-1])
        return torch.from_numpy(np.flatnonzero(np.concatenate([most for most, _ in found]) >= least))


def _coded(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (n, D) int8, scales (n,), and the length of what the codes leave out (n,)."""
    scale = rows.abs().amax(1).clamp_min(1e-30) / 127
    codes = (rows / scale[:, None]).round()
    return codes.to(torch.int8), scale, (rows - codes * scale[:, None]).norm(dim=1)
