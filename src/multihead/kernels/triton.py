"""Statistics on a GPU at the speed of a fused kernel, in Triton: online softmax once, and once more for the keys.

The first pass goes over all keys of a tile of queries and knows everything about the queries when it ends: output,
log-sum-exp, entropy, the largest weights. The second goes over all queries of a tile of keys, makes each weight again
from its score, and knows what the keys received. Nothing of size Lq × Lk is held, and every number is written by one
program, so the same call gives the same bits.

A mask that is one range of keys for each query is never a tensor, and tiles outside the ranges cost nothing. The
programs are in ``gpu/programs.py``; Triton is imported when a call is measured, and not before.
"""

import os
from contextlib import AbstractContextManager, nullcontext
from functools import cache, cached_property
from importlib.util import find_spec
from types import ModuleType

import torch
from jaxtyping import Int
from torch import Tensor

from multihead.conventions import in_words
from multihead.core import AttentionCall, Measurements, Statistics, block_means, nonfinite
from multihead.errors import NoKernelError
from multihead.kernels.gpu.axis import Axis
from multihead.kernels.gpu.seen import Part, SeenByTiles, argument_of
from multihead.kernels.seen import broadcast_strides

NAME = "triton"

TYPES = (torch.float32, torch.bfloat16, torch.float16)
DIM = 256
"""Most features of a head."""
TOP = 64
"""Most weights of a query that are returned: they are held in registers."""
BINS = 1023
"""Most bins of distances."""
LENGTH = 1 << 30
"""Queries or keys from which on their numbers would not fit in 32 bits."""
CAPABILITY = (8, 0)
"""The oldest GPU: before Ampere there is no bfloat16."""

LARGEST_TILE = 64
"""Most queries, and most keys, of one tile."""
SMALLEST_TILE = 16
"""What a matrix product of the GPU asks for."""
TILE_BYTES = 1 << 14
"""Of queries or keys in one tile: some five of them lie in the memory that a program shares."""
SLOTS = 16
"""Largest weights of a query that fit in registers beside a tile of full size."""


def refuses(call: AttentionCall, statistics: Statistics | None = None) -> str | None:
    """Why this kernel cannot measure a call, or these statistics of it."""
    sizes = call.sizes
    reason = _no_machine(call.q.device)
    if reason is not None:
        return reason
    if call.q.dtype not in TYPES:
        names = in_words((str(dtype).removeprefix("torch.") for dtype in TYPES), "or")
        return f"it computes in float32, for inputs in {names}, and this is {str(call.q.dtype).removeprefix('torch.')}"
    widest = max(call.q.shape[-1], call.v.shape[-1])
    if widest > DIM:
        return f"it holds heads of up to {DIM} features, and this has {widest}"
    if max(sizes.queries, sizes.keys) >= LENGTH:
        return f"it counts fewer than {LENGTH} queries and keys"
    if statistics is not None and statistics.own:
        return "it knows no statistics of a user's own"
    if statistics is not None and statistics.top > TOP:
        return f"it finds up to {TOP} largest weights, and top={statistics.top}"
    if statistics is not None and len(statistics.edges(sizes)) - 1 > BINS:
        return f"it holds up to {BINS} bins of distances, and offsets has {len(statistics.edges(sizes)) - 1}"
    return None


@torch.no_grad()
def measure(
    call: AttentionCall,
    statistics: Statistics,
    *,
    queries: Int[Tensor, " query"] | None = None,
    output: bool = False,
) -> tuple[Tensor | None, Measurements]:
    """As :func:`multihead.kernels.measure`, with Σ P v in float32.

    Raises:
        NoKernelError: this kernel refuses the call.
        ValueError: a row or a column is not there, or a row is not among the measured queries.

    Memory: the answers, one number per query and key, and ``gpu.seen.PART`` numbers where a mask or a bias is neither
    a tensor nor a range of keys per query.
    """
    statistics.check(call.sizes, queries)
    reason = refuses(call, statistics)
    if reason is not None:
        raise NoKernelError(f"the Triton kernel does not measure this: {reason}.")
    device = call.q.device
    numbers = torch.arange(call.sizes.queries, device=device) if queries is None else queries.to(device, torch.int64)
    from multihead.kernels.gpu import programs

    work = _Work(call, statistics, numbers, programs, output)
    with _on(device):
        for part in work.seen.parts(work.down.group if work.down.group <= LARGEST_TILE else work.side):
            work.first(part)
            work.second(part)
            work.chosen(part)
    return work.output, work.answers()


def _no_machine(device: torch.device) -> str | None:
    """Why programs do not run on a device."""
    if not _installed():
        return "Triton is not installed"
    if _interpreted() and device.type in {"cpu", "cuda"}:
        return None
    if device.type != "cuda":
        return f"it is for NVIDIA GPUs, and this is {device.type}"
    if torch.version.hip is not None:
        return "it is for NVIDIA GPUs, and this is one of AMD"
    if torch.cuda.get_device_capability(device) < CAPABILITY:
        return f"it is for GPUs of compute capability {CAPABILITY[0]}.{CAPABILITY[1]} or newer"
    return None


@cache
def _installed() -> bool:
    return find_spec("triton") is not None


def _interpreted() -> bool:
    """Whether Triton's programs run in its interpreter, on any device."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in {"1", "true", "on", "yes", "y"}


def _on(device: torch.device) -> AbstractContextManager:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


class _Work:
    """The answers of one measurement, and the programs that fill them."""

    def __init__(
        self, call: AttentionCall, statistics: Statistics, numbers: Tensor, programs: ModuleType, output: bool
    ) -> None:
        self.call, self.statistics, self.numbers, self.programs = call, statistics, numbers, programs
        self.seen = SeenByTiles(call, numbers)
        self.q, self.k, self.v = (tensor.detach() for tensor in (call.q, call.k, call.v))
        self.dim, self.value_dim = (_padded(tensor.shape[-1]) for tensor in (call.q, call.v))
        self.careful = output and nonfinite(self.v)
        self.side = self._side(output)
        height, width = statistics.blocks or (self.side, self.side)
        count = len(numbers)
        self.down = Axis.of(count, height, self.side)
        self.across = Axis.of(call.sizes.keys, width, self.side)
        self.top = min(statistics.top, call.sizes.keys)
        self.shift, self.inverse = self._new(count), self._new(count)
        asked = statistics
        self.lse = self._new(count) if asked.lse else None
        self.peak = self._new(count) if asked.max_score else None
        self.entropy = self._new(count) if asked.entropy else None
        self.sink = self._new(count) if asked.sink else None
        self.visible = self._new(count, dtype=torch.int32) if asked.visible else None
        self.top_scores = self._new(count, self.top) if asked.top else None
        self.top_keys = self._new(count, self.top, dtype=torch.int32) if asked.top else None
        self.output = self._new(count, call.v.shape[-1]) if output else None
        keys, edges = call.sizes.keys, asked.edges(call.sizes)
        self.received = self._new(keys, dtype=torch.float64) if asked.received else None
        self.seers = self._new(keys, dtype=torch.int32) if asked.received else None
        # no distance is farther than this
        reach = call.sizes.queries + keys + 1
        self.edges = torch.tensor(edges, device=numbers.device).clamp(-reach, reach).to(torch.int32) if edges else None
        self.mass = self._new(self.across.count, len(edges) - 1, dtype=torch.float64) if edges else None
        self.block_parts = self.across.cells if self.across.tiles == 1 else self.across.count
        self.blocks = self._new(self.down.cells, self.block_parts) if asked.blocks else None
        self.block_peaks = self._new(self.down.cells, self.block_parts) if asked.block_peaks else None
        self.rows = self._new(len(asked.rows), keys) if asked.rows is not None else None
        places = {number: place for place, number in enumerate(numbers.tolist())} if asked.rows else {}
        self.row_places = [places[row] for row in asked.rows or ()]
        self.columns = self._new(count, len(asked.columns)) if asked.columns is not None else None

    def first(self, part: Part) -> None:
        """Everything about a part's queries."""
        side, sinks, output = self.side, self.call.sinks, self.output
        first_tile = part.places.start // side
        tiles = -(-part.places.stop // side) - first_tile
        if not tiles * self._pairs:
            return
        self.programs.first_pass[(tiles * self._pairs,)](
            self.q, self.q.stride(), self.k, self.k.stride(), self.v, self.v.stride(), self.numbers,
            self._seen_keys, self.seen.span_argument, *_tables(part),
            None if sinks is None else (sinks.detach(), sinks.stride(0)),
            self.shift, self.inverse, self.lse, self.peak, self.entropy, None if sinks is None else self.sink,
            self.visible, self.top_scores, self.top_keys, output,
            *_bounds(part), first_tile, tiles, len(self.numbers),
            *self._sizes, self.call.v.shape[-1], self.call.factor, self.call.softcap,
            **self._flags(part), CAREFUL=self.careful, TOP=self.top, SLOTS=_power(self.top),
            QUERIES=side, KEYS=side, DIM=self.dim, VALUE_DIM=self.value_dim,
        )  # fmt: skip

    def second(self, part: Part) -> None:
        """What a part's queries give to the keys."""
        side, down, across = self.side, self.down, self.across
        nothing = self.received is None and self.mass is None and self.blocks is None
        if nothing or not across.count * self._pairs:
            return
        first_tile = part.places.start // down.group * down.tiles
        stop_tile = min(-(-part.places.stop // down.group) * down.tiles, down.count)
        bins = 0 if self.mass is None else self.mass.shape[-1]
        self.programs.second_pass[(across.count * self._pairs,)](
            self.q, self.q.stride(), self.k, self.k.stride(), self.numbers,
            self._seeing_tiles, self.seen.span_argument, *_tables(part), self.shift, self.inverse,
            self.received, self.seers, self.edges, self.mass, self.blocks, self.block_peaks,
            *_bounds(part), first_tile, stop_tile, across.count,
            len(self.numbers), self.call.sizes.keys, self.call.sizes.offset, bins,
            *self._sizes, self.call.factor, self.call.softcap,
            down.group, down.step, down.tiles, down.blocks, down.block, down.cells,
            across.group, across.step, across.tiles, across.blocks, across.block, self.block_parts,
            **self._flags(part), BINS=_power(bins + 1), QUERIES=side, KEYS=side, DIM=self.dim,
        )  # fmt: skip

    def chosen(self, part: Part) -> None:
        """Whole rows and columns of weights."""
        device = self.numbers.device
        if self.rows is not None and any(place in part.places for place in self.row_places):
            places = torch.tensor(self.row_places, dtype=torch.int64, device=device)
            self._weights(part, range(len(self.row_places)), places, None, self.rows)
        if self.columns is not None:
            keys = torch.tensor(self.statistics.columns, dtype=torch.int64, device=device)
            self._weights(part, part.places, None, keys, self.columns)

    def _weights(self, part: Part, rows: range, places: Tensor | None, keys: Tensor | None, found: Tensor) -> None:
        side, (down, across) = self.side, found.shape[2:]
        tiles = -(-len(rows) // side) * -(-across // side)
        if not tiles * self._pairs:
            return
        self.programs.chosen_weights[(tiles * self._pairs,)](
            self.q, self.q.stride(), self.k, self.k.stride(), self.numbers,
            self.seen.span_argument, *_tables(part), self.shift, self.inverse, places, keys, found,
            *_bounds(part), rows.start, rows.stop, len(self.numbers), down, across,
            *self._sizes, self.call.factor, self.call.softcap,
            **self._flags(part), QUERIES=side, KEYS=side, DIM=self.dim,
        )  # fmt: skip

    @cached_property
    def _seen_keys(self) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        """For each tile of queries, from where to where there are keys to see."""
        starts = torch.arange(0, len(self.numbers), self.side, device=self.numbers.device)
        first, stop = self.seen.limits(starts, (starts + self.side).clamp_max(len(self.numbers)))
        return first, stop, broadcast_strides(first)

    @cached_property
    def _seeing_tiles(self) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        """For each tile of keys, from which to which tile of queries it is seen."""
        device = self.numbers.device
        first, stop = _reached(*self.seen.limits(*self.down.ends(device)), *self.across.ends(device))
        return first, stop, broadcast_strides(first)

    def answers(self) -> Measurements:
        """All that was found, in the form of every kernel."""
        asked, heads = self.statistics, self.seen.mask_heads
        found: dict[str, Tensor | None] = {
            "lse": self.lse, "max_score": self.peak, "entropy": self.entropy, "sink": self.sink,
            "rows": self.rows, "columns": self.columns,
        }  # fmt: skip
        if self.visible is not None:
            found["visible"] = self.visible[:, :heads].long()
        if self.top_scores is not None:
            found["top_weights"], found["top_keys"] = self._ordered()
        if self.received is not None and self.seers is not None:
            found["received"] = self.received.float()
            found["received_mean"] = (self.received / self.seers.clamp_min(1)).float()
        device = self.numbers.device
        if self.mass is not None:
            found["offsets"] = self.mass.sum(2).clamp_min(0.0).float()
            found["offset_edges"] = torch.tensor(asked.edges(self.call.sizes), device=device)
        if self.blocks is not None and asked.blocks is not None:
            total = self.blocks.unflatten(-1, (self.across.cells, self.across.tiles)).sum(-1)
            found["blocks"] = block_means(total, asked.blocks, self.down.length, self.across.length)
            found["block_size"] = torch.tensor(asked.blocks, device=device)
            if self.block_peaks is not None:
                found["block_peaks"] = self.block_peaks.unflatten(-1, (self.across.cells, self.across.tiles)).amax(-1)
        if asked.rows is not None:
            found["row_queries"] = torch.tensor(asked.rows, dtype=torch.int64, device=device)
        if asked.columns is not None:
            found["column_keys"] = torch.tensor(asked.columns, dtype=torch.int64, device=device)
        return Measurements.of(found)

    def _ordered(self) -> tuple[Tensor, Tensor]:
        """The largest weights and their keys, largest first, equal ones by their keys."""
        assert self.top_scores is not None  # noqa: S101  asked for only where there are some
        assert self.top_keys is not None  # noqa: S101
        keys, order = self.top_keys.long().sort(dim=-1)
        scores, places = self.top_scores.gather(-1, order).sort(dim=-1, descending=True, stable=True)
        keys = keys.gather(-1, places)
        weights = (scores - self.shift[..., None]).exp() * self.inverse[..., None]
        return weights.masked_fill(keys < 0, 0.0), keys.clamp_min(-1)

    def _side(self, output: bool) -> int:
        """Queries, and keys, of a tile: as many as leave room for what is held of each."""
        width = max(self.dim, self.value_dim if output else 0) * self.q.dtype.itemsize
        side = TILE_BYTES // width
        if self.q.dtype.itemsize > 2 or self.careful or self.statistics.top > SLOTS:
            side //= 2
        return max(SMALLEST_TILE, min(LARGEST_TILE, side))

    def _new(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(
            (self.call.sizes.batch, self.call.sizes.heads, *shape), dtype=dtype, device=self.numbers.device
        )

    def _flags(self, part: Part) -> dict[str, bool]:
        return {
            "MASK_BY_PLACE": part.mask is not None and part.mask.by_place,
            "BIAS_BY_PLACE": part.bias is not None and part.bias.by_place,
            # the interpreter takes the bits of bfloat16 for numbers
            "WIDE": self.q.dtype == torch.bfloat16 and _interpreted(),
        }

    @property
    def _pairs(self) -> int:
        return self.call.sizes.batch * self.call.sizes.heads

    @property
    def _sizes(self) -> tuple[int, int, int]:
        return self.call.sizes.heads, self.call.group, self.call.q.shape[-1]


def _padded(dim: int) -> int:
    """Features of a tile: a power of two, and no fewer than a matrix product asks for."""
    return max(16, _power(dim))


def _power(number: int) -> int:
    """The power of two that is no smaller."""
    return 1 << max(0, number - 1).bit_length()


def _bounds(part: Part) -> tuple[int, int, int, int]:
    return part.places.start, part.places.stop, part.keys.start, part.keys.stop


def _tables(part: Part) -> tuple[tuple | None, tuple | None]:
    return argument_of(part.mask), argument_of(part.bias)


def _reached(first: Tensor, stop: Tensor, starts: Tensor, stops: Tensor) -> tuple[Tensor, Tensor]:
    """For tiles of keys, from ``starts`` to ``stops``, the tiles of queries outside which nobody sees them, int32.

    Args:
        first: (B or 1, H or 1, tiles of queries) the first key that a tile of queries sees.
        stop: one more than the last; a tile that sees nothing has ``first`` = ``stop``.
        starts: (tiles of keys,).
        stops: the same.
    """
    leading = first.shape[:2]
    # the first tile that reaches beyond a start, and the last that begins before a stop
    reached = stop.masked_fill(first >= stop, 0).long().cummax(-1).values.contiguous()
    begun = first.masked_fill(first >= stop, LENGTH).long().flip(-1).cummin(-1).values.flip(-1).contiguous()
    begin = torch.searchsorted(reached, starts.expand(*leading, -1).contiguous(), right=True)
    end = torch.searchsorted(begun, stops.expand(*leading, -1).contiguous())
    return begin.to(torch.int32), torch.maximum(begin, end).to(torch.int32)
