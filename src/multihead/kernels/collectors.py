"""One small object per statistic: it is shown every tile once and then says what it gathered.

A collector allocates its answer when it is made, adds each tile to it, and never keeps a tile.
"""

import abc

import torch
from torch import Tensor

from multihead.core import AttentionCall, Measurements, OwnAnswers, Statistics, WeightTile, block_means, nonfinite
from multihead.kernels.tiles import Tile, grouped_matmul
from multihead.precision import accumulation_dtype, statistics_dtype


class Collector(abc.ABC):
    """Gathers one statistic from tiles."""

    def __init__(self, call: AttentionCall, queries: Tensor) -> None:
        self.call = call
        self.sizes = call.sizes
        self.queries = queries
        self.count = len(queries)
        self.dtype = statistics_dtype(call.q.dtype)
        self.sum_dtype = accumulation_dtype(call.q.device)

    @abc.abstractmethod
    def add(self, tile: Tile) -> None:
        """Take what one tile has to say."""

    @abc.abstractmethod
    def answer(self) -> dict[str, Tensor]:
        """The statistic, under its names in :meth:`multihead.core.Measurements.named`."""

    def _empty(self, *shape: int, dtype: torch.dtype | None = None, fill: int = 0) -> Tensor:
        return torch.full((self.sizes.batch, *shape), fill, dtype=dtype or self.dtype, device=self.call.q.device)

    def _mask_heads(self) -> int:
        """The size of the head axis of what is visible: 1 where all heads see the same."""
        mask = self.call.mask
        if mask is None or not self.count or not self.sizes.keys:
            return 1
        return mask.visible(self.queries[:1], self.queries.new_zeros(1), self.sizes).shape[1]


class PerQuery(Collector):
    """A number per query that the tile already knows: ``lse``, ``max_score``, ``sink``."""

    def __init__(self, call: AttentionCall, queries: Tensor, name: str, attribute: str) -> None:
        super().__init__(call, queries)
        self.name, self.attribute = name, attribute
        self.found = self._empty(self.sizes.heads, self.count)

    def add(self, tile: Tile) -> None:
        value = getattr(tile, self.attribute)
        if value is not None:
            self.found[tile.part.batch, tile.part.heads, tile.part.rows] = value

    def answer(self) -> dict[str, Tensor]:
        return {self.name: self.found}


class Entropy(Collector):
    """-Σ P log P, the sink's share included."""

    def __init__(self, call: AttentionCall, queries: Tensor) -> None:
        super().__init__(call, queries)
        self.found = self._empty(self.sizes.heads, self.count)

    def add(self, tile: Tile) -> None:
        entropy = torch.special.entr(tile.weights).sum(-1)
        if tile.sink is not None:
            entropy = entropy + torch.special.entr(tile.sink)
        self.found[tile.part.batch, tile.part.heads, tile.part.rows] = entropy

    def answer(self) -> dict[str, Tensor]:
        return {"entropy": self.found}


class Visible(Collector):
    """How many keys each query may see."""

    def __init__(self, call: AttentionCall, queries: Tensor) -> None:
        super().__init__(call, queries)
        self.found = self._empty(self._mask_heads(), self.count, dtype=torch.int64)

    def add(self, tile: Tile) -> None:
        part = tile.part
        heads = part.heads if self.found.shape[1] != 1 else slice(None)
        keys = part.keys.stop - part.keys.start
        if tile.visible is None:
            seen = keys
        elif tile.visible.shape[-1] == 1:
            seen = tile.visible[..., 0] * keys
        else:
            seen = tile.visible.sum(-1)
        self.found[part.batch, heads, part.rows] = seen

    def answer(self) -> dict[str, Tensor]:
        return {"visible": self.found}


class Top(Collector):
    """The largest weights of each query and their keys, by score, ties to the lower key."""

    def __init__(self, call: AttentionCall, queries: Tensor, count: int) -> None:
        super().__init__(call, queries)
        self.k = min(count, self.sizes.keys)
        self.weights = self._empty(self.sizes.heads, self.count, self.k)
        self.keys = self._empty(self.sizes.heads, self.count, self.k, dtype=torch.int64, fill=-1)

    def add(self, tile: Tile) -> None:
        k = min(self.k, tile.scores.shape[-1])
        scores, keys = largest(tile.scores, k)
        hidden = scores == -torch.inf
        where = (tile.part.batch, tile.part.heads, tile.part.rows, slice(k))
        self.weights[where] = tile.weights.gather(-1, keys).masked_fill(hidden, 0.0)
        self.keys[where] = (keys + tile.part.keys.start).masked_fill(hidden, -1)

    def answer(self) -> dict[str, Tensor]:
        return {"top_weights": self.weights, "top_keys": self.keys}


def largest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """``torch.topk`` over the last axis whose ties go to the lower index, which torch leaves open."""
    if not k:
        return scores[..., :0], scores[..., :0].long()
    values, indices = scores.topk(k, dim=-1)
    tied = (scores >= values[..., -1:]).sum(-1) > k
    tied |= (values[..., 1:] == values[..., :-1]).any(-1)
    if tied.any():
        ordered = scores[tied].sort(dim=-1, descending=True, stable=True)
        values[tied], indices[tied] = ordered.values[..., :k], ordered.indices[..., :k]
    return values, indices


class Received(Collector):
    """Attention that each key receives, in total and per query that may see it."""

    def __init__(self, call: AttentionCall, queries: Tensor) -> None:
        super().__init__(call, queries)
        self.total = self._empty(self.sizes.heads, self.sizes.keys, dtype=self.sum_dtype)
        self.seers = self._empty(self._mask_heads(), self.sizes.keys, dtype=self.sum_dtype)

    def add(self, tile: Tile) -> None:
        part = tile.part
        self.total[part.batch, part.heads, part.keys] += tile.weights.sum(-2)
        rows = len(part.queries)
        if self.seers.shape[1] != 1:
            heads = part.heads
        elif part.heads.start:
            return  # all heads see the same, and the first have been counted
        else:
            heads = slice(None)
        if tile.visible is None:
            seen: Tensor | int = rows
        elif tile.visible.shape[-2] == 1:
            seen = tile.visible[..., 0, :] * rows
        else:
            seen = tile.visible.sum(-2)
        self.seers[part.batch, heads, part.keys] += seen

    def answer(self) -> dict[str, Tensor]:
        mean = self.total / self.seers.masked_fill(self.seers == 0, 1.0)
        return {"received": self.total.to(self.dtype), "received_mean": mean.to(self.dtype)}


class Offsets(Collector):
    """Attention mass by distance between a query's position and the key."""

    def __init__(self, call: AttentionCall, queries: Tensor, edges: tuple[int, ...]) -> None:
        super().__init__(call, queries)
        self.edges = torch.tensor(edges, device=call.q.device)
        self.mass = self._empty(self.sizes.heads, len(edges) - 1, dtype=self.sum_dtype)

    def add(self, tile: Tile) -> None:
        part, keys = tile.part, tile.weights.shape[-1]
        sums = torch.zeros((*tile.weights.shape[:-1], keys + 1), dtype=self.sum_dtype, device=tile.weights.device)
        torch.cumsum(tile.weights, -1, dtype=self.sum_dtype, out=sums[..., 1:])
        positions = part.queries + self.sizes.offset - part.keys.start
        # as many keys lie at least an edge away as there are up to position - edge
        first_within = (positions[:, None] - self.edges + 1).clamp(0, keys).expand(*sums.shape[:-1], -1)
        below = sums.gather(-1, first_within)
        self.mass[part.batch, part.heads] += (below[..., :-1] - below[..., 1:]).sum(-2)

    def answer(self) -> dict[str, Tensor]:
        return {"offsets": self.mass.clamp_min(0.0).to(self.dtype), "offset_edges": self.edges}


class Blocks(Collector):
    """Mean and largest weight of each block of queries and keys. Tiles start at multiples of the key block."""

    def __init__(self, call: AttentionCall, queries: Tensor, blocks: tuple[int, int], *, peaks: bool) -> None:
        super().__init__(call, queries)
        self.height, self.width = blocks
        down, across = (
            -(-length // size) for length, size in ((self.count, self.height), (self.sizes.keys, self.width))
        )
        self.total = self._empty(self.sizes.heads, down, across, dtype=self.sum_dtype)
        self.peaks = self._empty(self.sizes.heads, down, across) if peaks else None

    def add(self, tile: Tile) -> None:
        part, keys = tile.part, tile.weights.shape[-1]
        if not keys:
            return
        padded = torch.nn.functional.pad(tile.weights, (0, -keys % self.width)).unflatten(-1, (-1, self.width))
        places = torch.arange(part.rows.start, part.rows.stop, device=padded.device) // self.height
        first = part.keys.start // self.width
        where = (part.batch, part.heads, slice(None), slice(first, first + padded.shape[-2]))
        self.total[where].index_add_(2, places, padded.sum(-1).to(self.sum_dtype))
        if self.peaks is not None:
            largest_across = padded.amax(-1)
            self.peaks[where].scatter_reduce_(2, places[:, None].expand_as(largest_across), largest_across, "amax")

    def answer(self) -> dict[str, Tensor]:
        means = block_means(self.total, (self.height, self.width), self.count, self.sizes.keys)
        size = torch.tensor([self.height, self.width], device=self.total.device)
        found = {"blocks": means.to(self.dtype), "block_size": size}
        return found if self.peaks is None else found | {"block_peaks": self.peaks}


class Rows(Collector):
    """Whole rows of weights of chosen queries."""

    def __init__(self, call: AttentionCall, queries: Tensor, rows: tuple[int, ...]) -> None:
        super().__init__(call, queries)
        places = {int(query): place for place, query in enumerate(queries)}
        self.rows = torch.tensor(rows, dtype=torch.int64, device=queries.device)
        self.places = torch.tensor([places[row] for row in rows], dtype=torch.int64, device=queries.device)
        self.found = self._empty(self.sizes.heads, len(rows), self.sizes.keys)

    def add(self, tile: Tile) -> None:
        part = tile.part
        mine = ((self.places >= part.rows.start) & (self.places < part.rows.stop)).nonzero()[:, 0]
        if len(mine):
            rows = tile.weights[:, :, self.places[mine] - part.rows.start]
            self.found[part.batch, part.heads, :, part.keys].index_copy_(2, mine, rows)

    def answer(self) -> dict[str, Tensor]:
        return {"rows": self.found, "row_queries": self.rows}


class Columns(Collector):
    """Whole columns of weights of chosen keys."""

    def __init__(self, call: AttentionCall, queries: Tensor, columns: tuple[int, ...]) -> None:
        super().__init__(call, queries)
        self.columns = torch.tensor(columns, dtype=torch.int64, device=queries.device)
        self.found = self._empty(self.sizes.heads, self.count, len(columns))

    def add(self, tile: Tile) -> None:
        part = tile.part
        mine = ((self.columns >= part.keys.start) & (self.columns < part.keys.stop)).nonzero()[:, 0]
        if len(mine):
            columns = tile.weights[..., self.columns[mine] - part.keys.start]
            self.found[part.batch, part.heads, part.rows].index_copy_(3, mine, columns)

    def answer(self) -> dict[str, Tensor]:
        return {"columns": self.found, "column_keys": self.columns}


class Own(Collector):
    """Statistics of the user's own."""

    def __init__(self, call: AttentionCall, queries: Tensor, statistics: Statistics) -> None:
        super().__init__(call, queries)
        self.answers = OwnAnswers(
            statistics.own, call.sizes, self.count, dtype=self.dtype, sums=self.sum_dtype, device=call.q.device
        )

    def add(self, tile: Tile) -> None:
        part = tile.part
        self.answers.add(WeightTile(tile.weights, part.batch, part.heads, part.queries, part.keys), part.rows)

    def answer(self) -> dict[str, Tensor]:
        return self.answers.answer()


class Output(Collector):
    """Σ P v, in the dtype of the statistics."""

    def __init__(self, call: AttentionCall, queries: Tensor) -> None:
        super().__init__(call, queries)
        self.careful = nonfinite(call.v)
        self.found = self._empty(self.sizes.heads, self.count, call.v.shape[-1])

    def add(self, tile: Tile) -> None:
        part = tile.part
        v = self.call.v[part.batch, part.kv_heads, part.keys].to(self.dtype)
        self.found[part.batch, part.heads, part.rows] = (
            self._careful(tile, v) if self.careful else grouped_matmul(tile.weights, v)
        )

    def _careful(self, tile: Tile, v: Tensor) -> Tensor:
        """As the product, but NaN and inf reach only the queries that see them."""
        finite = v.isfinite()
        found = grouped_matmul(tile.weights, v.masked_fill(~finite, 0.0))
        seen = torch.ones_like(tile.weights)
        if tile.visible is not None:
            seen = seen * tile.visible
        poisoned = grouped_matmul(seen, (~finite).to(self.dtype)) > 0
        return torch.where(poisoned, grouped_matmul(tile.weights, v), found)

    def answer(self) -> dict[str, Tensor]:
        return {"output": self.found}


def collectors_for(call: AttentionCall, statistics: Statistics, queries: Tensor) -> list[Collector]:
    """The collectors of the statistics that were asked for."""
    chosen: list[Collector] = [
        PerQuery(call, queries, name, attribute)
        for name, attribute in (("lse", "lse"), ("max_score", "peak"), ("sink", "sink"))
        if getattr(statistics, name)
    ]
    if statistics.entropy:
        chosen.append(Entropy(call, queries))
    if statistics.visible:
        chosen.append(Visible(call, queries))
    if statistics.top:
        chosen.append(Top(call, queries, statistics.top))
    if statistics.received:
        chosen.append(Received(call, queries))
    if statistics.offsets:
        chosen.append(Offsets(call, queries, statistics.edges(call.sizes)))
    if statistics.blocks is not None:
        chosen.append(Blocks(call, queries, statistics.blocks, peaks=statistics.block_peaks))
    if statistics.rows is not None:
        chosen.append(Rows(call, queries, statistics.rows))
    if statistics.columns is not None:
        chosen.append(Columns(call, queries, statistics.columns))
    if statistics.own:
        chosen.append(Own(call, queries, statistics))
    return chosen


def measurements_of(chosen: list[Collector]) -> Measurements:
    """What the collectors found, as one object."""
    answers: dict[str, Tensor] = {}
    for collector in chosen:
        answers.update(collector.answer())
    return Measurements.of(answers)
