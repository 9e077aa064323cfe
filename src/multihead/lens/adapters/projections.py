"""The arithmetic of ``F.multi_head_attention_forward`` around its attention: projections, masks, output."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from multihead.core import as_autocast, split_heads
from multihead.errors import UnsupportedAttentionError
from multihead.lens.host import Finish, HostOutput, plain
from multihead.lens.masks_found import MaskFinder, top_left_causal
from multihead.masks import Mask, Sizes


@dataclass(frozen=True)
class Projected:
    """Queries, keys and values, (B, H, L, D), and the names of the keys that were added after the last token."""

    q: Tensor
    k: Tensor
    v: Tensor
    extra: tuple[str, ...] = ()


def projected(given: dict[str, Any], *, batch_first: bool) -> Projected:
    """What ``F.multi_head_attention_forward`` attends with; ``given`` are its arguments."""
    inputs = [given[name] for name in ("query", "key", "value")]
    same = inputs[0] is inputs[1] and inputs[1] is inputs[2]
    batched = [
        _batch_first(plain(x, name), batch_first) for name, x in zip(("query", "key", "value"), inputs, strict=True)
    ]
    q, k, v = _projections(given, batched, same=same)
    k, v, extra = _with_extras(given, k, v)
    heads = given["num_heads"]
    q, k, v = as_autocast(split_heads(q, heads), split_heads(k, heads), split_heads(v, heads))
    for name in ("static_k", "static_v"):
        if given.get(name) is not None:
            raise UnsupportedAttentionError(f"it is given {name}")
    return Projected(q, k, v, extra)


def _batch_first(tensor: Tensor, batch_first: bool) -> Tensor:
    if tensor.ndim == 2:
        return tensor[None]
    return tensor if batch_first else tensor.transpose(0, 1)


def _projections(given: dict[str, Any], inputs: list[Tensor], *, same: bool) -> tuple[Tensor, ...]:
    bias = given["in_proj_bias"]
    if given["use_separate_proj_weight"]:
        weights = [given[name] for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight")]
    else:
        weights = [given["in_proj_weight"]] if same else list(given["in_proj_weight"].chunk(3))
    for weight in weights:
        plain(weight, "projection")
    if len(weights) == 1:
        return F.linear(inputs[0], weights[0], bias).chunk(3, -1)
    biases = [None] * 3 if bias is None else bias.chunk(3)
    return tuple(F.linear(x, w, b) for x, w, b in zip(inputs, weights, biases, strict=True))


def _with_extras(given: dict[str, Any], k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Keys and values with ``bias_k`` and ``bias_v`` and with the zeros of ``add_zero_attn`` after them."""
    extra: tuple[str, ...] = ()
    if given["bias_k"] is not None:
        one = (k.shape[0], 1, k.shape[2])
        k, v = (torch.cat([x, given[name].to(x.dtype).expand(one)], 1) for x, name in ((k, "bias_k"), (v, "bias_v")))
        extra += ("[bias_k]",)
    if given["add_zero_attn"]:
        k, v = (torch.cat([x, x.new_zeros(x.shape[0], 1, x.shape[2])], 1) for x in (k, v))
        extra += ("[zero]",)
    return k, v, extra


def torch_masks(
    given: dict[str, Any], sizes: Sizes, extra: tuple[str, ...], finder: MaskFinder
) -> tuple[Mask | None, Tensor | None]:
    """Mask and bias of torch's two masks, in which True means hidden; the extra keys are visible to all."""
    key_padding, attn = given["key_padding_mask"], given["attn_mask"]
    if given["is_causal"] and key_padding is None and not given["need_weights"]:
        return top_left_causal(sizes), None
    masks: list[Mask | None] = []
    biases: list[Tensor | None] = []
    if attn is not None and attn.ndim == 3:
        attn = attn.reshape(sizes.batch, sizes.heads, *attn.shape[1:])
    if key_padding is not None:
        key_padding = key_padding.reshape(-1, 1, 1, key_padding.shape[-1])
    for given_mask in (attn, key_padding):
        if given_mask is not None:
            mask = _extended(given_mask, extra)
            found = finder.find(mask, "hidden" if mask.dtype == torch.bool else "added", sizes)
            masks.append(found.mask)
            biases.append(found.bias)
    return _all_of(masks), _sum_of(biases)


def _extended(mask: Tensor, extra: tuple[str, ...]) -> Tensor:
    return F.pad(mask, (0, len(extra))) if extra else mask


def _all_of(masks: list[Mask | None]) -> Mask | None:
    kept = [mask for mask in masks if mask is not None]
    if not kept:
        return None
    return kept[-1] if len(kept) == 1 else kept[0] & kept[1]


def _sum_of(biases: list[Tensor | None]) -> Tensor | None:
    kept = [bias for bias in biases if bias is not None]
    if not kept:
        return None
    return kept[0] if len(kept) == 1 else kept[0] + kept[1]


def compare_after(weight: Tensor, bias: Tensor | None, theirs: Tensor) -> HostOutput:
    """The host's output after ``out_proj``, (B, Lq, E)."""

    def finish(heads: Tensor, _: Tensor | None) -> Tensor:
        return F.linear(heads.transpose(1, 2).flatten(2), weight, bias)

    return HostOutput(theirs, as_now(finish, theirs.device), scores_dtype=theirs.dtype)


def as_now(finish: Finish, device: torch.device) -> Finish:
    """The same function, run later under the autocast that is in force now."""
    kind = device.type
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)

    def run(heads: Tensor, queries: Tensor | None) -> Tensor:
        with torch.autocast(kind, dtype=dtype, enabled=enabled):
            return finish(heads, queries)

    return run
