"""torch's own attention modules, whose fast paths no function call betrays.

``nn.MultiheadAttention`` is understood from its arguments: they are projected once more, as
``F.multi_head_attention_forward`` projects them, and Σ P v is taken through ``out_proj`` before it is compared.
``nn.TransformerEncoderLayer`` may skip it and compute the whole layer in one operator; if its ``self_attn`` did not
appear while it ran, that is what happened, and it is understood from the layer's input. ``nn.TransformerEncoder`` may
turn padded input into a nested tensor for its layers; it only leaves a note of the padded length.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multihead.errors import UnsupportedAttentionError
from multihead.lens.adapters.projections import Projected, as_now, compare_after, projected, torch_masks
from multihead.lens.host import DROPOUT, HostAttention, HostOutput, call_of, plain
from multihead.lens.masks_found import MaskFinder
from multihead.masks import Sizes

_FUNCTION = inspect.signature(F.multi_head_attention_forward)
_ATTENTION = inspect.signature(nn.MultiheadAttention.forward)
_LAYER = inspect.signature(nn.TransformerEncoderLayer.forward)


def function(run: Any, func: Any, args: Any, kwargs: Any) -> Any:
    """``F.multi_head_attention_forward``, called by anyone but the module, seen."""
    with run.unseen():
        answer = func(*args, **kwargs)
    given = _bound(_FUNCTION, *args, **kwargs)
    run.see(run.name, lambda finder: _understood(given, answer[0], finder, batch_first=False))
    return answer


def attention(run: Any, module: nn.MultiheadAttention, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """``nn.MultiheadAttention.forward``, seen."""
    with run.unseen():
        answer = original(*args, **kwargs)
    given = _as_function(module, _bound(_ATTENTION, module, *args, **kwargs))
    run.see(run.name_of(module), lambda finder: _understood(given, answer[0], finder, batch_first=module.batch_first))
    return answer


def encoder_layer(
    run: Any, module: nn.TransformerEncoderLayer, original: Callable[..., Any], args: Any, kwargs: Any
) -> Any:
    """``nn.TransformerEncoderLayer.forward``, whose fast path is seen; on the slow one its parts are."""
    before = run.calls
    run.handled.add(id(module))
    try:
        output = original(*args, **kwargs)
    finally:
        run.handled.discard(id(module))
    if run.calls == before:
        given = _bound(_LAYER, module, *args, **kwargs)
        run.see(run.name_of(module.self_attn), lambda finder: _fast(module, given, output, run.padded, finder))
    return output


def encoder(run: Any, module: nn.TransformerEncoder, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """``nn.TransformerEncoder.forward``: its layers see to themselves."""
    src = args[0] if args else kwargs.get("src")
    before, run.padded = run.padded, None if src is None or src.is_nested else src.shape
    run.handled.add(id(module))
    try:
        return original(*args, **kwargs)
    finally:
        run.handled.discard(id(module))
        run.padded = before


HANDLERS: dict[type[nn.Module], Callable[..., Any]] = {
    nn.MultiheadAttention: attention,
    nn.TransformerEncoderLayer: encoder_layer,
    nn.TransformerEncoder: encoder,
}
"""torch's modules with a fast path that an active mode would switch off, and who runs and sees them instead."""


def handler_of(module: nn.Module) -> Callable[..., Any] | None:
    """Who runs a module whose forward is one of torch's with a fast path."""
    for base, handler in HANDLERS.items():
        if isinstance(module, base) and not overrides(module, base):
            torchs = inspect.unwrap(base.forward).__module__ == base.__module__
            return handler if torchs and "forward" not in vars(module) else _replaced
    return None


def _replaced(run: Any, module: nn.Module, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """A forward that someone put in the place of torch's: it may call torch's, whose fast path must stay possible."""

    def refused(_: MaskFinder) -> HostAttention:
        name = next(base.__name__ for base in HANDLERS if isinstance(module, base))
        raise UnsupportedAttentionError(
            f"its forward, torch's nn.{name}.forward, was replaced by someone else; observe the model without that"
        )

    before = run.calls
    output = original(*args, **kwargs)
    if run.calls == before and not isinstance(module, nn.TransformerEncoder):
        run.see(run.name_of(module), refused)
    return output


def overrides(module: nn.Module, base: type[nn.Module]) -> bool:
    """Whether a module is a ``base`` with a forward of its own."""
    return isinstance(module, base) and type(module).forward is not base.forward


def _bound(signature: inspect.Signature, *args: Any, **kwargs: Any) -> dict[str, Any]:
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def _as_function(module: nn.MultiheadAttention, given: dict[str, Any]) -> dict[str, Any]:
    """A module's arguments under the names of ``F.multi_head_attention_forward``."""
    return given | {
        "num_heads": module.num_heads,
        "in_proj_weight": module.in_proj_weight,
        "in_proj_bias": module.in_proj_bias,
        "bias_k": module.bias_k,
        "bias_v": module.bias_v,
        "add_zero_attn": module.add_zero_attn,
        "dropout_p": module.dropout,
        "out_proj_weight": module.out_proj.weight,
        "out_proj_bias": module.out_proj.bias,
        "training": module.training,
        "use_separate_proj_weight": not module._qkv_same_embed_dim,
        "q_proj_weight": module.q_proj_weight,
        "k_proj_weight": module.k_proj_weight,
        "v_proj_weight": module.v_proj_weight,
        "static_k": None,
        "static_v": None,
    }


def _understood(given: dict[str, Any], output: Tensor, finder: MaskFinder, *, batch_first: bool) -> HostAttention:
    found = projected(given, batch_first=batch_first)
    sizes = Sizes(found.q.shape[0], found.q.shape[1], found.q.shape[2], found.k.shape[2])
    mask, bias = torch_masks(given, sizes, found.extra, finder)
    call = call_of(found.q, found.k, found.v, mask=mask, bias=bias)
    if given["dropout_p"] and given["training"]:
        own: HostOutput | str = DROPOUT
    else:
        theirs = output.detach()
        if given["query"].ndim == 2:
            theirs = theirs[None]
        elif not batch_first:
            theirs = theirs.transpose(0, 1)
        own = compare_after(given["out_proj_weight"], given["out_proj_bias"], theirs)
    return HostAttention(
        "nn.MultiheadAttention",
        call,
        own,
        cross=_is_cross(given["query"], given["key"], sizes, found.extra),
        extra_keys=found.extra,
    )


def _is_cross(query: Tensor, key: Tensor, sizes: Sizes, extra: tuple[str, ...]) -> bool | None:
    if query is key:
        return False
    return True if sizes.queries != sizes.keys - len(extra) else None


def _fast(
    module: nn.TransformerEncoderLayer,
    given: dict[str, Any],
    output: Tensor,
    padded: torch.Size | None,
    finder: MaskFinder,
) -> HostAttention:
    """The fused operator: norm, attention, residual, norm, feed-forward, in one."""
    src, rows = _unnested(given["src"], padded)
    output, _ = _unnested(output, padded)
    src, theirs = plain(src, "src"), output.detach()
    attn = module.self_attn
    found = _self_projected(attn, module.norm1(src) if module.norm_first else src)
    sizes = Sizes(found.q.shape[0], found.q.shape[1], found.q.shape[2], found.k.shape[2])
    masks = {
        "key_padding_mask": given["src_key_padding_mask"] if rows is None else ~rows,
        "attn_mask": given["src_mask"],
    }
    hint = {"is_causal": False, "need_weights": False}
    mask, bias = torch_masks(masks | hint, sizes, (), finder)
    if bias is not None:
        # the operator turns float masks into booleans: every number but 0 hides
        booleans = {name: None if tensor is None else tensor.to(torch.bool) for name, tensor in masks.items()}
        mask, bias = torch_masks(booleans | hint, sizes, (), finder)
    call = call_of(found.q, found.k, found.v, mask=mask, bias=bias)

    def finish(heads: Tensor, queries: Tensor | None) -> Tensor:
        attended = F.linear(heads.transpose(1, 2).flatten(2), attn.out_proj.weight, attn.out_proj.bias)
        residual = src if queries is None else src[:, queries]
        if module.norm_first:
            middle = residual + attended
            return middle + _feed_forward(module, module.norm2(middle))
        middle = module.norm1(residual + attended)
        return module.norm2(middle + _feed_forward(module, middle))

    own = HostOutput(theirs, as_now(finish, src.device), scores_dtype=call.q.dtype, rows=rows)
    return HostAttention("nn.MultiheadAttention", call, own, cross=False)


def _self_projected(attn: nn.MultiheadAttention, x: Tensor) -> Projected:
    arguments = dict.fromkeys(("query", "key", "value"), x)
    return projected(_as_function(attn, arguments), batch_first=True)


def _feed_forward(module: nn.TransformerEncoderLayer, x: Tensor) -> Tensor:
    return module.linear2(module.activation(module.linear1(x)))


def _unnested(tensor: Tensor, padded: torch.Size | None) -> tuple[Tensor, Tensor | None]:
    """A nested tensor padded with zeros, and (batch, tokens) True at its real tokens; None for a plain tensor."""
    if not tensor.is_nested:
        return tensor, None
    lengths = torch.tensor([part.shape[0] for part in tensor.unbind()], device=tensor.device)
    whole = tensor.to_padded_tensor(0.0, padded)
    return whole, torch.arange(whole.shape[1], device=tensor.device) < lengths[:, None]
