"""What seeing an attention costs in bytes, and the budget within which an observation stays."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from multihead.core import RowStatistic, Statistics
from multihead.errors import ObservationError
from multihead.kernels import cpu
from multihead.kernels.tiles import TILE_SCORES
from multihead.lens.free import free_bytes
from multihead.lens.host import HostAttention
from multihead.lens.masks_found import MaskFinder
from multihead.lens.measuring import Sight, Wanted, sight_of
from multihead.masks import Sizes
from multihead.precision import statistics_dtype

SHARE = 0.5
"""Of the memory that is free, what an observation may take."""


@dataclass(frozen=True)
class Seeing:
    """The seeing of one attention, as far as it takes memory."""

    sizes: Sizes
    """As the model computes it."""
    heads: int
    """That are observed."""
    kv_heads: int
    """Of the keys that they need."""
    queries: int
    """That are observed."""
    head_dim: int
    value_dim: int
    dtype: torch.dtype
    statistics: Statistics
    qk: bool = True
    verify: bool = True

    def kept(self) -> dict[str, int]:
        """Bytes that a recording of it holds, by name: ``qk`` and each statistic; without a bias or a dense mask."""
        sizes, asked = self.sizes, self.statistics
        batch, heads, queries, keys = sizes.batch, self.heads, self.queries, sizes.keys
        real = statistics_dtype(self.dtype).itemsize
        rows, columns = (len(chosen or ()) for chosen in (asked.rows, asked.columns))
        bins = max(len(asked.edges(sizes)) - 1, 0)
        per_query = batch * heads * queries
        found = {name: per_query * real for name in ("lse", "max_score", "entropy", "sink") if getattr(asked, name)}
        found |= {name: self._block_cells() * real for name in ("blocks", "block_peaks") if getattr(asked, name)}
        if asked.visible:
            found["visible"] = batch * queries * 8
        if asked.top:
            found["top"] = per_query * min(asked.top, keys) * (real + 8)
        if asked.received:
            found["received"] = 2 * batch * heads * keys * real
        if bins:
            found["offsets"] = batch * heads * bins * real + 8 * (bins + 1)
        if asked.blocks is not None:
            found["blocks"] += 2 * 8
        if asked.rows is not None:
            found["rows"] = batch * heads * rows * keys * real + 8 * rows
        if asked.columns is not None:
            found["columns"] = per_query * columns * real + 8 * columns
        if asked.own:
            found["own"] = sum(
                real * batch * heads * (queries if isinstance(one, RowStatistic) else keys) for one in asked.own
            )
        if self.qk:
            found["qk"] = self.head_dim * self.dtype.itemsize * (per_query + batch * self.kv_heads * keys)
        return found

    def _block_cells(self) -> int:
        """Blocks of all heads; 0 where none are asked for."""
        if self.statistics.blocks is None:
            return 0
        height, width = self.statistics.blocks
        return self.sizes.batch * self.heads * -(-self.queries // height) * -(-self.sizes.keys // width)

    def working(self) -> int:
        """Bytes that measuring it takes for a while beside what it keeps, in the kernel that takes most: a bound.

        A tile of scores and what is computed of it; queries and keys in the dtype of statistics; and, with ``verify``,
        Σ P v and its difference from the host's output.
        """
        sizes, asked = self.sizes, self.statistics
        batch, heads, keys = sizes.batch, self.heads, sizes.keys
        real = statistics_dtype(self.dtype).itemsize
        tile = min(max(TILE_SCORES, keys * max(1, heads // max(self.kv_heads, 1))), batch * heads * self.queries * keys)
        # scores, weights, what they are made of, and what is visible
        per_score = 4 * real + 2
        if asked.offsets:
            # running sums, and these at each edge of a bin, by place
            per_score += 8 + 24 * len(asked.edges(sizes)) / max(keys, 1)
        if asked.blocks is not None:
            # what each query gives to each block across
            per_score += (real + 8) / asked.blocks[1]
        if asked.top:
            per_score += 2 * real + 8
        if asked.visible:
            per_score += 1
        operands = batch * keys * self.kv_heads * (self.head_dim + self.value_dim) * real
        output = 4 * batch * heads * self.queries * self.value_dim * real if self.verify else 0
        # float64 sums, and what is made of them
        sums = 8 * batch * heads * keys * (3 if asked.received else 0) + 8 * 2 * self._block_cells()
        in_tiles = math.ceil(tile * per_score) + sums
        measured = Sizes(batch, heads, self.queries, keys)
        return max(in_tiles, cpu.working_bytes(measured, self.head_dim, self.value_dim, asked)) + operands + output


def budget_of(max_bytes: int | None, device: torch.device) -> int | None:
    """The bytes that may be taken on a device: those that were said, else half of what is free."""
    if max_bytes is not None:
        return max_bytes
    free = free_bytes(device)
    return None if free is None else int(free * SHARE)


def in_bytes(number: int | float) -> str:
    """A number of bytes as people say it.

    >>> in_bytes(999), in_bytes(3 << 30)
    ('999 bytes', '3.0 GiB')
    """
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if number < 1024 or unit == "TiB":
            break
        number /= 1024
    return f"{number:.0f} bytes" if unit == "bytes" else f"{number:.1f} {unit}"


def what_to_leave_out(kept: Mapping[str, int]) -> str:
    """The dearest of what would be kept, and how to do without."""
    dearest = max(kept, key=lambda name: kept[name], default="lse")
    if dearest == "blocks" and "block_peaks" in kept:
        # as large but for a few bytes, and nothing without blocks
        dearest = "block_peaks"
    size = in_bytes(kept.get(dearest, 0))
    if dearest == "qk":
        return f"qk=False saves {size}"
    ask = {"top": "top=0", "rows": "rows=None", "columns": "columns=None", "blocks": "blocks=None", "own": "own=()"}
    return f"Statistics({ask.get(dearest, f'{dearest}=False')}) saves {size}"


@dataclass
class Budget:
    """The bytes that one observation may take, and what it holds already."""

    max_bytes: int | None = None
    """None: half of what is free when the first attention appears on a device."""
    _limits: dict[torch.device, int | None] = field(default_factory=dict)
    _held: dict[torch.device, int] = field(default_factory=dict)
    _biases: set[tuple[int, int]] = field(default_factory=set)

    def look(self, attention: HostAttention, wanted: Wanted, finder: MaskFinder) -> Sight:
        """Measure an attention if what is kept of it fits.

        Raises:
            ObservationError: it does not; the message says how many bytes it would take and what to leave out.
        """
        call, device = attention.call, attention.call.q.device
        heads = len(wanted.heads)
        seeing = Seeing(
            sizes=call.sizes,
            heads=heads,
            kv_heads=len({head // call.group for head in wanted.heads}),
            queries=call.sizes.queries if wanted.queries is None else len(wanted.queries),
            head_dim=call.q.shape[-1],
            value_dim=call.v.shape[-1],
            dtype=call.q.dtype,
            statistics=wanted.statistics,
            qk=wanted.qk,
            verify=wanted.verify,
        )
        kept = seeing.kept()
        bias = call.bias
        if isinstance(bias, Tensor) and (wanted.run, bias.data_ptr()) not in self._biases:
            self._biases.add((wanted.run, bias.data_ptr()))
            kept["bias"] = bias.numel() * bias.itemsize
        needed = sum(kept.values())
        if device not in self._limits:
            self._limits[device] = budget_of(self.max_bytes, device)
        limit, held = self._limits[device], self._held.get(device, 0)
        if limit is not None and held + needed + seeing.working() > limit:
            said = f"max_bytes={limit}" if self.max_bytes is not None else f"half of what is free, {in_bytes(limit)}"
            beside = f", beside {in_bytes(held)} of what was seen before" if held else ""
            raise ObservationError(
                f"layer {wanted.index} ({wanted.name or 'the model itself'}) would keep {in_bytes(needed)} and take "
                f"{in_bytes(seeing.working())} to measure{beside}, more than {said}: {what_to_leave_out(kept)}, choose "
                "fewer layers=, heads= or queries=, or raise max_bytes=."
            )
        sight = sight_of(attention, wanted, finder)
        self._held[device] = held + needed
        return sight
