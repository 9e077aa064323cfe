"""Models of transformers on their default path, ``attn_implementation="sdpa"``.

The function they call is replaced in transformers' table of attention functions, because what reaches torch is no
longer what the model meant: keys and values are repeated for grouped queries, or the query is packed into fewer heads.
The implementation's name stays "sdpa", so the model makes the same masks. Read beside
``transformers/integrations/sdpa_attention.py``.
"""

import sys
from collections.abc import Iterator, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from multihead.core import as_autocast
from multihead.errors import UnsupportedAttentionError
from multihead.lens.adapters.sdpa import mask_and_bias
from multihead.lens.host import DROPOUT, HostAttention, HostOutput, call_of, plain
from multihead.lens.masks_found import MaskFinder, top_left_causal
from multihead.masks import Mask, Sizes

_STOCK = "transformers.integrations.sdpa_attention"


def table() -> MutableMapping[str, Any] | None:
    """The attention functions of transformers by name; None where its models are not loaded."""
    modeling = sys.modules.get("transformers.modeling_utils")
    interface = getattr(modeling, "AttentionInterface", None)
    return getattr(interface, "_global_mapping", None)


def other_implementations(model: nn.Module) -> Iterator[str]:
    """A sentence for each model of transformers, here or inside, that computes attention where it cannot be seen."""
    modeling = sys.modules.get("transformers.modeling_utils")
    base = getattr(modeling, "PreTrainedModel", None)
    if base is None:
        return
    models = {name: module for name, module in model.named_modules() if isinstance(module, base)}
    told = set()
    for name, module in model.named_modules():
        around = [outer for outer in models if not outer or name == outer or name.startswith(f"{outer}.")]
        # a backbone without attention may say "eager" as it likes
        if not around or "Attention" not in type(module).__name__:
            continue
        nearest = max(around, key=len)
        config = getattr(module, "config", models[nearest].config)
        owner = min((outer for outer in around if models[outer].config is config), key=len, default=nearest)
        chosen = getattr(config, "_attn_implementation", None)
        if chosen not in ("sdpa", None) and owner not in told:
            told.add(owner)
            yield _advice(owner, models[owner], chosen)


def _advice(name: str, model: nn.Module, chosen: str) -> str:
    part = f"{type(model).__name__} ({name})" if name else type(model).__name__
    if not getattr(model, "_supports_sdpa", False):
        return f"{part} has no sdpa attention in transformers, only {chosen!r}, which the lens cannot see."
    return (
        f'{part} uses attn_implementation="{chosen}", which the lens cannot see: load it with '
        'attn_implementation="sdpa", or call model.set_attn_implementation("sdpa").'
    )


def attention(run: Any, original: Any, module: nn.Module, args: Any, kwargs: Any) -> Any:
    """``sdpa_attention_forward``, seen; a foreign function under its name is left to what it calls itself."""
    if original.__module__ != _STOCK:
        return original(module, *args, **kwargs)
    with run.unseen():
        answer = original(module, *args, **kwargs)
    names = ("query", "key", "value", "attention_mask", "dropout", "scaling", "is_causal", "position_bias", "cache")
    given = dict(zip(names, args, strict=False)) | kwargs
    run.see(run.name_of(module), lambda finder: _understood(module, given, answer[0], finder))
    return answer


def _understood(module: nn.Module, given: dict[str, Any], output: Tensor, finder: MaskFinder) -> HostAttention:
    for name in ("s_aux", "softcap"):
        if given.get(name) is not None:
            raise UnsupportedAttentionError(f"transformers' sdpa attention ignores its {name}")
    if given.get("cache") is not None:
        raise UnsupportedAttentionError("it reads a paged cache; generate without continuous batching")
    q, k, v = as_autocast(*(plain(given[name], name) for name in ("query", "key", "value")))
    q = q.expand(output.shape[0], -1, -1, -1)
    k, v = (tensor.expand(output.shape[0], -1, -1, -1) for tensor in (k, v))
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
    own = DROPOUT if given.get("dropout") else HostOutput(output.detach().transpose(1, 2))
    return HostAttention("transformers", call, own, cross=_is_cross(module))


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


def _is_cross(module: nn.Module) -> bool | None:
    known = getattr(module, "is_cross_attention", None)
    if known is None and "CrossAttention" in type(module).__name__:
        return True
    return None if known is None else bool(known)
