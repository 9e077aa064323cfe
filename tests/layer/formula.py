"""The layer written out: projections, norms, turns, the float64 formula, gate, projection."""

import copy
import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from multihead import MultiHeadAttention
from multihead.biases import Bias
from multihead.core import AttentionCall, merge_heads, reference
from multihead.masks import Mask, Sizes
from tests.accuracy import check


def by_formula(
    layer: MultiHeadAttention,
    x: Tensor,
    context: Tensor | None = None,
    values: Tensor | None = None,
    *,
    mask: Mask | None = None,
    bias: Tensor | Bias | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """What a layer should give, in the precision of its inputs, without its ``forward``, a kernel or a cache."""
    own = context is None
    context = x if own else context
    values = context if values is None else values

    def heads(features: Tensor, count: int) -> Tensor:
        return features.unflatten(-1, (count, layer.head_dim)).transpose(1, 2)

    if layer.qkv_proj is None:
        q, k, v = layer.q_proj(x), layer.k_proj(context), layer.v_proj(values)
    else:
        of_q, of_kv = layer.num_heads * layer.head_dim, layer.num_kv_heads * layer.head_dim
        every = (layer.qkv_proj(part) for part in (x, context, values))
        q, k, v = (part.split([of_q, of_kv, of_kv], -1)[place] for place, part in enumerate(every))
    q, k, v = heads(q, layer.num_heads), heads(k, layer.num_kv_heads), heads(v, layer.num_kv_heads)
    if layer.q_norm is not None:
        q, k = layer.q_norm(q), layer.k_norm(k)
    if layer.position is not None and own:
        places = torch.arange(x.shape[1])[None] if positions is None else positions
        q, k = layer.position.turn(q, places), layer.position.turn(k, places)
        found = layer.position.bias_between(positions, positions)
        if found is not None:
            found = found.dense(Sizes(q.shape[0], q.shape[1], q.shape[2], k.shape[2])).to(x.dtype)
            bias = found if bias is None else found + bias
    call = AttentionCall(q, k, v, mask=mask, bias=bias, scale=layer.scale, softcap=layer.softcap, sinks=layer.sinks)
    output = merge_heads(reference(call, x.dtype).output)
    if layer.gate_proj is not None:
        output = output * torch.sigmoid(layer.gate_proj(x))
    return layer.out_proj(output)


def randomised(layer: MultiHeadAttention) -> MultiHeadAttention:
    """The layer with parameters none of which is zero or one."""
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.3)
    return layer


def check_layer(layer: MultiHeadAttention, inputs: tuple[Tensor, ...], **options) -> None:
    """The layer's output, and the gradient of every input and parameter, against the formula in float64."""
    wide = copy.deepcopy(layer).double()

    def outcome(run, of: MultiHeadAttention, dtype: torch.dtype):
        own = [tensor.detach().to(dtype).requires_grad_() for tensor in inputs]
        named = {name: value.to(dtype) if name == "bias" else value for name, value in options.items()}
        output = run(*own, **named)
        direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        wanted = [*own, *of.parameters()]
        return output, torch.autograd.grad(
            output, wanted, direction.to(dtype), allow_unused=True, materialize_grads=True
        )

    outcomes = (
        outcome(layer, layer, torch.float32),
        outcome(functools.partial(by_formula, wide), wide, torch.float64),
        outcome(functools.partial(by_formula, layer), layer, torch.float32),
    )
    (found, mine), (exact, true), (plain, simple) = outcomes
    check(found, exact, plain, "output")
    names = [*(f"input {number}" for number in range(len(inputs))), *(name for name, _ in layer.named_parameters())]
    for name, *gradients in _by_module(names, mine, true, simple):
        check(*gradients, f"gradient of {name}")


def _by_module(names: list[str], *gradients: tuple[Tensor, ...]) -> Iterator[tuple[str | Tensor, ...]]:
    """The gradients of a weight and its bias together.

    That of ``k_proj.bias`` is zero by the formula, a sum of large numbers that cancel, since a softmax does not change
    when all its scores move: only beside the weight's is there a size to measure its rounding with.
    """
    groups: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        groups.setdefault(name.rpartition(".")[0] or name, []).append(place)
    for name, places in groups.items():
        yield name, *(torch.cat([kind[place].flatten() for place in places]) for kind in gradients)
