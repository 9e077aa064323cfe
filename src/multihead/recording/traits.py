"""What each head does, in numbers and in one word: how broadly, how far and at which tokens it looks.

The kinds of heads are those of the literature: the previous and the next token, delimiters, broad heads (Clark et al.
2019, "What Does BERT Look At?", section 3), positional heads (Voita et al. 2019, "Analyzing Multi-Head
Self-Attention", section 5) and the first token as a sink (Xiao et al. 2024, "Efficient Streaming Language Models with
Attention Sinks").

Nothing is estimated. What a recording's statistics say exactly is read from them; the rest is measured from q and k in
one pass a layer and linear memory; what can be neither read nor measured is None.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field, fields
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from multihead.counting import whole_numbers
from multihead.recording.layer import Layer
from multihead.recording.outline import check_item
from multihead.recording.trait_sums import Seen, measured, recorded
from multihead.recording.words import is_mark

if TYPE_CHECKING:
    from multihead.recording.recording import Recording

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


def traits_of(
    recording: "Recording", *, layers: Sequence[int] | None = None, item: int = 0, measure: bool = True
) -> Traits:
    """See :meth:`Recording.traits`."""
    check_item(item, recording.batch)
    chosen = recording.layers if layers is None else [recording.layer(one) for one in whole_numbers("layers", layers)]
    return Traits(traits for layer in chosen for traits in layer_traits(recording, layer, item=item, measure=measure))


@torch.no_grad()
def layer_traits(recording: "Recording", layer: Layer, *, item: int = 0, measure: bool = True) -> list[HeadTraits]:
    """The traits of each recorded head of one layer, in their order.

    Args:
        recording: whose layer it is; it knows the tokens, and which of them are padding.
        layer: one of its layers.
        item: the sequence in the batch.
        measure: whether to measure what the layer's statistics do not say.

    Memory: linear in the tokens; time, where something is measured: a pass over all pairs.
    """
    seen = Seen.of(recording, layer, item, by_pairs=measure)
    known = recorded(layer, item, seen)
    if measure:
        known |= measured(layer, item, seen, known, _marks(recording.texts.get(layer.key_text), item))
    columns = {name: _numbers(values) for name, values in _means(known, seen, layer).items()}
    return [
        HeadTraits(layer=layer.index, head=head, **{name: column[place] for name, column in columns.items()})
        for place, head in enumerate(layer.heads)
    ]


def _marks(text: Sequence[Sequence[str]] | None, item: int) -> Tensor | None:
    """(keys,), True at special tokens and punctuation; None without tokens."""
    return torch.tensor(list(map(is_mark, text[item])), dtype=torch.bool) if text and text[item] else None


def _numbers(values: Tensor) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values.tolist()]


def _means(known: Mapping[str, Tensor], seen: Seen, layer: Layer) -> dict[str, Tensor]:
    """Each trait of each head, (heads,) in float64, NaN where it is not known."""
    found: dict[str, Tensor] = {}
    if seen.visible is None:
        return found
    heads = len(layer.heads)
    counted = (seen.real & (seen.visible > 0)).expand(heads, -1)
    count = counted.sum(1).double()
    for name, values in known.items():
        if name == "received":
            found["concentration"] = _gini(values, seen, heads)
        else:
            total = values.double() if values.ndim == 1 else values.double().masked_fill(~counted, 0.0).sum(1)
            found[name] = total / count
    learned = found.pop("sink", None)
    if learned is not None and "first" in found:
        found["sink"] = learned + found["first"]
    if "entropy" in known:
        outcomes = seen.visible if layer.sinks is None else seen.visible + 1
        found["spread"] = _spread(known["entropy"], counted, outcomes)
    return found


def _spread(entropy: Tensor, counted: Tensor, outcomes: Tensor) -> Tensor:
    """Mean of entropy over its largest, of the queries with at least two outcomes."""
    choosing = counted & (outcomes > 1)
    shares = entropy.double() / outcomes.clamp_min(2).double().log()
    return shares.masked_fill(~choosing, 0.0).sum(1) / choosing.sum(1)


def _gini(received: Tensor, seen: Seen, heads: int) -> Tensor:
    """Half the mean difference of two keys over their mean (Gini 1912), of the keys that are seen.

    With x in ascending order and m of them: Σᵢ (2i - m - 1) xᵢ / (m Σ xᵢ), i from 1.
    """
    if seen.keys is None:
        return received.new_full((heads,), torch.nan, dtype=torch.float64)
    here = seen.keys.expand(heads, -1)
    # keys that nobody sees stand before the others, with rank and value 0; torch sorts several times as slowly
    x = torch.from_numpy(np.sort(received.masked_fill(~here, -1.0).numpy(), axis=1)).double()
    m = here.sum(1, keepdim=True).double()
    rank = torch.arange(1, x.shape[1] + 1) - (x.shape[1] - m)
    x = x.clamp_min(0.0)
    return ((2 * rank - m - 1) * x).sum(1) / (m[:, 0] * x.sum(1))
