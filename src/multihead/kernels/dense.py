"""The formula in torch's plain operations: what a compiler, an exporter or a transformation can follow.

Every other kernel looks at numbers, keeps state or runs code that torch cannot trace. This one only multiplies, adds
and exponentiates, so ``torch.compile``, ``torch.export`` and ``torch.func`` take it as it is, and its weights are there
for those who ask for all of them.

Memory: O(B · H · Lq · Lk).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from multihead.conventions import statistics_dtype
from multihead.core import AttentionCall
from multihead.kernels.tiles import grouped_matmul

NAME = "dense"


def refuses(call: AttentionCall) -> str | None:  # noqa: ARG001
    """Why this kernel cannot compute a call: it always can."""
    return None


def attend(call: AttentionCall) -> Tensor:
    """The output of a call, (B, H, Lq, Dv), differentiable as often as wanted.

    A hidden NaN is not looked for: inside a trace nobody can ask what a number is.
    """
    found = weights(call)
    if call.dropout:
        found = F.dropout(found, call.dropout)
    return grouped_matmul(found, call.v.to(found.dtype)).to(call.q.dtype)


def weights(call: AttentionCall) -> Float[Tensor, "batch head query key"]:
    """Every weight of a call, before dropout, differentiable; rows that see nothing are 0.

    With learned sinks a row sums to 1 minus the sink's share.
    """
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
    if call.sinks is not None:
        sinks = call.sinks.to(dtype)[None, :, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sinks], -1)
    if call.mask is None and bias is None:
        found = scores.softmax(-1)
    else:
        sees_nothing = (scores == -torch.inf).all(-1, keepdim=True)
        found = scores.masked_fill(sees_nothing, 0.0).softmax(-1).masked_fill(sees_nothing, 0.0)
    return found if call.sinks is None else found[..., :-1]
