"""What each head does, as the page's document says it."""

from collections.abc import Sequence

from multihead.recording import Layer, Recording
from multihead.recording.traits import layer_traits

MEASURED_PAIRS = 1 << 29
"""Pairs of a query and a key, over all layers and heads, that are looked at while someone waits: a few seconds."""

NUMBERS = ("entropy", "distance", "sink", "concentration")
"""The traits by which the page puts heads in order, as :class:`multihead.recording.HeadTraits` names them."""


def described(
    entries: Sequence[dict[str, object]], recording: Recording, item: int, *, most: int = MEASURED_PAIRS
) -> list[dict[str, object]]:
    """The document's entries of all layers, each with the traits of its heads.

    Args:
        entries: of the recording's layers, in their order.
        recording: what the document is about.
        item: the sequence of the batch.
        most: pairs of queries and keys; a recording with more of them is not measured, so that only what its
            statistics say is known.
    """
    measure = sum(map(_pairs, recording.layers)) <= most
    return [
        {**entry, "traits": _node(recording, layer, item, measure=measure)}
        for entry, layer in zip(entries, recording.layers, strict=True)
    ]


def _pairs(layer: Layer) -> int:
    return len(layer.heads) * layer.query_count * layer.sizes.keys


def _node(recording: Recording, layer: Layer, item: int, *, measure: bool) -> dict[str, object]:
    found = layer_traits(recording, layer, item=item, measure=measure)
    return {name: [getattr(one, name) for one in found] for name in ("label", *NUMBERS)}
