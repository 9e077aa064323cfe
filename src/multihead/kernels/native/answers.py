"""Where the compiled code writes what it finds, and what that makes in the library's words."""

import torch
from torch import Tensor

from multihead.core import AttentionCall, Measurements, Statistics, block_means
from multihead.kernels.native.jobs import Jobs
from multihead.kernels.seen import Seen

TILE = 1 << 24
"""Most pairs of queries and keys that are looked at together where what is visible is counted."""

NONE = torch.empty(0, dtype=torch.int64)
"""No rows, no keys, no edges."""


class Answers:
    """The tensors of one measurement."""

    def __init__(self, call: AttentionCall, statistics: Statistics, seen: Seen, jobs: Jobs, strands: int) -> None:
        self.call, self.statistics, self.seen = call, statistics, seen
        self.jobs, self.sizes = jobs, call.sizes
        sizes = call.sizes
        batch, heads, count, keys = sizes.batch, sizes.heads, jobs.count, sizes.keys
        self.lse, self.peak, self.entropy, self.sink = (_floats(batch, heads, count) for _ in range(4))
        top = min(statistics.top, keys)
        self.top = _floats(batch, heads, count, top) if statistics.top else None
        self.top_keys = torch.empty(batch, heads, count, top, dtype=torch.int64) if statistics.top else NONE
        self.edges = torch.tensor(statistics.edges(sizes)) if statistics.offsets else NONE
        self.received = self._sums(strands, keys) if statistics.received else None
        self.offsets = self._sums(strands, len(self.edges) - 1) if statistics.offsets else None
        self.blocks = self.block_peaks = None
        self.pieces = NONE
        if statistics.blocks is not None:
            self.pieces = jobs.pieces()
            across = -(-keys // statistics.blocks[1])
            self.blocks = self._sums(len(self.pieces), across)
            if statistics.block_peaks:
                self.block_peaks = _floats(batch, heads, len(self.pieces), across).zero_()
        self.chosen_rows, self.chosen_columns = (
            torch.tensor(chosen, dtype=torch.int64) if chosen else NONE
            for chosen in (statistics.rows, statistics.columns)
        )
        self.rows = self.row_slots = self.columns = None
        if statistics.rows is not None:
            slots = torch.full((sizes.queries,), -1)
            slots[self.chosen_rows] = torch.arange(len(self.chosen_rows))
            self.row_slots = slots[seen.queries]
            self.rows = _floats(batch, heads, len(self.chosen_rows), keys).zero_()
        if statistics.columns is not None:
            self.columns = _floats(batch, heads, count, len(self.chosen_columns)).zero_()

    def _sums(self, *shape: int) -> Tensor:
        return torch.zeros(self.sizes.batch, self.sizes.heads, *shape, dtype=torch.float64)

    @property
    def pointed(self) -> dict[str, Tensor | None]:
        """What the compiled code is told of, by its names."""
        return {
            "lse": self.lse, "peak": self.peak, "entropy": self.entropy, "sink": self.sink,
            "top": self.top, "top_keys": self.top_keys, "received": self.received,
            "edges": self.edges, "offsets": self.offsets,
            "blocks": self.blocks, "block_peaks": self.block_peaks,
            "row_slots": self.row_slots, "rows": self.rows,
            "column_keys": self.chosen_columns, "columns": self.columns,
        }  # fmt: skip

    @property
    def counts(self) -> dict[str, int]:
        """How much of it there is, by the names of the compiled code."""
        height, width = self.statistics.blocks or (1, 1)
        return {
            "top_count": self.top_keys.shape[-1],
            "bins": 0 if self.offsets is None else self.offsets.shape[-1],
            "block_height": height,
            "block_width": width,
            "pieces": len(self.pieces),
            "across": 0 if self.blocks is None else self.blocks.shape[-1],
            "whole_blocks": self.jobs.whole,
            "row_count": len(self.chosen_rows),
            "column_count": len(self.chosen_columns),
        }

    def measurements(self, own: dict[str, Tensor]) -> Measurements:
        """All that was asked for; ``own`` is what statistics of the user's own said."""
        asked, found = self.statistics, self._of_rows()
        if asked.visible or asked.received:
            visible, seers = self._counted()
            if asked.visible:
                found["visible"] = visible
            if self.received is not None:
                total = self.received.sum(2)
                found["received"] = total.float()
                found["received_mean"] = (total / seers.clamp(min=1)).float()
        if self.offsets is not None:
            found["offsets"], found["offset_edges"] = self.offsets.sum(2).float(), self.edges
        if self.blocks is not None and asked.blocks is not None:
            total, peaks = self._whole_blocks()
            found["blocks"] = block_means(total, asked.blocks, len(self.seen.queries), self.sizes.keys).float()
            found["block_size"] = torch.tensor(asked.blocks)
            if peaks is not None:
                found["block_peaks"] = peaks
        if self.rows is not None:
            found["rows"], found["row_queries"] = self.rows, self.chosen_rows
        if self.columns is not None:
            found["columns"], found["column_keys"] = self.columns, self.chosen_columns
        return Measurements.of(found | own)

    def _whole_blocks(self) -> tuple[Tensor, Tensor | None]:
        """Sums and peaks of blocks, from those of the pieces that jobs were about."""
        assert self.blocks is not None  # noqa: S101  asked for
        if self.jobs.whole:
            return self.blocks, self.block_peaks
        rows, across = -(-self.jobs.count // self.jobs.height), self.blocks.shape[-1]
        total = self._sums(rows, across).index_add_(2, self.pieces, self.blocks)
        if self.block_peaks is None:
            return total, None
        place = self.pieces[:, None].expand_as(self.block_peaks)
        return total, self.block_peaks.new_zeros(total.shape).scatter_reduce_(2, place, self.block_peaks, "amax")

    def _of_rows(self) -> dict[str, Tensor]:
        asked, found = self.statistics, {}
        named = (("lse", self.lse), ("max_score", self.peak), ("entropy", self.entropy), ("sink", self.sink))
        for name, value in named:
            if getattr(asked, name):
                found[name] = value
        if asked.top:
            found["top_weights"], found["top_keys"] = self.top, self.top_keys
        return found

    def _counted(self) -> tuple[Tensor, Tensor]:
        """How many keys each query sees, and how many queries see each key."""
        sizes, queries = self.sizes, len(self.seen.queries)
        if self.call.mask is None:
            return torch.full((sizes.batch, 1, queries), sizes.keys), torch.tensor(queries)
        if self.seen.only_spans:
            assert self.seen.spans is not None  # noqa: S101  there is a mask, and they say all of it
            first, stop = self.seen.spans
            steps = torch.zeros(*first.shape[:2], self.sizes.keys + 1, dtype=torch.int64)
            steps.scatter_add_(2, first, torch.ones_like(first)).scatter_add_(2, stop, -torch.ones_like(stop))
            visible, seers = stop - first, steps.cumsum(2)[..., :-1]
        else:
            visible, seers = self._counted_one_by_one()
        return visible.expand(self.sizes.batch, -1, -1).contiguous(), seers

    def _counted_one_by_one(self) -> tuple[Tensor, Tensor]:
        mask, sizes = self.call.mask, self.sizes
        assert mask is not None  # noqa: S101  without one, a range says all
        visible: list[Tensor] = []
        seers = torch.zeros((), dtype=torch.int64)
        for some in self.seen.queries.split(max(1, TILE // (sizes.batch * sizes.heads * sizes.keys))):
            seen = mask.visible(some, torch.arange(sizes.keys), sizes)
            seen = seen.expand(*seen.shape[:2], len(some), sizes.keys)
            visible.append(seen.sum(-1))
            seers = seers + seen.sum(-2)
        return torch.cat(visible, 2), seers


def _floats(*shape: int) -> Tensor:
    """Room for what the compiled code writes, whatever torch's default type is."""
    return torch.empty(shape, dtype=torch.float32)
