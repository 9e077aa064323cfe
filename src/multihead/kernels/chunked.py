"""Attention in plain torch, in query blocks: any device, every option, every statistic, and never a Lq × Lk tensor.

The kernel that always works. Backward recomputes each tile's weights from the queries, keys and log-sum-exp (Dao et al.
2022, algorithm 4), so training needs linear memory too.
"""

from dataclasses import replace

import torch
from torch import Tensor

from multihead.biases import Bias
from multihead.core import AttentionCall, Measurements, Statistics, nonfinite
from multihead.kernels.collectors import Output, PerQuery, collectors_for, measurements_of
from multihead.kernels.tiles import (
    Part,
    bias_of,
    biased_and_masked,
    capped_scores,
    folded_matmul,
    grouped_matmul,
    part_of,
    parts,
    tile_of,
)

NAME = "chunked"


def refuses(call: AttentionCall) -> str | None:  # noqa: ARG001
    """Why this kernel cannot compute a call: it always can."""
    return None


def attend(call: AttentionCall) -> Tensor:
    """The output of a call, (B, H, Lq, Dv), differentiable in q, k, v, bias and sinks.

    Memory: O(B · H · Lq · Dv) and one tile.
    """
    seed = int(torch.randint(1 << 62, ())) if call.dropout else 0
    return _Attend.apply(call.q, call.k, call.v, call.sinks, call, seed, *call.bias_tensors)[0]


@torch.no_grad()
def measure(
    call: AttentionCall, statistics: Statistics, *, queries: Tensor | None = None, output: bool = False
) -> tuple[Tensor | None, Measurements]:
    """As :func:`multihead.kernels.measure`.

    Memory: the answers, and one tile of at most about 2²¹ scores (or one row of one head, if that is longer).
    """
    statistics.check(call.sizes, queries)
    everything = torch.arange(call.sizes.queries, device=call.q.device)
    chosen = everything if queries is None else queries.to(call.q.device)
    collectors = collectors_for(call, statistics, chosen)
    out = Output(call, chosen) if output else None
    align = statistics.blocks[1] if statistics.blocks is not None else 1
    for part in parts(call, chosen, align):
        tile = tile_of(call, part)
        for collector in (*collectors, *([out] if out else [])):
            collector.add(tile)
    return (out.found if out else None), measurements_of(collectors)


class _Attend(torch.autograd.Function):
    """Forward and backward over tiles."""

    @staticmethod
    def forward(q, k, v, sinks, call, seed, *bias_tensors):
        call = call.over(q, k, v, sinks, bias_tensors)
        queries = torch.arange(q.shape[2], device=q.device)
        out, lse = Output(call, queries), PerQuery(call, queries, "lse", "lse")
        for number, part in enumerate(parts(call, queries)):
            tile = tile_of(call, part)
            lse.add(tile)
            if call.dropout:
                tile = replace(tile, weights=tile.weights * _kept(tile.weights, call.dropout, seed + number))
            out.add(tile)
        return out.found.to(q.dtype), lse.found

    @staticmethod
    def setup_context(ctx, inputs, output):
        q, k, v, sinks, call, seed, *bias_tensors = inputs
        _, lse = output
        ctx.mark_non_differentiable(lse)
        ctx.save_for_backward(q, k, v, sinks, lse, *bias_tensors)
        ctx.call, ctx.seed = call, seed

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_out, _):  # pyrefly: ignore[bad-override]
        q, k, v, sinks, lse, *bias_tensors = ctx.saved_tensors
        call = ctx.call.over(q, k, v, sinks, tuple(bias_tensors))
        gradients = _Gradients(call, lse, d_out)
        with torch.autocast(q.device.type, enabled=False):
            for number, part in enumerate(parts(call, torch.arange(q.shape[2], device=q.device))):
                gradients.add(part, ctx.seed + number)
        wanted = ctx.needs_input_grad
        found = gradients.found((*wanted[:4], *wanted[6:]))
        return (*found[:4], None, None, *found[4:])


def _kept(weights: Tensor, dropout: float, seed: int) -> Tensor:
    """0 for a dropped weight, 1/(1 - dropout) for a kept one; a seed's own, so that backward drops what forward did."""
    generator = torch.Generator(weights.device).manual_seed(seed)
    return torch.empty_like(weights).bernoulli_(1 - dropout, generator=generator).div_(1 - dropout)


class _Gradients:
    """Gradients of a call, added up tile by tile in the statistics' dtype."""

    def __init__(self, call: AttentionCall, lse: Tensor, d_out: Tensor) -> None:
        self.call, self.lse = call, lse
        self.d_out = d_out.to(lse.dtype)
        self.delta = torch.zeros_like(lse)
        self.k, self.v = (
            tensor.masked_fill(~tensor.isfinite(), 0.0) if nonfinite(tensor) else tensor for tensor in (call.k, call.v)
        )
        self.q_sum, self.k_sum, self.v_sum = (
            torch.zeros_like(tensor, dtype=lse.dtype) for tensor in (call.q, call.k, call.v)
        )
        self.bias_sums = [torch.zeros_like(tensor, dtype=lse.dtype) for tensor in call.bias_tensors]

    def add(self, part: Part, seed: int) -> None:
        """Add what one tile contributes; its weights are recomputed from the log-sum-exp."""
        call, dtype = self.call, self.lse.dtype
        here = (part.batch, part.heads, part.rows)
        there = (part.batch, part.kv_heads, part.keys)
        scores = capped_scores(call, part)
        slope = None if call.softcap is None else 1 - (scores / call.softcap) ** 2
        scores, visible = biased_and_masked(call, part, scores)
        if slope is not None and visible is not None:
            slope = slope.masked_fill_(~visible, 0.0)
        lse = self.lse[here]
        weights = (scores - lse.masked_fill(lse == -torch.inf, 0.0)[..., None]).exp_()
        kv_heads = part.kv_heads.stop - part.kv_heads.start

        d_weights = grouped_matmul(self.d_out[here], self.v[there].to(dtype).transpose(-2, -1))
        used = weights
        if call.dropout:
            kept = _kept(weights, call.dropout, seed)
            used, d_weights = weights * kept, d_weights.mul_(kept)
        self.v_sum[there] += folded_matmul(used, self.d_out[here], kv_heads)
        self.delta[here] = torch.linalg.vecdot(weights, d_weights)
        d_scores = d_weights.sub_(self.delta[here][..., None]).mul_(weights)
        if call.bias is not None:
            self._add_to_bias(part, d_scores)
        if slope is not None:
            d_scores = d_scores.mul_(slope)
        self.q_sum[here] = grouped_matmul(d_scores, self.k[there].to(dtype)) * call.factor
        self.k_sum[there] += folded_matmul(d_scores, call.q[here].to(dtype), kv_heads) * call.factor

    def _add_to_bias(self, part: Part, d_scores: Tensor) -> None:
        bias = self.call.bias
        if not isinstance(bias, Bias):
            target = part_of(self.bias_sums[0], part.batch, part.heads, part.rows, part.keys)
            target += d_scores.sum_to_size(target.shape)
            return
        with torch.enable_grad():
            leaves = [tensor.detach().requires_grad_() for tensor in self.call.bias_tensors]
            values = bias_of(replace(self.call, bias=bias.over(iter(leaves))), part)
        gradients = torch.autograd.grad(
            values, leaves, d_scores.sum_to_size(values.shape).to(values.dtype), materialize_grads=True
        )
        for total, gradient in zip(self.bias_sums, gradients, strict=True):
            total.add_(gradient)

    def found(self, wanted: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        """Gradients of q, k, v, sinks and the bias's tensors, in their dtypes; None where not wanted."""
        call = self.call
        sinks = None
        if call.sinks is not None:
            shares = (call.sinks.to(self.lse.dtype)[None, :, None] - self.lse).exp()
            sinks = -(shares * self.delta).sum((0, 2))
        sums = (self.q_sum, self.k_sum, self.v_sum, sinks, *self.bias_sums)
        likes = (call.q, call.k, call.v, call.sinks, *call.bias_tensors)
        return tuple(
            total.to(like.dtype) if need and total is not None and like is not None else None
            for total, like, need in zip(sums, likes, wanted, strict=True)
        )
