"""What a layer kept of one sequence as one attention again, and what is measured of it anew."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from multihead.core import AttentionCall, PartOfMask, Statistics
from multihead.core.statistics import block_means
from multihead.errors import RecordingError
from multihead.kernels import measure
from multihead.masks import Mask
from multihead.recording.layer import Layer
from multihead.recording.selection import narrowed, sequence_of

Pause = Callable[[], None]
"""Called between pieces of work; what it raises ends the work."""

BAND = 4096
"""Queries that are measured between two pauses."""

_ALIGNMENT = 64
"""Bytes: where torch begins the memory it takes."""


def kept_of(layer: Layer) -> tuple[Tensor, Tensor, Tensor]:
    """What a layer's weights are recomputed from: q, k and the log-sum-exp.

    Raises:
        RecordingError: one of them was not kept; the message says how to keep it.
    """
    check_recomputes(layer)
    q, k, lse = layer.q, layer.k, layer.statistics.lse
    assert q is not None and k is not None and lse is not None  # noqa: S101, PT018  it was just looked for
    return q, k, lse


def check_recomputes(layer: Layer, *, lse: bool = True) -> None:
    """Raise ``RecordingError`` unless q, k and the log-sum-exp were kept; of a file's layer, nothing is read.

    ``lse=False`` where it is measured anew.
    """
    if layer.shape_of("weights") is not None:
        raise RecordingError(
            f"layer {layer.index} holds the weights that were given and no queries and keys, which this needs: rows, "
            "columns, tile and top read the weights; for the rest observe the model itself."
        )
    if layer.shape_of("q") is None or layer.shape_of("k") is None:
        raise RecordingError(
            f"layer {layer.index} holds no queries and keys to recompute weights from: observe with qk=True."
        )
    if lse and layer.shape_of("lse") is None:
        raise RecordingError(
            f"layer {layer.index} holds no log-sum-exp to recompute weights from: observe with Statistics(lse=True)."
        )


def call_of(layer: Layer, item: int, places: range | None = None, keys: Sequence[int] | None = None) -> AttentionCall:
    """The kept queries, some of the kept heads and some keys of one sequence as an attention; its values mean nothing.

    Args:
        layer: with q and k.
        item: the sequence in the batch.
        places: of heads among those kept; None: all.
        keys: key numbers; None: all.

    Raises:
        RecordingError: q or k was not kept.
    """
    check_recomputes(layer, lse=False)
    q, k = layer.q, layer.k
    assert q is not None and k is not None  # noqa: S101, PT018  it was just looked for
    places = range(len(layer.heads)) if places is None else places
    heads, span = slice(places.start, places.stop), slice(None) if keys is None else _index(keys)
    q, k = q[item : item + 1, heads], k[item : item + 1, _index(layer.kv_heads[heads])][:, :, span]
    bias = None if layer.bias is None else sequence_of(layer.bias, item)
    if bias is not None:
        bias = bias if bias.shape[1] == 1 else bias[:, heads]
        bias = bias if bias.shape[3] == 1 else bias[..., span]
    mask = None if layer.mask is None else mask_of(layer, item, layer.mask, q.device, places, keys)
    sinks = None if layer.sinks is None else layer.sinks[heads]
    # the CPU kernel wants values, of whatever kind
    return AttentionCall(q, k, k[..., :1], mask, bias, layer.scale, layer.softcap, sinks)


def _index(numbers: Sequence[int]) -> slice | list[int]:
    """An index that copies nothing where it need not."""
    row = range(numbers[0], numbers[-1] + 1) if numbers else range(0)
    in_order = numbers == row or (len(numbers) == len(row) and tuple(numbers) == tuple(row))
    return slice(row.start, row.stop) if in_order else list(numbers)


def indices(chosen: Sequence[int], device: torch.device) -> Int[Tensor, " index"]:
    """Whole numbers as a tensor."""
    if isinstance(chosen, range) and chosen:
        return torch.arange(chosen.start, chosen.stop, chosen.step, device=device)
    return torch.tensor(list(chosen), dtype=torch.int64, device=device)


def aligned(call: AttentionCall) -> AttentionCall:
    """The call with q and k where fresh tensors begin: products of a few rows differ in the last bit by where they lie.

    So what is measured of a file is what was measured before it was saved.
    """
    q, k = (tensor.clone() if tensor.data_ptr() % _ALIGNMENT else tensor for tensor in (call.q, call.k))
    return replace(call, q=q, k=k, v=k[..., :1])


def mask_of(
    layer: Layer,
    item: int,
    mask: Mask,
    device: torch.device,
    places: range | None = None,
    keys: Sequence[int] | None = None,
) -> Mask:
    """A layer's mask about the kept queries, some of the kept heads and some keys of one sequence."""
    heads = layer.heads if places is None else layer.heads[places.start : places.stop]
    return PartOfMask(
        narrowed(mask, item, heads[0] if len(heads) == 1 else None),
        layer.sizes,
        item,
        indices(heads, device),
        None if layer.queries is None else indices(layer.queries, device),
        None if keys is None else indices(keys, device),
    )


@torch.no_grad()
def blocks_of(
    layer: Layer,
    item: int,
    blocks: tuple[int, int],
    *,
    places: range | None = None,
    queries: Int[Tensor, " query"] | None = None,
    pause: Pause | None = None,
) -> tuple[Float[Tensor, "head row column"], Float[Tensor, "head row column"]]:
    """Mean and largest weight of each block of kept queries × keys, from q and k or from the weights themselves.

    Args:
        layer: with q and k, or with weights.
        item: the sequence in the batch.
        blocks: queries and keys of a block.
        places: of heads among those kept; None: all.
        queries: places of queries among those kept, which the blocks count off in this order; None: all.
        pause: called every few thousand queries; it may raise to stop.

    Raises:
        RecordingError: neither was kept.
    """
    places = range(len(layer.heads)) if places is None else places
    if layer.weights is not None:
        held = layer.weights[item, places.start : places.stop]
        return _pooled(held if queries is None else held[:, queries.to(held.device)], blocks)
    call = call_of(layer, item, places)
    call = aligned(call) if queries is None else call
    asked = Statistics.only(blocks=blocks, block_peaks=True)
    bands = [queries]
    if pause is not None and layer.query_count > BAND:
        chosen = torch.arange(layer.query_count) if queries is None else queries
        bands = chosen.split(max(blocks[0], BAND // blocks[0] * blocks[0]))
    means, peaks = [], []
    for band in bands:
        if pause is not None:
            pause()
        found = measure(call, asked, queries=band)[1].named()
        means.append(found["blocks"][0])
        peaks.append(found["block_peaks"][0])
    return torch.cat(means, dim=1), torch.cat(peaks, dim=1)


def _pooled(weights: Float[Tensor, "head query key"], blocks: tuple[int, int]) -> tuple[Tensor, Tensor]:
    height, width = blocks
    queries, keys = weights.shape[1:]
    whole = torch.nn.functional.pad(weights, (0, -keys % width, 0, -queries % height))
    cells = whole.unflatten(2, (-1, width)).unflatten(1, (-1, height))
    return block_means(cells.sum((2, 4)), blocks, queries, keys), cells.amax((2, 4))


def sink_of(layer: Layer, item: int) -> Float[Tensor, "head query"] | None:
    """The probability that went to learned sinks: as recorded, else from the sinks and the log-sum-exp.

    None where there are no sinks, or no log-sum-exp to tell.
    """
    recorded, lse = layer.statistics.sink, layer.statistics.lse
    if recorded is not None:
        return recorded[item]
    if layer.sinks is None or lse is None:
        return None
    own = lse[item].double()
    return (layer.sinks.double()[:, None] - own).exp().masked_fill(own == -torch.inf, 0.0)
