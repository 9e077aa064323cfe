"""Biases that depend on the distance between query and key alone: position of the query less that of the key."""

import abc
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch import device as Device
from torch import dtype as Dtype

from multihead.biases import Bias
from multihead.conventions import checked_count, mismatch
from multihead.masks import Sizes
from multihead.positions.base import Constant, Position, check_positions


@dataclass(frozen=True, eq=False)
class DistanceBias(Bias):
    """A bias computed from distances and from numbers of each head.

    Positions of queries and keys are given both, or neither: then they are places, as for masks.
    """

    numbers: Float[Tensor, "*any head"]
    queries: Int[Tensor, "#batch query"] | None = None
    keys: Int[Tensor, "#batch key"] | None = None

    def __post_init__(self) -> None:
        if (self.queries is None) != (self.keys is None):
            raise ValueError("positions are given of queries or of keys alone: a distance needs both, or neither.")

    @abc.abstractmethod
    def at(self, distances: Int[Tensor, "batch_or_1 query key"]) -> Float[Tensor, "batch_or_1 head query key"]:
        """What every head adds at these distances."""

    def values(
        self, queries: Int[Tensor, " query"], keys: Int[Tensor, " key"], sizes: Sizes
    ) -> Float[Tensor, "batch_or_1 head query key"]:
        """The bias between the chosen queries and keys, one row for the whole batch unless positions are given."""
        if self.queries is None or self.keys is None:
            rows, columns = (queries + sizes.offset)[None], keys[None]
        else:
            rows, columns = self.queries[:, queries], self.keys[:, keys]
        return self.at(rows[:, :, None] - columns[:, None, :])

    def check(self, sizes: Sizes) -> None:
        """Raise where heads or positions are not those of the attention."""
        _check_heads(type(self).__name__, self.numbers.shape[-1], sizes.heads)
        if self.queries is not None and self.keys is not None:
            device = self.numbers.device
            check_positions("positions of queries", self.queries, sizes.batch, sizes.queries, device)
            check_positions("positions of keys", self.keys, sizes.batch, sizes.keys, device)

    def tensors(self) -> Iterator[Tensor]:
        """The numbers of each head; positions are whole and have no derivative."""
        yield self.numbers

    def over(self, tensors: Iterator[Tensor]) -> "DistanceBias":
        """The same distances with other numbers."""
        return replace(self, numbers=next(tensors))

    def without_first(self, dropped: int) -> "DistanceBias":
        """The same bias where the first ``dropped`` keys are no longer there."""
        return self if self.keys is None else replace(self, keys=self.keys[:, dropped:])


class DistanceSlopes(DistanceBias):
    """So much less for each token of distance: numbers (head,)."""

    def at(self, distances: Int[Tensor, "batch_or_1 query key"]) -> Float[Tensor, "batch_or_1 head query key"]:
        """Minus slope times distance, in either direction."""
        return distances.abs()[:, None] * -self.numbers[:, None, None]


class DistanceTable(DistanceBias):
    """One number for each distance: numbers (2 · reach + 1, head), from -reach to reach; farther is as at the end."""

    def at(self, distances: Int[Tensor, "batch_or_1 query key"]) -> Float[Tensor, "batch_or_1 head query key"]:
        """The numbers, looked up."""
        reach = self.numbers.shape[0] // 2
        return F.embedding(distances.clamp(-reach, reach) + reach, self.numbers).permute(0, 3, 1, 2)


class Alibi(Position):
    r"""Attention with linear biases: each head prefers near keys, by a slope of its own.

    .. math:: bias_{h,q,k} = -m_h \, |p_q - p_k|, \quad m_h = 2^{-8h/H}, \quad h = 1, ..., H

    For a number of heads that is no power of two, the slopes are those of the next lower power P, and after them every
    other one of the slopes of 2P heads. Nothing is learned.

    Source: Press et al. 2022, section 3, and its released code for other numbers of heads. The paper is about causal
    attention; here keys after the query count by their distance as well.

    Args:
        num_heads: query heads, H.

    Raises:
        TypeError: ``num_heads`` is no whole number.
        ValueError: it is below 1.

    >>> from multihead.masks import Sizes
    >>> Alibi(2).bias_between().dense(Sizes(batch=1, heads=2, queries=2, keys=3))[0]
    tensor([[[-0.0625, -0.0000, -0.0625],
             [-0.1250, -0.0625, -0.0000]],
            [[-0.0039, -0.0000, -0.0039],
             [-0.0078, -0.0039, -0.0000]]])
    """

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        checked_count("num_heads", num_heads)
        self.num_heads = num_heads
        self.slopes = Constant(_alibi_slopes(num_heads))

    def check(self, num_heads: int, head_dim: int) -> None:  # noqa: ARG002
        """Raise ``ValueError`` unless the layer has as many heads as this has slopes."""
        _check_heads("Alibi", self.num_heads, num_heads)

    def bias_between(
        self, queries: Int[Tensor, "#batch query"] | None = None, keys: Int[Tensor, "#batch key"] | None = None
    ) -> Bias:
        """The slopes over these distances; see :meth:`Position.bias_between`.

        Memory: O(H); a part of the bias is computed when it is asked for.
        """
        kept = self.slopes.kept
        return DistanceSlopes(kept if queries is None else self.slopes.on(queries.device, kept.dtype), queries, keys)

    def extra_repr(self) -> str:
        """The number of heads."""
        return f"{self.num_heads}"


class T5Bias(Position):
    r"""A learned number for each head and each range of distances, finer for near keys.

    .. math:: bias_{h,q,k} = table[bucket(p_k - p_q), h]

    Half of the buckets of a direction hold one distance each; the ranges of the other half grow geometrically up to
    ``max_distance``, and the last holds all that is farther.

    Source: Raffel et al. 2020, section 2.1, and its released code.

    Args:
        num_heads: query heads.
        buckets: ranges of distances, those of both directions together.
        max_distance: from here on distances are not told apart.
        bidirectional: whether keys after the query have half of the buckets; if not, as in a decoder, they count as
            distance 0.
        device, dtype: of the table.

    The table, (buckets, num_heads), starts at 0: no distance is preferred before learning. T5 does not scale its
    scores; a layer like T5's has ``scale=1.0``.

    Raises:
        TypeError: an argument that is no whole number.
        ValueError: numbers of which no buckets can be made.

    >>> from multihead.masks import Sizes
    >>> position = T5Bias(2, buckets=8, max_distance=16)
    >>> position.bias_between().dense(Sizes(batch=1, heads=2, queries=3, keys=5)).shape
    torch.Size([1, 2, 3, 5])
    """

    def __init__(
        self,
        num_heads: int,
        *,
        buckets: int = 32,
        max_distance: int = 128,
        bidirectional: bool = True,
        device: Device | str | None = None,
        dtype: Dtype | None = None,
    ) -> None:
        super().__init__()
        checked_count("num_heads", num_heads)
        checked_count("buckets", buckets, 4 if bidirectional else 2)
        checked_count("max_distance", max_distance)
        if bidirectional and buckets % 2:
            raise mismatch("buckets", buckets, "an even number", "each direction has half of them.")
        exact = buckets // (4 if bidirectional else 2)
        if max_distance <= exact:
            raise mismatch(
                "max_distance", max_distance, f"more than {exact}", f"{exact} distances have their own bucket."
            )
        self.num_heads, self.buckets = num_heads, buckets
        self.max_distance, self.bidirectional = max_distance, bidirectional
        self.table = nn.Parameter(torch.zeros(buckets, num_heads, device=device, dtype=dtype))
        distances = range(-max_distance, max_distance + 1)
        self.bucket_of = Constant([self.bucket(distance) for distance in distances], torch.int64)

    def reset_parameters(self) -> None:
        """Every distance alike."""
        nn.init.zeros_(self.table)

    def bucket(self, distance: int) -> int:
        """The number of the bucket that holds a distance, position of the query less that of the key."""
        buckets, first = self.buckets, 0
        if self.bidirectional:
            buckets //= 2
            first = buckets if distance < 0 else 0
            distance = abs(distance)
        exact = buckets // 2
        if distance < exact:
            return first + max(distance, 0)
        steps = (buckets - exact) * math.log(distance / exact) / math.log(self.max_distance / exact)
        # a distance on the edge belongs to the farther bucket, whichever way its logarithm was rounded
        return first + min(exact + math.floor(steps + 1e-9), buckets - 1)

    def check(self, num_heads: int, head_dim: int) -> None:  # noqa: ARG002
        """Raise ``ValueError`` unless the layer has as many heads as the table."""
        _check_heads("T5Bias", self.num_heads, num_heads)

    def bias_between(
        self, queries: Int[Tensor, "#batch query"] | None = None, keys: Int[Tensor, "#batch key"] | None = None
    ) -> Bias:
        """The table over these distances; see :meth:`Position.bias_between`. Its gradient reaches ``table``.

        Memory: O(max_distance · H); a part of the bias is computed when it is asked for.
        """
        bucket_of = self.bucket_of.on(self.table.device, torch.int64)
        return DistanceTable(F.embedding(bucket_of, self.table), queries, keys)

    def extra_repr(self) -> str:
        """The sizes, as they appear in ``print(model)``."""
        direction = "" if self.bidirectional else ", bidirectional=False"
        return f"{self.num_heads}, buckets={self.buckets}, max_distance={self.max_distance}{direction}"


def _alibi_slopes(num_heads: int) -> tuple[float, ...]:
    """The slope of each head of :class:`Alibi`."""
    power = 2 ** (num_heads.bit_length() - 1)
    slopes = [2.0 ** (-8 * head / power) for head in range(1, power + 1)]
    between = [2.0 ** (-4 * head / power) for head in range(1, 2 * power, 2)]
    return (*slopes, *between[: num_heads - power])


def _check_heads(name: str, have: int, wanted: int) -> None:
    """Raise ``ValueError`` unless a bias has numbers for as many heads as there are."""
    if have != wanted:
        raise ValueError(f"{name} has numbers for {have} heads, but the attention has {wanted}: make it for {wanted}.")
