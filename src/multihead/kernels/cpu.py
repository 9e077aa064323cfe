"""Output and statistics on a CPU in one pass, by compiled code over torch's own matrix products and threads.

``compiled.py`` is what each thread does; here a call is turned into addresses and sizes, what the compiled code gathers
into :class:`~multihead.core.Measurements`. The code is compiled when it is first used, and kept on disk where that is
possible.
"""

import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multihead.biases import Bias
from multihead.core import AttentionCall, Measurements, Statistics, block_cells, nonfinite
from multihead.kernels import chunked
from multihead.kernels.platform import Platform, platform
from multihead.masks import And, Dense, Mask, Padding, Sizes

NAME = "cpu"

TILE = 1 << 24
"""Most elements of a mask or bias that is computed for some queries and all keys."""

LAUNCH_FLOPS = 2e11
"""Work after which Python is asked again, so that an interrupt is heard: about a second on two cores."""

SCRATCH = 1 << 29
"""Most bytes that all threads together keep of a pass; a long row may then be left to fewer threads."""

KEPT = 1 << 24
"""Bytes of scratch that stay allocated for the next call."""

UNITS = 64
"""Units of work wanted where sums over queries are to be kept apart."""

_PARTIAL = 1 << 25
"""Most bytes of sums that are kept apart."""

_local = threading.local()


def refuses(call: AttentionCall) -> str | None:
    """Why this kernel cannot compute a call."""
    if call.q.device.type != "cpu" or call.q.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return "it is for float32, bfloat16 and float16 on a CPU"
    if call.learns:
        return "it has no backward"
    if call.dropout:
        return "it has no dropout"
    if not (call.q.numel() and call.k.numel() and call.v.numel()):
        return "some axis is empty"
    found = platform()
    if isinstance(found, str):
        return found
    return _compiled() if isinstance(_compiled(), str) else None


def attend(call: AttentionCall) -> Tensor:
    """The output of a call, (B, H, Lq, Dv).

    Memory: the output, and a tile of scores for each thread.
    """
    nothing = Statistics(lse=False, max_score=False, entropy=False, visible=False)
    output, _ = measure(call, nothing, output=True)
    assert output is not None  # noqa: S101  it was asked for
    return output.to(call.q.dtype)


@torch.no_grad()
def measure(
    call: AttentionCall,
    statistics: Statistics,
    *,
    queries: Tensor | None = None,
    output: bool = False,
) -> tuple[Tensor | None, Measurements]:
    """As :func:`multihead.kernels.chunked.measure`; NaN and inf among the scores or values are left to it.

    Memory: the answers, and for each thread a tile of 128 queries by 1024 keys, or by all keys where statistics of
    keys are asked for. Sums have the same bits with any number of threads.
    """
    chunked.check(call, statistics, queries)
    asked = _Asked(call, statistics, queries, output=output, weights=None)
    if not asked.run():
        return chunked.measure(call, statistics, queries=queries, output=output)
    return asked.output, asked.measurements()


@torch.no_grad()
def attend_with_weights(call: AttentionCall, *, mean: bool) -> tuple[Tensor, Tensor] | None:
    """The output, (B, H, Lq, Dv), and the weights of all pairs from the same pass.

    Args:
        call: the attention.
        mean: whether the weights are averaged over heads, (B, Lq, Lk), rather than (B, H, Lq, Lk).

    Returns:
        Both; None where NaN or inf was met.
    """
    nothing = Statistics(lse=False, max_score=False, entropy=False, visible=False)
    asked = _Asked(call, nothing, None, output=True, weights="mean" if mean else "each")
    if not asked.run():
        return None
    assert asked.output is not None and asked.weights is not None  # noqa: S101, PT018  they were asked for
    return asked.output.to(call.q.dtype), asked.weights


@cache
def _compiled() -> Any:
    """The compiled code and the form of its calls, or why it cannot be had. Says how long compiling took."""
    began = time.perf_counter()
    try:
        from multihead.kernels import compiled
    except ImportError as error:
        return f"Numba cannot be used: {error}"
    seconds = time.perf_counter() - began
    if not compiled.work.cache_hits:
        # logging shows a warning to who has not set it up; they have been waiting
        logging.getLogger("multihead").warning(
            "compiled the CPU kernel in %.1f s; it is kept for later processes where Numba finds a folder to write to "
            "(NUMBA_CACHE_DIR names one)",
            seconds,
        )
    return compiled


@dataclass(frozen=True)
class _Seen:
    """What the queries see: one range of keys each, and what a boolean tensor leaves of it."""

    spans: tuple[Tensor, Tensor] | None
    allowed: Tensor | None
    """(B or 1, H or 1, queries or 1, keys or 1)."""


class _Asked:
    """One measurement: what was asked for, and the buffers of the answers."""

    def __init__(
        self, call: AttentionCall, statistics: Statistics, queries: Tensor | None, *, output: bool, weights: str | None
    ) -> None:
        self.call, self.statistics = call, statistics
        self.sizes = sizes = call.sizes
        everything = torch.arange(sizes.queries)
        self.queries = everything if queries is None else queries
        self.count = count = len(self.queries)
        q = call.q if queries is None else call.q[:, :, queries]
        self.q, self.k, self.v = (_rows_of_floats(tensor) for tensor in (q, call.k, call.v))
        self.seen = None if call.mask is None else _seen(call.mask, self.queries, sizes)
        batch, heads, keys = sizes.batch, sizes.heads, sizes.keys
        self.lse, self.peak, self.entropy, self.sink = torch.empty(4, batch, heads, count).unbind()
        # tokens before heads, as a layer will want it
        self.output = torch.empty(batch, count, heads, call.v.shape[-1]).transpose(1, 2) if output else None
        top = min(statistics.top, keys)
        self.top = torch.full((batch, heads, count, top), -torch.inf) if statistics.top else None
        self.top_keys = torch.full((batch, heads, count, top), -1)
        self.starts = _job_starts(count, statistics.blocks)
        self.parts = list(self._parts())
        self.strands = self._strands()
        self.edges = torch.tensor(statistics.edges(sizes))
        self.received = self._sums(self.strands, keys) if statistics.received else None
        self.offsets = self._sums(self.strands, len(self.edges) - 1) if statistics.offsets else None
        self.blocks, self.pieces = None, torch.empty(0, dtype=torch.int64)
        if statistics.blocks is not None:
            self.pieces = _pieces(self.starts, count, statistics.blocks[0])
            self.blocks = self._sums(len(self.pieces), -(-keys // statistics.blocks[1]))
        self.rows = self.row_slots = self.columns = None
        self.chosen_rows, self.chosen_columns = (
            torch.tensor(chosen or (), dtype=torch.int64) for chosen in (statistics.rows, statistics.columns)
        )
        if statistics.rows is not None:
            place_of = torch.empty(sizes.queries, dtype=torch.int64)
            place_of[self.queries] = torch.arange(count)
            self.row_slots = torch.full((count,), -1)
            self.row_slots[place_of[self.chosen_rows]] = torch.arange(len(self.chosen_rows))
            self.rows = torch.zeros(batch, heads, len(self.chosen_rows), keys)
        if statistics.columns is not None:
            self.columns = torch.zeros(batch, heads, count, len(self.chosen_columns))
        self.weights, self.mean = None, weights == "mean"
        if weights is not None:
            # where everything is seen, everything is written
            make = torch.empty if call.mask is None and call.bias is None and not self.mean else torch.zeros
            self.weights = make(batch, *(() if self.mean else (heads,)), count, keys)

    def _sums(self, *shape: int) -> Tensor:
        return torch.zeros(self.sizes.batch, self.sizes.heads, *shape, dtype=torch.float64)

    def _parts(self) -> Iterator[range]:
        """Jobs that are computed between two looks at Python: with one tile of a computed mask or bias, or a second."""
        sizes, call = self.sizes, self.call
        limit = LAUNCH_FLOPS / (2 * sizes.batch * sizes.heads * sizes.keys * (call.q.shape[-1] + call.v.shape[-1]))
        if call.mask is not None and self.seen is None:
            limit = min(limit, TILE / (sizes.batch * sizes.heads * sizes.keys))
        if isinstance(call.bias, Bias):
            limit = min(limit, TILE / (4 * sizes.batch * sizes.heads * sizes.keys))
        first, jobs = 0, len(self.starts) - 1
        for job in range(1, jobs + 1):
            if job == jobs or self.starts[job + 1] - self.starts[first] > limit:
                yield range(first, job)
                first = job

    def _strands(self) -> int:
        """Into how many sums, added up in the end, the queries of a head go: a matter of sizes, not of threads."""
        most = max(len(part) for part in self.parts)
        if not (self.statistics.received or self.statistics.offsets):
            return most
        heads = self.sizes.batch * self.sizes.heads
        affordable = _PARTIAL // (8 * heads * self.sizes.keys) if self.statistics.received else most
        return max(1, min(most, -(-UNITS // heads), affordable))

    def run(self) -> bool:
        """Compute everything; whether all scores and values were numbers."""
        found, compiled = platform(), _compiled()
        assert isinstance(found, Platform)  # noqa: S101  refused otherwise
        kept = self.mean or self.weights is not None or self._of_keys()
        chunks = -(-self.sizes.keys // compiled.CHUNK) if kept else 1
        floats = chunks * compiled.ROWS * compiled.CHUNK
        threads = max(1, min(torch.get_num_threads(), SCRATCH // (4 * floats)))
        scratch = _scratch(threads * floats)
        record = np.zeros(1, compiled.CALL)
        counters, flag = torch.zeros(2, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
        alive = self._fill(record, found, scratch, floats, kept=kept)
        record["taken"], record["flag"] = counters.data_ptr(), flag.data_ptr()
        work, data = compiled.work.address, record.ctypes.data
        for part in self.parts:
            counters.zero_()
            starts = self.starts[part.start : part.stop + 1]
            record["starts"], record["jobs"], record["first_job"] = starts.data_ptr(), len(part), part.start
            record["strands"] = min(self.strands, len(part))
            tiles = self._computed(record, int(starts[0]), int(starts[-1]))
            found.run(work, data, threads)
            del tiles
        del alive
        return not flag.item() and (self.output is None or not nonfinite(self.output))

    def _of_keys(self) -> bool:
        asked = self.statistics
        return bool(asked.received or asked.offsets) or any(
            chosen is not None for chosen in (asked.blocks, asked.rows, asked.columns)
        )

    def _fill(
        self, record: np.ndarray, found: Platform, scratch: Tensor, floats: int, *, kept: bool
    ) -> list[Tensor | None]:
        """Write all that stays the same for every part; the tensors that it points into."""
        call, sizes, asked = self.call, self.sizes, self.statistics
        places = self.queries + sizes.offset
        spans = self.seen.spans if self.seen is not None and self.seen.spans is not None else None
        if spans is None:
            spans = torch.zeros(1, 1, 1, dtype=torch.int64), torch.full((1, 1, 1), sizes.keys)
        first, stop = (end.expand(sizes.batch, sizes.heads, self.count) for end in spans)
        if first.stride() != stop.stride():
            first, stop = first.contiguous(), stop.contiguous()
        sinks = None if call.sinks is None else call.sinks.float().contiguous()
        row_slots, rows = self.row_slots, self.rows
        if self.weights is not None and not self.mean:
            row_slots, rows = torch.arange(self.count), self.weights
        pointed = {
            "scratch": scratch, "q": self.q, "k": self.k, "v": self.v, "output": self.output,
            "first": first, "stop": stop, "sinks": sinks, "places": places,
            "lse": self.lse, "peak": self.peak, "entropy": self.entropy, "sink": self.sink,
            "top": self.top, "top_keys": self.top_keys, "received": self.received,
            "edges": self.edges, "offsets": self.offsets, "blocks": self.blocks,
            "row_slots": row_slots, "rows": rows, "column_keys": self.chosen_columns, "columns": self.columns,
            "mean": self.weights if self.mean else None,
        }  # fmt: skip
        for name, tensor in pointed.items():
            record[name] = 0 if tensor is None else tensor.data_ptr()
        for name, tensor in (("q", self.q), ("k", self.k), ("v", self.v), ("output", self.output)):
            if tensor is not None:
                for axis, stride in zip(("batch", "head", "token"), tensor.stride(), strict=False):
                    record[f"{name}_{axis}"] = stride
        for axis, stride in zip(("batch", "head", "query"), first.stride(), strict=True):
            record[f"span_{axis}"] = stride
        height, width = asked.blocks or (1, 1)
        record["block_height"], record["block_width"] = height, width
        record["pieces"] = len(self.pieces)
        record["across"] = 0 if self.blocks is None else self.blocks.shape[-1]
        record["bins"] = 0 if self.offsets is None else self.offsets.shape[-1]
        record["row_count"] = 0 if rows is None else rows.shape[2]
        record["column_count"] = 0 if self.columns is None else self.columns.shape[3]
        record["batch"], record["heads"], record["group"] = sizes.batch, sizes.heads, call.group
        record["queries"], record["keys"] = self.count, sizes.keys
        record["dim"], record["value_dim"] = call.q.shape[-1], call.v.shape[-1]
        record["top_count"], record["scratch_floats"] = self.top_keys.shape[-1], floats
        record["sgemm"], record["kept"], record["together"] = found.sgemm, kept, self.mean
        record["scale"], record["softcap"] = call.factor, call.softcap or 0.0
        return list(pointed.values())

    def _computed(self, record: np.ndarray, begin: int, end: int) -> list[Tensor]:
        """Point to the mask and the bias of these queries, computing those that are no tensors yet."""
        call, sizes = self.call, self.sizes
        queries, keys = self.queries[begin:end], torch.arange(sizes.keys)
        alive = []
        if self.seen is not None and self.seen.allowed is not None:
            alive.append(_point(record, "mask", self.seen.allowed, sizes, self.count, 0))
        elif call.mask is not None and self.seen is None:
            alive.append(_point(record, "mask", call.mask.visible(queries, keys, sizes), sizes, end - begin, begin))
        if isinstance(call.bias, Bias):
            values = call.bias.values(queries, keys, sizes).float()
            alive.append(_point(record, "bias", values, sizes, end - begin, begin))
        elif call.bias is not None:
            bias = call.bias
            if self.count != sizes.queries or not torch.equal(self.queries, torch.arange(sizes.queries)):
                bias = bias if bias.shape[2] == 1 else bias[:, :, self.queries]
            alive.append(_point(record, "bias", bias.float(), sizes, self.count, 0))
        return alive

    def measurements(self) -> Measurements:
        """The answers, as they were asked for."""
        asked, found = self.statistics, self._of_rows()
        if asked.visible or asked.received:
            visible, seers = self._counted()
            if asked.visible:
                found["visible"] = visible
            if self.received is not None:
                total = self.received.sum(2)
                found["received"] = total.float()
                found["received_mean"] = (total / seers.masked_fill(seers == 0, 1)).float()
        if self.offsets is not None:
            found["offsets"], found["offset_edges"] = self.offsets.sum(2).float(), self.edges
        if self.blocks is not None and asked.blocks is not None:
            height, width = asked.blocks
            total = self._sums(-(-self.count // height), self.blocks.shape[-1])
            total.index_add_(2, self.pieces, self.blocks)
            cells = block_cells(self.count, height)[:, None] * block_cells(self.sizes.keys, width)
            found["blocks"], found["block_size"] = (total / cells).float(), torch.tensor(asked.blocks)
        if self.rows is not None:
            found["rows"], found["row_queries"] = self.rows, self.chosen_rows
        if self.columns is not None:
            found["columns"], found["column_keys"] = self.columns, self.chosen_columns
        return Measurements(**found)

    def _of_rows(self) -> dict[str, Tensor]:
        asked, found = self.statistics, {}
        for name, value in (
            ("lse", self.lse),
            ("max_score", self.peak),
            ("entropy", self.entropy),
            ("sink", self.sink),
        ):
            if getattr(asked, name):
                found[name] = value
        if asked.top:
            found["top_weights"], found["top_keys"] = self.top, self.top_keys
        return found

    def _counted(self) -> tuple[Tensor, Tensor]:
        """How many keys each query sees, and how many queries see each key."""
        keys, mask = self.sizes.keys, self.call.mask
        spans = self.seen.spans if self.seen is not None and self.seen.allowed is None else None
        if mask is None:
            spans = torch.zeros(1, 1, self.count).long(), torch.full((1, 1, self.count), keys)
        if spans is not None:
            first, stop = torch.broadcast_tensors(*spans)
            steps = torch.zeros(*first.shape[:2], keys + 1, dtype=torch.int64)
            steps.scatter_add_(2, first, torch.ones_like(first)).scatter_add_(2, stop, -torch.ones_like(stop))
            sequences = self.sizes.batch
            return (stop - first).expand(sequences, -1, -1).contiguous(), steps.cumsum(2)[..., :keys]
        visible: list[Tensor] = []
        seers = torch.zeros((), dtype=torch.int64)
        step = max(1, TILE // (self.sizes.batch * self.sizes.heads * keys))
        for start in range(0, self.count, step):
            some = self.queries[start : start + step]
            seen = mask.visible(some, torch.arange(keys), self.sizes)  # pyrefly: ignore[missing-attribute]
            seen = seen.expand(*seen.shape[:2], len(some), keys)
            visible.append(seen.sum(-1))
            seers = seers + seen.sum(-2)
        return torch.cat(visible, 2).expand(self.sizes.batch, -1, -1).contiguous(), seers


def _seen(mask: Mask, queries: Tensor, sizes: Sizes) -> _Seen | None:
    """What these queries see, where that takes no new tensor of pairs."""
    spans = mask.spans(queries, sizes)
    if spans is not None:
        return _Seen(spans, None)
    if isinstance(mask, Dense):
        whole = mask.allowed.shape[2] == 1 or torch.equal(queries, torch.arange(sizes.queries))
        return _Seen(None, mask.allowed if whole else mask.allowed[:, :, queries])
    if isinstance(mask, Padding):
        return _Seen(None, mask.valid[:, None, None])
    if isinstance(mask, And):
        left, right = _seen(mask.left, queries, sizes), _seen(mask.right, queries, sizes)
        if left is None or right is None or (left.allowed is not None and right.allowed is not None):
            return None
        ranges = [side.spans for side in (left, right) if side.spans is not None]
        if len(ranges) == 2:
            return None
        return _Seen(ranges[0] if ranges else None, right.allowed if left.allowed is None else left.allowed)
    return None


def _rows_of_floats(tensor: Tensor) -> Tensor:
    """float32, each token's numbers side by side, as the matrix product wants it."""
    tensor = tensor.float()
    rows = tensor.stride(-1) == 1 and tensor.shape[-1] <= tensor.stride(-2) < 1 << 31
    return tensor if rows else tensor.contiguous()


def _point(record: np.ndarray, name: str, tensor: Tensor, sizes: Sizes, count: int, begin: int) -> Tensor:
    """Point to a tensor that broadcasts to (B, H, count, Lk), whose first query is number ``begin``."""
    if tensor.shape[-1] != 1 and tensor.stride(-1) != 1:
        tensor = tensor.contiguous()
    strides = tensor.expand(sizes.batch, sizes.heads, count, sizes.keys).stride()
    for axis, stride in zip(("batch", "head", "query", "key"), strides, strict=True):
        record[f"{name}_{axis}"] = stride
    record[name] = tensor.data_ptr() - begin * strides[2] * tensor.element_size()
    return tensor


def _scratch(floats: int) -> Tensor:
    """Room for numbers; a modest one stays with the thread for the next call."""
    known = getattr(_local, "scratch", None)
    if known is not None and known.numel() >= floats:
        return known
    room = torch.empty(floats)
    if 4 * floats <= KEPT:
        _local.scratch = room
    return room


def _job_starts(count: int, blocks: tuple[int, int] | None) -> Tensor:
    """Where each job begins, and the end: a job holds whole blocks, or is part of one."""
    rows, height = _compiled().ROWS, 1 if blocks is None else blocks[0]
    if height <= rows:
        starts = list(range(0, count, rows // height * height))
    else:
        starts = [start for top in range(0, count, height) for start in range(top, min(top + height, count), rows)]
    return torch.tensor([*starts, count])


def _pieces(starts: Tensor, count: int, height: int) -> Tensor:
    """The row of blocks to which each piece belongs."""
    if height <= _compiled().ROWS:
        return torch.arange(-(-count // height))
    return starts[:-1] // height
