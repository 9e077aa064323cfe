"""What a header's masks let queries see, where that is one range of keys and no tensor says which.

These are causal masks, windows, prefixes, and what is in several of them. ``Mask.spans`` says the same of masks that
are there; they are made with torch, and this is read without it.
"""

from collections.abc import Sequence

import numpy as np

from multihead.recording.schema import Fields
from multihead.sizes import Sizes

Span = tuple[np.ndarray, np.ndarray]
"""For each query the first key that it sees, and the first after these; (queries,) each, int64."""

_DEEPEST = 8
_SIMPLE = ("causal", "sliding_window", "prefix", "and")


def are_simple(masks: Sequence[Fields]) -> bool:
    """Whether all masks of a header are of these kinds.

    Raises:
        ValueError: one is no mask, or is nested too deep to be read here.
    """
    if not all(mask["kind"].text() in _SIMPLE for mask in masks):
        return False
    for place in range(len(masks)):
        span_of(masks, place, np.zeros(0, np.int64), Sizes(1, 1, 0, 0))
    return True


def span_of(masks: Sequence[Fields], place: int, queries: np.ndarray, sizes: Sizes, *, depth: int = 1) -> Span:
    """The keys that some queries see under a mask.

    Args:
        masks: the header's, all of them simple.
        place: which of them.
        queries: the model's own numbers.
        sizes: of the attention.
        depth: how deep the mask stands in others.

    Raises:
        ValueError: there is no such mask, a part of it does not come before it, or it is nested too deep to be read so.
    """
    if place >= len(masks) or depth > _DEEPEST:
        raise ValueError(f"mask {place} is missing, or nested deeper than {_DEEPEST}")
    mask, positions = masks[place], queries + sizes.offset
    match mask["kind"].text():
        case "and":
            parts = [mask[name].integer(0, place - 1) for name in ("left", "right")]
            left, right = (span_of(masks, part, queries, sizes, depth=depth + 1) for part in parts)
            return np.maximum(left[0], right[0]), np.minimum(left[1], right[1])
        case "prefix":
            return np.zeros_like(queries), np.full_like(queries, min(mask["length"].integer(), sizes.keys))
        case "causal":
            left, right = None, 0
        case _:
            sides = (mask[name].optional() for name in ("left", "right"))
            left, right = (None if side is None else side.integer() for side in sides)
    first = np.zeros_like(queries) if left is None else (positions - left).clip(0, sizes.keys)
    stop = np.full_like(queries, sizes.keys) if right is None else (positions + right + 1).clip(0, sizes.keys)
    return first, stop
