"""Each statistic by its definition on the float64 weights, and the one comparison of a kernel with them."""

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import pad

from multihead.core import AttentionCall, Measurements, Statistics, block_cells, reference
from tests.accuracy import check, plain

EVERYTHING = Statistics.every(top=4, block=3, rows=(5, 0), columns=(10, 3, 4))
"""For the small calls of ``tests.accuracy.random_call``."""


def definitions(call, statistics, dtype=torch.float64):
    """Each statistic by its definition, from all weights at once."""
    found = reference(call, dtype)
    weights, scores = found.weights, found.scores
    sinks = torch.full_like(scores[..., :1], -torch.inf)
    if call.sinks is not None:
        sinks = call.sinks.to(dtype)[None, :, None, None].expand_as(sinks)
    seen = scores > -torch.inf
    sizes = call.sizes
    distance = torch.arange(sizes.queries)[:, None] + sizes.offset - torch.arange(sizes.keys)
    edges = statistics.edges(sizes)
    (height, width), top = statistics.blocks, statistics.top
    order = scores.sort(dim=-1, descending=True, stable=True).indices[..., :top]
    hidden = ~seen.gather(-1, order)
    folded = (
        pad(weights, (0, -sizes.keys % width, 0, -sizes.queries % height))
        .unflatten(3, (-1, width))
        .unflatten(2, (-1, height))
    )
    return {
        "lse": torch.logsumexp(torch.cat([scores, sinks], -1), -1),
        "max_score": scores.amax(-1),
        "entropy": torch.special.entr(weights).sum(-1) + torch.special.entr(found.sink),
        "visible": seen.sum(-1),
        "top_keys": order.masked_fill(hidden, -1),
        "top_weights": weights.gather(-1, order).masked_fill(hidden, 0.0),
        "received": weights.sum(2),
        "received_mean": weights.sum(2) / seen.sum(2).clamp_min(1),
        "offsets": torch.stack(
            [(weights * ((distance >= low) & (distance < high))).sum((2, 3)) for low, high in pairwise(edges)],
            -1,
        ),
        "offset_edges": torch.tensor(edges),
        "blocks": folded.sum((3, 5)) / (block_cells(sizes.queries, height)[:, None] * block_cells(sizes.keys, width)),
        "block_peaks": folded.amax((3, 5)),
        "block_size": torch.tensor(statistics.blocks),
        "row_queries": torch.tensor(statistics.rows),
        "column_keys": torch.tensor(statistics.columns),
        "rows": weights[:, :, list(statistics.rows)],
        "columns": weights[..., list(statistics.columns)],
        "sink": found.sink,
    }


def check_measured(
    call: AttentionCall, statistics: Statistics, output: Tensor, found: Measurements, *, same_keys: float = 1.0
) -> None:
    """Every statistic and the output under the one bar.

    ``same_keys`` is the least share of the top's keys that agree: of many scores, two may be closer than float32 tells
    apart.
    """
    exact, simple = definitions(call, statistics), definitions(call, statistics, torch.float32)
    assert set(found.named()) == set(exact)
    for name, value in found.named().items():
        if value.is_floating_point():
            assert value.dtype == torch.float32
            check(value, exact[name], simple[name], name)
            continue
        assert value.dtype == torch.int64
        same = value.expand_as(exact[name]) == exact[name] if name == "visible" else value == exact[name]
        assert same.float().mean() >= (same_keys if name == "top_keys" else 1.0), name
    check(output, reference(call).output, plain(call).output, "output")
