"""Layers and recordings made by hand, and what the formula says about them."""

import torch

from multihead.core import AttentionCall, Measurements, Statistics, reference
from multihead.kernels import measure
from multihead.recording import Layer, Recording


def made_call(
    *, batch=1, heads=3, kv_heads=None, queries=11, keys=13, dim=5, spread=1.0, seed=0, dtype=torch.float32, **options
) -> AttentionCall:
    draw = torch.Generator().manual_seed(seed)
    q = torch.randn(batch, heads, queries, dim, generator=draw).mul(spread).to(dtype)
    k = torch.randn(batch, kv_heads or heads, keys, dim, generator=draw).mul(spread).add(0.7).to(dtype)
    return AttentionCall(q, k, k[..., :0], **options)


def layer_of(
    call: AttentionCall,
    *,
    index=0,
    heads=None,
    queries=None,
    statistics=None,
    query_text="text",
    key_text="text",
    **options,
) -> Layer:
    """A call as a recorded layer, with some heads and queries only."""
    chosen = tuple(range(call.sizes.heads)) if heads is None else tuple(heads)
    rows = torch.arange(call.sizes.queries) if queries is None else torch.tensor(queries, dtype=torch.int64)
    asked = statistics or Statistics()
    _, found = measure(call, asked, queries=rows)
    per_query = {
        name: tensor[:, list(chosen)] for name, tensor in found.named().items() if name != "visible" and tensor.ndim > 1
    }
    bias = call.bias
    if bias is not None:
        bias = bias[:, list(chosen)] if bias.shape[1] != 1 else bias
        bias = bias[:, :, rows] if bias.shape[2] != 1 else bias
    kept = sorted({head // call.group for head in chosen})
    kv_places = tuple(kept.index(head // call.group) for head in chosen)
    return Layer(
        index=index, name=f"layers.{index}.attention", host="sdpa", sizes=call.sizes, heads=chosen,
        queries=None if queries is None else tuple(queries), kv_heads=kv_places,
        scale=call.scale, softcap=call.softcap, mask=call.mask, bias=bias,
        sinks=None if call.sinks is None else call.sinks[list(chosen)], statistics=Measurements(**per_query),
        q=call.q[:, list(chosen)][:, :, rows], k=call.k[:, kept], query_text=query_text, key_text=key_text, **options,
    )  # fmt: skip


def true_weights(call: AttentionCall, *, item=0, heads=None, queries=None):
    """(heads, queries, keys) in float64, by the formula."""
    weights = reference(call).weights[item]
    weights = weights if heads is None else weights[list(heads)]
    return (weights if queries is None else weights[:, list(queries)]).numpy()


def recording_of(*layers: Layer, texts=None, provenance=None) -> Recording:
    if texts is None:
        batch = layers[0].sizes.batch
        lengths = {}
        for layer in layers:
            for name, length in ((layer.query_text, layer.sizes.queries), (layer.key_text, layer.sizes.keys)):
                lengths[name] = max(lengths.get(name, 0), length)
        texts = {name: [[f"{name}{place}" for place in range(length)]] * batch for name, length in lengths.items()}
    return Recording(layers, texts, provenance or {})
