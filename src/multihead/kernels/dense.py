"""The weights themselves, as one differentiable tensor, for those who ask for all of them.

Memory: O(B · H · Lq · Lk), which is what was asked for.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from multihead.conventions import statistics_dtype
from multihead.core import AttentionCall
from multihead.kernels.tiles import grouped_matmul


def weights(call: AttentionCall) -> Float[Tensor, "batch head query key"]:
    """Every weight of a call, before dropout, differentiable; rows that see nothing are 0.

    With learned sinks a row sums to 1 minus the sink's share.
    """
    dtype = statistics_dtype(call.q.dtype)
    scores = grouped_matmul(call.q.to(dtype) * call.factor, call.k.to(dtype).transpose(-2, -1))
    if call.softcap is not None:
        scores = call.softcap * torch.tanh(scores / call.softcap)
    if call.bias is not None:
        scores = scores + call.bias.to(dtype)
    if call.mask is not None:
        queries, keys = (torch.arange(size, device=scores.device) for size in scores.shape[2:])
        scores = scores.masked_fill(~call.mask.visible(queries, keys, call.sizes), -torch.inf)
    if call.sinks is not None:
        sinks = call.sinks.to(dtype)[None, :, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sinks], -1)
    sees_nothing = (scores == -torch.inf).all(-1, keepdim=True)
    found = scores.masked_fill(sees_nothing, 0.0).softmax(-1).masked_fill(sees_nothing, 0.0)
    return found if call.sinks is None else found[..., :-1]
