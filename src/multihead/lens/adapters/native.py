"""Our own attention: the call is there already."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from multihead.core import AttentionCall, as_autocast
from multihead.lens.host import DROPOUT, HostAttention, HostOutput, plain
from multihead.lens.masks_found import MaskFinder
from multihead.masks import And, Dense, Documents, Mask, Not, Or, Padding


def attention(run: Any, func: Any, args: Any, kwargs: Any) -> Any:
    """:func:`multihead.kernels.attend`, alone or with weights or statistics, seen."""
    with run.unseen():
        answer = func(*args, **kwargs)
    call: AttentionCall = args[0] if args else kwargs["call"]
    output = answer[0] if isinstance(answer, tuple) else answer
    run.see(run.name, lambda finder: _understood(call, output, finder))
    return answer


def _understood(call: AttentionCall, output: Tensor, finder: MaskFinder) -> HostAttention:
    q, k, v = as_autocast(*(plain(getattr(call, name), name) for name in "qkv"))
    mask = call.mask
    if isinstance(mask, Dense):
        mask = finder.find(mask.allowed, "allowed", call.sizes).mask
    elif mask is not None:
        mask = _copied(mask, finder)
    bias, sinks = (
        None if tensor is None else plain(tensor, name)
        for name, tensor in (("bias", call.dense_bias), ("sinks", call.sinks))
    )
    own = replace(call, q=q, k=k, v=v, mask=mask, bias=bias, sinks=sinks)
    return HostAttention("multihead", own, DROPOUT if call.dropout else HostOutput(output.detach()))


def _copied(mask: Mask, finder: MaskFinder) -> Mask:
    """The same mask over tensors that its owner cannot change afterwards; masks of other kinds as they are."""
    match mask:
        case Padding(valid):
            return Padding(finder.copy(valid))
        case Documents(queries, keys):
            return Documents(finder.copy(queries), finder.copy(keys))
        case Dense(allowed):
            return Dense(finder.copy(allowed))
        case And(left, right) | Or(left, right):
            return type(mask)(_copied(left, finder), _copied(right, finder))
        case Not(inner):
            return Not(_copied(inner, finder))
        case _:
            return mask
