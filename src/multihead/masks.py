"""What a query may see: masks as small objects that combine with ``&``, ``|`` and ``~``.

A mask never holds a Lq × Lk tensor (except :func:`dense`, which wraps one that exists already). It answers two
questions
about chosen queries and keys: which of these keys do these queries see (``visible``), and between which keys does
everything lie that they can see (``key_range``), so that a kernel skips what nobody sees.

A query's *position* is its index plus Lk - Lq: queries stand at the end of the keys, as with a cache. Without a cache
Lq = Lk and the position is the index.

>>> import torch
>>> from multihead import masks
>>> (masks.causal() & masks.sliding_window(2)).dense(4, 4).int()
tensor([[1, 0, 0, 0],
        [1, 1, 0, 0],
        [0, 1, 1, 0],
        [0, 0, 1, 1]], dtype=torch.int32)
>>> (masks.causal() | masks.prefix(2)).dense(3, 3).int()      # a prefix language model
tensor([[1, 1, 0],
        [1, 1, 0],
        [1, 1, 1]], dtype=torch.int32)
"""

import abc
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from multihead.conventions import shape_of

__all__ = [
    "And",
    "Causal",
    "Dense",
    "Documents",
    "Mask",
    "Not",
    "Or",
    "Padding",
    "Prefix",
    "Sizes",
    "SlidingWindow",
    "causal",
    "dense",
    "documents",
    "padding",
    "prefix",
    "sliding_window",
]


@dataclass(frozen=True)
class Sizes:
    """The sizes of the attention that a mask is asked about."""

    batch: int
    heads: int
    queries: int
    keys: int

    @property
    def offset(self) -> int:
        """Position of query 0 among the keys."""
        return self.keys - self.queries


class Mask(abc.ABC):
    """Which keys a query may see. Make one with the functions of this module and combine with ``&``, ``|``, ``~``."""

    @abc.abstractmethod
    def visible(
        self, queries: Int[Tensor, " query"], keys: Int[Tensor, " key"], sizes: Sizes
    ) -> Bool[Tensor, "batch_or_1 head_or_1 query_or_1 key_or_1"]:
        """True where the chosen queries may see the chosen keys; axes that do not matter have size 1."""

    def key_range(self, first: int, last: int, sizes: Sizes) -> tuple[int, int]:  # noqa: ARG002
        """A half-open range of keys outside which queries ``first`` to ``last`` (inclusive) see nothing."""
        return 0, sizes.keys

    def check(self, sizes: Sizes) -> None:  # noqa: B027
        """Raise ``ValueError`` where this mask cannot belong to an attention of these sizes."""

    def tensors(self) -> Iterator[Tensor]:
        """The tensors that it holds, those of its parts included."""
        yield from ()

    def to(self, device: torch.device) -> "Mask":  # noqa: ARG002
        """The same mask with its tensors, if it has any, on ``device``."""
        return self

    def dense(self, queries: int, keys: int, *, batch: int = 1, heads: int = 1) -> Bool[Tensor, "..."]:
        """The mask as one boolean tensor, (Lq, Lk), with batch and heads in front where they matter: to look at.

        Memory: O(Lq · Lk).
        """
        sizes = Sizes(batch, heads, queries, keys)
        self.check(sizes)
        answer = self.visible(torch.arange(queries), torch.arange(keys), sizes)
        answer = answer.expand(answer.shape[0], answer.shape[1], queries, keys)
        return answer[0, 0] if answer.shape[:2] == (1, 1) else answer

    def __and__(self, other: "Mask") -> "Mask":
        return And(self, other) if isinstance(other, Mask) else NotImplemented

    def __or__(self, other: "Mask") -> "Mask":
        return Or(self, other) if isinstance(other, Mask) else NotImplemented

    def __invert__(self) -> "Mask":
        return self.mask if isinstance(self, Not) else Not(self)


@dataclass(frozen=True)
class Causal(Mask):
    """See :func:`causal`."""

    def visible(self, queries, keys, sizes):
        return (keys[None, :] <= queries[:, None] + sizes.offset)[None, None]

    def key_range(self, first, last, sizes):  # noqa: ARG002
        return 0, min(max(last + sizes.offset + 1, 0), sizes.keys)


@dataclass(frozen=True)
class SlidingWindow(Mask):
    """See :func:`sliding_window`; None is unbounded."""

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


@dataclass(frozen=True, eq=False)
class Padding(Mask):
    """See :func:`padding`."""

    valid: Bool[Tensor, "batch key"]

    def visible(self, queries, keys, sizes):  # noqa: ARG002
        return self.valid[:, keys][:, None, None, :]

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


@dataclass(frozen=True, eq=False)
class Documents(Mask):
    """See :func:`documents`; rows of query and key document numbers."""

    queries: Int[Tensor, "batch query"]
    keys: Int[Tensor, "batch key"]

    def visible(self, queries, keys, sizes):  # noqa: ARG002
        return (self.queries[:, queries, None] == self.keys[:, None, keys])[:, None]

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


@dataclass(frozen=True)
class Prefix(Mask):
    """See :func:`prefix`."""

    length: int

    def visible(self, queries, keys, sizes):  # noqa: ARG002
        return (keys < self.length)[None, None, None, :]

    def key_range(self, first, last, sizes):  # noqa: ARG002
        return 0, min(self.length, sizes.keys)


@dataclass(frozen=True, eq=False)
class Dense(Mask):
    """See :func:`dense`."""

    allowed: Bool[Tensor, "batch_or_1 head_or_1 query_or_1 key_or_1"]

    def visible(self, queries, keys, sizes):  # noqa: ARG002
        _, _, every_query, every_key = self.allowed.shape
        if every_query != 1 and every_key != 1:
            return self.allowed[:, :, queries[:, None], keys]
        answer = self.allowed if every_query == 1 else self.allowed[:, :, queries]
        return answer if every_key == 1 else answer[..., keys]

    def check(self, sizes):
        target = (sizes.batch, sizes.heads, sizes.queries, sizes.keys)
        if any(size not in (1, wanted) for size, wanted in zip(self.allowed.shape, target, strict=True)):
            hint = " Its last two axes fit when swapped: is it transposed?" if self._fits_transposed(target) else ""
            raise ValueError(
                f"mask of shape {shape_of(self.allowed)} does not broadcast to "
                f"(batch, heads, queries, keys) = {target}.{hint}"
            )

    def _fits_transposed(self, target: tuple[int, ...]) -> bool:
        return tuple(self.allowed.shape[2:]) == (target[3], target[2])

    def tensors(self):
        yield self.allowed

    def to(self, device):
        return Dense(self.allowed.to(device))


@dataclass(frozen=True, eq=False)
class _Pair(Mask):
    left: Mask
    right: Mask

    def _ranges(self, first: int, last: int, sizes: Sizes) -> list[tuple[int, int]]:
        return [mask.key_range(first, last, sizes) for mask in (self.left, self.right)]

    def check(self, sizes):
        self.left.check(sizes)
        self.right.check(sizes)

    def tensors(self):
        yield from self.left.tensors()
        yield from self.right.tensors()

    def to(self, device):
        return type(self)(self.left.to(device), self.right.to(device))


class And(_Pair):
    """Visible where both masks say so."""

    def visible(self, queries, keys, sizes):
        return self.left.visible(queries, keys, sizes) & self.right.visible(queries, keys, sizes)

    def key_range(self, first, last, sizes):
        starts, stops = zip(*self._ranges(first, last, sizes), strict=True)
        stop = min(stops)
        return min(max(starts), stop), stop


class Or(_Pair):
    """Visible where either mask says so."""

    def visible(self, queries, keys, sizes):
        return self.left.visible(queries, keys, sizes) | self.right.visible(queries, keys, sizes)

    def key_range(self, first, last, sizes):
        some = [(start, stop) for start, stop in self._ranges(first, last, sizes) if start < stop]
        if not some:
            return 0, 0
        return min(start for start, _ in some), max(stop for _, stop in some)


@dataclass(frozen=True, eq=False)
class Not(Mask):
    """Visible where the mask says it is not."""

    mask: Mask

    def visible(self, queries, keys, sizes):
        return ~self.mask.visible(queries, keys, sizes)

    def check(self, sizes):
        self.mask.check(sizes)

    def tensors(self):
        yield from self.mask.tensors()

    def to(self, device):
        return Not(self.mask.to(device))


def causal() -> Mask:
    """Each query sees the keys up to its own position, bottom-right aligned: with Lq < Lk the last query sees all keys.

    >>> causal().dense(2, 3).int()
    tensor([[1, 1, 0],
            [1, 1, 1]], dtype=torch.int32)
    """
    return Causal()


def sliding_window(window: int | None = None, *, left: int | None = None, right: int | None = None) -> Mask:
    """Each query sees exactly ``window`` keys, its own and the ones before it; or ``left`` before and ``right`` after.

    Args:
        window: number of keys, the query's own included; the same as ``left=window - 1, right=0``.
        left: keys before the query's position, None for all of them.
        right: keys after the query's position, None for all of them.

    Raises:
        ValueError: both forms or neither are given, or a number is too small.

    >>> sliding_window(left=0, right=1).dense(3, 3).int()
    tensor([[1, 1, 0],
            [0, 1, 1],
            [0, 0, 1]], dtype=torch.int32)
    """
    if (window is None) == (left is None and right is None):
        raise ValueError(
            "sliding_window takes either window, or left and right: "
            "say sliding_window(4) or sliding_window(left=2, right=2)."
        )
    if window is not None:
        if window < 1:
            raise ValueError(
                f"window={window} lets a query see nothing: it counts the query's own key and is at least 1."
            )
        return SlidingWindow(window - 1, 0)
    for name, width in (("left", left), ("right", right)):
        if width is not None and width < 0:
            raise ValueError(
                f"{name}={width} is negative: it counts the keys on that side, 0 for none and None for all."
            )
    return SlidingWindow(left, right)


def padding(valid: Bool[Tensor, "batch key"] | Bool[Tensor, " key"]) -> Mask:
    """Keys that are real tokens; every query sees these and no others.

    Args:
        valid: (batch, keys), or (keys,) for the whole batch; True at real tokens. This is the tokenizer's
            ``attention_mask.bool()``, and the opposite of torch's ``key_padding_mask``.

    Raises:
        TypeError: ``valid`` is not boolean.
    """
    _require_boolean("valid", valid, "the tokenizer's attention_mask is 1 at real tokens: pass attention_mask.bool()")
    if valid.ndim not in (1, 2):
        raise ValueError(f"valid has shape {shape_of(valid)}, expected (batch, keys) or (keys,).")
    return Padding(valid if valid.ndim == 2 else valid[None])


def documents(
    ids: Int[Tensor, "batch query"] | Int[Tensor, " query"],
    keys: Int[Tensor, "batch key"] | Int[Tensor, " key"] | None = None,
) -> Mask:
    """Several sequences packed in one row: each query sees the keys of its own document.

    Args:
        ids: document number of each query, (batch, queries) or (queries,).
        keys: document number of each key, if the keys are not the queries.

    >>> documents(torch.tensor([0, 0, 1])).dense(3, 3).int()
    tensor([[1, 1, 0],
            [1, 1, 0],
            [0, 0, 1]], dtype=torch.int32)
    """
    keys = ids if keys is None else keys
    for name, tensor in (("ids", ids), ("keys", keys)):
        if tensor.is_floating_point() or tensor.dtype == torch.bool:
            raise TypeError(f"document {name} have dtype {tensor.dtype}, expected integers: one number for each token.")
        if tensor.ndim not in (1, 2):
            raise ValueError(f"document {name} have shape {shape_of(tensor)}, expected (batch, tokens) or (tokens,).")
    return Documents(torch.atleast_2d(ids), torch.atleast_2d(keys))


def prefix(length: int) -> Mask:
    """Every query sees the first ``length`` keys; with ``causal() |`` before it, a prefix language model's mask."""
    if length < 0:
        raise ValueError(f"prefix length={length} is negative: it counts keys from the start.")
    return Prefix(length)


def dense(allowed: Bool[Tensor, "..."]) -> Mask:
    """A mask that exists already as a tensor, True where a query may see a key.

    Args:
        allowed: broadcastable to (batch, heads, queries, keys), with two, three (heads, queries, keys) or four axes.

    Raises:
        TypeError: ``allowed`` is not boolean.
    """
    _require_boolean(
        "mask", allowed, "True means may attend; add a float mask as bias instead, and turn 0 and 1 into .bool()"
    )
    if not 2 <= allowed.ndim <= 4:
        raise ValueError(
            f"mask has shape {shape_of(allowed)}, expected (queries, keys), (heads, queries, keys) or "
            "(batch, heads, queries, keys)."
        )
    return Dense(allowed[(None,) * (4 - allowed.ndim)])


def _require_boolean(name: str, tensor: Tensor, advice: str) -> None:
    if tensor.dtype != torch.bool:
        raise TypeError(f"{name} has dtype {tensor.dtype}, expected torch.bool: {advice}.")
