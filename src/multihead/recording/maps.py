"""A head's whole map at every scale: rows of queries, columns of keys, pooled in squares whose side is a power of two.

At level z a cell is 2ᶻ recorded queries × 2ᶻ keys, cut at the map's edges; 256 × 256 cells are a tile, and at the last
level the map is one tile. Nothing of size Lq × Lk is formed: scores come in pieces that stay in a core's own cache and
are pooled at once. Coarse levels are pooled once more from block maps, recorded ones where there are any.
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from multihead.errors import RecordingError
from multihead.precision import accumulation_dtype
from multihead.recording.layer import Layer
from multihead.recording.outline import check_item, numbers
from multihead.recording.pieces import pieces
from multihead.recording.whole import Pause, blocks_of, kept_of

Pooling = Literal["mean", "max"]
"""What a cell says of its weights; hidden pairs count as 0."""

TILE = 256
"""Cells a side of a tile."""

SMALL = 4096
"""Tokens up to which a map is computed fast enough at every level, so that nothing need be stored for it."""

BLOCKS = 2048
"""Blocks a side that a block map has at most."""

COSTLY = 1 << 32
"""Weights of one tile beyond which a block map of the whole head is measured first, some ten seconds' worth."""

MEASURED_BYTES = 192 << 20
"""Block maps that were measured here are kept up to so many bytes, the latest asked ones."""

_REDUCTIONS: dict[str, Callable[..., Tensor]] = {"mean": torch.sum, "max": torch.amax}


def map_block(queries: int, keys: int) -> int | None:
    """The side of blocks worth recording for maps of so many queries and keys; None where nothing need be stored.

    It is the power of two that leaves at most ``BLOCKS`` blocks a side: for ``Statistics(blocks=(side, side),
    block_peaks=True)``.

    >>> map_block(131_072, 131_072), map_block(4097, 4097), map_block(512, 512)
    (64, 4, None)
    """
    longest = max(queries, keys)
    return None if longest <= SMALL else _power(longest, BLOCKS)


def _power(length: int, parts: int) -> int:
    """The smallest power of two of which ``parts`` cover a length."""
    return 1 << (max(1, math.ceil(length / parts)) - 1).bit_length()


@dataclass(frozen=True)
class _Blocks:
    """One head's weights pooled in squares of a power of two."""

    side: int
    pooled: dict[str, Tensor]
    """By pooling, each (rows of blocks, columns of blocks)."""


class LayerMap:
    """The maps of one layer's heads over one sequence.

    Args:
        layer: with q, k and the log-sum-exp, or the weights themselves; or with block maps
            (``Statistics(blocks=(s, s), block_peaks=True)``, s a power of two) for the levels from s up.
        item: the sequence in the batch.

    Raises:
        RecordingError: there is no such sequence.

    Memory: a tile and one piece of scores; at most ``MEASURED_BYTES`` of block maps that had to be measured.

    >>> import torch
    >>> from multihead import inspect
    >>> from multihead.masks import Sizes
    >>> q = torch.randn(1, 1, 600, 8)
    >>> _, seen = inspect(q, q, q)
    >>> kept = {"heads": (0,), "kv_heads": (0,), "scale": 8**-0.5, "q": q, "k": q, "statistics": seen}
    >>> layer = Layer(index=0, name="attn", host="multihead", sizes=Sizes(1, 1, 600, 600), **kept)
    >>> found = LayerMap(layer)
    >>> found.levels, found.shape(2), found.tile(0, 2, 0, 0, "max").shape
    (3, (150, 150), torch.Size([150, 150]))
    """

    def __init__(self, layer: Layer, item: int = 0) -> None:
        check_item(item, layer.sizes.batch)
        self.layer, self.item = layer, item
        self.rows, self.keys = layer.query_count, layer.sizes.keys
        self.levels = _power(max(self.rows, self.keys), TILE).bit_length()
        self._measured: OrderedDict[int, _Blocks] = OrderedDict()
        self._keeping, self._measuring = threading.Lock(), threading.RLock()

    def shape(self, level: int) -> tuple[int, int]:
        """Rows and columns of cells at a level.

        Raises:
            RecordingError: there is no such level.
        """
        if not 0 <= level < self.levels:
            raise RecordingError(f"there is no level {level}: the map has levels {numbers(range(self.levels))}.")
        return -(-self.rows >> level), -(-self.keys >> level)

    def finest(self, pooling: Pooling) -> int | None:
        """The finest level that can be had: 0 where weights can be recomputed; None where nothing was recorded."""
        if self._computes:
            return 0
        side = self._recorded_side
        if side is None or pooling not in self._recorded_names:
            return None
        return side.bit_length() - 1 if side < 1 << self.levels else None

    @torch.no_grad()
    def tile(
        self, head: int, level: int, y: int, x: int, pooling: Pooling, *, pause: Pause | None = None
    ) -> Float[Tensor, "row column"]:
        """Cells [256y, 256y + 256) × [256x, 256x + 256) of a level, cut at the map's edge, float32.

        Args:
            head: the model's own number.
            level: 0 for the weights themselves.
            y: which tile, from the first query.
            x: which tile, from the first key.
            pooling: ``mean`` or ``max``.
            pause: called between pieces of work; what it raises ends the work.

        Raises:
            RecordingError: there is no such head, level or tile, or it cannot be had from what was recorded.
            ValueError: ``pooling`` is neither.
        """
        height, width = self.shape(level)
        tops, lefts = range(0, max(height, 1), TILE), range(0, max(width, 1), TILE)
        if not (0 <= y < len(tops) and 0 <= x < len(lefts)):
            raise RecordingError(
                f"there is no tile ({y}, {x}) at level {level}: it has {len(tops)} × {len(lefts)} tiles."
            )
        rows, columns = range(height)[y * TILE : (y + 1) * TILE], range(width)[x * TILE : (x + 1) * TILE]
        return self._cells(head, level, rows, columns, pooling, pause)

    @torch.no_grad()
    def cell(self, head: int, level: int, row: int, column: int, pooling: Pooling) -> float:
        """One cell of a level. See :meth:`tile`."""
        height, width = self.shape(level)
        if not (0 <= row < height and 0 <= column < width):
            raise RecordingError(f"there is no cell ({row}, {column}) at level {level}: it has {height} × {width}.")
        rows, columns = range(row, row + 1), range(column, column + 1)
        return self._cells(head, level, rows, columns, pooling, None).item()

    def lacks_blocks(self, head: int, level: int, y: int, x: int, pooling: Pooling) -> bool:
        """Whether this tile waits for a block map of the whole head that is neither recorded nor measured yet."""
        height, width = self.shape(level)
        rows, columns = range(height)[y * TILE : (y + 1) * TILE], range(width)[x * TILE : (x + 1) * TILE]
        if self._blocks(self._place(head), level, pooling) is not None or not self._computes:
            return False
        return self._is_costly(level, rows, columns)

    @torch.no_grad()
    def measure(self, head: int, *, pause: Pause | None = None) -> None:
        """Measure and keep the block map of a head, both poolings: one pass over all its weights.

        Raises:
            RecordingError: there is no such head, or no q, k and log-sum-exp.
        """
        place = self._place(head)
        with self._measuring:
            if self._known(place) is not None:
                return
            side = _power(max(self.rows, self.keys), BLOCKS)
            found = blocks_of(self.layer, self.item, (side, side), places=range(place, place + 1), pause=pause)
            means, peaks = (cells[0].cpu().float() for cells in found)
            with self._keeping:
                self._measured[place] = _Blocks(side, {"mean": means, "max": peaks})
                while len(self._measured) > 1 and self._measured_bytes() > MEASURED_BYTES:
                    self._measured.popitem(last=False)

    def recorded(self, level: int, pooling: Pooling) -> Float[Tensor, "head row column"] | None:
        """All heads at a level from recorded blocks, float32; None where none were recorded that are so fine."""
        height, width = self.shape(level)
        side = self._recorded_side
        if side is None or side > 1 << level or pooling not in self._recorded_names:
            return None
        cells = range(height), range(width)
        maps = (_Blocks(side, {pooling: head}) for head in self._recorded_names[pooling][self.item])
        return torch.stack([self._from_blocks(blocks, level, *cells, pooling) for blocks in maps])

    def _known(self, place: int) -> _Blocks | None:
        """A head's map that was measured, which is thereby the last to be forgotten."""
        with self._keeping:
            if place in self._measured:
                self._measured.move_to_end(place)
            return self._measured.get(place)

    def _measured_bytes(self) -> int:
        return sum(cells.nbytes for blocks in self._measured.values() for cells in blocks.pooled.values())

    def _place(self, head: int) -> int:
        if head not in self.layer.heads:
            raise RecordingError(
                f"head {head} of layer {self.layer.index} was not recorded: its heads are {numbers(self.layer.heads)}."
            )
        return self.layer.heads.index(head)

    @property
    def _computes(self) -> bool:
        return self.layer.recomputes or self.layer.shape_of("weights") is not None

    @property
    def _recorded_names(self) -> dict[str, Tensor]:
        found = self.layer.statistics
        maps = {"mean": found.blocks, "max": found.block_peaks}
        return {pooling: tensor for pooling, tensor in maps.items() if tensor is not None}

    @property
    def _recorded_side(self) -> int | None:
        """The side of recorded blocks that a map can be made of: squares of a power of two over all queries."""
        size = self.layer.statistics.block_size
        if size is None or self.layer.queries is not None:
            return None
        height, width = size.tolist()
        return height if height == width and height & (height - 1) == 0 else None

    def _blocks(self, place: int, level: int, pooling: Pooling) -> _Blocks | None:
        """A block map of a head that a level can be made of."""
        side = self._recorded_side
        if side is not None and side <= 1 << level and pooling in self._recorded_names:
            return _Blocks(side, {pooling: self._recorded_names[pooling][self.item, place]})
        measured = self._known(place)
        return None if measured is None or measured.side > 1 << level else measured

    def _is_costly(self, level: int, rows: range, columns: range) -> bool:
        """Whether some cells take so many weights that the whole head's block map had better be measured."""
        if 1 << level < _power(max(self.rows, self.keys), BLOCKS):
            return False
        height, width = (len(_spread(cells, level, length)) for cells, length in self._axes(rows, columns))
        return height * width > COSTLY

    def _axes(self, rows: range, columns: range) -> tuple[tuple[range, int], tuple[range, int]]:
        return (rows, self.rows), (columns, self.keys)

    def _cells(
        self, head: int, level: int, rows: range, columns: range, pooling: Pooling, pause: Pause | None
    ) -> Tensor:
        if pooling not in _REDUCTIONS:
            raise ValueError(f"pooling={pooling!r} is neither 'mean' nor 'max'.")
        place = self._place(head)
        blocks = self._blocks(place, level, pooling)
        if blocks is None:
            if not self._computes:
                raise RecordingError(self._why_not(level, pooling))
            if self._is_costly(level, rows, columns):
                self.measure(head, pause=pause)
                blocks = self._blocks(place, level, pooling)
        if blocks is not None:
            return self._from_blocks(blocks, level, rows, columns, pooling)
        queries, keys = (_spread(cells, level, length) for cells, length in self._axes(rows, columns))
        return self._computed(place, queries, keys, 1 << level, pooling, pause)

    def _why_not(self, level: int, pooling: Pooling) -> str:
        finest = self.finest(pooling)
        words = f"layer {self.layer.index} holds no queries, keys and log-sum-exp to recompute weights from"
        if finest is None:
            return (
                f"{words}, and no block map of the {pooling}: observe with qk=True, or with "
                "Statistics(blocks=(64, 64), block_peaks=True)."
            )
        return f"{words}: its block map begins at level {finest}, which is coarser than level {level}."

    def _from_blocks(self, blocks: _Blocks, level: int, rows: range, columns: range, pooling: Pooling) -> Tensor:
        """Cells as pools of blocks; a mean counts each block by its pairs."""
        factor, known = (1 << level) // blocks.side, blocks.pooled[pooling]
        sums, counts = known, []
        for axis, (cells, length) in enumerate(self._axes(rows, columns)):
            chosen = range(known.shape[axis])[cells.start * factor : cells.stop * factor]
            sums = sums.narrow(axis, chosen.start, len(chosen))
            counts.append((_sides(chosen, blocks.side, length), _sides(cells, 1 << level, length)))
        if pooling == "max":
            return _pooled(sums, factor, pooling).cpu().float()
        (heights, tall), (widths, wide) = counts
        pairs = (heights[:, None] * widths).to(sums.device)
        return (_pooled(sums.double() * pairs, factor, pooling).cpu() / (tall[:, None] * wide)).float()

    def _computed(
        self, place: int, rows: range, keys: range, side: int, pooling: Pooling, pause: Pause | None
    ) -> Tensor:
        """Cells of recorded rows and keys, which begin at a cell's edge, from q, k and the log-sum-exp; float32."""
        tall, wide = (math.ceil(len(span) / side) for span in (rows, keys))
        held = self.layer.weights
        device = (kept_of(self.layer)[0] if held is None else held).device
        # a mean is the sum of many pieces' sums
        dtype = accumulation_dtype(device) if pooling == "mean" else torch.float32
        cells = torch.zeros(tall, wide, dtype=dtype, device=device)
        for top, left, piece in pieces(self.layer, self.item, place, rows, keys, side, pause):
            row, column = (top - rows.start) // side, (left - keys.start) // side
            pooled = _pooled(piece, side, pooling)
            there = cells[row : row + pooled.shape[0], column : column + pooled.shape[1]]
            if pooling == "mean":
                there += pooled
            else:
                torch.maximum(there, pooled.to(dtype), out=there)
        if pooling == "mean":
            heights, widths = (
                _sides(range(span.start // side, span.start // side + count), side, span.stop)
                for span, count in ((rows, tall), (keys, wide))
            )
            cells /= (heights[:, None] * widths).to(device)
        return cells.cpu().float()


def _spread(cells: range, level: int, length: int) -> range:
    """The rows or keys of some cells, cut at the edge."""
    return range(cells.start << level, min(cells.stop << level, length))


def _sides(cells: range, side: int, length: int) -> Tensor:
    """How many rows or keys each cell really has, float64."""
    starts = torch.arange(cells.start, cells.stop, dtype=torch.float64) * side
    return (length - starts).clamp(max=side)


def _pooled(tensor: Tensor, side: int, pooling: str) -> Tensor:
    """Sums or maxima of squares, along rows first; the last ones may be smaller."""
    reduce = _REDUCTIONS[pooling]
    for axis in (0, 1):
        whole = tensor.shape[axis] // side
        parts = []
        if whole:
            parts.append(reduce(tensor.narrow(axis, 0, whole * side).unflatten(axis, (whole, side)), axis + 1))
        if tensor.shape[axis] > whole * side:
            rest = tensor.narrow(axis, whole * side, tensor.shape[axis] - whole * side)
            parts.append(reduce(rest, axis, keepdim=True))
        tensor = parts[0] if len(parts) == 1 else torch.cat(parts, dim=axis)
    return tensor
