"""torch's fused ``scaled_dot_product_attention``: the fastest output there is, without statistics.

It knows scale, boolean masks and biases. Masks that it cannot take in compact form become one boolean tensor of at most
``DENSE_MASK`` elements.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from multihead.biases import Bias
from multihead.conventions import in_words
from multihead.core import AttentionCall
from multihead.kernels.tracing import leaks, surely, traced, transformed
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
    follows = traced(call)
    if follows and transformed():
        return "its derivatives are no function that torch.func could transform"
    if call.bias is not None and any(_wider(tensor, call.q) for tensor in call.bias_tensors):
        return f"it would round the bias from {in_words({t.dtype for t in call.bias_tensors})} to {call.q.dtype}"
    if not (call.q.numel() and call.k.numel() and call.v.numel()):
        return "some axis is empty"
    if follows:
        if torch.jit.is_tracing() and call.q.shape[1] != call.k.shape[1]:
            return "torch's scripting exporter knows no grouped heads"
        learned = any(tensor.requires_grad for tensor in call.bias_tensors)
        exporting = torch.compiler.is_exporting() and learned
        return "torch's exporter mistakes the layout of its output where a bias is learned" if exporting else None
    return _wasteful(call) or (None if call.mask is None else _leaking(call))


def _leaking(call: AttentionCall) -> str | None:
    return "NaN or inf would reach queries that may not see them" if call.learns and leaks(call) else None


def _wasteful(call: AttentionCall) -> str | None:
    if call.mask is not None and _dense_size(call) > DENSE_MASK:
        return f"the mask would take {_dense_size(call):,} dense elements, more than {DENSE_MASK:,}"
    sizes = call.sizes
    scores = sizes.batch * sizes.heads * sizes.queries * sizes.keys
    if scores > DENSE_MASK and _forms_all_weights(call):
        return f"it would form all {scores:,} weights"
    return None


def _wider(tensor: Tensor, q: Tensor) -> bool:
    return torch.promote_types(tensor.dtype, q.dtype) != q.dtype


def _forms_all_weights(call: AttentionCall) -> bool:
    """Whether torch leaves its fused paths, or a bias joined with a mask becomes as large as the scores."""
    unequal = call.q.device.type == "cpu" and call.q.shape[-1] != call.v.shape[-1]
    learned = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in call.bias_tensors)
    dropped = call.q.device.type == "cpu" and call.dropout > 0
    joined = isinstance(call.bias, Bias) or (call.bias is not None and call.mask is not None)
    return unequal or learned or dropped or joined


def attend(call: AttentionCall) -> Tensor:
    """The output of a call, (B, H, Lq, Dv)."""
    is_causal, mask = False, None
    if call.mask is not None:
        is_causal = _is_plain_causal(call)
        mask = None if is_causal else _dense_mask(call)
    if call.bias is not None:
        bias = call.bias.dense(call.sizes) if isinstance(call.bias, Bias) else call.bias
        bias = bias.to(call.q.dtype)
        mask = bias if mask is None else torch.where(mask, bias, -torch.inf)
    q, k = call.q, call.k
    # torch.jit.trace has tensors for sizes
    grouped = bool(q.shape[1] != k.shape[1])
    return F.scaled_dot_product_attention(
        q, k, call.v, mask, call.dropout, is_causal, scale=call.scale, enable_gqa=grouped
    )


def _is_plain_causal(call: AttentionCall) -> bool:
    """Whether torch's own causal flag, which is top-left aligned, says the same as the mask."""
    return isinstance(call.mask, Causal) and call.bias is None and surely(call.sizes.queries == call.sizes.keys)


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
