"""The formula, in float64: the definition that every kernel is compared with.

Memory: O(B · H · Lq · Lk). Nothing here is fast, and nothing in the library calls it.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from multihead.core.call import AttentionCall, nonfinite


@dataclass(frozen=True)
class Reference:
    """What the formula gives for one call, in float64 unless another dtype was asked for."""

    output: Float[Tensor, "batch head query value_dim"]
    scores: Float[Tensor, "batch head query key"]
    weights: Float[Tensor, "batch head query key"]
    sink: Float[Tensor, "batch head query"]


def reference(call: AttentionCall, dtype: torch.dtype = torch.float64) -> Reference:
    """Output, scores, weights and sink probability of a call, by the plain formula in ``dtype``; differentiable.

    The scores are those after scale, softcap, bias and mask: -inf where a query may not see a key.
    """
    q, k, v = (tensor.to(dtype) for tensor in (call.q, call.k, call.v))
    k, v = (tensor.repeat_interleave(call.group, dim=1) for tensor in (k, v))
    scores = (q @ k.transpose(-2, -1)) * call.factor
    if call.softcap is not None:
        scores = call.softcap * torch.tanh(scores / call.softcap)
    bias = call.dense_bias
    if bias is not None:
        scores = scores + bias.to(dtype)
    seen = torch.ones_like(scores, dtype=torch.bool)
    if call.mask is not None:
        queries, keys = (torch.arange(size, device=q.device) for size in scores.shape[2:])
        seen = seen & call.mask.visible(queries, keys, call.sizes)
    scores = scores.masked_fill(~seen, -torch.inf)

    sinks = torch.full_like(scores[..., :1], -torch.inf)
    if call.sinks is not None:
        sinks = call.sinks.to(dtype)[None, :, None, None].expand_as(sinks)
    everything = torch.cat([scores, sinks], dim=-1)
    hopeless = (everything == -torch.inf).all(-1, keepdim=True)
    weights = everything.masked_fill(hopeless, 0.0).softmax(-1).masked_fill(hopeless, 0.0)
    weights, sink = weights[..., :-1], weights[..., -1]

    output = weights @ v
    if nonfinite(v):  # a hidden value must not reach the output, not even as 0 · NaN
        products = (weights[..., None] * v[:, :, None]).masked_fill(~seen[..., None], 0.0)
        output = products.sum(-2)
    return Reference(output, scores, weights, sink)
