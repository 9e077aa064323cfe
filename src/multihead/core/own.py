"""Statistics of a user's own: small objects to which every weight is shown once."""

import abc
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from multihead.conventions import kind_of
from multihead.masks import Sizes


@dataclass(frozen=True)
class WeightTile:
    """The weights of some sequences, heads and queries, over every key that any of these queries sees. To be read."""

    weights: Float[Tensor, "batch head query key"]
    """Softmax weights, before dropout; 0 where a query does not see a key."""
    batch: slice
    """Which sequences these are."""
    heads: slice
    """Which of the measured heads."""
    queries: Int[Tensor, " query"]
    """The indices of the queries."""
    keys: slice
    """Which keys; all others have weight 0."""


class OwnStatistic(abc.ABC):
    """What :class:`RowStatistic` and :class:`ColumnStatistic` have in common."""

    name: str
    """The word by which the answer is found, an identifier."""

    def check(self, sizes: Sizes) -> None:  # noqa: B027
        """Raise ``ValueError`` where it does not belong to an attention of these sizes."""

    @abc.abstractmethod
    def of(self, tile: WeightTile) -> Tensor:
        """What one tile says."""


class RowStatistic(OwnStatistic):
    """A number for each query, computed from its row of weights.

    ``of(tile)`` is (batch, head, query): the numbers of the tile's queries. A tile holds whole rows.

    >>> import torch, multihead as mh
    >>> class Ahead(mh.RowStatistic):
    ...     name = "ahead"
    ...     def of(self, tile):
    ...         keys = torch.arange(tile.keys.start, tile.keys.stop)
    ...         return (tile.weights * (keys > tile.queries[:, None])).sum(-1)
    >>> q = torch.zeros(1, 2, 4, 8)
    >>> _, seen = mh.inspect(q, q, q, statistics=mh.Statistics(own=(Ahead(),)))
    >>> seen.row_statistics["ahead"][0, 0]
    tensor([0.7500, 0.5000, 0.2500, 0.0000])
    """


class ColumnStatistic(OwnStatistic):
    """A number for each key: a sum over queries.

    ``of(tile)`` is (batch, head, key): what the tile's queries add to the numbers of its keys.

    >>> import torch, multihead as mh
    >>> class Largest(mh.ColumnStatistic):
    ...     name = "first_choice"
    ...     def of(self, tile):
    ...         return (tile.weights == tile.weights.amax(-1, keepdim=True)).sum(2)
    >>> q = torch.eye(4)[None, None]
    >>> _, seen = mh.inspect(q, q, q, statistics=mh.Statistics(own=(Largest(),)))
    >>> seen.column_statistics["first_choice"][0, 0]
    tensor([1., 1., 1., 1.])
    """


@dataclass(frozen=True, eq=False)
class MassOn(RowStatistic):
    """How much of its attention each query gives to some keys: Σⱼ Pᵢⱼ wⱼ.

    Args:
        name: the word by which the answer is found.
        keys: (keys,) or (batch, keys): True at the keys that count, or the weight w of each.

    Raises:
        ValueError: ``keys`` has another number of axes; or, when it is measured, belongs to another number of keys.

    >>> import torch, multihead as mh
    >>> marks = torch.tensor([token in ".,;" for token in ["Yes", ",", "it", "is", "."]])
    >>> q = torch.zeros(1, 2, 5, 8)
    >>> _, seen = mh.inspect(q, q, q, statistics=mh.Statistics(own=(mh.MassOn("punctuation", marks),)))
    >>> seen.row_statistics["punctuation"][0, 0]
    tensor([0.4000, 0.4000, 0.4000, 0.4000, 0.4000])
    """

    name: str  # pyrefly: ignore[bad-override]
    keys: Bool[Tensor, "*batch key"] | Float[Tensor, "*batch key"] | Int[Tensor, "*batch key"]

    def __post_init__(self) -> None:
        if self.keys.ndim not in (1, 2):
            raise ValueError(f"keys has shape {tuple(self.keys.shape)}, expected (keys,) or (batch, keys).")

    def check(self, sizes: Sizes) -> None:
        """See :meth:`OwnStatistic.check`."""
        expected = {(sizes.keys,), (sizes.batch, sizes.keys)}
        if tuple(self.keys.shape) not in expected:
            raise ValueError(
                f"{self.name} has keys of shape {tuple(self.keys.shape)}, but this attention has {sizes.keys} keys and "
                f"a batch of {sizes.batch}: choose the layers that it belongs to."
            )

    def of(self, tile: WeightTile) -> Float[Tensor, "batch head query"]:
        """See :meth:`OwnStatistic.of`."""
        keys = self.keys.to(tile.weights)[..., tile.keys]
        if keys.ndim == 1:
            return tile.weights @ keys
        return (tile.weights @ keys[tile.batch, None, :, None])[..., 0]


def _kind(statistic: OwnStatistic) -> str:
    return "row_statistics" if isinstance(statistic, RowStatistic) else "column_statistics"


def checked_own(own: object) -> tuple[OwnStatistic, ...]:
    """Statistics of a user's own as given, in a tuple."""
    if isinstance(own, OwnStatistic) or not isinstance(own, Iterable):
        advice = f"own=({type(own).__name__}(...),)" if isinstance(own, OwnStatistic) else "own=(MassOn(...),)"
        raise TypeError(f"own is {kind_of(own)}, expected a tuple of statistics: say {advice}.")
    found: list[OwnStatistic] = []
    for statistic in own:
        if isinstance(statistic, type):
            raise TypeError(
                f"own holds the class {statistic.__name__}, expected one of its objects: {statistic.__name__}(...)."
            )
        if not isinstance(statistic, RowStatistic | ColumnStatistic):
            raise TypeError(f"own holds {kind_of(statistic)}, expected a RowStatistic or a ColumnStatistic.")
        name = getattr(statistic, "name", None)
        if not (isinstance(name, str) and name.isidentifier()):
            raise ValueError(f"{type(statistic).__name__} has the name {name!r}, expected a word like 'punctuation'.")
        if any(name == other.name and _kind(statistic) == _kind(other) for other in found):
            raise ValueError(f"own holds two {_kind(statistic).replace('_', ' ')} named {name!r}: rename one.")
        found.append(statistic)
    return tuple(found)


class OwnAnswers:
    """What statistics of a user's own have said so far.

    Args:
        own: the statistics.
        sizes: of the attention.
        count: of measured queries.
        dtype: of the answers.
        sums: dtype in which columns are added up.
        device: where.
    """

    def __init__(
        self,
        own: tuple[OwnStatistic, ...],
        sizes: Sizes,
        count: int,
        *,
        dtype: torch.dtype,
        sums: torch.dtype,
        device: torch.device,
    ) -> None:
        self.own, self.dtype = own, dtype
        self._found = [
            torch.zeros(sizes.batch, sizes.heads, count, dtype=dtype, device=device)
            if isinstance(statistic, RowStatistic)
            else torch.zeros(sizes.batch, sizes.heads, sizes.keys, dtype=sums, device=device)
            for statistic in own
        ]

    def add(self, tile: WeightTile, rows: slice) -> None:
        """Show a tile to all; ``rows`` are the places of its queries among the measured ones."""
        batch, heads, queries, keys = tile.weights.shape
        for statistic, found in zip(self.own, self._found, strict=True):
            if isinstance(statistic, RowStatistic):
                found[tile.batch, tile.heads, rows] = _said(statistic, tile, (batch, heads, queries)).to(found.dtype)
            else:
                found[tile.batch, tile.heads, tile.keys] += _said(statistic, tile, (batch, heads, keys)).to(found.dtype)

    def answer(self) -> dict[str, Tensor]:
        """The answers, each named ``row_statistics.name`` or ``column_statistics.name``."""
        pairs = zip(self.own, self._found, strict=True)
        return {f"{_kind(statistic)}.{statistic.name}": found.to(self.dtype) for statistic, found in pairs}


def _said(statistic: OwnStatistic, tile: WeightTile, expected: tuple[int, ...]) -> Tensor:
    said = statistic.of(tile)
    if not isinstance(said, Tensor):
        raise TypeError(f"{statistic.name} said {kind_of(said)} of a tile, expected a tensor of shape {expected}.")
    if tuple(said.shape) != expected:
        raise ValueError(f"{statistic.name} said a tensor of shape {tuple(said.shape)} of a tile, expected {expected}.")
    return said
