"""Masks and biases as the programs read them, and which tiles they let them skip."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from multihead.core import AttentionCall
from multihead.kernels.seen import Seen, Table, broadcast_strides
from multihead.masks import Mask

PART = 1 << 26
"""Most numbers of a mask or a bias that are made at a time where they are not a tensor already."""


@dataclass(frozen=True)
class Part:
    """Some of the measured queries, the keys that they can see, and the tables that were made for them."""

    places: range
    keys: range
    mask: Table | None
    bias: Table | None


class SeenByTiles(Seen):
    """What the programs are told of it: tables of some queries at a time, and what tiles can skip."""

    def __init__(self, call: AttentionCall, queries: Int[Tensor, " query"]) -> None:
        super().__init__(call, queries)
        if self.spans is not None:
            # numbers of keys fit in 32 bits here, and half the bytes are read
            self.spans = self.spans[0].to(torch.int32), self.spans[1].to(torch.int32)

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
        count, step = len(self.queries), len(self.queries)
        made = self.numbers_per_query()
        if made:
            step = max(1, PART // made)
            step = max(step // align * align, 1) if step >= align else step
        for start in range(0, count, max(1, step)):
            places = range(start, min(start + step, count))
            keys = range(self.call.sizes.keys)
            if made and self.call.mask is not None:
                here = self.queries[places.start : places.stop]
                keys = range(*self.call.mask.key_range(int(here.min()), int(here.max()), self.call.sizes))
            yield Part(places, keys, *self.tables(places, keys))

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


def argument_of(table: Table | None) -> tuple | None:
    """A table as a program is given it."""
    if table is None:
        return None
    tensor = table.tensor.view(torch.uint8) if table.tensor.dtype == torch.bool else table.tensor
    return tensor, broadcast_strides(tensor), table.first_row, table.first_key
