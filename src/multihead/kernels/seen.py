"""What queries see, as compiled kernels read it: ranges of keys, tensors in place, or tables made part by part."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from operator import and_

import torch
from jaxtyping import Int
from torch import Tensor

from multihead.biases import Bias
from multihead.core import AttentionCall
from multihead.masks import And, Dense, Mask, Sizes

Spans = tuple[Tensor, Tensor]
"""First and stop of each query's keys, (B or 1, H or 1, queries), int64, equal where it sees nothing."""


@dataclass(frozen=True)
class Table:
    """A bias or a dense mask, (B or 1, H or 1, rows or 1, keys or 1)."""

    tensor: Tensor
    by_place: bool = False
    """Whether its rows are the measured queries, from ``first_row`` on, rather than all queries."""
    first_row: int = 0
    first_key: int = 0


class Seen:
    """What a call's mask and bias say about the measured queries."""

    def __init__(self, call: AttentionCall, queries: Int[Tensor, " query"]) -> None:
        self.call, self.queries = call, queries
        self.spans, rest = spans_and_rest(call.mask, queries, call.sizes)
        self._mask = self._bias = None
        if rest is not None:
            self._mask = _Source(self, rest.visible, rest.allowed if isinstance(rest, Dense) else None)
        if isinstance(call.bias, Bias):
            self._bias = _Source(self, call.bias.values, None)
        elif call.bias is not None:
            self._bias = _Source(self, None, call.bias)

    @property
    def only_spans(self) -> bool:
        """Whether ranges say all that is hidden."""
        return self._mask is None

    def numbers_per_query(self, in_place: Callable[[Tensor], bool] = lambda _: True) -> int:
        """Numbers of the largest table that must be made, for one query; 0 where none must be.

        Args:
            in_place: whether a tensor of all queries can be read where it lies.
        """
        sources = [source for source in (self._mask, self._bias) if source is not None]
        return max((source.numbers_per_query(in_place) for source in sources), default=0)

    def tables(self, places: range, keys: range) -> tuple[Table | None, Table | None]:
        """What the mask leaves to be looked up, and the bias, of some of the measured queries."""
        mask, bias = (None if source is None else source.table(places, keys) for source in (self._mask, self._bias))
        return mask, bias


class _Source:
    """Where a table comes from: it is there, it is small enough to be made once, or it is made part by part."""

    def __init__(self, seen: Seen, ask: Callable | None, tensor: Tensor | None) -> None:
        self.seen, self.ask = seen, ask
        self._made = 0
        self.whole = None if tensor is None else Table(tensor)
        sizes, queries = seen.call.sizes, seen.queries
        if self.whole is not None or ask is None:
            return
        every = torch.arange(sizes.keys, device=queries.device)
        batch, heads, rows, columns = ask(queries[:2], every[:2], sizes).shape
        # an axis of size 1 does not matter; where there is but one query or key, it says nothing
        if rows == 1 or columns == 1:
            answer = ask(queries[:1] if rows == 1 else queries, every[:1] if columns == 1 else every, sizes)
            self.whole = Table(answer, by_place=True)
        else:
            self._made = batch * heads * sizes.keys

    def numbers_per_query(self, in_place: Callable[[Tensor], bool]) -> int:
        """How many must be made for one query."""
        whole = self.whole
        if whole is None or whole.by_place or whole.tensor.shape[2] == 1 or in_place(whole.tensor):
            return self._made
        return whole.tensor[:, :, 0].numel()

    def table(self, places: range, keys: range) -> Table:
        """What a part of the queries needs."""
        if self.whole is not None:
            return self.whole
        assert self.ask is not None  # noqa: S101  only what is there has no one to ask
        device = self.seen.queries.device
        here, there = self.seen.queries[places.start : places.stop], torch.arange(keys.start, keys.stop, device=device)
        answer = self.ask(here, there, self.seen.call.sizes)
        return Table(answer, by_place=True, first_row=places.start, first_key=keys.start)


def broadcast_strides(tensor: Tensor) -> tuple[int, ...]:
    """A tensor's strides, 0 along axes of size 1, so that it is read as if it had been expanded."""
    return tuple(0 if size == 1 else stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def spans_and_rest(mask: Mask | None, queries: Int[Tensor, " query"], sizes: Sizes) -> tuple[Spans | None, Mask | None]:
    """Take a mask apart: a key is visible where both say so; None where there is nothing to say."""
    found: list[Spans] = []
    rest: list[Mask] = []
    for factor in _factors(mask):
        spans = factor.spans(queries, sizes)
        if spans is None:
            rest.append(factor)
        else:
            found.append(spans)
    left = reduce(and_, rest) if rest else None
    if not found:
        return None, left
    firsts, stops = zip(*found, strict=True)
    first, stop = reduce(torch.maximum, firsts), reduce(torch.minimum, stops)
    first, stop = torch.broadcast_tensors(torch.minimum(first, stop), stop)
    return (first.contiguous(), stop.contiguous()), left


def _factors(mask: Mask | None) -> Iterator[Mask]:
    """The masks that must all agree."""
    if isinstance(mask, And):
        yield from _factors(mask.left)
        yield from _factors(mask.right)
    elif mask is not None:
        yield mask
