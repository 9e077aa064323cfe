"""What a profile takes from one attention: statistics of the real queries of each sequence, as summaries.

Sequences with the same real queries are measured together; each sum over queries (received, offsets) then has real ones
only. The kernel that measures is the library's own, so nothing of size Lq × Lk is kept.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from multihead.core import AttentionCall, Measurements, Statistics
from multihead.kernels import measure
from multihead.lens.host import HostAttention
from multihead.lens.measuring import of_heads
from multihead.lens.real_tokens import RealTokens
from multihead.lens.summaries import KINDS, OFFSET_EDGES, Summary, by_distance
from multihead.masks import And, Causal, Dense, Documents, Mask, Not, Or, Padding, Sizes, SlidingWindow


@dataclass(frozen=True)
class Gathered:
    """What one attention of one batch said."""

    summaries: dict[str, Summary]
    queries: Tensor
    """(heads,): real queries that see something."""
    offsets: Tensor
    """(heads, bins): attention mass by distance, float64."""


def gathered(
    attention: HostAttention, name: str, heads: tuple[int, ...], wanted: Sequence[str], real: RealTokens
) -> Gathered:
    """The wanted statistics of an attention.

    Args:
        attention: as a host computed it.
        name: path of its module.
        heads: the heads that are asked about.
        wanted: names of ``KINDS``.
        real: what the batch says about its tokens.

    Memory: of one group of sequences, the statistics of each query, and one tile of scores.
    """
    call = replace(attention.call, dropout=0.0)
    _, _, cross = real.roles(attention, name)
    apart = cross or bool(attention.extra_keys)
    chosen = tuple(word for word in wanted if _defined(word, call, apart=apart))
    low, edges = _single_distances(call)
    group = _Group(len(heads), chosen, low, edges)
    queries = real.queries(attention, name)
    for items, places, first in _groups(queries, real.first_keys(attention, name)):
        some, _, _ = of_heads(_of_items(call, items), heads)
        group.add(some, places.to(call.q.device), first)
    return group.answer(wanted)


def _defined(word: str, call: AttentionCall, *, apart: bool) -> bool:
    """Whether a statistic means something for this attention; ``apart``: positions of queries and keys say nothing."""
    if word == "distance":
        return not apart
    return word != "sink" or call.sinks is not None


@dataclass
class _Group:
    """Adds up groups of sequences."""

    heads: int
    wanted: tuple[str, ...]
    low: int
    """The smallest distance between a query and a key."""
    edges: tuple[int, ...]
    """Of one bin for each distance."""
    found: dict[str, Summary] = field(default_factory=dict)
    queries: Tensor | None = None
    offsets: Tensor | None = None

    def add(self, call: AttentionCall, places: Tensor, first: int) -> None:
        """Measure some sequences at the same queries."""
        asked = Statistics(
            lse="lse" in self.wanted or "max_weight" in self.wanted,
            max_score="max_weight" in self.wanted,
            entropy="entropy" in self.wanted,
            visible=True,
            received=any(word.startswith("received") for word in self.wanted),
            offsets=self.edges if "distance" in self.wanted else False,
            columns=(first,) if "first" in self.wanted else None,
            sink="sink" in self.wanted,
        )
        everything = len(places) == call.sizes.queries
        _, found = measure(call, asked, queries=None if everything else places)
        assert found.visible is not None  # noqa: S101  asked for above
        sees = (found.visible > 0).expand(call.sizes.batch, self.heads, len(places))
        per_text = sees.any(-1, keepdim=True)
        for word in self.wanted:
            kind = KINDS[word]
            values = _values(word, found, self.low)
            summary = Summary.of(values, per_text if kind.of_text else sees, kind)
            self.found[word] = self.found[word].merged(summary) if word in self.found else summary
        counted = sees.sum((0, 2)).cpu()
        self.queries = counted if self.queries is None else self.queries + counted
        if found.offsets is not None:
            mass = by_distance(found.offsets, self.low)
            self.offsets = mass if self.offsets is None else self.offsets + mass

    def answer(self, wanted: Sequence[str]) -> Gathered:
        """All that was added; empty summaries of what is not defined here."""
        summaries = {word: self.found.get(word) or Summary.empty(self.heads, KINDS[word]) for word in wanted}
        queries = torch.zeros(self.heads, dtype=torch.int64) if self.queries is None else self.queries
        offsets = self.offsets
        if offsets is None:
            offsets = torch.zeros(self.heads, len(OFFSET_EDGES) - 1, dtype=torch.float64)
        return Gathered(summaries, queries, offsets)


def _values(word: str, found: Measurements, low: int) -> Tensor:
    """(B, H, queries) of a statistic of queries, (B, H, 1) of one of texts, float64 where anything is computed."""
    match word:
        case "max_weight":
            assert found.lse is not None and found.max_score is not None  # noqa: S101, PT018
            return (_exact(found.max_score) - _exact(found.lse)).exp()
        case "first":
            assert found.columns is not None  # noqa: S101
            return found.columns[..., 0]
        case "distance":
            assert found.offsets is not None  # noqa: S101
            mass = _exact(found.offsets)
            away = torch.arange(low, low + mass.shape[-1], device=mass.device).abs().to(mass.dtype)
            return (mass * away).sum(-1, keepdim=True) / mass.sum(-1, keepdim=True)
        case "received_max" | "received_entropy":
            assert found.received is not None  # noqa: S101
            received = _exact(found.received)
            shares = received / received.sum(-1, keepdim=True)
            if word == "received_max":
                return shares.amax(-1, keepdim=True)
            return torch.special.entr(shares).sum(-1, keepdim=True)
        case _:
            value = getattr(found, word)
            assert value is not None  # noqa: S101
            return value


def _exact(tensor: Tensor) -> Tensor:
    """In float64, on the CPU where the device has none."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def _single_distances(call: AttentionCall) -> tuple[int, tuple[int, ...]]:
    """The smallest distance between a query and a key, and the edges of one bin for each distance."""
    sizes = call.sizes
    low = 0 if _looks_back(call.mask) else min(0, sizes.offset - sizes.keys + 1)
    return low, tuple(range(low, max(sizes.keys, low + 1) + 1))


def _looks_back(mask: Mask | None) -> bool:
    """Whether no query sees a key after its own position, as far as the mask's kind says."""
    match mask:
        case Causal():
            return True
        case SlidingWindow(_, right):
            return right is not None and right <= 0
        case And(left, right):
            return _looks_back(left) or _looks_back(right)
        case _:
            return False


def _groups(real: Tensor, first: Sequence[int]) -> Iterator[tuple[list[int], Tensor, int]]:
    """Sequences with the same real queries and the same first key: their places, those queries, that key."""
    rows = real.cpu()
    together: dict[tuple[bytes, int], list[int]] = {}
    for item, key in enumerate(first):
        together.setdefault((rows[item].numpy().tobytes(), key), []).append(item)
    for (_, key), items in together.items():
        places = rows[items[0]].nonzero()[:, 0]
        if len(places):
            yield items, places, key


def _of_items(call: AttentionCall, items: list[int]) -> AttentionCall:
    """The attention of some sequences of a batch."""
    sizes = call.sizes
    if len(items) == sizes.batch:
        return call
    index = torch.tensor(items, device=call.q.device)
    bias = call.dense_bias
    if bias is not None and bias.shape[0] != 1:
        bias = bias[index]
    mask = None if call.mask is None else _mask_of_items(call.mask, index, sizes)
    return replace(call, q=call.q[index], k=call.k[index], v=call.v[index], mask=mask, bias=bias)


def _mask_of_items(mask: Mask, items: Tensor, sizes: Sizes) -> Mask:
    def rows(tensor: Tensor) -> Tensor:
        return tensor if tensor.shape[0] == 1 else tensor[items]

    match mask:
        case Padding(valid):
            return Padding(rows(valid))
        case Documents(queries, keys):
            return Documents(rows(queries), rows(keys))
        case Dense(allowed):
            return Dense(rows(allowed))
        case And(left, right) | Or(left, right):
            return type(mask)(_mask_of_items(left, items, sizes), _mask_of_items(right, items, sizes))
        case Not(inner):
            return Not(_mask_of_items(inner, items, sizes))
        case _ if not any(True for _ in mask.tensors()):
            return mask
        case _:
            return _Items(mask, items, sizes)


@dataclass(frozen=True, eq=False)
class _Items(Mask):
    """A mask of another kind, asked for the whole batch and answered for some sequences of it."""

    mask: Mask
    items: Tensor
    sizes: Sizes

    def visible(self, queries, keys, sizes):  # noqa: ARG002
        """See :class:`Mask`."""
        answer = self.mask.visible(queries, keys, self.sizes)
        return answer if answer.shape[0] == 1 else answer[self.items]

    def key_range(self, first, last, sizes):  # noqa: ARG002
        """See :class:`Mask`."""
        return self.mask.key_range(first, last, self.sizes)

    def tensors(self):
        """See :class:`Mask`."""
        yield from self.mask.tensors()
