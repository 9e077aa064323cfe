"""What every mask can do: be asked, be combined with ``&``, ``|`` and ``~``, lose its first keys, move to a device."""

import abc
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from multihead.conventions import kind_of
from multihead.counting import whole
from multihead.sizes import Sizes


class Mask(abc.ABC):
    """Which keys a query may see.

    Make one with the functions of :mod:`multihead.masks` and combine with ``&``, ``|``, ``~``.
    """

    @abc.abstractmethod
    def visible(
        self, queries: Int[Tensor, " query"], keys: Int[Tensor, " key"], sizes: Sizes
    ) -> Bool[Tensor, "batch_or_1 head_or_1 query_or_1 key_or_1"]:
        """True where the chosen queries may see the chosen keys; axes that do not matter have size 1."""

    def key_range(self, first: int, last: int, sizes: Sizes) -> tuple[int, int]:  # noqa: ARG002
        """A half-open range of keys outside which queries ``first`` to ``last`` (inclusive) see nothing."""
        return 0, sizes.keys

    def spans(self, queries: Int[Tensor, " query"], sizes: Sizes) -> tuple[Tensor, Tensor] | None:  # noqa: ARG002
        """For each query the half-open range of keys that it sees, where it sees exactly one range.

        Returns:
            First and stop, each (B or 1, H or 1, queries), int64, equal where a query sees nothing; None where a mask
            is not known to be so simple. A kernel then needs no mask, and skips what nobody sees.
        """
        return None

    def check(self, sizes: Sizes) -> None:  # noqa: B027
        """Raise ``ValueError`` where this mask cannot belong to an attention of these sizes."""

    def tensors(self) -> Iterator[Tensor]:
        """The tensors that it holds, those of its parts included."""
        yield from ()

    def to(self, device: torch.device) -> "Mask":  # noqa: ARG002
        """The same mask with its tensors, if it has any, on ``device``."""
        return self

    def without_first(self, dropped: int) -> "Mask":
        """The same mask where the first ``dropped`` keys are gone and the queries stay, as when a cache forgets.

        Every query sees the same of the remaining keys: ``mask.dense(Lq, Lk)[..., dropped:]`` equals
        ``mask.without_first(dropped).dense(Lq, Lk - dropped)``. Tensors are views.

        Args:
            dropped: at most Lk.

        Raises:
            TypeError: ``dropped`` is no whole number.
            ValueError: it is negative.

        >>> from multihead import masks
        >>> (masks.causal() & ~masks.prefix(2)).without_first(1).dense(2, 3).int()
        tensor([[0, 1, 0],
                [0, 1, 1]], dtype=torch.int32)
        """
        if whole("dropped", dropped) < 0:
            raise ValueError(f"dropped={dropped} is negative: it counts the keys that are gone.")
        return self._without_first(dropped) if dropped else self

    def _without_first(self, dropped: int) -> "Mask":
        """What ``without_first`` gives for a number that is not 0; kinds that know a smaller answer say it."""
        return _WithoutFirst(self, dropped)

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
        return And(self, other) if _is_mask(other) else NotImplemented

    def __or__(self, other: "Mask") -> "Mask":
        return Or(self, other) if _is_mask(other) else NotImplemented

    __rand__, __ror__ = __and__, __or__
    # an array to the left leaves the answer to the mask
    __array_ufunc__ = None

    def __invert__(self) -> "Mask":
        return self.mask if isinstance(self, Not) else Not(self)

    def __bool__(self) -> bool:
        raise TypeError(
            "a mask is neither true nor false: combine masks with & | ~ instead of and, or, not, and ask whether there "
            "is one with `is None`."
        )


def _is_mask(other: object) -> bool:
    """Whether an operand of ``&`` or ``|`` is a mask.

    Raises:
        TypeError: it is a tensor or an array, which may mean several masks; the message names them.
    """
    if isinstance(other, Tensor | np.ndarray):
        raise TypeError(
            f"a mask combines with masks, and this is {kind_of(other)}: say masks.dense(tensor) for (queries, keys), "
            "or masks.padding(tensor) for the real tokens of (batch, keys)."
        )
    return isinstance(other, Mask)


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

    def _without_first(self, dropped):
        return type(self)(self.left.without_first(dropped), self.right.without_first(dropped))


class And(_Pair):
    """Visible where both masks say so."""

    def visible(self, queries, keys, sizes):
        return self.left.visible(queries, keys, sizes) & self.right.visible(queries, keys, sizes)

    def key_range(self, first, last, sizes):
        starts, stops = zip(*self._ranges(first, last, sizes), strict=True)
        stop = min(stops)
        return min(max(starts), stop), stop

    def spans(self, queries, sizes):
        left, right = self.left.spans(queries, sizes), self.right.spans(queries, sizes)
        if left is None or right is None:
            return None
        first, stop = torch.maximum(left[0], right[0]), torch.minimum(left[1], right[1])
        return torch.minimum(first, stop), stop


class Or(_Pair):
    """Visible where either mask says so."""

    def visible(self, queries, keys, sizes):
        return self.left.visible(queries, keys, sizes) | self.right.visible(queries, keys, sizes)

    def key_range(self, first, last, sizes):
        some = [(start, stop) for start, stop in self._ranges(first, last, sizes) if start < stop]
        if not some:
            return 0, 0
        return min(start for start, _ in some), max(stop for _, stop in some)

    def spans(self, queries, sizes):
        left, right = self.left.spans(queries, sizes), self.right.spans(queries, sizes)
        if left is None or right is None:
            return None
        # an empty range joins any other, and two that meet are one
        (first, stop), (other_first, other_stop) = left, right
        alone, absent = other_first >= other_stop, first >= stop
        if not (alone | absent | (torch.maximum(first, other_first) <= torch.minimum(stop, other_stop))).all():
            return None
        start = torch.where(absent, other_first, torch.where(alone, first, torch.minimum(first, other_first)))
        end = torch.where(absent, other_stop, torch.where(alone, stop, torch.maximum(stop, other_stop)))
        return start, end


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

    def _without_first(self, dropped):
        return Not(self.mask.without_first(dropped))


@dataclass(frozen=True, eq=False)
class _WithoutFirst(Mask):
    """A mask of a kind that is defined elsewhere, asked as if the dropped keys were still there."""

    mask: Mask
    dropped: int

    def visible(self, queries, keys, sizes):
        return self.mask.visible(queries, keys + self.dropped, self._whole(sizes))

    def key_range(self, first, last, sizes):
        start, stop = self.mask.key_range(first, last, self._whole(sizes))
        return max(start - self.dropped, 0), max(stop - self.dropped, 0)

    def spans(self, queries, sizes):
        whole = self.mask.spans(queries, self._whole(sizes))
        if whole is None:
            return None
        first, stop = ((end - self.dropped).clamp_min(0) for end in whole)
        return first, stop

    def check(self, sizes):
        self.mask.check(self._whole(sizes))

    def tensors(self):
        yield from self.mask.tensors()

    def to(self, device):
        return _WithoutFirst(self.mask.to(device), self.dropped)

    def _without_first(self, dropped):
        return _WithoutFirst(self.mask, self.dropped + dropped)

    def _whole(self, sizes: Sizes) -> Sizes:
        return replace(sizes, keys=sizes.keys + self.dropped)
