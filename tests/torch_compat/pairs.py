"""torch's module beside ours, and the one comparison of everything that they compute."""

import copy
import operator

import torch
from torch import Tensor, nn

from multihead.torch_compat import MultiheadAttention
from tests.accuracy import check, random_bool

N, L, S, E, H = 2, 7, 11, 15, 3
"""Batch, queries, keys, features and heads."""
OTHER_DIMS = {"kdim": 13, "vdim": 17}


def pair(embed_dim: int = E, num_heads: int = H, **options) -> tuple[nn.MultiheadAttention, MultiheadAttention]:
    """torch's module and ours with the same random parameters."""
    theirs = nn.MultiheadAttention(embed_dim, num_heads, **options)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.25)
    ours = MultiheadAttention(embed_dim, num_heads, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def inputs(module, batch: int | None = N, queries: int = L, keys: int = S) -> tuple[Tensor, ...]:
    """Query, key and value for a module, three different tensors."""
    widths = ((queries, module.embed_dim), (keys, module.kdim), (keys, module.vdim))
    if batch is None:
        return tuple(torch.randn(*shape) for shape in widths)
    if module.batch_first:
        return tuple(torch.randn(batch, *shape) for shape in widths)
    return tuple(torch.randn(shape[0], batch, shape[1]) for shape in widths)


def some_seen(*shape: int, seed: int) -> Tensor:
    """A random boolean mask in torch's sense that lets every query see the first key."""
    return ~(random_bool(*shape, seed=seed) | (torch.arange(shape[-1]) == 0))


def numbers(module, tensors: tuple[Tensor, ...], **arguments) -> dict[str, Tensor]:
    """Output, weights if asked for, and through each the gradients of inputs and parameters under torch's names.

    One tensor stands for query, key and value, two for query and both others.
    """
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    spread = (*leaves, *leaves[-1:] * (3 - len(leaves)))
    names = dict(module.named_parameters()) if isinstance(module, nn.MultiheadAttention) else module.state_dict()
    wanted = {f"input {place}": leaf for place, leaf in enumerate(leaves)}
    wanted |= {name: operator.attrgetter(name)(module) for name in names}
    found = {}
    for of, value in zip(("output", "weights"), module(*spread, **arguments), strict=True):
        if value is None:
            continue
        found[of] = value.detach()
        # every number counts differently, so that none can take another's place
        loss = (value * torch.linspace(-1, 2, value.numel(), dtype=value.dtype).view(value.shape)).sum()
        gradients = torch.autograd.grad(loss, wanted.values(), retain_graph=True, materialize_grads=True)
        found |= {f"{of}'s gradient of {name}": grad for name, grad in zip(wanted, gradients, strict=True)}
    return found


def double(value):
    """A tensor of numbers in float64; anything else as it is."""
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def check_same(theirs: nn.MultiheadAttention, ours: MultiheadAttention, tensors, **arguments) -> None:
    """Assert that ours computes what torch's module in float64 does, as exactly as torch's own in float32.

    Ours computes its output in the fused kernel, whether weights are asked for or not; so does the plain run.
    """
    wide = {name: double(value) for name, value in arguments.items()}
    exact = numbers(copy.deepcopy(theirs).double(), tuple(double(tensor) for tensor in tensors), **wide)
    plain = numbers(theirs, tensors, **arguments) | numbers(theirs, tensors, **(arguments | {"need_weights": False}))
    found = numbers(ours, tensors, **arguments)
    assert found.keys() == exact.keys()
    for name, value in exact.items():
        check(found[name], value, plain[name], name)
