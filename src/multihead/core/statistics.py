"""What may be asked about the weights of an attention, and the form of the answers.

All answers are exact. With P the softmax weights and s the scores after scale, softcap, bias and mask; learned sinks
count as one more key in ``lse`` and ``entropy``, so that weights and sink probability together sum to 1.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from multihead.conventions import checked_indices, kind_of
from multihead.core.own import OwnStatistic, checked_own
from multihead.counting import whole, whole_numbers
from multihead.sizes import Sizes


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Which statistics to compute. The first four are light and on by default.

    Args:
        lse: log Σ exp s.
        max_score: max s.
        entropy: -Σ P log P = lse - Σ P s, in nats.
        visible: number of keys that each query may see.
        top: number of largest weights to return for each query, with their keys; ties go to the lower key.
        received: Σ over queries of P for each key, and the same divided by the number of queries that may see the key.
        offsets: attention mass by distance (query position minus key); True for bins at powers of two, or ascending bin
            edges: bin i holds the distances from edges[i] up to, not including, edges[i + 1].
        blocks: (s, t): the mean weight of each block of s queries × t keys, the overview map.
        block_peaks: the largest weight of each of these blocks too, in which a single strong link shows.
        rows: queries whose whole rows of weights to return.
        columns: keys whose whole columns of weights to return.
        sink: probability that went to learned sinks.
        own: statistics of your own: a :class:`RowStatistic` or :class:`ColumnStatistic` each, such as :class:`MassOn`.

    Raises:
        TypeError: numbers that are no whole ones, or no list where one is expected; the message says what to write.
        ValueError: numbers that are too small, edges that do not ascend, or ``block_peaks`` without ``blocks``.

    Memory: O(Lq + Lk) per head, plus what ``rows``, ``columns``, ``top`` and ``blocks`` name; never Lq × Lk.

    >>> Statistics(top=8).entropy
    True
    """

    lse: bool = True
    max_score: bool = True
    entropy: bool = True
    visible: bool = True
    top: int = 0
    received: bool = False
    offsets: bool | tuple[int, ...] = False
    blocks: tuple[int, int] | None = None
    block_peaks: bool = False
    rows: tuple[int, ...] | None = None
    columns: tuple[int, ...] | None = None
    sink: bool = False
    own: tuple[OwnStatistic, ...] = ()

    def __post_init__(self) -> None:
        for name in ("rows", "columns"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, whole_numbers(name, value))
        object.__setattr__(self, "top", whole("top", self.top))
        if self.top < 0:
            raise ValueError(f"top={self.top} is negative: it counts the largest weights to return, 0 for none.")
        if self.blocks is not None:
            object.__setattr__(self, "blocks", _block_sizes(self.blocks))
        elif self.block_peaks:
            raise ValueError("block_peaks=True without blocks: say how large a block is, for example blocks=(64, 64).")
        if not isinstance(self.offsets, bool):
            object.__setattr__(self, "offsets", _bin_edges(self.offsets))
        object.__setattr__(self, "own", checked_own(self.own))

    def check(self, sizes: Sizes, queries: Int[Tensor, " query"] | None = None) -> None:
        """Raise ``ValueError`` where a chosen row or column is not there, or not among the measured ``queries``.

        Or where a statistic of the user's own says that it does not belong here.
        """
        for statistic in self.own:
            statistic.check(sizes)
        checked_indices("rows", self.rows or (), sizes.queries)
        checked_indices("columns", self.columns or (), sizes.keys)
        missing = set() if queries is None else set(self.rows or ()) - set(queries.tolist())
        if missing:
            raise ValueError(
                f"rows {sorted(missing)} are not among the measured queries: add them, or leave queries out."
            )

    def edges(self, sizes: Sizes) -> tuple[int, ...]:
        """The edges of the distance bins for an attention of these sizes."""
        return power_of_two_edges(sizes) if self.offsets is True else tuple(self.offsets or ())

    @classmethod
    def only(cls, **asked: Any) -> "Statistics":
        """Those that are named, without the four that are on by default.

        >>> Statistics.only(top=8).entropy
        False
        """
        light: dict[str, Any] = {"lse": False, "max_score": False, "entropy": False, "visible": False}
        return cls(**light | asked)

    @classmethod
    def every(
        cls, *, top: int = 8, block: int = 64, rows: Sequence[int] = (0,), columns: Sequence[int] = (0,)
    ) -> "Statistics":
        """All that there are."""
        return cls(
            top=top,
            received=True,
            offsets=True,
            blocks=(block, block),
            block_peaks=True,
            rows=whole_numbers("rows", rows),
            columns=whole_numbers("columns", columns),
            sink=True,
        )


def check_statistics(statistics: object) -> None:
    """Raise ``TypeError`` for what is no :class:`Statistics`; the message says how to make one."""
    if isinstance(statistics, Statistics):
        return
    advice = "Statistics(**statistics)" if isinstance(statistics, dict) else "for example Statistics(top=8)"
    raise TypeError(f"statistics is {kind_of(statistics)}, expected a multihead.Statistics: pass {advice}.")


def _block_sizes(blocks: object) -> tuple[int, ...]:
    """Queries and keys of one block."""
    advice = "say blocks=(64, 64) for 64 queries by 64 keys."
    if isinstance(blocks, str) or not isinstance(blocks, Iterable):
        raise TypeError(f"blocks={blocks!r} is no pair of sizes: {advice}")
    sizes = whole_numbers("blocks", blocks)
    if len(sizes) != 2 or min(sizes) < 1:
        raise ValueError(f"blocks={blocks} is no pair of positive sizes: {advice}")
    return sizes


def _bin_edges(offsets: object) -> tuple[int, ...]:
    """The edges of distance bins as given."""
    advice = "give at least two ascending distances, or True."
    if isinstance(offsets, str) or not isinstance(offsets, Iterable):
        raise TypeError(f"offsets={offsets!r} are no bin edges: {advice}")
    edges = whole_numbers("offsets", offsets)
    if len(edges) < 2 or any(low >= high for low, high in pairwise(edges)):
        raise ValueError(f"offsets={offsets} are no bin edges: {advice}")
    return edges


def power_of_two_edges(sizes: Sizes) -> tuple[int, ...]:
    """Edges ..., -3, -1, 0, 1, 2, 4, 8, ... that cover every distance between a query's position and a key.

    Bin [0, 1) is the query's own key, [1, 2) the one before, [2, 4) the next two; on the other side [-1, 0) the one
    after, [-3, -1) two more.
    """
    farthest_back = sizes.keys - 1
    farthest_ahead = max(sizes.keys - 1 - sizes.offset, 0)
    before, step = [0, 1], 2
    while before[-1] <= farthest_back:
        before.append(step)
        step *= 2
    after, step = [], 2
    while not after or -after[-1] < farthest_ahead:
        after.append(1 - step)
        step *= 2
    return (*reversed(after), *before) if farthest_ahead else tuple(before)


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """The statistics of one attention; None where one was not asked for.

    Tensors are float32 (float64 for float64 inputs), counts and indices int64. Lq is the number of measured queries.
    """

    lse: Float[Tensor, "batch head query"] | None = None
    max_score: Float[Tensor, "batch head query"] | None = None
    entropy: Float[Tensor, "batch head query"] | None = None
    visible: Int[Tensor, "batch head_or_1 query"] | None = None
    top_weights: Float[Tensor, "batch head query top"] | None = None
    top_keys: Int[Tensor, "batch head query top"] | None = None
    """-1, with weight 0, where a query sees fewer keys."""
    received: Float[Tensor, "batch head key"] | None = None
    received_mean: Float[Tensor, "batch head key"] | None = None
    offsets: Float[Tensor, "batch head bin"] | None = None
    offset_edges: Int[Tensor, " edge"] | None = None
    blocks: Float[Tensor, "batch head query_block key_block"] | None = None
    block_peaks: Float[Tensor, "batch head query_block key_block"] | None = None
    """0 where no pair of a block is visible."""
    block_size: Int[Tensor, "2"] | None = None
    rows: Float[Tensor, "batch head row key"] | None = None
    row_queries: Int[Tensor, " row"] | None = None
    columns: Float[Tensor, "batch head query column"] | None = None
    column_keys: Int[Tensor, " column"] | None = None
    sink: Float[Tensor, "batch head query"] | None = None
    row_statistics: Mapping[str, Float[Tensor, "batch head query"]] = field(default_factory=dict)
    """Those of ``Statistics(own=...)``, by their names."""
    column_statistics: Mapping[str, Float[Tensor, "batch head key"]] = field(default_factory=dict)
    """The same."""

    def named(self) -> dict[str, Tensor]:
        """Those that were asked for, by name; a user's own under ``row_statistics.name``."""
        found: dict[str, Tensor] = {}
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, Mapping):
                found |= {f"{one.name}.{name}": tensor for name, tensor in value.items()}
            elif value is not None:
                found[one.name] = value
        return found

    @classmethod
    def of(cls, named: Mapping[str, Tensor | None]) -> "Measurements":
        """Those that :meth:`named` gives."""
        found: dict[str, Any] = {}
        for name, tensor in named.items():
            kind, dot, own = name.partition(".")
            if dot:
                found.setdefault(kind, {})[own] = tensor
            else:
                found[name] = tensor
        return cls(**found)


def block_means(
    totals: Float[Tensor, "*head query_block key_block"], blocks: tuple[int, int], queries: int, keys: int
) -> Float[Tensor, "*head query_block key_block"]:
    """Mean weights of blocks from their sums; the last blocks hold what is left of the queries and keys."""
    if not (queries % blocks[0] or keys % blocks[1]):
        return totals / (blocks[0] * blocks[1])
    cells = block_cells(queries, blocks[0])[:, None] * block_cells(keys, blocks[1])
    return totals / cells.to(totals.device)


def block_cells(length: int, block: int) -> Tensor:
    """How many of ``length`` tokens each block of ``block`` holds: the last one may be short."""
    count = -(-length // block)
    cells = torch.full((count,), block)
    if count:
        cells[-1] = length - (count - 1) * block
    return cells
