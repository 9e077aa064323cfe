"""Attention in tiles: some sequences, some heads, some queries, and every key these can see.

A tile is the largest thing that the chunked kernel ever holds. Whole rows are kept together, so a tile's weights are
final and every statistic may be gathered from it directly.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from multihead.biases import Bias
from multihead.core import AttentionCall
from multihead.precision import statistics_dtype

TILE_SCORES = 1 << 21
"""Scores in one tile: 8 MiB in float32, a few times that with what is computed from them."""

ROWS = 64
"""Queries that a tile should hold before it is worth splitting heads for."""


@dataclass(frozen=True)
class Part:
    """Which part of a call one tile covers."""

    batch: slice
    kv_heads: slice
    heads: slice
    queries: Int[Tensor, " query"]
    """Query indices, in any order."""
    rows: slice
    """The same queries as places among the measured ones."""
    keys: slice


@dataclass(frozen=True)
class Tile:
    """One tile's scores and weights; axes (batch, head, query, key)."""

    part: Part
    scores: Float[Tensor, "batch head query key"]
    weights: Float[Tensor, "batch head query key"]
    visible: Bool[Tensor, "batch_or_1 head_or_1 query_or_1 key_or_1"] | None
    peak: Float[Tensor, "batch head query"]
    lse: Float[Tensor, "batch head query"]
    sink: Float[Tensor, "batch head query"] | None


def parts(call: AttentionCall, queries: Int[Tensor, " query"], align: int = 1) -> Iterator[Part]:
    """Cut a call in parts of about ``TILE_SCORES`` scores; key ranges start at multiples of ``align``."""
    sizes = call.sizes
    kv_heads = call.k.shape[1]
    batch_step, head_step = sizes.batch, kv_heads
    wanted_rows = max(1, min(ROWS, len(queries)))
    while batch_step * head_step * call.group * sizes.keys * wanted_rows > TILE_SCORES and batch_step * head_step > 1:
        if batch_step > 1:
            batch_step = -(-batch_step // 2)
        else:
            head_step = -(-head_step // 2)
    row_step = max(1, TILE_SCORES // max(1, batch_step * head_step * call.group * sizes.keys))
    for batch in _slices(sizes.batch, batch_step):
        for kv in _slices(kv_heads, head_step):
            heads = slice(kv.start * call.group, kv.stop * call.group)
            for rows in _slices(len(queries), row_step):
                chosen = queries[rows]
                start, stop = 0, sizes.keys
                if call.mask is not None:
                    start, stop = call.mask.key_range(int(chosen.min()), int(chosen.max()), sizes)
                yield Part(batch, kv, heads, chosen, rows, slice(start // align * align, stop))


def capped_scores(call: AttentionCall, part: Part) -> Tensor:
    """A part's scores after scale and softcap."""
    dtype = statistics_dtype(call.q.dtype)
    q = call.q[part.batch, part.heads][:, :, part.queries].to(dtype) * call.factor
    k = call.k[part.batch, part.kv_heads, part.keys].to(dtype)
    scores = grouped_matmul(q, k.transpose(-2, -1))
    return scores if call.softcap is None else scores.div_(call.softcap).tanh_().mul_(call.softcap)


def biased_and_masked(call: AttentionCall, part: Part, scores: Tensor) -> tuple[Tensor, Tensor | None]:
    """A part's final scores, -inf where hidden, made in place; and what is visible, None for everything."""
    if call.bias is not None:
        scores = scores.add_(bias_of(call, part).to(scores.dtype))
    visible = visible_of(call, part)
    if visible is not None:
        scores = scores.masked_fill_(~visible, -torch.inf)
    return scores, visible


def visible_of(call: AttentionCall, part: Part) -> Tensor | None:
    """What a part's queries may see of its keys; None for everything."""
    if call.mask is None:
        return None
    return part_of(call.mask.visible(part.queries, _keys_of(call, part), call.sizes), part.batch, part.heads)


def bias_of(call: AttentionCall, part: Part) -> Tensor:
    """The part of the call's bias that belongs to a tile; axes of size 1 stay so."""
    bias = call.bias
    assert bias is not None  # noqa: S101  callers ask only where there is one
    if isinstance(bias, Bias):
        return part_of(bias.values(part.queries, _keys_of(call, part), call.sizes), part.batch, part.heads)
    bias = part_of(bias, part.batch, part.heads, slice(None), part.keys)
    return bias if bias.shape[2] == 1 else bias[:, :, part.queries]


def _keys_of(call: AttentionCall, part: Part) -> Tensor:
    return torch.arange(part.keys.start, part.keys.stop, device=call.q.device)


def part_of(tensor: Tensor, *places: slice) -> Tensor:
    """A view of a broadcastable tensor: on each axis the slice, or all of it where its size is 1."""
    return tensor[tuple(slice(None) if size == 1 else place for size, place in zip(tensor.shape, places, strict=False))]


def tile_of(call: AttentionCall, part: Part) -> Tile:
    """Scores and weights of one part."""
    scores, visible = biased_and_masked(call, part, capped_scores(call, part))
    peak = scores.amax(-1) if scores.shape[-1] else scores.new_full(scores.shape[:-1], -torch.inf)
    ceiling, sinks = peak, None
    if call.sinks is not None:
        sinks = call.sinks[part.heads].to(scores.dtype)[None, :, None]
        ceiling = torch.maximum(peak, sinks)
    shift = ceiling.masked_fill(ceiling == -torch.inf, 0.0)
    weights = (scores - shift[..., None]).exp_()
    total = weights.sum(-1)
    if sinks is not None:
        total = total + (sinks - shift).exp()
    lse = shift + total.log()
    weights = weights.div_(total.masked_fill(total == 0, 1.0)[..., None])
    sink = None if sinks is None else (sinks - lse).exp().masked_fill(lse == -torch.inf, 0.0)
    return Tile(part, scores, weights, visible, peak, lse, sink)


def grouped_matmul(
    left: Float[Tensor, "batch head m n"], right: Float[Tensor, "batch kv_head n p"]
) -> Float[Tensor, "batch head m p"]:
    """Matrix products of every query head with its key/value head, without repeating the latter."""
    batch, heads, rows, inner = left.shape
    kv_heads, width = right.shape[1], right.shape[3]
    folded = left.reshape(batch * kv_heads, (heads // kv_heads) * rows if kv_heads else 0, inner)
    return torch.bmm(folded, right.reshape(batch * kv_heads, inner, width)).view(batch, heads, rows, width)


def folded_matmul(
    left: Float[Tensor, "batch head m n"], right: Float[Tensor, "batch head m p"], kv_heads: int
) -> Tensor:
    """Σ over a group's heads and rows of leftᵀ · right, (batch, kv_head, n, p): grouped_matmul's gradient."""
    batch = left.shape[0]
    rows = left.shape[1] * left.shape[2] // max(1, kv_heads)
    lefts, rights = (tensor.reshape(batch * kv_heads, rows, tensor.shape[-1]) for tensor in (left, right))
    return torch.bmm(lefts.transpose(1, 2), rights).view(batch, kv_heads, left.shape[-1], right.shape[-1])


def _slices(length: int, step: int) -> Iterator[slice]:
    for start in range(0, length, max(1, step)):
        yield slice(start, min(start + step, length))
