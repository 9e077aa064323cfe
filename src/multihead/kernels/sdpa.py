"""torch's fused ``scaled_dot_product_attention``: the fastest output there is, without statistics.

It knows scale, boolean masks and biases. Masks that it cannot take in compact form become one boolean tensor of at most
``DENSE_MASK`` elements.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from multihead.core import AttentionCall, nonfinite
from multihead.masks import Causal, Dense, Padding

NAME = "sdpa"

DENSE_MASK = 1 << 26
"""Most elements of a mask that is made dense for SDPA: 64 MiB of booleans."""


def refuses(call: AttentionCall) -> str | None:
    """Why SDPA cannot compute this call; None if it can."""
    if call.softcap is not None:
        return "it has no softcap"
    if call.sinks is not None:
        return "it has no learned sinks"
    if call.bias is not None and torch.promote_types(call.bias.dtype, call.q.dtype) != call.q.dtype:
        return f"it would round the bias from {call.bias.dtype} to {call.q.dtype}"
    if 0 in (*call.q.shape, *call.k.shape, *call.v.shape):
        return "some axis is empty"
    if call.mask is not None:
        if _dense_size(call) > DENSE_MASK:
            return f"the mask would take {_dense_size(call):,} dense elements, more than {DENSE_MASK:,}"
        if not torch.compiler.is_compiling() and any(nonfinite(tensor) for tensor in (call.q, call.k, call.v)):
            return "NaN or inf would reach queries that may not see them"
    sizes = call.sizes
    scores = sizes.batch * sizes.heads * sizes.queries * sizes.keys
    if scores > DENSE_MASK and _forms_all_weights(call):
        return f"it would form all {scores:,} weights"
    return None


def _forms_all_weights(call: AttentionCall) -> bool:
    """Whether torch leaves its fused paths, or a bias joined with a mask becomes as large as the scores."""
    unequal = call.q.device.type == "cpu" and call.q.shape[-1] != call.v.shape[-1]
    learned = call.bias is not None and call.bias.requires_grad and torch.is_grad_enabled()
    dropped = call.q.device.type == "cpu" and call.dropout > 0
    return unequal or learned or dropped or (call.bias is not None and call.mask is not None)


def attend(call: AttentionCall) -> Tensor:
    """The output of a call, (B, H, Lq, Dv)."""
    is_causal = _is_plain_causal(call)
    mask = None if is_causal else _dense_mask(call)
    if call.bias is not None:
        bias = call.bias.to(call.q.dtype)
        mask = bias if mask is None else torch.where(mask, bias, -torch.inf)
    return F.scaled_dot_product_attention(
        call.q,
        call.k,
        call.v,
        attn_mask=mask,
        dropout_p=call.dropout,
        is_causal=is_causal,
        scale=call.scale,
        enable_gqa=call.group > 1,
    )


def _is_plain_causal(call: AttentionCall) -> bool:
    """Whether torch's own causal flag, which is top-left aligned, says the same as the mask."""
    return isinstance(call.mask, Causal) and call.bias is None and call.sizes.queries == call.sizes.keys


def _hides_nothing(call: AttentionCall) -> bool:
    return isinstance(call.mask, Causal) and call.sizes.queries == 1


def _dense_size(call: AttentionCall) -> int:
    """Elements of the mask that SDPA would have to be given, beyond what exists already."""
    mask, sizes = call.mask, call.sizes
    if mask is None or isinstance(mask, Dense) or _is_plain_causal(call) or _hides_nothing(call):
        return 0
    if isinstance(mask, Padding):
        return sizes.batch * sizes.keys
    one = torch.zeros(1, dtype=torch.int64, device=call.q.device)
    return mask.visible(one, one, sizes).shape[:2].numel() * sizes.queries * sizes.keys


def _dense_mask(call: AttentionCall) -> Tensor | None:
    if call.mask is None or _hides_nothing(call):
        return None
    if isinstance(call.mask, Dense):
        return call.mask.allowed
    queries, keys = (torch.arange(size, device=call.q.device) for size in (call.sizes.queries, call.sizes.keys))
    return call.mask.visible(queries, keys, call.sizes)
