"""What a page's map shows from afar: the weights of square blocks, by their mean and by their largest.

Near by, the page computes each weight that it draws. From afar a cell stands for thousands, so a long text's page
brings them along, rounded to 8 bits: for colours. The numbers that the page says are computed from q and k alone.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from multihead.core.statistics import block_cells
from multihead.recording import Layer
from multihead.recording.maps import LayerMap
from multihead.recording.whole import blocks_of

CELLS = 1024
"""Blocks a side that a page carries at most. A text with no more tokens needs none: its map is computed in a moment."""

SMALLEST = 8
"""Tokens a side of the smallest block worth storing: finer cells cost a browser little."""


@dataclass(frozen=True)
class BlockMaps:
    """Square blocks of one layer's weights."""

    side: int
    """Tokens, a power of two."""
    means: Float[Tensor, "head row column"]
    peaks: Float[Tensor, "head row column"]
    keys: int

    def coded(self) -> tuple[np.ndarray, np.ndarray]:
        """u8, round(255 √·): of the share of a query's attention that a block's keys get, and of the largest weight."""
        shares = self.means * block_cells(self.keys, self.side).to(self.means.device)
        return _coded(shares), _coded(self.peaks)


def block_maps(layer: Layer, item: int) -> BlockMaps | None:
    """The blocks of a layer with a long text, as recorded if they are there, else measured; None for a short one.

    Raises:
        RecordingError: they were not recorded, and neither were q, k and lse to measure them.
    """
    longest = max(layer.query_count, layer.sizes.keys)
    if longest <= CELLS:
        return None
    side = max(SMALLEST, 1 << math.ceil(math.log2(longest / CELLS)))
    known, level = LayerMap(layer, item), side.bit_length() - 1
    means, peaks = (known.recorded(level, pooling) for pooling in ("mean", "max"))
    if means is None or peaks is None:
        means, peaks = blocks_of(layer, item, (side, side))
    return BlockMaps(side, means, peaks, layer.sizes.keys)


def _coded(values: Tensor) -> np.ndarray:
    return (255 * values.detach().cpu().double().clamp(0, 1).sqrt()).round().to(torch.uint8).numpy()
