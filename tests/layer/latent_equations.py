"""Latent attention written out: the equations of its paper, head by head, and the float64 formula."""

import copy
import functools

import torch

from multihead.core import AttentionCall, reference
from multihead.layer.latent import MultiHeadLatentAttention
from multihead.masks import Sizes
from tests.accuracy import check
from tests.layer.formula import _by_module, randomised

EMBED, HEADS = 23, 3
SIZES = {"head_dim": 5, "rope_dim": 4, "kv_rank": 11}


def made(**options) -> MultiHeadLatentAttention:
    return randomised(MultiHeadLatentAttention(EMBED, HEADS, **(SIZES | options)))


def forced(layer, form):
    """The layer, that on a cache always, or never, takes the absorbed form."""
    layer = copy.deepcopy(layer)
    layer.absorbs = lambda queries, keys: form == "absorbed"
    return layer


def by_equations(layer, x, *, mask=None, bias=None, positions=None):
    """DeepSeek-V2, equations 9 to 19, head by head, in the precision of x."""

    def turned(features):
        if layer.position is None:
            return features
        places = torch.arange(x.shape[1])[None] if positions is None else positions
        return layer.position.turn(features[:, None], places)[:, 0]

    def normed(norm, features):
        return features if norm is None else norm(features)

    c = normed(layer.kv_norm, layer.kv_down(x))
    r = turned(layer.k_rope_proj(x))
    narrow = x if layer.q_down is None else normed(layer.q_norm, layer.q_down(x))
    parts = {"q": [], "k": [], "v": []}
    weights = (projection.weight.chunk(HEADS) for projection in (layer.q_proj, layer.k_proj, layer.v_proj))
    for of_queries, of_keys, of_values in zip(*weights, strict=True):
        q = narrow @ of_queries.T
        parts["q"].append(torch.cat((q[..., : layer.head_dim], turned(q[..., layer.head_dim :])), -1))
        parts["k"].append(torch.cat((c @ of_keys.T, r), -1))
        parts["v"].append(c @ of_values.T)
    q, k, v = (torch.stack(heads, 1) for heads in parts.values())
    found = None if layer.position is None else layer.position.bias_between(positions, positions)
    if found is not None:
        found = found.dense(Sizes(x.shape[0], HEADS, x.shape[1], x.shape[1])).to(x.dtype)
        bias = found if bias is None else found + bias
    scale = (layer.head_dim + layer.rope_dim) ** -0.5 if layer.scale is None else layer.scale
    heads = reference(AttentionCall(q, k, v, mask=mask, bias=bias, scale=scale), x.dtype).output
    return layer.out_proj(torch.cat(heads.unbind(1), -1))


def check_latent(layer, x, **options) -> None:
    """The layer's output, and the gradient of x and of every parameter, against the equations in float64."""
    wide = copy.deepcopy(layer).double()

    def outcome(run, of, dtype):
        own = x.detach().to(dtype).requires_grad_()
        output = run(own, **{name: value.to(dtype) if name == "bias" else value for name, value in options.items()})
        direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        return output, torch.autograd.grad(output, [own, *of.parameters()], direction.to(dtype))

    (found, mine), (exact, true), (plain, simple) = (
        outcome(layer, layer, torch.float32),
        outcome(functools.partial(by_equations, wide), wide, torch.float64),
        outcome(functools.partial(by_equations, layer), layer, torch.float32),
    )
    check(found, exact, plain, "output")
    for name, *gradients in _by_module(["x", *(name for name, _ in layer.named_parameters())], mine, true, simple):
        check(*gradients, f"gradient of {name}")


def seen_calls(layer) -> list[AttentionCall]:
    """A list that every call to the layer's attention is added to."""
    calls = []
    layer.attend.register_forward_pre_hook(lambda module, inputs: calls.append(inputs[0]))
    return calls
