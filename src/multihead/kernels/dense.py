"""The formula in torch's plain operations: what a compiler, an exporter or a transformation can follow.

Every other kernel looks at numbers, keeps state or runs code that torch cannot trace. This one only multiplies, adds
and exponentiates, so ``torch.compile``, ``torch.export`` and ``torch.func`` take it as it is, and its weights are there
for those who ask for all of them.

Memory: O(B · H · Lq · Lk).
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from multihead.core import AttentionCall
from multihead.kernels.tiles import Part, biased_and_masked, capped_scores, grouped_matmul
from multihead.kernels.tracing import traced
from multihead.precision import statistics_dtype

NAME = "dense"

PART_SCORES = 1 << 19
"""Scores that are computed at a time: 2 MiB in float32."""


def refuses(call: AttentionCall) -> str | None:  # noqa: ARG001
    """Why this kernel cannot compute a call: it always can."""
    return None


def attend(call: AttentionCall) -> Tensor:
    """The output of a call, (B, H, Lq, Dv), differentiable as often as wanted.

    A hidden NaN is not looked for: inside a trace nobody can ask what a number is.
    """
    found = by_formula(call)
    if call.dropout:
        found = F.dropout(found, call.dropout)
    return grouped_matmul(found, call.v.to(found.dtype)).to(call.q.dtype)


def weights(call: AttentionCall) -> Float[Tensor, "batch head query key"]:
    """Every weight of a call, before dropout, differentiable; rows that see nothing are 0.

    With learned sinks a row sums to 1 minus the sink's share.

    Memory: O(B · H · Lq · Lk), which is what was asked for.
    """
    if call.learns or traced(call):
        return by_formula(call)
    found = call.q.new_empty(tuple(_shape(call)), dtype=statistics_dtype(call.q.dtype))
    for part in _parts(call):
        found[part.batch, part.heads, part.rows] = _of_part(call, part)
    return found


def mean_weights(call: AttentionCall) -> Float[Tensor, "batch query key"]:
    """The mean over heads of :func:`weights`.

    Memory: O(B · Lq · Lk) without a gradient, that of :func:`weights` with one.
    """
    if call.learns or traced(call):
        return by_formula(call).mean(1)
    batch, heads, queries, keys = _shape(call)
    found = call.q.new_zeros((batch, queries, keys), dtype=statistics_dtype(call.q.dtype))
    for part in _parts(call):
        found[part.batch, part.rows].add_(_of_part(call, part)[:, 0], alpha=1 / heads)
    return found


def by_formula(call: AttentionCall) -> Float[Tensor, "batch head query key"]:
    """The weights in one piece, in operations that torch can follow and differentiate."""
    dtype = statistics_dtype(call.q.dtype)
    scores = grouped_matmul(call.q.to(dtype) * call.factor, call.k.to(dtype).transpose(-2, -1))
    if call.softcap is not None:
        scores = call.softcap * torch.tanh(scores / call.softcap)
    bias = call.dense_bias
    if bias is not None:
        scores = scores + bias.to(dtype)
    if call.mask is not None:
        queries, keys = (torch.arange(size, device=scores.device) for size in scores.shape[2:])
        scores = scores.masked_fill(~call.mask.visible(queries, keys, call.sizes), -torch.inf)
    return _softmax(call, scores, call.sinks)


def _of_part(call: AttentionCall, part: Part) -> Tensor:
    scores, _ = biased_and_masked(call, part, capped_scores(call, part))
    return _softmax(call, scores, None if call.sinks is None else call.sinks[part.heads])


def _softmax(call: AttentionCall, scores: Tensor, sinks: Tensor | None) -> Tensor:
    """The softmax over keys and sinks, without the sinks' share."""
    if sinks is not None:
        scores = torch.cat([scores, sinks.to(scores.dtype)[None, :, None, None].expand(*scores.shape[:3], 1)], -1)
    if call.mask is None and call.bias is None:
        found = scores.softmax(-1)
    else:
        sees_nothing = (scores == -torch.inf).all(-1, keepdim=True)
        found = scores.masked_fill(sees_nothing, 0.0).softmax(-1).masked_fill(sees_nothing, 0.0)
    return found if sinks is None else found[..., :-1]


def _parts(call: AttentionCall) -> Iterator[Part]:
    """One head's rows at a time, few enough that what is computed from them stays in a core's cache."""
    batch, heads, queries, keys = _shape(call)
    step = max(1, PART_SCORES // max(1, keys))
    numbers = torch.arange(queries, device=call.q.device)
    for item in range(batch):
        for head in range(heads):
            kv_head = head // call.group
            for start in range(0, queries, step):
                rows = slice(start, min(start + step, queries))
                yield Part(
                    slice(item, item + 1),
                    slice(kv_head, kv_head + 1),
                    slice(head, head + 1),
                    numbers[rows],
                    rows,
                    slice(0, keys),
                )


def _shape(call: AttentionCall) -> tuple[int, int, int, int]:
    sizes = call.sizes
    return sizes.batch, sizes.heads, sizes.queries, sizes.keys
