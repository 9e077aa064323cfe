"""What the arguments of transformers' attention functions mean.

A model hands query, key, value and mask to one function, whichever ``attn_implementation`` chose, and names the rest:
``scaling``, ``dropout``, ``softcap``, ``s_aux`` (learned sinks), ``position_bias``. Each implementation honours some of
these and ignores others; here is which. Read beside ``transformers/integrations/sdpa_attention.py``,
``flex_attention.py`` and the ``eager_attention_forward`` of each model.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from multihead.core import as_autocast
from multihead.errors import UnsupportedAttentionError
from multihead.lens.adapters import flex
from multihead.lens.adapters.sdpa import mask_and_bias
from multihead.lens.host import DROPOUT, HostAttention, HostOutput, call_of, plain
from multihead.lens.masks_found import MaskFinder, top_left_causal
from multihead.masks import Mask, Sizes

_FIRST = ("query", "key", "value", "attention_mask")


def bound(function: Callable[..., Any], args: Any, kwargs: Any) -> dict[str, Any]:
    """Arguments by name; the first four by the names that the interface has for them."""
    own = list(inspect.signature(function).parameters)[5:]
    return dict(zip((*_FIRST, *own), args, strict=False)) | {_interface_name(name): v for name, v in kwargs.items()}


def _interface_name(name: str) -> str:
    short = name.removesuffix("_states")
    return short if short in _FIRST else name


def sdpa(module: nn.Module, given: dict[str, Any], output: Tensor, finder: MaskFinder) -> HostAttention:
    """``sdpa_attention_forward``: a mask, or the causal flag where there is none."""
    for name in ("s_aux", "softcap"):
        if given.get(name) is not None:
            raise UnsupportedAttentionError(f"transformers' sdpa attention ignores its {name}")
    _refuse_paged(given)
    q, k, v = _tensors(given, output)
    mask_given, position_bias = given.get("attention_mask"), given.get("position_bias")
    causal = given.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    causal = bool(causal) and q.shape[2] > 1 and mask_given is None
    if causal and k.shape[2] > q.shape[2]:
        # a static cache during prefill: the rest of the keys is not filled yet
        k, v = (tensor[:, :, : q.shape[2]] for tensor in (k, v))
        position_bias = None if position_bias is None else position_bias[..., : q.shape[2]]
    sizes = Sizes(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    mask, bias = mask_and_bias(mask_given, sizes, finder)
    if causal:
        mask = top_left_causal(sizes)
    if position_bias is not None:
        mask, bias = _with_position_bias(position_bias.detach(), mask, bias, mask_given, sizes, finder)
    call = call_of(q, k, v, mask=mask, bias=bias, scale=given.get("scaling"))
    own = DROPOUT if given.get("dropout") else _output(output)
    return HostAttention("transformers", call, own, cross=is_cross(module))


def eager(
    module: nn.Module, function: Callable[..., Any], given: dict[str, Any], output: Tensor, finder: MaskFinder
) -> HostAttention:
    """A model's ``eager_attention_forward``: a mask is a number that is added, and nothing else makes it causal."""
    _refuse_paged(given)
    if isinstance(given.get("sinks"), Tensor):
        raise UnsupportedAttentionError("its sinks differ from query to query")
    honoured = inspect.signature(function).parameters
    q, k, v = _tensors(given, output)
    sizes = Sizes(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    mask_given = given.get("attention_mask")
    if mask_given is not None and not mask_given.is_floating_point():
        # whatever it was meant to say, it is added
        mask_given = mask_given.to(q.dtype)
    mask, bias = mask_and_bias(mask_given, sizes, finder)
    position_bias = given.get("position_bias") if "position_bias" in honoured else None
    if position_bias is not None:
        mask, bias = _with_position_bias(position_bias.detach(), mask, bias, mask_given, sizes, finder)
    if bias is not None and bias.dtype == torch.float16:
        # in float32 the least float16 does not hide the differences between scores, as it does in the host
        bias = bias.float().masked_fill(bias == torch.finfo(bias.dtype).min, torch.finfo(torch.float32).min)
    sinks = given.get("s_aux")
    call = call_of(
        q,
        k,
        v,
        mask=mask,
        bias=bias,
        scale=given.get("scaling"),
        softcap=given.get("softcap") if "softcap" in honoured else None,
        sinks=None if sinks is None else plain(sinks, "sinks"),
    )
    dropped = module.training and given.get("dropout")
    own = DROPOUT if dropped else _output(output, q.dtype)
    return HostAttention("transformers", call, own, cross=is_cross(module))


def flexible(module: nn.Module, given: dict[str, Any], output: Tensor, finder: MaskFinder) -> HostAttention:
    """``flex_attention_forward``: a ``BlockMask`` or a tensor that is added; softcap, sinks and position bias."""
    q, k, v = _tensors(given, output)
    sizes = Sizes(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    mask_given, position_bias = given.get("attention_mask"), given.get("position_bias")
    if isinstance(mask_given, Tensor):
        mask, bias = mask_and_bias(mask_given[..., : sizes.keys].to(q.dtype), sizes, finder)
    else:
        mask, bias = flex.mask_of(mask_given, sizes, q.device, finder), None
    if position_bias is not None:
        bias = position_bias.detach() if bias is None else position_bias.detach() + bias
    sinks = given.get("s_aux")
    call = call_of(
        q,
        k,
        v,
        mask=mask,
        bias=bias,
        scale=given.get("scaling"),
        softcap=given.get("softcap"),
        sinks=None if sinks is None else plain(sinks, "sinks"),
    )
    return HostAttention("transformers", call, _output(output), cross=is_cross(module))


def is_cross(module: nn.Module) -> bool | None:
    """Whether a module of transformers attends to another text; None: it does not say."""
    known = getattr(module, "is_cross_attention", None)
    if known is None and "CrossAttention" in type(module).__name__:
        return True
    return None if known is None else bool(known)


def _refuse_paged(given: dict[str, Any]) -> None:
    if given.get("cache") is not None:
        raise UnsupportedAttentionError("it reads a paged cache; generate without continuous batching")


def _tensors(given: dict[str, Any], output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value as autocast makes them, each of the whole batch."""
    q, k, v = as_autocast(*(plain(given[name], name) for name in ("query", "key", "value")))
    q, k, v = (tensor.expand(output.shape[0], -1, -1, -1) for tensor in (q, k, v))
    return q, k, v


def _output(output: Tensor, scores_dtype: torch.dtype = torch.float32) -> HostOutput:
    return HostOutput(output.detach().transpose(1, 2), scores_dtype=scores_dtype)


def _with_position_bias(
    position_bias: Tensor,
    mask: Mask | None,
    bias: Tensor | None,
    given: Tensor | None,
    sizes: Sizes,
    finder: MaskFinder,
) -> tuple[Mask | None, Tensor | None]:
    """Position bias and mask together; hidden keys get the lowest finite number, so a row that sees none is uniform."""
    if bias is not None:
        return mask, position_bias + bias
    if given is not None and finder.find(given.detach(), _sense(given), sizes).empty_row:
        lowest = torch.finfo(position_bias.dtype).min
        if given.is_floating_point():
            return None, position_bias + given
        return None, torch.where(given, position_bias, lowest)
    return mask, position_bias


def _sense(given: Tensor) -> Any:
    return "added" if given.is_floating_point() else "allowed"
