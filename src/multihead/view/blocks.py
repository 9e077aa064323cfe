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

from multihead.core import AttentionCall, PartOfMask, Statistics
from multihead.core.statistics import block_cells, block_means
from multihead.kernels import measure
from multihead.recording import Layer
from multihead.view.codec import kept

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
    """The blocks of a layer with a long text; None for a short one.

    Raises:
        ValueError: they were not recorded, and neither were q, k and lse to measure them.
    """
    longest = max(layer.query_count, layer.sizes.keys)
    if longest <= CELLS:
        return None
    side = max(SMALLEST, 1 << math.ceil(math.log2(longest / CELLS)))
    means, peaks = measured_blocks(layer, item, (side, side))
    return BlockMaps(side, means, peaks, layer.sizes.keys)


def measured_blocks(
    layer: Layer, item: int, blocks: tuple[int, int]
) -> tuple[Float[Tensor, "head row column"], Float[Tensor, "head row column"]]:
    """Mean and largest weight of each block of recorded queries × keys, from q and k or from the weights themselves."""
    if layer.weights is not None:
        return _blocks_of(layer.weights[item], blocks)
    q, k, _ = kept(layer)
    bias = None if layer.bias is None else layer.bias[[min(item, layer.bias.shape[0] - 1)]]
    k = k[[item]][:, list(layer.kv_heads)]
    mask = None
    if layer.mask is not None:
        queries = None if layer.queries is None else torch.tensor(layer.queries)
        mask = PartOfMask(layer.mask, layer.sizes, item, torch.tensor(layer.heads), queries)
    # the CPU kernel wants values, of whatever kind
    call = AttentionCall(q[[item]], k, k[..., :1], mask, bias, layer.scale, layer.softcap, layer.sinks)
    found = measure(call, Statistics.only(blocks=blocks, block_peaks=True))[1].named()
    return found["blocks"][0], found["block_peaks"][0]


def _blocks_of(weights: Tensor, blocks: tuple[int, int]) -> tuple[Tensor, Tensor]:
    height, width = blocks
    queries, keys = weights.shape[1:]
    whole = torch.nn.functional.pad(weights, (0, -keys % width, 0, -queries % height))
    cells = whole.unflatten(2, (-1, width)).unflatten(1, (-1, height))
    return block_means(cells.sum((2, 4)), blocks, queries, keys), cells.amax((2, 4))


def _coded(values: Tensor) -> np.ndarray:
    return (255 * values.detach().cpu().double().clamp(0, 1).sqrt()).round().to(torch.uint8).numpy()
