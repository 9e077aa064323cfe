"""What each head does, as the page's document says it."""

from collections.abc import Sequence

from multihead.front.document import with_traits
from multihead.front.front import MEASURED_PAIRS
from multihead.recording import HeadTraits, Layer, Recording
from multihead.recording.trait_sums import layer_traits


def described(
    entries: Sequence[dict[str, object]], recording: Recording, item: int, *, most: int = MEASURED_PAIRS
) -> list[dict[str, object]]:
    """The document's entries of all layers, each with the traits of its heads.

    Args:
        entries: of the recording's layers, in their order.
        recording: what the document is about.
        item: the sequence of the batch.
        most: as for :func:`quick_traits`.
    """
    return with_traits(entries, quick_traits(recording, item, most=most))


def quick_traits(recording: Recording, item: int, *, most: int = MEASURED_PAIRS) -> list[list[HeadTraits]]:
    """For each layer the traits of its heads, as far as they are known soon.

    Args:
        recording: what was seen.
        item: the sequence of the batch.
        most: pairs of queries and keys. A recording with more of them, over all heads, is not measured, so that only
            what its statistics say is known.
    """
    measure = sum(map(_pairs, recording.layers)) <= most
    return [layer_traits(recording, layer, item=item, measure=measure) for layer in recording.layers]


def head_kinds(recording: Recording, item: int) -> dict[tuple[int, int], str]:
    """The label of each head by layer and head, as far as it is known soon."""
    return {(one.layer, one.head): one.label for heads in quick_traits(recording, item) for one in heads}


def _pairs(layer: Layer) -> int:
    return len(layer.heads) * layer.query_count * layer.sizes.keys
