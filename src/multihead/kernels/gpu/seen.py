"""Masks and biases as the programs read them: ranges of keys, tensors where they lie, or tiles made part by part."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from operator import and_

import torch
from jaxtyping import Int
from torch import Tensor

from multihead.biases import Bias
from multihead.core import AttentionCall
from multihead.masks import And, Dense, Mask

PART = 1 << 26
"""Most numbers of a mask or a bias that are made at a time where they are not a tensor already."""


@dataclass(frozen=True)
class Table:
    """A bias or a dense mask, read with its strides; those of an axis of size 1 are 0."""

    tensor: Tensor
    by_place: bool = False
    """Whether its rows are the measured queries, from ``first_row`` on, rather than all queries."""
    first_row: int = 0
    first_key: int = 0

    @property
    def argument(self) -> tuple:
        """What a program is given."""
        tensor = self.tensor.view(torch.uint8) if self.tensor.dtype == torch.bool else self.tensor
        return tensor, broadcast_strides(tensor), self.first_row, self.first_key


@dataclass(frozen=True)
class Part:
    """Some of the measured queries, the keys that they can see, and the tables that were made for them."""

    places: range
    keys: range
    mask: Table | None
    bias: Table | None


class Seen:
    """What a call's mask and bias say about the measured queries."""

    def __init__(self, call: AttentionCall, queries: Int[Tensor, " query"]) -> None:
        self.call, self.queries = call, queries
        self.spans, rest = _taken_apart(call, queries)
        self._mask = None
        if rest is not None:
            self._mask = _Source(self, rest.visible, rest.allowed if isinstance(rest, Dense) else None)
        bias = call.bias
        self._bias = None
        if isinstance(bias, Bias):
            self._bias = _Source(self, bias.values, None)
        elif bias is not None:
            self._bias = _Source(self, None, bias)

    @property
    def mask_heads(self) -> int:
        """1 where all heads see the same."""
        call = self.call
        if call.mask is None or not len(self.queries) or not call.sizes.keys:
            return 1
        return call.mask.visible(self.queries[:1], self.queries.new_zeros(1), call.sizes).shape[1]

    @property
    def span_argument(self) -> tuple | None:
        """Ranges of keys as a program is given them."""
        if self.spans is None:
            return None
        first, stop = self.spans
        return first, stop, broadcast_strides(first)

    def parts(self, align: int) -> Iterator[Part]:
        """The measured queries, all at once unless a table must be made for them; cut at multiples of ``align``."""
        made = [source for source in (self._mask, self._bias) if source is not None and source.numbers_per_query]
        count, step = len(self.queries), len(self.queries)
        if made:
            step = max(1, PART // max(source.numbers_per_query for source in made))
            step = max(step // align * align, 1) if step >= align else step
        for start in range(0, count, max(1, step)):
            places = range(start, min(start + step, count))
            keys = range(self.call.sizes.keys)
            if made and self.call.mask is not None:
                here = self.queries[places.start : places.stop]
                keys = range(*self.call.mask.key_range(int(here.min()), int(here.max()), self.call.sizes))
            mask, bias = (None if source is None else source.table(places, keys) for source in (self._mask, self._bias))
            yield Part(places, keys, mask, bias)

    def limits(self, starts: Tensor, stops: Tensor) -> tuple[Tensor, Tensor]:
        """For tiles of places, from ``starts`` to ``stops``, the keys outside which they see nothing, int32.

        Returns:
            First and stop, each (B or 1, H or 1, tiles); equal where a tile sees nothing.
        """
        keys, mask = self.call.sizes.keys, self.call.mask
        longest = int((stops - starts).max()) if len(starts) else 0
        places = starts[:, None] + torch.arange(longest, device=starts.device)
        missing = places >= stops[:, None]
        places = places.clamp_max(len(self.queries) - 1)
        if self.spans is not None:
            first, stop = (end[:, :, places] for end in self.spans)
            missing = missing | (first >= stop)
            first = first.masked_fill(missing, keys).amin(-1)
            return first, torch.maximum(stop.masked_fill(missing, 0).amax(-1), first)
        if mask is None or type(mask).key_range is Mask.key_range:
            whole = torch.zeros((1, 1, len(starts)), dtype=torch.int32, device=starts.device)
            return whole, whole + keys
        numbers = self.queries[places]
        lowest = numbers.masked_fill(missing, self.call.sizes.queries).amin(-1).tolist()
        highest = numbers.masked_fill(missing, -1).amax(-1).tolist()
        ranges = [mask.key_range(low, high, self.call.sizes) for low, high in zip(lowest, highest, strict=True)]
        found = torch.tensor(ranges, dtype=torch.int32, device=starts.device).view(1, 1, -1, 2)
        return found[..., 0].contiguous(), found[..., 1].contiguous()


class _Source:
    """Where a table comes from: it is there, it is small enough to be made once, or it is made part by part."""

    def __init__(self, seen: Seen, ask: Callable | None, tensor: Tensor | None) -> None:
        self.seen, self.ask = seen, ask
        self.numbers_per_query = 0
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
            self.numbers_per_query = batch * heads * sizes.keys

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


def _taken_apart(call: AttentionCall, queries: Tensor) -> tuple[tuple[Tensor, Tensor] | None, Mask | None]:
    """A mask's ranges of keys, (B or 1, H or 1, queries) int32, and what of it is no such range."""
    first, stop, rest = None, None, []
    for mask in _factors(call.mask):
        spans = mask.spans(queries, call.sizes)
        if spans is None:
            rest.append(mask)
        elif first is None or stop is None:
            first, stop = spans
        else:
            first, stop = torch.maximum(first, spans[0]), torch.minimum(stop, spans[1])
    left = reduce(and_, rest) if rest else None
    if first is None or stop is None:
        return None, left
    first, stop = torch.broadcast_tensors(first.to(torch.int32), stop.to(torch.int32))
    return (first.contiguous(), stop.contiguous()), left


def _factors(mask: Mask | None) -> Iterator[Mask]:
    """The masks that must all agree."""
    if isinstance(mask, And):
        yield from _factors(mask.left)
        yield from _factors(mask.right)
    elif mask is not None:
        yield mask
