"""Weights that were given, as the page carries them: 65535ths in two bytes each.

There is nothing to compute them from, so the page grows with the square of the tokens. A weight that is at most 1 moves
by half a step, 1/131070 = 7.7e-6, at most.
"""

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

ONE = 65535
"""A weight of 1 as an integer."""

_SAMPLE = 64


@dataclass(frozen=True)
class Rounded:
    """One layer's weights as a page carries them."""

    weights: np.ndarray
    """u16, (H, Lq, Lk)."""
    accuracy: float
    """The largest difference of a weight that was found; all were compared."""


def rounded(held: Tensor, *, item: int = 0) -> Rounded:
    """The integers of one layer's weights, (B, H, Lq, Lk), for one sequence of the batch.

    What rounding left above 1 becomes 1; the accuracy says by how much.

    Memory: the integers, and one head in float64.
    """
    found = np.empty(held.shape[1:], dtype=np.uint16)
    worst = 0.0
    for integers, head in zip(found, held[item], strict=True):
        exact = head.detach().cpu().double()
        integers[:] = _integers(exact)
        if exact.numel():
            worst = max(worst, float((torch.from_numpy(integers / ONE) - exact).abs().max()))
    return Rounded(found, worst)


def compressed_bytes(held: Tensor, *, item: int = 0) -> float:
    """About how many bytes one layer takes once it is compressed: some of its rows, compressed, stand for all."""
    rows = held[item].flatten(0, 1)
    if not rows.numel():
        return 0.0
    chosen = rows[:: -(-len(rows) // _SAMPLE)].detach().cpu().double()
    return len(zlib.compress(_integers(chosen).tobytes(), 6)) * len(rows) / len(chosen)


def _integers(weights: Tensor) -> np.ndarray:
    return weights.clamp(0.0, 1.0).mul(ONE).round().numpy().astype("<u2")
