"""Weights of chosen heads, queries and keys, recomputed from queries, keys and log-sum-exp; and the strongest of them.

A weight is exp(s - lse) with the score s computed as the kernels compute it (``kernels.tiles``), so nothing of size
Lq × Lk is ever needed: memory is that of the answer and one tile. Where weights were given, they are read.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from multihead.counting import whole_numbers
from multihead.errors import RecordingError
from multihead.kernels.collectors import largest
from multihead.kernels.tiles import TILE_SCORES, Part, biased_and_masked, capped_scores
from multihead.precision import statistics_dtype
from multihead.recording.layer import Layer
from multihead.recording.outline import check_item, numbers
from multihead.recording.selection import holds_dense
from multihead.recording.whole import call_of, indices, kept_of
from multihead.recording.words import shown


@dataclass(frozen=True)
class Link:
    """One weight worth naming: what one head's query gives one key.

    >>> print(Link(layer=4, head=9, query=5, key=8, query_token="making", key_token="difficult", weight=0.31))
    layer 4 head 9: making (5) → difficult (8)  0.310
    """

    layer: int
    """The layer's ``index``."""
    head: int
    """The model's own number."""
    query: int
    """The model's own number."""
    key: int
    query_token: str
    key_token: str
    weight: float

    def __str__(self) -> str:
        here, there = shown(self.query_token), shown(self.key_token)
        return f"layer {self.layer} head {self.head}: {here} ({self.query}) → {there} ({self.key})  {self.weight:.3f}"


@torch.no_grad()
def weights(
    layer: Layer,
    queries: Sequence[int] | None,
    keys: Sequence[int] | None,
    *,
    heads: Sequence[int] | None = None,
    item: int = 0,
) -> Float[Tensor, "head query key"]:
    """The weights of chosen heads, queries and keys of one sequence, in the dtype of statistics.

    Args:
        layer: with q, k and the log-sum-exp, or with the weights themselves.
        queries: the model's own query numbers; None: all that were kept.
        keys: key numbers; None: all.
        heads: the model's own head numbers; None: all that were kept.
        item: the sequence in the batch.

    Raises:
        RecordingError: something asked for was not recorded.
        TypeError: what is asked for are no lists of numbers.
    """
    held = layer.weights
    q = kept_of(layer)[0] if held is None else held
    check_item(item, layer.sizes.batch)
    head_places = _places("head", heads, layer.heads, layer.index)
    kept_queries = range(layer.sizes.queries) if layer.queries is None else layer.queries
    query_places = _places("query", queries, kept_queries, layer.index)
    key_places = _places("key", keys, range(layer.sizes.keys), layer.index)
    if held is not None:
        return _picked(held[item], head_places, query_places, key_places)
    shape = (len(head_places), len(query_places), len(key_places))
    answer = torch.zeros(shape, dtype=statistics_dtype(q.dtype), device=q.device)
    rows = indices(query_places, q.device)
    for found, place in zip(answer, head_places, strict=True):
        _fill(found, layer, item, place, rows, key_places)
    return answer


def _picked(held: Tensor, heads: Sequence[int], queries: Sequence[int], keys: Sequence[int]) -> Tensor:
    """Weights out of those of one sequence, (head, query, key); a copy, no larger than the answer."""
    rows, columns = (indices(places, held.device) for places in (queries, keys))
    found = held[indices(heads, held.device)[:, None, None], rows[:, None], columns]
    return found.to(statistics_dtype(found.dtype))


def _fill(answer: Tensor, layer: Layer, item: int, place: int, rows: Tensor, keys: Sequence[int]) -> None:
    """Compute one head's weights into ``answer``, (queries, keys), a tile at a time."""
    call = call_of(layer, item, range(place, place + 1), keys)
    lse = kept_of(layer)[2][item, place]
    dim = call.q.shape[-1]
    width = max(1, min(len(keys), TILE_SCORES // max(dim, 1)))
    # a dense mask is asked for its queries first and for their keys then
    across = max(width, dim, layer.sizes.keys if holds_dense(layer.mask) else 1)
    height = max(1, TILE_SCORES // across)
    one = slice(0, 1)
    for top in range(0, len(rows), height):
        places = rows[top : top + height]
        shift = lse[places, None]
        hopeless = shift == -torch.inf
        for left in range(0, len(keys), width):
            part = Part(one, one, one, places, slice(top, top + len(places)), slice(left, min(left + width, len(keys))))
            scores, _ = biased_and_masked(call, part, capped_scores(call, part))
            found = scores[0, 0].sub_(shift.masked_fill(hopeless, 0.0)).exp_().masked_fill_(hopeless, 0.0)
            answer[part.rows, part.keys] = found


def _places(what: str, wanted: Sequence[int] | None, kept: Sequence[int], layer: int) -> Sequence[int]:
    """Where the wanted numbers stand among the kept ones."""
    plural = {"query": "queries"}.get(what, f"{what}s")
    if wanted is None:
        return range(len(kept))
    everything = isinstance(kept, range)
    if everything and isinstance(wanted, range) and all(end in kept for end in wanted[:: max(1, len(wanted) - 1)]):
        return wanted
    place_of = None if everything else {number: place for place, number in enumerate(kept)}
    wanted = whole_numbers(plural, wanted)
    absent = [number for number in wanted if number not in (kept if place_of is None else place_of)]
    if absent:
        raise RecordingError(
            f"{what} {numbers(absent)} of layer {layer} was not recorded: its {plural} are {numbers(kept)}."
        )
    return wanted if place_of is None else [place_of[number] for number in wanted]


@dataclass(frozen=True)
class Ends:
    """The links of one layer to look through: between some queries and some keys, None for all that were kept."""

    layer: Layer
    queries: Sequence[int] | None
    keys: Sequence[int] | None


def strongest(
    ends: Sequence[Ends], heads: Sequence[int] | None, item: int, count: int
) -> list[tuple[int, int, int, int, float]]:
    """Layer, head, query, key and weight of the ``count`` largest weights, the largest first; hidden keys are no links.

    Ties go to the lower layer, head, query and key. Memory: one head's weights of the chosen ends.
    """
    found: list[tuple[int, int, int, int, float]] = []
    for end in ends:
        for head in end.layer.heads if heads is None else heads:
            if head in end.layer.heads:
                found.extend(_largest_of(end, head, item, count))
    found.sort(key=lambda link: (-link[4], *link[:4]))
    return found[:count]


def _largest_of(end: Ends, head: int, item: int, count: int) -> Iterator[tuple[int, int, int, int, float]]:
    layer = end.layer
    every = range(layer.sizes.queries) if layer.queries is None else layer.queries
    queries = every if end.queries is None else end.queries
    keys: Sequence[int] = range(layer.sizes.keys) if end.keys is None else end.keys
    flat = weights(layer, queries, keys, heads=[head], item=item).flatten()
    values, places = largest(flat, min(count, len(flat)))
    for weight, place in zip(values.tolist(), places.tolist(), strict=True):
        if weight > 0:
            yield layer.index, head, queries[place // len(keys)], keys[place % len(keys)], weight


def token_at(tokens: Sequence[str] | None, place: int) -> str:
    """The token at a place, or the place itself where the recording has no such text."""
    return tokens[place] if tokens is not None and 0 <= place < len(tokens) else f"#{place}"


Finder = Callable[[str], tuple[int, ...] | None]
"""From a text's name to the positions of what is looked for in it, None where it is not there."""


def ends_of(layers: Sequence[Layer], find: Finder, length: Callable[[str], int], *, direction: str) -> list[Ends]:
    """In each layer, the links that start (``from``) or end (``to``) at what ``find`` finds, queries not kept left out.

    Raises:
        RecordingError: none of the queries that stand at the token were kept in any layer.
    """
    ends, absent = [], None
    for layer in layers:
        name = layer.query_text if direction == "from" else layer.key_text
        positions = find(name)
        if positions is None:
            continue
        if direction == "to":
            ends.append(Ends(layer, None, [position for position in positions if position < layer.sizes.keys]))
            continue
        wanted = [layer.query_of_place(position, length(name)) for position in positions]
        kept = range(layer.sizes.queries) if layer.queries is None else layer.queries
        queries = [query for query in wanted if query is not None and query in kept]
        if queries:
            ends.append(Ends(layer, queries, None))
        else:
            absent = (wanted, kept, layer)
    if not ends and absent is not None:
        wanted, kept, layer = absent
        asked = numbers([query for query in wanted if query is not None])
        raise RecordingError(f"query {asked} of layer {layer.index} was not recorded: its queries are {numbers(kept)}.")
    return ends
