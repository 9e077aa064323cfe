"""Which adapter understands which function."""

import re
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket

from multihead.errors import UnsupportedAttentionError
from multihead.kernels import attend, attend_with_statistics, attend_with_weights
from multihead.lens.adapters import native, sdpa, torch_mha

Adapter = Callable[[Any, Any, Any, Any], Any]
"""Of the run, the function, its arguments and keyword arguments: computes the function and lets the run see it."""

_ADAPTERS: dict[Any, Adapter] = {
    attend: native.attention,
    attend_with_statistics: native.attention,
    attend_with_weights: native.attention,
    F.scaled_dot_product_attention: sdpa.attention,
    torch.ops.aten.scaled_dot_product_attention: sdpa.attention,
    torch.ops.aten.scaled_dot_product_attention.default: sdpa.attention,
    F.multi_head_attention_forward: torch_mha.function,
}

_NATIVE = {torch._native_multi_head_attention, torch._transformer_encoder_layer_fwd}

_ATTENTION = re.compile(r"attention|attn|fmha", re.IGNORECASE)


def adapter_of(func: Any) -> Adapter | None:
    """The adapter of a function; None if it is no attention."""
    adapter = _ADAPTERS.get(func)
    if adapter is None and (func in _NATIVE or _is_attention_operator(func)):
        return _unknown
    return adapter


def _is_attention_operator(func: Any) -> bool:
    return isinstance(func, OpOverload | OpOverloadPacket | HigherOrderOperator) and bool(_ATTENTION.search(str(func)))


def _unknown(run: Any, func: Any, args: Any, kwargs: Any) -> Any:
    def refused(_: object) -> Any:
        name = str(func) if _is_attention_operator(func) else func.__name__
        raise UnsupportedAttentionError(
            f"it calls {name}, of which the lens does not know what its arguments mean; "
            "a model that calls torch.nn.functional.scaled_dot_product_attention can be observed"
        )

    run.see(run.name, refused)
    with run.unseen():
        return func(*args, **kwargs)
