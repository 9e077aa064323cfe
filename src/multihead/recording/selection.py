"""One sequence of a batch, and one head, out of what was seen."""

from dataclasses import replace

from torch import Tensor

from multihead.core import Measurements, PartOfMask
from multihead.masks import And, Causal, Dense, Documents, Mask, Not, Or, Padding, Prefix, SlidingWindow
from multihead.recording.layer import Layer


def narrowed(mask: Mask, item: int, head: int | None = None) -> Mask:
    """The same mask whose tensors hold one sequence of the batch (and one head) where they held all; views, no copies.

    Masks of kinds that this package does not know stay as they are.
    """
    match mask:
        case Padding(valid):
            return Padding(sequence_of(valid, item))
        case Documents(queries, keys):
            return Documents(sequence_of(queries, item), sequence_of(keys, item))
        case Dense(allowed):
            allowed = sequence_of(allowed, item)
            return Dense(allowed if head is None or allowed.shape[1] == 1 else allowed[:, head : head + 1])
        case And(left, right):
            return And(narrowed(left, item, head), narrowed(right, item, head))
        case Or(left, right):
            return Or(narrowed(left, item, head), narrowed(right, item, head))
        case Not(inner):
            return Not(narrowed(inner, item, head))
        case _:
            return mask


def hidden_as_padding(mask: Mask | None) -> Tensor | None:
    """(B or 1, Lk), False at keys that a mask hides as padding; None where it hides none so."""
    match mask:
        case Padding(valid):
            return valid
        case And(left, right):
            parts = [part for part in map(hidden_as_padding, (left, right)) if part is not None]
            return None if not parts else parts[0] if len(parts) == 1 else parts[0] & parts[1]
        case _:
            return None


def holds_dense(mask: Mask | None) -> bool:
    """Whether a dense mask stands somewhere in a mask: asking it costs whole rows of keys."""
    match mask:
        case Dense():
            return True
        case And(left, right) | Or(left, right):
            return holds_dense(left) or holds_dense(right)
        case Not(inner):
            return holds_dense(inner)
        case _:
            return False


def _knows_batch(mask: Mask) -> bool:
    """Whether ``narrowed`` makes every part of a mask fit a batch of one: not those of kinds defined elsewhere."""
    match mask:
        case And(left, right) | Or(left, right):
            return _knows_batch(left) and _knows_batch(right)
        case Not(inner):
            return _knows_batch(inner)
        case _:
            return type(mask) in (Causal, SlidingWindow, Padding, Documents, Prefix, Dense)


def sequence_of(tensor: Tensor, item: int) -> Tensor:
    """One sequence of a tensor whose first axis is the batch, or 1 for all."""
    return tensor[item : item + 1] if tensor.shape[0] != 1 else tensor


def layer_of_sequence(layer: Layer, item: int) -> Layer:
    """The same layer with a batch of one; its tensors are views."""
    mask = layer.mask
    if mask is not None:
        small = narrowed(mask, item)
        mask = small if _knows_batch(mask) else PartOfMask(small, layer.sizes, item)
    statistics = {
        name: tensor if layer.axes(name)[0] != "batch" else tensor[item : item + 1]
        for name, tensor in layer.statistics.named().items()
    }
    return replace(
        layer,
        sizes=replace(layer.sizes, batch=1),
        mask=mask,
        bias=None if layer.bias is None else sequence_of(layer.bias, item),
        statistics=Measurements.of(statistics),
        q=None if layer.q is None else layer.q[item : item + 1],
        k=None if layer.k is None else layer.k[item : item + 1],
        weights=None if layer.weights is None else layer.weights[item : item + 1],
    )
