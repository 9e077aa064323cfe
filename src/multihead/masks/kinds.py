"""The kinds of masks that combinations are made of; the functions of :mod:`multihead.masks` make them."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from multihead.conventions import shape_of
from multihead.masks.algebra import Mask, Sizes


@dataclass(frozen=True)
class Causal(Mask):
    """See :func:`multihead.masks.causal`."""

    def visible(self, queries, keys, sizes):
        return (keys[None, :] <= queries[:, None] + sizes.offset)[None, None]

    def key_range(self, first, last, sizes):  # noqa: ARG002
        return 0, min(max(last + sizes.offset + 1, 0), sizes.keys)

    def spans(self, queries, sizes):
        stop = (queries + sizes.offset + 1).clamp(0, sizes.keys)[None, None]
        return torch.zeros_like(stop), stop

    def _without_first(self, dropped):  # noqa: ARG002
        # positions count from the last key, which stays
        return self


@dataclass(frozen=True)
class SlidingWindow(Mask):
    """See :func:`multihead.masks.sliding_window`; None is unbounded."""

    left: int | None
    right: int | None

    def visible(self, queries, keys, sizes):
        distance = queries[:, None] + sizes.offset - keys[None, :]
        answer = torch.ones_like(distance, dtype=torch.bool)
        if self.left is not None:
            answer &= distance <= self.left
        if self.right is not None:
            answer &= distance >= -self.right
        return answer[None, None]

    def key_range(self, first, last, sizes):
        start = 0 if self.left is None else max(first + sizes.offset - self.left, 0)
        stop = sizes.keys if self.right is None else max(min(last + sizes.offset + self.right + 1, sizes.keys), 0)
        return min(start, stop), stop

    def spans(self, queries, sizes):
        places = (queries + sizes.offset)[None, None]
        first = torch.zeros_like(places) if self.left is None else (places - self.left).clamp(0, sizes.keys)
        stop = torch.full_like(places, sizes.keys)
        if self.right is not None:
            stop = (places + self.right + 1).clamp(0, sizes.keys)
        return torch.minimum(first, stop), stop

    def _without_first(self, dropped):  # noqa: ARG002
        return self


@dataclass(frozen=True, eq=False)
class Padding(Mask):
    """See :func:`multihead.masks.padding`."""

    valid: Bool[Tensor, "batch key"]

    def visible(self, queries, keys, sizes):  # noqa: ARG002
        return self.valid[:, keys][:, None, None, :]

    def spans(self, queries, sizes):
        counted = self.valid.sum(1)
        first = self.valid.int().argmax(1) if sizes.keys else counted
        stop = first + counted
        places = torch.arange(sizes.keys, device=self.valid.device)
        if not torch.equal((places >= first[:, None]) & (places < stop[:, None]), self.valid):
            return None
        return first[:, None, None].expand(-1, 1, len(queries)), stop[:, None, None].expand(-1, 1, len(queries))

    def check(self, sizes):
        batch, keys = self.valid.shape
        if batch not in (1, sizes.batch) or keys != sizes.keys:
            raise ValueError(
                f"padding mask of shape {shape_of(self.valid)} does not fit batch {sizes.batch} and {sizes.keys} keys: "
                "it must be (batch, keys), True at real tokens."
            )

    def tensors(self):
        yield self.valid

    def to(self, device):
        return Padding(self.valid.to(device))

    def _without_first(self, dropped):
        return Padding(self.valid[:, dropped:])


@dataclass(frozen=True, eq=False)
class Documents(Mask):
    """See :func:`multihead.masks.documents`; rows of query and key document numbers."""

    queries: Int[Tensor, "batch_or_1 query"]
    keys: Int[Tensor, "key_batch_or_1 key"]

    def visible(self, queries, keys, sizes):  # noqa: ARG002
        return (self.queries[:, queries, None] == self.keys[:, None, keys])[:, None]

    def key_range(self, first, last, sizes):
        """From the first to the last key of the documents of these queries, over the batch.

        Exact, whatever the order of the numbers. Time: O(Lq + Lk), and a sort of them the first time. A compiled graph
        cannot depend on data: there, all keys.
        """
        if torch.compiler.is_compiling():
            return 0, sizes.keys
        firsts, lasts = (ends[first : last + 1] for ends in self._ends())
        start, stop = int(firsts.min()), int(lasts.max()) + 1
        return (start, stop) if start < stop else (0, 0)

    def spans(self, queries, sizes):
        numbers = self.keys.long()
        starts = torch.ones_like(numbers, dtype=torch.bool)
        starts[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
        if bool((starts.sum(1) > _different(numbers)).any()):
            return None
        rows = len(self.queries) if len(self.queries) > 1 else len(numbers)
        asking = self.queries.long()[:, queries].expand(rows, -1)
        ordered, order = numbers.expand(rows, -1).sort(dim=-1, stable=True)
        left, right = (torch.searchsorted(ordered, asking.contiguous(), right=side) for side in (False, True))
        if not sizes.keys:
            return left[:, None], right[:, None]
        # one document stands in one place, so its keys follow its first
        first = order.gather(1, left.clamp(max=sizes.keys - 1))
        return first[:, None], (first + right - left)[:, None]

    def _ends(self) -> tuple[Tensor, Tensor]:
        """For each query the first and the last key of its documents over the batch; Lk and -1 where there are none.

        Kept with the numbers they were found for, since whoever owns those may change them.
        """
        known = vars(self).get("_known")
        if known is None or not all(torch.equal(*pair) for pair in zip(known[0], self._numbers(), strict=True)):
            numbers = tuple(ids.clone() for ids in self._numbers())
            known = vars(self)["_known"] = numbers, _ends_of(self.queries, self.keys)
        return known[1]

    def _numbers(self) -> tuple[Tensor, ...]:
        return (self.queries,) if self.keys is self.queries else (self.queries, self.keys)

    def check(self, sizes):
        for axis, ids, length in (("queries", self.queries, sizes.queries), ("keys", self.keys, sizes.keys)):
            if ids.shape[0] not in (1, sizes.batch) or ids.shape[1] != length:
                raise ValueError(
                    f"document numbers of the {axis}, {shape_of(ids)}, do not fit batch {sizes.batch} "
                    f"and {length} {axis}: give (batch, {axis}), or one row for the whole batch."
                )

    def tensors(self):
        yield from (self.queries, self.keys)

    def to(self, device):
        return Documents(self.queries.to(device), self.keys.to(device))

    def _without_first(self, dropped):
        return Documents(self.queries, self.keys[:, dropped:])


@dataclass(frozen=True)
class Prefix(Mask):
    """See :func:`multihead.masks.prefix`."""

    length: int

    def visible(self, queries, keys, sizes):  # noqa: ARG002
        return (keys < self.length)[None, None, None, :]

    def key_range(self, first, last, sizes):  # noqa: ARG002
        return 0, min(self.length, sizes.keys)

    def spans(self, queries, sizes):
        first = torch.zeros_like(queries)[None, None]
        return first, torch.full_like(first, min(self.length, sizes.keys))

    def _without_first(self, dropped):
        return Prefix(max(self.length - dropped, 0))


@dataclass(frozen=True, eq=False)
class Dense(Mask):
    """See :func:`multihead.masks.dense`."""

    allowed: Bool[Tensor, "batch_or_1 head_or_1 query_or_1 key_or_1"]
    axes: int = field(default=4, kw_only=True, compare=False, repr=False)
    """How many of the axes, counted from the last, its owner gave it."""

    def visible(self, queries, keys, sizes):  # noqa: ARG002
        _, _, every_query, every_key = self.allowed.shape
        if every_query != 1 and every_key != 1:
            return self.allowed[:, :, queries[:, None], keys]
        answer = self.allowed if every_query == 1 else self.allowed[:, :, queries]
        return answer if every_key == 1 else answer[..., keys]

    def check(self, sizes):
        target = (sizes.batch, sizes.heads, sizes.queries, sizes.keys)
        if not _broadcasts(self.allowed.shape, target):
            shape = self.allowed.shape[4 - self.axes :]
            raise ValueError(
                f"mask of shape ({', '.join(map(str, shape))}) does not broadcast to (batch, heads, queries, keys) = "
                f"{target}.{_hint(shape, sizes)}"
            )

    def tensors(self):
        yield self.allowed

    def to(self, device):
        return Dense(self.allowed.to(device), axes=self.axes)

    def _without_first(self, dropped):
        return self if self.allowed.shape[3] == 1 else Dense(self.allowed[..., dropped:], axes=self.axes)


def _different(numbers: Tensor) -> Tensor:
    """How many different numbers each row holds."""
    ordered = numbers.sort(dim=-1).values
    return (ordered[:, 1:] != ordered[:, :-1]).sum(1) + min(1, numbers.shape[1])


def _broadcasts(shape: torch.Size, target: tuple) -> bool:
    return all(size in (1, wanted) for size, wanted in zip(shape, target, strict=True))


def _hint(shape: torch.Size, sizes: Sizes) -> str:
    """What its owner may have meant by a mask that does not fit."""
    batch, queries, keys = sizes.batch, sizes.queries, sizes.keys
    if len(shape) == 3 and _broadcasts(shape, (batch, queries, keys)):
        return " Three axes are (heads, queries, keys): if its first is the batch, pass mask[:, None]."
    if shape == (batch, keys):
        return " Two axes are (queries, keys): if it says which keys are real tokens, pass masks.padding(mask)."
    if shape[-2:] == (keys, queries):
        return " Its last two axes fit when swapped: is it transposed?"
    return ""


def _ends_of(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """For each query the first and the last key that has its number, over the batch."""
    batch, length = max(len(queries), len(keys)), keys.shape[1]
    if not batch * length:
        nowhere = torch.zeros(queries.shape[1], dtype=torch.int64, device=queries.device)
        return nowhere, nowhere - 1
    queries = queries.long().expand(batch, -1).contiguous()
    # stable: equal numbers stay in the order of their keys
    ordered, places = keys.long().expand(batch, -1).sort(dim=-1, stable=True)
    left = torch.searchsorted(ordered, queries)
    right = torch.searchsorted(ordered, queries, right=True)
    absent = left == right
    first = places.gather(1, left.clamp_(max=length - 1)).masked_fill_(absent, length)
    last = places.gather(1, right.sub_(1).clamp_(min=0)).masked_fill_(absent, -1)
    return first.amin(0), last.amax(0)
