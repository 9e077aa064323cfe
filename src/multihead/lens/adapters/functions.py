"""Which adapter understands which function."""

import re
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch._higher_order_ops.flex_attention import flex_attention as FLEX
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket

from multihead.errors import UnsupportedAttentionError
from multihead.kernels import attend, attend_with_statistics, attend_with_weights
from multihead.lens.adapters import flex, native, sdpa, torch_mha

Adapter = Callable[[Any, Any, Any, Any], Any]
"""Of the run, the function, its arguments and keyword arguments: computes the function and lets the run see it."""

SDPA = F.scaled_dot_product_attention
MHA = F.multi_head_attention_forward

_ADAPTERS: dict[Any, Adapter] = {
    attend: native.attention,
    attend_with_weights: native.attention,
    attend_with_statistics: native.attention,
    SDPA: sdpa.attention,
    torch.ops.aten.scaled_dot_product_attention: sdpa.attention,
    torch.ops.aten.scaled_dot_product_attention.default: sdpa.attention,
    MHA: torch_mha.function,
    FLEX: flex.attention,
}

SOFTMAX = {F.softmax, torch.softmax, torch.Tensor.softmax}
"""What an attention calls that somebody wrote out as matrix products."""

_NATIVE = {torch._native_multi_head_attention, torch._transformer_encoder_layer_fwd}

_UNCOMPILED = (
    "run the model inside \"with torch.compiler.set_stance('force_eager'):\", which leaves everything uncompiled"
)

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
        if name.startswith("aten._scaled_dot_product"):
            raise UnsupportedAttentionError(
                f"it calls {name}, of which the lens does not know what its arguments mean; where torch.compile put it "
                f"there, {_UNCOMPILED}"
            )
        raise UnsupportedAttentionError(
            f"it calls {name}, of which the lens does not know what its arguments mean; "
            "a model that calls torch.nn.functional.scaled_dot_product_attention can be observed"
        )

    run.see(run.name, refused)
    with run.unseen():
        return func(*args, **kwargs)


def attends(module: nn.Module | None) -> bool:
    """Whether a module is an attention: its class is called so, or it has timm's flag for the fused one."""
    return bool(_ATTENTION.search(type(module).__name__)) or hasattr(module, "fused_attn")


def written_out(run: Any, name: str, module: nn.Module | None) -> None:
    """Take note of an attention that a module computed as matrix products and a softmax."""

    def refused(_: object) -> Any:
        advice = "a model that calls torch.nn.functional.scaled_dot_product_attention can be observed"
        if getattr(module, "fused_attn", None) is False:
            advice = "its fused_attn is off: call timm.layers.set_fused_attn(True, experimental=True) before making it"
        raise UnsupportedAttentionError(
            f"{type(module).__name__} multiplies its weights in code of its own, where the lens cannot tell queries "
            f"from keys; {advice}"
        )

    run.see(name, refused)


def inside_compiled(run: Any, name: str, function: str) -> None:
    """Take note of an attention that a compiled function computed."""

    def refused(_: object) -> Any:
        raise UnsupportedAttentionError(
            f"it calls {function} inside a function that torch.compile compiled, where its arguments cannot be seen; "
            f"{_UNCOMPILED}"
        )

    run.see(name, refused)
