"""torch's masks, in which True means hidden, as this library's mask and bias, in which True means visible.

``nn.TransformerEncoder`` and ``nn.TransformerEncoderLayer`` turn every boolean mask into numbers, 0 and -inf, before
they pass it on. -inf is therefore read as hidden, here and everywhere: a row that sees nothing is 0 and a hidden NaN
does not leak, whichever way the mask came.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from multihead.conventions import kind_of, shape_of
from multihead.masks import Mask, Sizes, causal, dense, padding, prefix

SENSES = {
    "key_padding_mask": (
        "True at keys to ignore",
        "pass attention_mask == 0 where the tokenizer's attention_mask is 1 at real tokens",
    ),
    "attn_mask": (
        "True where a query must not look, which is the opposite of scaled_dot_product_attention's attn_mask",
        "pass attn_mask.bool() where 1 hides, attn_mask == 0 where 1 shows",
    ),
}
"""What True means in each mask, and what to do with one that says it in integers."""


def mask_and_bias(
    key_padding_mask: Tensor | None,
    attn_mask: Tensor | None,
    *,
    is_causal: bool,
    sizes: Sizes,
    batched: bool,
    extras: int,
    look: bool,
) -> tuple[Mask | None, Tensor | None]:
    """What is visible and what is added to the scores, with ``extras`` keys, visible to all, before the sequence's.

    Args:
        key_padding_mask: torch's, or None.
        attn_mask: torch's, or None.
        is_causal: causal where there is no ``attn_mask``.
        sizes: of the attention without the extra keys.
        batched: whether the sequences came with a batch axis.
        extras: keys that stand before the sequence.
        look: whether numbers may be looked at, to tell a mask of 0 and -inf from a bias.

    Raises:
        ValueError, TypeError: a mask that is none or does not fit; the message says which.
    """
    visible: list[Mask] = [causal() | prefix(extras) if extras else causal()] if is_causal and attn_mask is None else []
    added: list[Tensor] = []
    if key_padding_mask is not None:
        _check_kind("key_padding_mask", key_padding_mask)
        _check_padding(key_padding_mask, sizes, batched=batched)
        hidden, numbers = _hidden_and_added(F.pad(torch.atleast_2d(key_padding_mask), (extras, 0)), look=look)
        visible += [] if hidden is None else [padding(~hidden)]
        added += [] if numbers is None else [numbers[:, None, None]]
    if attn_mask is not None:
        _check_kind("attn_mask", attn_mask)
        hidden, numbers = _hidden_and_added(F.pad(_per_head(attn_mask, sizes), (extras, 0)), look=look)
        visible += [] if hidden is None else [dense(~hidden)]
        added += [] if numbers is None else [numbers]
    mask = visible[0] & visible[1] if len(visible) == 2 else next(iter(visible), None)
    return mask, added[0] + added[1] if len(added) == 2 else next(iter(added), None)


def _check_kind(name: str, mask: Tensor) -> None:
    sense, advice = SENSES[name]
    if not isinstance(mask, Tensor):
        raise TypeError(f"{name} is {kind_of(mask)}, expected a boolean tensor, {sense}.")
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise TypeError(
            f"{name} has dtype {mask.dtype}, expected torch.bool, {sense}, or a floating-point type, whose numbers "
            f"are added to the scores: {advice}."
        )


def _check_padding(mask: Tensor, sizes: Sizes, *, batched: bool) -> None:
    expected = (sizes.batch, sizes.keys) if batched else (sizes.keys,)
    if tuple(mask.shape) != expected:
        axes = f"(batch, keys) = {expected}" if batched else f"(keys,) = {expected}, as query is a single sequence"
        raise ValueError(f"key_padding_mask has shape {shape_of(mask)}, expected {axes}.")


def _per_head(mask: Tensor, sizes: Sizes) -> Tensor:
    """The mask with two axes, or with four."""
    pair = (sizes.queries, sizes.keys)
    every = sizes.batch * sizes.heads
    if tuple(mask.shape) == pair:
        return mask
    if tuple(mask.shape) == (every, *pair):
        return mask.unflatten(0, (sizes.batch, sizes.heads))
    raise ValueError(
        f"attn_mask has shape {shape_of(mask)}, expected (queries, keys) = {pair} or "
        f"(batch · num_heads, queries, keys) = {(every, *pair)}."
    )


def _hidden_and_added(mask: Tensor, *, look: bool) -> tuple[Tensor | None, Tensor | None]:
    """True where a mask hides, and the numbers it adds; None for what it certainly does not do."""
    if mask.dtype == torch.bool:
        return mask, None
    hidden = mask.isneginf()
    added = mask.masked_fill(hidden, 0.0)
    if not look:
        return hidden, added
    if not mask.requires_grad and not added.any():
        return hidden, None
    return (hidden, added) if hidden.any() else (None, mask)
