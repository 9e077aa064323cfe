"""``torch.nn.attention.flex_attention.flex_attention``, uncompiled.

What reaches torch is one operator with the model's two functions: ``mask_mod`` says whether a query may see a key and
``score_mod`` turns a score into another. Both are asked as torch itself asks them in
``torch/_higher_order_ops/flex_attention.py``, a block of queries at a time. A mask is then said again as the smallest
equal mask; the change of the scores, where there is any, becomes a bias: score_mod(s) - s.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from multihead.lens.host import HostAttention, HostOutput, call_of, plain
from multihead.lens.masks_found import BLOCK, MaskFinder
from multihead.masks import Mask, Sizes


@dataclass(frozen=True)
class _Arguments:
    """The operator's signature."""

    query: Tensor
    key: Tensor
    value: Tensor
    score_mod: Callable[..., Tensor]
    block_mask: tuple[Any, ...]
    scale: float
    kernel_options: dict[str, Any]
    score_mod_other_buffers: tuple[Any, ...] = ()
    mask_mod_other_buffers: tuple[Any, ...] = ()


def attention(run: Any, func: Any, args: Any, kwargs: Any) -> Any:
    """The operator, seen."""
    with run.unseen():
        answer = func(*args, **kwargs)
    run.see(run.name, lambda finder: _understood(_Arguments(*args, **kwargs), answer[0], finder))
    return answer


def _understood(given: _Arguments, output: Tensor, finder: MaskFinder) -> HostAttention:
    q, k, v = (plain(getattr(given, name), name) for name in ("query", "key", "value"))
    k, v = (tensor.expand(q.shape[0], -1, -1, -1) for tensor in (k, v))
    sizes = Sizes(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    mask = _found(given.block_mask[-1], given.mask_mod_other_buffers, given.block_mask[2].shape, sizes, q, finder)
    bias = _change_of(given, q, k, sizes)
    call = call_of(q, k, v, mask=mask, bias=bias, scale=given.scale)
    return HostAttention("flex_attention", call, HostOutput(output.detach()))


def mask_of(block_mask: Any, sizes: Sizes, device: torch.device, finder: MaskFinder) -> Mask | None:
    """What a ``BlockMask`` shows, by its ``mask_mod``; None: everything."""
    if block_mask is None:
        return None
    return _found(block_mask.mask_mod, (), block_mask.kv_num_blocks.shape, sizes, torch.empty(0, device=device), finder)


def _found(
    mask_mod: Callable[..., Tensor],
    buffers: tuple[Any, ...],
    blocks: torch.Size,
    sizes: Sizes,
    like: Tensor,
    finder: MaskFinder,
) -> Mask | None:
    """The smallest mask that says what a function says; ``blocks`` begins with the sequences and heads it tells apart.

    Memory: O(Lq · Lk) booleans, for each sequence and head that it tells apart.
    """
    batch, heads = min(blocks[0], sizes.batch), min(blocks[1], sizes.heads)
    places = [torch.arange(n, device=like.device) for n in (batch, heads, sizes.queries, sizes.keys)]
    asked = _at_every_place(mask_mod, 0, len(buffers))
    allowed = torch.empty(batch, heads, sizes.queries, sizes.keys, dtype=torch.bool, device=like.device)
    step = max(1, BLOCK // max(1, batch * heads * sizes.keys))
    with _indexing():
        for start in range(0, sizes.queries, step):
            rows = places[2][start : start + step]
            allowed[:, :, start : start + step] = asked(places[0], places[1], rows, places[3], *buffers)
    return finder.find(allowed, "allowed", sizes).mask


def _change_of(given: _Arguments, q: Tensor, k: Tensor, sizes: Sizes) -> Tensor | None:
    """What ``score_mod`` adds to each score; None where it adds nothing.

    Memory: O(B · H · Lq · Lk), where it changes the scores; one block of scores where it does not.
    """
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    keys = k.to(dtype).repeat_interleave(sizes.heads // k.shape[1], 1).transpose(-2, -1)
    places = [torch.arange(n, device=q.device) for n in (sizes.batch, sizes.heads, sizes.queries, sizes.keys)]
    asked = _at_every_place(given.score_mod, 1, len(given.score_mod_other_buffers))
    change: Tensor | None = None
    step = max(1, BLOCK // max(1, sizes.batch * sizes.heads * sizes.keys))
    for start in range(0, sizes.queries, step):
        scores = q[:, :, start : start + step].to(dtype) @ keys * given.scale
        rows = places[2][start : start + step]
        with _indexing():
            modified = asked(scores, places[0], places[1], rows, places[3], *given.score_mod_other_buffers)
        if change is None and not torch.equal(modified, scores):
            change = scores.new_zeros(sizes.batch, sizes.heads, sizes.queries, sizes.keys)
        if change is not None:
            change[:, :, start : start + step] = modified - scores
    return change


def _at_every_place(function: Callable[..., Tensor], scores: int, buffers: int) -> Callable[..., Tensor]:
    """A function of single numbers, of all sequences, heads, queries and keys at once."""
    for axis in (3, 2, 1, 0):
        places = tuple(0 if other == axis else None for other in range(4))
        function = torch.vmap(function, in_dims=((0,) * scores) + places + ((None,) * buffers))
    return function


def _indexing() -> AbstractContextManager[Any]:
    """Lets a function say ``ids[place]`` of the places that vmap gives it."""
    # this loads torch's compiler, for which nobody else should have to wait
    from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex

    return TransformGetItemToIndex()
