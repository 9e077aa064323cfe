"""What the layers do alike: how they start, what comes in, where it stands, a caller's mask and bias."""

from collections.abc import Sequence
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from multihead.biases import Bias
from multihead.conventions import kind_of, shape_of
from multihead.core import as_mask, autocasts
from multihead.layer.cache import Cache, KeysValues
from multihead.masks import Mask, Sizes
from multihead.positions import Position
from multihead.positions.base import check_positions


def check_tokens(name: str, tensor: Tensor, features: int, projection: nn.Module) -> None:
    """Raise unless ``tensor`` is (batch, tokens, features), of the type and on the device of the projection.

    Raises:
        ValueError, TypeError: it is not; the message says how.
    """
    weight = getattr(projection, "weight", None)
    if (
        isinstance(tensor, Tensor)
        and isinstance(weight, Tensor)
        and tensor.ndim == 3
        and tensor.shape[-1] == features
        and tensor.dtype == weight.dtype
        and tensor.device == weight.device
        and not tensor.is_nested
    ):
        return
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is {kind_of(tensor)}, expected a tensor (batch, tokens, {features}).")
    if tensor.is_nested or tensor.ndim != 3 or tensor.shape[-1] != features:
        came = "is a nested tensor" if tensor.is_nested else f"has shape {shape_of(tensor)}"
        raise ValueError(f"{name} {came}, expected (batch, tokens, {features}).")
    if not isinstance(weight, Tensor):
        return
    if tensor.device != weight.device:
        raise ValueError(f"{name} is on {tensor.device} but the layer on {weight.device}: move one with .to().")
    if tensor.dtype != weight.dtype and not autocasts(tensor.device):
        raise TypeError(
            f"{name} has dtype {tensor.dtype} but the layer {weight.dtype}: convert one with .to(), or run under "
            "torch.autocast."
        )


def normed(norm: nn.Module, x: Tensor) -> Tensor:
    """A norm in its own precision, which under autocast is not that of x."""
    weight = getattr(norm, "weight", None)
    return norm(x).to(x.dtype) if weight is None else norm(x.to(weight.dtype)).to(x.dtype)


def start_linear(projection: nn.Module | None, stacked: Sequence[int] = ()) -> None:
    """Xavier-uniform weights (Glorot & Bengio 2010) and a bias of 0, as torch's own attention starts; None: nothing.

    Args:
        projection: an ``nn.Linear``.
        stacked: features of each of the projections that were stacked to make this one, and start as if they were not.
    """
    if projection is None:
        return
    assert isinstance(projection, nn.Linear)  # noqa: S101
    for weight in projection.weight.split(list(stacked) or projection.out_features):
        nn.init.xavier_uniform_(weight)
    if projection.bias is not None:
        nn.init.zeros_(projection.bias)


def features_of(projection: nn.Module, x: Tensor, rows: slice) -> Tensor:
    """Some features of what a linear layer gives.

    Whatever is attached to it must have its say: then it is called whole, and the rest thrown away.
    """
    if _bare(projection):
        return F.linear(x, projection.weight[rows], None if projection.bias is None else projection.bias[rows])
    return projection(x)[..., rows]


def _bare(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a module is a linear layer and nothing else: no adapter, no hook, no quantised weight."""
    attached = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return (
        type(module) is nn.Linear
        and not any(attached)
        and "forward" not in module.__dict__
        and not is_traceable_wrapper_subclass(module.weight)
    )


def check_position(position: Position | None, num_heads: int, width: int) -> None:
    """Raise unless this is a position scheme that can serve heads of ``width`` turned features, or None.

    Raises:
        ValueError, TypeError: it is not; the message says why.
    """
    if position is None:
        return
    if not isinstance(position, Position):
        raise TypeError(f"position is {kind_of(position)}, expected an object of multihead.positions.")
    position.check(num_heads, width)


def places_of(x: Tensor, position: Position | None, positions: Tensor | None, cache: Cache | None) -> Tensor:
    """Where the tokens of x stand, (batch or 1, tokens): where the caller says, or behind those in the cache.

    Raises:
        ValueError: the caller's positions do not fit, or there is no scheme to heed them.
    """
    if positions is None:
        first = 0 if cache is None else cache.length
        return torch.arange(first, first + x.shape[1], device=x.device)[None]
    if position is None:
        raise ValueError("positions came, but this layer has no position scheme: make it with position=....")
    check_positions("positions", positions, x.shape[0], x.shape[1], x.device)
    return positions


def mask_and_bias(
    mask: Mask | Tensor | None,
    bias: Tensor | Bias | None,
    found: Bias | None,
    q: Tensor,
    kv: KeysValues,
) -> tuple[Mask | None, Tensor | Bias | None]:
    """The caller's mask and bias, about the keys that are kept; the position's bias joined to the caller's.

    Memory: O(Lq · Lk) where there are two biases.
    """
    mask = None if mask is None else as_mask(mask)
    if kv.dropped:
        mask = None if mask is None else mask.without_first(kv.dropped)
        if isinstance(bias, Bias):
            bias = bias.without_first(kv.dropped)
        elif bias is not None and bias.shape[-1] != 1:
            bias = bias[..., kv.dropped :]
    if found is None or bias is None:
        return mask, found if bias is None else bias
    sizes = Sizes(q.shape[0], q.shape[1], q.shape[2], kv.k.shape[2])
    return mask, (bias.dense(sizes) if isinstance(bias, Bias) else bias) + found.dense(sizes)
