"""What each head does, in numbers and in one word: how broadly, how far and at which tokens it looks.

The kinds of heads are those of the literature: the previous and the next token, delimiters, broad heads (Clark et al.
2019, "What Does BERT Look At?", section 3), positional heads (Voita et al. 2019, "Analyzing Multi-Head
Self-Attention", section 5) and the first token as a sink (Xiao et al. 2024, "Efficient Streaming Language Models with
Attention Sinks").

Nothing is estimated. What a recording's statistics say exactly is read from them, here; the rest is measured from q and
k in one pass a layer and linear memory (``trait_sums``); what can be neither read nor measured is None.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field, fields
from itertools import pairwise

import numpy as np

from multihead.recording.outline import LayerOutline

FAR = 32
"""From this distance on, in tokens, a key is far: farther than most sentences are long."""

PLACES = {"previous": 1, "itself": 0, "next": -1}
"""Distance of the keys at fixed places: query position minus key."""

READ = ("entropy", "sink", "received", "offsets", "offset_edges", "columns", "column_keys")
"""The statistics from which traits are read."""

LABELS: tuple[tuple[str, str, float], ...] = (
    ("previous token", "previous", 0.5),
    ("next token", "next", 0.5),
    ("itself", "itself", 0.5),
    ("first token", "first", 0.5),
    ("delimiters", "delimiters", 0.5),
    ("broad", "spread", 0.8),
    ("long-range", "far", 0.5),
)
"""Label, trait, and the least value for which a head has the label. The first that fits is the head's."""


@dataclass(frozen=True, kw_only=True)
class HeadTraits:
    """What one head of a layer does with one text. A number that is not known, or means nothing here, is None.

    Means are over the recorded queries that see a key and are no padding. Shares are of all their attention, so they
    lie between 0 and 1; what goes to learned sinks counts. Of weights that were given without a mask, a key is seen
    that has weight.
    """

    layer: int
    """The layer's ``index``."""
    head: int
    """The model's own number."""
    label: str = field(init=False)
    """As :func:`label` says."""
    entropy: float | None = None
    """Mean entropy of a query's weights, in nats."""
    spread: float | None = None
    """Mean of a query's entropy over its largest, the logarithm of the number of keys it sees (and a learned sink):
    from 0, all on one key, to 1, the same to all. Of queries with a choice."""
    distance: float | None = None
    """Mean distance |query position - key|, in tokens, weighted by attention. None between two texts."""
    sink: float | None = None
    """Share that goes to learned sinks and to the first token."""
    concentration: float | None = None
    """Gini coefficient of the attention that keys receive, over the keys that some query sees: 0 where all receive the
    same, towards 1 where one receives everything. Under a causal mask early keys are seen more often."""
    previous: float | None = None
    """Share that goes to the token before the query's own. None between two texts."""
    itself: float | None = None
    """Share that goes to the query's own token. None between two texts."""
    next: float | None = None
    """Share that goes to the token after the query's own. None between two texts."""
    first: float | None = None
    """Share that goes to the text's first token, padding left out."""
    delimiters: float | None = None
    """Share that goes to special tokens and punctuation, the first token included where it is one. None without
    tokens."""
    far: float | None = None
    """Share that goes to tokens at least 32 away, before or after. None between two texts."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", label(self))


def label(traits: HeadTraits) -> str:
    """A head's kind in a word or two, "" where none fits: the first of ``LABELS`` whose trait is large enough.

    >>> label(HeadTraits(layer=0, head=2, previous=0.96, spread=0.0))
    'previous token'
    """
    for name, trait, least in LABELS:
        value = getattr(traits, trait)
        if value is not None and value >= least:
            return name
    return ""


class Traits(list[HeadTraits]):
    """The traits of several heads; printed as a table."""

    def __repr__(self) -> str:
        names = [one.name for one in fields(HeadTraits)]
        rows = [names, *([_cell(value) for value in astuple(traits)] for traits in self)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        left = names.index("label")
        lines = (
            "  ".join(
                cell.ljust(width) if place == left else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        )
        return "\n".join(lines)


def _cell(value: object) -> str:
    return "-" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Seen:
    """Which queries count, and what they see."""

    real: np.ndarray
    """(queries,), of the recorded queries: False at padding."""
    positions: np.ndarray | None
    """(queries,), where they stand among the keys; None where that means nothing."""
    visible: np.ndarray | None
    """(heads or 1, queries), how many keys each sees; None where it is not known."""
    keys: np.ndarray | None
    """(heads or 1, keys), the keys that some of those that count see; None where it is not known."""
    first: int
    """The first key that is no padding."""

    @classmethod
    def of(
        cls, layer: LayerOutline, real: np.ndarray, visible: np.ndarray | None, keys: np.ndarray | None, first: int = 0
    ) -> "Seen":
        """What a layer's queries see, with their positions."""
        one_text = layer.query_text == layer.key_text and layer.sizes.offset >= 0
        positions = kept_queries(layer) + layer.sizes.offset if one_text else None
        return cls(real, positions, visible, keys, first)


def kept_queries(layer: LayerOutline) -> np.ndarray:
    """(queries,), the model's own numbers of those that were recorded."""
    return np.arange(layer.sizes.queries) if layer.queries is None else np.array(layer.queries, dtype=np.int64)


def seen_in_ranges(first: np.ndarray, stop: np.ndarray, real: np.ndarray, keys: int) -> tuple[np.ndarray, np.ndarray]:
    """How many keys each query sees, and which keys some real query sees, where each sees one range.

    Args:
        first: (heads or 1, queries), where the ranges begin.
        stop: the same, where they end.
        real: (queries,), the queries that count.
        keys: how many keys there are.
    """
    first, stop = (side.clip(0, keys) for side in (first, np.maximum(first, stop)))
    # as many ranges are open at a key as have begun by then and not ended
    turns = [
        np.bincount(begins[real], minlength=keys + 1) - np.bincount(ends[real], minlength=keys + 1)
        for begins, ends in zip(first, stop, strict=True)
    ]
    return stop - first, np.cumsum(turns, axis=1)[:, :keys] > 0


def recorded(layer: LayerOutline, own: Mapping[str, np.ndarray], seen: Seen, *, learned: bool) -> dict[str, np.ndarray]:
    """What the layer's statistics say exactly: (heads, queries), or (heads,) and (heads, keys) of sums over queries.

    Args:
        layer: the layer.
        own: those of ``READ`` that were recorded, of one sequence.
        seen: which queries count.
        learned: whether the layer has learned sinks.
    """
    known = {name: own[name] for name in ("entropy", "sink") if name in own}
    if not learned:
        known.setdefault("sink", np.zeros((len(layer.heads), len(seen.real))))
    if seen.first in (chosen := own["column_keys"].tolist() if {"columns", "column_keys"} <= own.keys() else []):
        known["first"] = own["columns"][:, :, chosen.index(seen.first)]
    # sums over queries hold those that are padding too
    if not seen.real.all():
        return known
    if "received" in own:
        known["received"] = own["received"]
    if {"offsets", "offset_edges"} <= own.keys() and seen.positions is not None:
        known |= _by_distance(own["offsets"], own["offset_edges"].tolist(), seen.positions, layer.sizes.keys)
    return known


def _by_distance(mass: np.ndarray, edges: Sequence[int], positions: np.ndarray, keys: int) -> dict[str, np.ndarray]:
    """What attention mass in bins of distance, (heads, bins), says exactly about distances."""
    if not len(positions):
        return {}
    mass = mass.astype(np.float64)
    least, most = int(positions.min()) - keys + 1, int(positions.max())
    bins = [(max(low, least), min(high, most + 1)) for low, high in pairwise(edges)]
    covered = edges[0] <= least and edges[-1] > most

    def between(low: int, high: int) -> np.ndarray | None:
        """The mass from one distance up to another; None where the edges do not tell."""
        low, high = max(low, least), min(high, most + 1)
        inside = [low <= first and stop <= high for first, stop in bins]
        apart = [stop <= low or high <= first for first, stop in bins]
        held = sum(max(0, stop - first) for (first, stop), here in zip(bins, inside, strict=True) if here)
        if held < high - low or not all(a or b for a, b in zip(inside, apart, strict=True)):
            return None
        return mass[:, [place for place, here in enumerate(inside) if here]].sum(1)

    found = {name: between(distance, distance + 1) for name, distance in PLACES.items()}
    before, after = between(FAR, most + 1), between(least, 1 - FAR)
    found["far"] = None if before is None or after is None else before + after
    if covered and all(stop - first <= 1 for first, stop in bins):
        found["distance"] = mass @ np.array([abs(first) for first, _ in bins], dtype=np.float64)
    return {name: value for name, value in found.items() if value is not None}


def head_traits(layer: LayerOutline, known: Mapping[str, np.ndarray], seen: Seen, *, learned: bool) -> list[HeadTraits]:
    """The traits of a layer's heads, of what is known of them: as :func:`recorded` gives it, and what was measured."""
    with np.errstate(divide="ignore", invalid="ignore"):
        columns = {name: _numbers(values) for name, values in _means(known, seen, layer, learned=learned).items()}
    return [
        HeadTraits(layer=layer.index, head=head, **{name: column[place] for name, column in columns.items()})
        for place, head in enumerate(layer.heads)
    ]


def _numbers(values: np.ndarray) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values.tolist()]


def _means(known: Mapping[str, np.ndarray], seen: Seen, layer: LayerOutline, *, learned: bool) -> dict[str, np.ndarray]:
    """Each trait of each head, (heads,) in float64, NaN where it is not known."""
    found: dict[str, np.ndarray] = {}
    if seen.visible is None:
        return found
    heads = len(layer.heads)
    counted = np.broadcast_to(seen.real & (seen.visible > 0), (heads, len(seen.real)))
    count = counted.sum(1)
    for name, values in known.items():
        if name == "received":
            found["concentration"] = _gini(values, seen, heads)
        else:
            total = values if values.ndim == 1 else np.where(counted, values.astype(np.float64), 0.0).sum(1)
            found[name] = total / count
    sink = found.pop("sink", None)
    if sink is not None and "first" in found:
        found["sink"] = sink + found["first"]
    if "entropy" in known:
        outcomes = seen.visible + 1 if learned else seen.visible
        found["spread"] = _spread(known["entropy"], counted, outcomes)
    return found


def _spread(entropy: np.ndarray, counted: np.ndarray, outcomes: np.ndarray) -> np.ndarray:
    """Mean of entropy over its largest, of the queries with at least two outcomes."""
    choosing = counted & (outcomes > 1)
    shares = entropy.astype(np.float64) / np.log(np.maximum(outcomes, 2))
    return np.where(choosing, shares, 0.0).sum(1) / choosing.sum(1)


def _gini(received: np.ndarray, seen: Seen, heads: int) -> np.ndarray:
    """Half the mean difference of two keys over their mean (Gini 1912), of the keys that are seen.

    With x in ascending order and m of them: Σᵢ (2i - m - 1) xᵢ / (m Σ xᵢ), i from 1.
    """
    if seen.keys is None:
        return np.full(heads, np.nan)
    here = np.broadcast_to(seen.keys, (heads, seen.keys.shape[1]))
    # keys that nobody sees stand before the others, with rank and value 0
    x = np.sort(np.where(here, received, -1.0), axis=1).astype(np.float64)
    m = here.sum(1, keepdims=True).astype(np.float64)
    rank = np.arange(1, x.shape[1] + 1) - (x.shape[1] - m)
    x = x.clip(min=0.0)
    return ((2 * rank - m - 1) * x).sum(1) / (m[:, 0] * x.sum(1))
