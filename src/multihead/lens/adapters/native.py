"""Our own attention: the call is there already."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from multihead.core import AttentionCall
from multihead.lens.host import DROPOUT, HostAttention, HostOutput, as_autocast, plain
from multihead.lens.masks_found import MaskFinder
from multihead.masks import Dense


def attention(run: Any, func: Any, args: Any, kwargs: Any) -> Tensor:
    """:func:`multihead.kernels.attend`, seen."""
    with run.unseen():
        output = func(*args, **kwargs)
    call: AttentionCall = args[0] if args else kwargs["call"]
    run.see(run.name, lambda finder: _understood(call, output, finder))
    return output


def _understood(call: AttentionCall, output: Tensor, finder: MaskFinder) -> HostAttention:
    q, k, v = as_autocast(*(plain(getattr(call, name), name) for name in "qkv"))
    mask = call.mask
    if isinstance(mask, Dense):
        mask = finder.find(mask.allowed, "allowed", call.sizes).mask
    bias, sinks = (None if tensor is None else plain(tensor, "bias") for tensor in (call.bias, call.sinks))
    own = replace(call, q=q, k=k, v=v, mask=mask, bias=bias, sinks=sinks)
    return HostAttention("multihead", own, DROPOUT if call.dropout else HostOutput(output.detach()))
