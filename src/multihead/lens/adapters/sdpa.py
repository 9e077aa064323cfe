"""``torch.nn.functional.scaled_dot_product_attention``, called by anyone.

Its tensors have any number of axes before the last two. Four are (batch, heads, tokens, dim). Three count as a batch of
one head, two as one head; axes between batch and the last three are counted as heads.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from multihead.conventions import shape_of
from multihead.core import as_autocast
from multihead.errors import UnsupportedAttentionError
from multihead.lens.host import DROPOUT, HostAttention, HostOutput, call_of, plain
from multihead.lens.masks_found import MaskFinder, top_left_causal
from multihead.masks import Mask, Sizes


@dataclass(frozen=True)
class _Arguments:
    """The signature, by which positional and keyword arguments are bound."""

    query: Tensor
    key: Tensor
    value: Tensor
    attn_mask: Tensor | None = None
    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float | None = None
    enable_gqa: bool = False


def attention(run: Any, func: Any, args: Any, kwargs: Any) -> Tensor:
    """The function, seen."""
    with run.unseen():
        output = func(*args, **kwargs)
    run.see(run.name, lambda finder: _understood(_Arguments(*args, **kwargs), output, finder))
    return output


def _understood(given: _Arguments, output: Tensor, finder: MaskFinder) -> HostAttention:
    q, k, v = as_autocast(plain(given.query, "query"), plain(given.key, "key"), plain(given.value, "value"))
    q, k, v, leading = _four_axes(q, k, v, given.enable_gqa)
    sizes = Sizes(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    mask, bias = mask_and_bias(_mask_of(given.attn_mask, leading), sizes, finder)
    if given.is_causal:
        mask = top_left_causal(sizes)
    call = call_of(q, k, v, mask=mask, bias=bias, scale=given.scale)
    own = DROPOUT if given.dropout_p else HostOutput(output.detach().reshape(*q.shape[:3], v.shape[3]))
    return HostAttention("sdpa", call, own)


def mask_and_bias(given: Tensor | None, sizes: Sizes, finder: MaskFinder) -> tuple[Mask | None, Tensor | None]:
    """What an ``attn_mask`` says: a boolean one what may be seen, a float one what is added."""
    if given is None:
        return None, None
    found = finder.find(given.detach(), "added" if given.is_floating_point() else "allowed", sizes)
    return found.mask, found.bias


def _four_axes(q: Tensor, k: Tensor, v: Tensor, grouped: bool) -> tuple[Tensor, Tensor, Tensor, torch.Size]:
    """q, k, v as (batch, heads, tokens, dim), and the axes that q had before its last two."""
    if min(q.ndim, k.ndim, v.ndim) < 2:
        raise UnsupportedAttentionError(f"its query of shape {shape_of(q)} has too few axes")
    before = [tensor.shape[:-2] for tensor in (q, k, v)]
    if grouped:
        if min(len(shape) for shape in before) < 2:
            raise UnsupportedAttentionError("enable_gqa needs a head axis, but there are fewer than four axes")
        outer = torch.broadcast_shapes(*(shape[:-1] for shape in before))
        shapes = [torch.Size((*outer, shape[-1])) for shape in before]
    else:
        shapes = [torch.broadcast_shapes(*before)] * 3
    q, k, v = (
        _folded(tensor.expand(*shape, *tensor.shape[-2:])) for tensor, shape in zip((q, k, v), shapes, strict=True)
    )
    return q, k, v, shapes[0]


def _folded(tensor: Tensor) -> Tensor:
    """The axes before the last two as (batch, heads)."""
    if tensor.ndim == 2:
        return tensor[None, None]
    return tensor[:, None] if tensor.ndim == 3 else tensor.flatten(1, -3)


def _mask_of(mask: Tensor | None, leading: torch.Size) -> Tensor | None:
    """A mask whose axes are those that ``leading`` names and the last two, with four axes; small ones stay small."""
    if mask is None or len(leading) in (0, 2) or mask.ndim <= 2:
        return mask
    mask = mask[(None,) * (len(leading) + 2 - mask.ndim)]
    batch, middle = mask.shape[0], mask.shape[1:-2]
    if math.prod(middle) == 1:
        return mask.reshape(batch, 1, *mask.shape[-2:])
    return mask.expand(batch, *leading[1:], *mask.shape[-2:]).flatten(1, -3)
