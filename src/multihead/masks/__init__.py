"""What a query may see: masks as small objects that combine with ``&``, ``|`` and ``~``.

A mask never holds a Lq × Lk tensor (except :func:`dense`, which wraps one that exists already). It answers two
questions about chosen queries and keys: which of these keys do these queries see (``visible``), and between which keys
does everything lie that they can see (``key_range``), so that a kernel skips what nobody sees.

A query's *position* is its index plus Lk - Lq: queries stand at the end of the keys, as with a cache. Without a cache
Lq = Lk and the position is the index.

>>> import torch
>>> from multihead import masks
>>> (masks.causal() & masks.sliding_window(2)).dense(4, 4).int()
tensor([[1, 0, 0, 0],
        [1, 1, 0, 0],
        [0, 1, 1, 0],
        [0, 0, 1, 1]], dtype=torch.int32)
>>> (masks.causal() | masks.prefix(2)).dense(3, 3).int()      # a prefix language model
tensor([[1, 1, 0],
        [1, 1, 0],
        [1, 1, 1]], dtype=torch.int32)
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from multihead.conventions import kind_of, shape_of
from multihead.counting import whole
from multihead.masks.algebra import And, Mask, Not, Or, Sizes
from multihead.masks.kinds import Causal, Dense, Documents, Padding, Prefix, SlidingWindow

__all__ = [
    "And",
    "Causal",
    "Dense",
    "Documents",
    "Mask",
    "Not",
    "Or",
    "Padding",
    "Prefix",
    "Sizes",
    "SlidingWindow",
    "causal",
    "dense",
    "documents",
    "padding",
    "prefix",
    "sliding_window",
]


def causal() -> Mask:
    """Each query sees the keys up to its own position, bottom-right aligned: with Lq < Lk the last query sees all keys.

    >>> causal().dense(2, 3).int()
    tensor([[1, 1, 0],
            [1, 1, 1]], dtype=torch.int32)
    """
    return Causal()


def sliding_window(window: int | None = None, *, left: int | None = None, right: int | None = None) -> Mask:
    """Each query sees exactly ``window`` keys, its own and the ones before it; or ``left`` before and ``right`` after.

    Args:
        window: number of keys, the query's own included; the same as ``left=window - 1, right=0``.
        left: keys before the query's position, None for all of them.
        right: keys after the query's position, None for all of them.

    Raises:
        TypeError: a number is no whole one.
        ValueError: both forms or neither are given, or a number is too small.

    >>> sliding_window(left=0, right=1).dense(3, 3).int()
    tensor([[1, 1, 0],
            [0, 1, 1],
            [0, 0, 1]], dtype=torch.int32)
    """
    if (window is None) == (left is None and right is None):
        raise ValueError(
            "sliding_window takes either window, or left and right: "
            "say sliding_window(4) or sliding_window(left=2, right=2)."
        )
    if window is not None:
        window = whole("window", window)
        if window < 1:
            raise ValueError(
                f"window={window} lets a query see nothing: it counts the query's own key and is at least 1."
            )
        return SlidingWindow(window - 1, 0)
    return SlidingWindow(_width("left", left), _width("right", right))


def padding(valid: Bool[Tensor, "batch key"] | Bool[Tensor, " key"]) -> Mask:
    """Keys that are real tokens; every query sees these and no others.

    Args:
        valid: (batch, keys), or (keys,) for the whole batch; True at real tokens. This is the tokenizer's
            ``attention_mask.bool()``, and the opposite of torch's ``key_padding_mask``.

    Raises:
        TypeError: ``valid`` is no boolean tensor.
        ValueError: it has neither one axis nor two.
    """
    _require_boolean("valid", valid, "the tokenizer's attention_mask is 1 at real tokens: pass attention_mask.bool()")
    if valid.ndim not in (1, 2):
        raise ValueError(f"valid has shape {shape_of(valid)}, expected (batch, keys) or (keys,).")
    return Padding(valid if valid.ndim == 2 else valid[None])


def documents(
    ids: Int[Tensor, "batch_or_1 query"] | Int[Tensor, " query"],
    keys: Int[Tensor, "key_batch_or_1 key"] | Int[Tensor, " key"] | None = None,
) -> Mask:
    """Several sequences packed in one row: each query sees the keys of its own document.

    Args:
        ids: document number of each query, (batch, queries) or (queries,).
        keys: document number of each key, if the keys are not the queries.

    Raises:
        TypeError: these are no tensors of integers.
        ValueError: they have neither one axis nor two.

    >>> documents(torch.tensor([0, 0, 1])).dense(3, 3).int()
    tensor([[1, 1, 0],
            [1, 1, 0],
            [0, 0, 1]], dtype=torch.int32)
    """
    rows = [_numbers(name, numbers) for name, numbers in (("ids", ids), ("keys", keys)) if numbers is not None]
    return Documents(rows[0], rows[-1])


def prefix(length: int) -> Mask:
    """Every query sees the first ``length`` keys; with ``causal() |`` before it, a prefix language model's mask.

    Raises:
        TypeError: ``length`` is no whole number.
        ValueError: it is negative.
    """
    length = whole("length", length)
    if length < 0:
        raise ValueError(f"prefix length={length} is negative: it counts keys from the start.")
    return Prefix(length)


def dense(allowed: Bool[Tensor, "..."]) -> Mask:
    """A mask that exists already as a tensor, True where a query may see a key.

    Args:
        allowed: broadcastable to (batch, heads, queries, keys), with two, three (heads, queries, keys) or four axes.

    Raises:
        TypeError: ``allowed`` is no boolean tensor.
        ValueError: it has one axis, or more than four.
    """
    _require_boolean(
        "mask", allowed, "True means may attend; add a float mask as bias instead, and turn 0 and 1 into .bool()"
    )
    if not 2 <= allowed.ndim <= 4:
        raise ValueError(
            f"mask has shape {shape_of(allowed)}, expected (queries, keys), (heads, queries, keys) or "
            "(batch, heads, queries, keys)."
        )
    return Dense(allowed[(None,) * (4 - allowed.ndim)], axes=allowed.ndim)


def _width(name: str, width: int | None) -> int | None:
    """How many keys a window reaches to one side."""
    if width is None:
        return None
    width = whole(name, width)
    if width < 0:
        raise ValueError(f"{name}={width} is negative: it counts the keys on that side, 0 for none and None for all.")
    return width


def _numbers(name: str, ids: Tensor) -> Tensor:
    """Document numbers as (batch, tokens)."""
    _require_tensor(name, ids)
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise TypeError(f"document {name} have dtype {ids.dtype}, expected integers: one number for each token.")
    if ids.ndim not in (1, 2):
        raise ValueError(f"document {name} have shape {shape_of(ids)}, expected (batch, tokens) or (tokens,).")
    return torch.atleast_2d(ids)


def _require_boolean(name: str, tensor: Tensor, advice: str) -> None:
    _require_tensor(name, tensor)
    if tensor.dtype != torch.bool:
        raise TypeError(f"{name} has dtype {tensor.dtype}, expected torch.bool: {advice}.")


def _require_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is {kind_of(value)}, expected a tensor: pass torch.tensor({name}).")
