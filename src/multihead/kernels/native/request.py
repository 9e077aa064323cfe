"""A measurement as the compiled code is asked for it: addresses, strides and sizes, some jobs at a time."""

import threading
from array import array
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from multihead.core import AttentionCall, Measurements, OwnAnswers, Statistics, WeightTile
from multihead.kernels.native.answers import Answers
from multihead.kernels.native.jobs import Jobs, strands
from multihead.kernels.native.load import loaded
from multihead.kernels.native.platform import Platform, platform
from multihead.kernels.native.record import CHUNK, KEPT_ROWS, ROWS, SHORT_ROWS, record_of
from multihead.kernels.seen import Seen, Table, broadcast_strides
from multihead.masks import Sizes

TILE = 1 << 22
"""Most numbers of a mask or bias that are computed for some queries and all keys."""

SHOWN = 1 << 23
"""Most weights of all heads that are shown together to statistics of a user's own, unless one query has more."""

LAUNCH_FLOPS = 2e11
"""Work after which Python is asked again, so that an interrupt is heard: about a second on two cores."""

SCRATCH = 1 << 29
"""Most bytes that all threads together keep of a pass; a long row may then be left to fewer threads."""

KEPT = 1 << 24
"""Bytes of scratch that stay allocated for the next call."""

_local = threading.local()


class Request:
    """One measurement: what was asked for, and the buffers of the answers.

    Args:
        call: the attention, which the CPU kernel does not refuse.
        statistics: what to compute.
        queries: which of them; None: all.
        output: whether Σ P v is wanted.
        weights: whether those of all pairs are: ``"each"`` head's, or the ``"mean"`` of the heads'.
    """

    def __init__(
        self,
        call: AttentionCall,
        statistics: Statistics,
        queries: Tensor | None = None,
        *,
        output: bool,
        weights: str | None = None,
    ) -> None:
        self.call, self.statistics, self.every = call, statistics, queries is None
        self.sizes = sizes = call.sizes
        self.queries = _counted_off(sizes.queries) if queries is None else queries
        self.count = count = len(self.queries)
        self.seen = Seen(call, self.queries)
        self.kept = weights is not None or keeps_exponentials(statistics)
        self.jobs = jobs_of(sizes, statistics, count, kept=self.kept, together=weights == "mean")
        self.parts = self.jobs.parts(self._most_queries())
        self.strands = self._strands()
        self.answers = Answers(call, statistics, self.seen, self.jobs, self.strands)
        batch, heads, keys = sizes.batch, sizes.heads, sizes.keys
        # tokens before heads, as a layer will want it
        self.output = (
            torch.empty(batch, count, heads, call.v.shape[-1], dtype=torch.float32).transpose(1, 2) if output else None
        )
        self.mean = torch.empty(batch, count, keys, dtype=torch.float32) if weights == "mean" else None
        self.each = self.own = None
        if weights == "each":
            self.each = torch.empty(batch, heads, count, keys, dtype=torch.float32)
        elif statistics.own:
            longest = max(len(self._places(part)) for part in self.parts)
            self.each = torch.empty(batch, heads, longest, keys, dtype=torch.float32)
            self.own = OwnAnswers(
                statistics.own, sizes, count, dtype=torch.float32, sums=torch.float64, device=call.q.device
            )

    def _most_queries(self) -> float:
        """How many queries are computed between two looks at Python: a tile of what must be made, or a second."""
        sizes, call = self.sizes, self.call
        flops = 2 * sizes.batch * sizes.heads * sizes.keys * (call.q.shape[-1] + call.v.shape[-1])
        made = self.seen.numbers_per_query(self._in_place)
        if self.statistics.own:
            made = max(made, sizes.batch * sizes.heads * sizes.keys)
        return min(LAUNCH_FLOPS / flops, TILE / made if made else torch.inf)

    def _in_place(self, tensor: Tensor) -> bool:
        """Whether the compiled code can read a mask or bias of all queries where it lies."""
        return self.every and tensor.dtype in (torch.float32, torch.bool)

    def _strands(self) -> int:
        asked, jobs = self.statistics, max(len(part) for part in self.parts)
        if not (asked.received or asked.offsets):
            return jobs
        floats = self.sizes.keys if asked.received else len(asked.edges(self.sizes))
        return strands(jobs, self.sizes.batch * self.sizes.heads, floats)

    def run(self) -> bool:
        """Compute everything; whether all scores and values were numbers."""
        found = platform()
        assert isinstance(found, Platform)  # noqa: S101  refused otherwise
        floats, threads = _scratch_of(self.sizes.keys, self.call.q.shape[-1], self.call.v.shape[-1], kept=self.kept)
        numbers = self._numbers() | self.answers.counts
        flag = array("q", [0])
        numbers["kept"], numbers["scratch_floats"], numbers["flag"] = self.kept, floats, _address(flag)
        alive = {
            "scratch": _scratch(threads * floats),
            **self._operands(numbers),
            **self.answers.pointed,
            "mean": self.mean,
            "each": self.each,
        }
        for name, tensor in alive.items():
            numbers[name] = 0 if tensor is None else tensor.data_ptr()
        for part in self.parts:
            tables, starts, taken = self._prepare(part, numbers), self._starts(part), array("q", [0, 0])
            numbers["starts"], numbers["taken"] = _address(starts), _address(taken)
            record = record_of(numbers)
            found.run(loaded().work.address, _address(record), threads)
            del tables
            if self.own is not None:
                if flag[0]:
                    return False
                self._show(self.own, self._places(part))
        return not flag[0]

    def _prepare(self, part: range, numbers: dict[str, int | float]) -> list[Tensor]:
        """Point to what the queries of some jobs see; the tables to which it points."""
        numbers["first_job"], numbers["jobs"] = part.start, len(part)
        numbers["strands"] = min(self.strands, len(part))
        places = self._places(part)
        if self.each is not None:
            # where everything is seen, everything is written
            if self.call.mask is not None or self.call.bias is not None:
                self.each.zero_()
            numbers["each_first"], numbers["each_count"] = places.start, self.each.shape[2]
        tables = zip(("mask", "bias"), self.seen.tables(places, range(self.sizes.keys)), strict=True)
        return [self._point(numbers, name, table, places) for name, table in tables if table is not None]

    def _starts(self, part: range) -> array:
        """Where some jobs begin, and the end."""
        return array("q", self.jobs.starts[part.start : part.stop + 1])

    def _places(self, part: range) -> range:
        """Which queries some jobs are about."""
        return range(self.jobs.starts[part.start], self.jobs.starts[part.stop])

    def _show(self, own: OwnAnswers, places: range) -> None:
        """Show the weights of some queries to the user's own statistics."""
        assert self.each is not None  # noqa: S101  made where there are such statistics
        queries, keys = self.queries[places.start : places.stop], range(self.sizes.keys)
        if self.call.mask is not None:
            keys = range(*self.call.mask.key_range(int(queries.min()), int(queries.max()), self.sizes))
        weights = self.each[:, :, : len(places), keys.start : keys.stop]
        everything = slice(0, self.sizes.batch), slice(0, self.sizes.heads)
        tile = WeightTile(weights, *everything, queries, slice(keys.start, keys.stop))
        own.add(tile, slice(places.start, places.stop))

    def _operands(self, numbers: dict[str, int | float]) -> dict[str, Tensor | None]:
        """What goes into scores and output; their strides are written down."""
        call, sizes = self.call, self.sizes
        q = call.q if self.every else call.q[:, :, self.queries]
        found = {name: _rows_of_floats(tensor) for name, tensor in (("q", q), ("k", call.k), ("v", call.v))}
        rows = found if self.output is None else found | {"output": self.output}
        for name, tensor in rows.items():
            for axis, stride in zip(("batch", "head", "token"), tensor.stride(), strict=False):
                numbers[f"{name}_{axis}"] = stride
        first = stop = None
        if self.seen.spans is not None:
            first, stop = (end.expand(sizes.batch, sizes.heads, self.count) for end in self.seen.spans)
            for axis, stride in zip(("batch", "head", "query"), first.stride(), strict=True):
                numbers[f"span_{axis}"] = stride
        sinks = None if call.sinks is None else call.sinks.float().contiguous()
        places = self.queries + sizes.offset if self.statistics.offsets else None
        return rows | {"first": first, "stop": stop, "sinks": sinks, "places": places}

    def _numbers(self) -> dict[str, Any]:
        call, sizes = self.call, self.sizes
        return {
            "batch": sizes.batch, "heads": sizes.heads, "group": call.group,
            "queries": self.count, "keys": sizes.keys,
            "dim": call.q.shape[-1], "value_dim": call.v.shape[-1],
            "together": self.mean is not None,
            "scale": call.factor, "softcap": call.softcap or 0.0,
        }  # fmt: skip

    def _point(self, numbers: dict[str, int | float], name: str, table: Table, places: range) -> Tensor:
        """Point to what hides the keys of some queries, or is added to their scores; what it points to."""
        tensor, first = table.tensor, table.first_row
        if not (table.by_place or tensor.shape[2] == 1 or self._in_place(tensor)):
            chosen = slice(places.start, places.stop) if self.every else self.queries[places.start : places.stop]
            tensor, first = tensor[:, :, chosen], places.start
        if name == "bias":
            tensor = tensor.float()
        if tensor.shape[-1] != 1 and tensor.stride(-1) != 1:
            tensor = tensor.contiguous()
        strides = broadcast_strides(tensor)
        for axis, stride in zip(("batch", "head", "query", "key"), strides, strict=True):
            numbers[f"{name}_{axis}"] = stride
        numbers[name] = tensor.data_ptr() - first * strides[2] * tensor.element_size()
        return tensor

    def measurements(self) -> Measurements:
        """The statistics that were asked for."""
        return self.answers.measurements({} if self.own is None else self.own.answer())


def _address(numbers: array) -> int:
    return numbers.buffer_info()[0]


@lru_cache(maxsize=4)
def _counted_off(count: int) -> Tensor:
    """0, 1, ... (count - 1); nobody changes it."""
    return torch.arange(count)


def _rows_of_floats(tensor: Tensor) -> Tensor:
    """float32, each token's numbers side by side, as the matrix product wants it."""
    tensor = tensor.float()
    rows = tensor.stride(-1) == 1 and tensor.shape[-1] <= tensor.stride(-2) < 1 << 31
    return tensor if rows else tensor.contiguous()


def jobs_of(sizes: Sizes, statistics: Statistics, count: int, *, kept: bool, together: bool = False) -> Jobs:
    """How the queries of a measurement are cut: in short jobs where all keys are packed at once, and stay so.

    Where a job is about all heads ``together``, and so packs the keys of each, it is longer if there are enough jobs
    for all threads: that changes no bit, as there each row is summed on its own.
    """
    long = together and count >= 2 * ROWS * torch.get_num_threads()
    at_once = ROWS if long else SHORT_ROWS
    most = at_once if sizes.keys <= CHUNK else KEPT_ROWS if kept else ROWS
    if statistics.own:
        most = min(most, max(1, SHOWN // (sizes.batch * sizes.heads * sizes.keys)))
    return Jobs(count, most, 1 if statistics.blocks is None else statistics.blocks[0])


def keeps_exponentials(asked: Statistics) -> bool:
    """Whether the exponentials of some rows are kept until the log-sum-exp of these is known."""
    chosen = (asked.blocks, asked.rows, asked.columns)
    return asked.received or bool(asked.offsets) or bool(asked.own) or any(wanted is not None for wanted in chosen)


def scratch_bytes(keys: int, dim: int, value_dim: int, *, kept: bool) -> int:
    """What all threads together keep of a pass over so many keys."""
    floats, threads = _scratch_of(keys, dim, value_dim, kept=kept)
    return 4 * floats * threads


def _scratch_of(keys: int, dim: int, value_dim: int, *, kept: bool) -> tuple[int, int]:
    """Numbers that a thread keeps of a pass over so many keys, and how many threads may."""
    floats = loaded().floats_of(keys, dim, value_dim, kept=kept)
    return floats, max(1, min(torch.get_num_threads(), SCRATCH // (4 * floats)))


def _scratch(floats: int) -> Tensor:
    """Room for numbers; a modest one stays with the thread for the next call."""
    known = getattr(_local, "scratch", None)
    if known is not None and known.numel() >= floats:
        return known
    room = torch.empty(floats, dtype=torch.float32)
    if 4 * floats <= KEPT:
        _local.scratch = room
    return room
