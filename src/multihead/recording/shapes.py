"""Which shape and kind of number each tensor of a layer has: one check for layers in memory and in a file."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from multihead.conventions import in_words
from multihead.sizes import Sizes, axes_of

if TYPE_CHECKING:
    import torch

Form = tuple[tuple[int, ...], str]
"""A tensor's shape and the name of its dtype, ``torch.float32``: a file's are known before torch is there."""

STATISTICS = "statistics."
"""What stands before a statistic's name where it is named beside q, k, bias and sinks."""

_AXES: dict[str, tuple[str, ...]] = {
    "q": ("batch", "head", "query", "dim"),
    "k": ("batch", "kv_head", "key", "dim"),
    "weights": ("batch", "head", "query", "key"),
    "bias": ("batch", "head", "query", "key"),
    "sinks": ("head",),
}

_BROADCAST = {"bias": ("batch", "head", "query", "key"), "statistics.visible": ("head",)}
_SIGNED = ("torch.int8", "torch.int16", "torch.int32", "torch.int64")
_INTEGERS = {
    STATISTICS + name for name in ("visible", "top_keys", "offset_edges", "block_size", "row_queries", "column_keys")
}


def form_of(tensor: "torch.Tensor") -> Form:
    """The form of a tensor that is there."""
    return tuple(tensor.shape), str(tensor.dtype)


def is_floating_point(dtype: str) -> bool:
    """Whether a dtype of this name holds fractions."""
    return dtype.startswith(("torch.float", "torch.bfloat"))


def is_signed(dtype: str) -> bool:
    """Whether a dtype of this name holds whole numbers that may be negative."""
    return dtype in _SIGNED


def layer_axes(name: str) -> tuple[str, ...]:
    """The axes of a tensor that a layer may hold, in words.

    Raises:
        KeyError: no layer holds a tensor of this name.
    """
    return axes_of(name.removeprefix(STATISTICS)) if name.startswith(STATISTICS) else _AXES[name]


def check_forms(forms: Mapping[str, Form], *, sizes: Sizes, heads: int, queries: int, kv_heads: Sequence[int]) -> None:
    """Whether tensors of these forms belong to one layer.

    Args:
        forms: shape and dtype of each tensor, by the names that ``layer_axes`` knows.
        sizes: of the attention as the model computed it.
        heads: number of heads kept.
        queries: number of queries kept.
        kv_heads: for each kept head, the place of its key head.

    Raises:
        ValueError: one does not; the message says which and what was expected.
    """
    lengths = {"batch": sizes.batch, "head": heads, "query": queries, "key": sizes.keys, "side": 2}
    for name, form in forms.items():
        _check_form(name, form, lengths)
        if name.startswith(STATISTICS):
            # an axis that only some statistics have is as long in each of them
            for axis, length in zip(layer_axes(name), form[0], strict=True):
                lengths.setdefault(axis, length)
    edges = forms.get("statistics.offset_edges")
    offsets = forms.get("statistics.offsets")
    if edges and offsets and edges[0][0] != offsets[0][2] + 1:
        raise ValueError(f"{offsets[0][2]} distance bins need {offsets[0][2] + 1} edges, but there are {edges[0][0]}.")
    if ("q" in forms) != ("k" in forms):
        raise ValueError("q and k are kept together or not at all.")
    if "weights" in forms and "q" in forms:
        raise ValueError("weights are kept, or q and k to recompute them from, not both.")
    if "k" in forms:
        _check_keys(forms["q"], forms["k"], heads, kv_heads)


def _check_form(name: str, form: Form, wanted: Mapping[str, int]) -> None:
    shape, dtype = form
    axes = layer_axes(name)
    broadcast = _BROADCAST.get(name, ())
    fits = len(shape) == len(axes) and all(
        size == wanted.get(axis, size) or (size == 1 and axis in broadcast)
        for axis, size in zip(axes, shape, strict=True)
    )
    if not fits:
        expected = in_words((f"{axis} {wanted[axis]}" if axis in wanted else axis for axis in axes), "and")
        raise ValueError(f"{name} has shape {shape}, expected the axes {expected}.")
    if not (is_signed(dtype) if name in _INTEGERS else is_floating_point(dtype)):
        raise ValueError(
            f"{name} has dtype {dtype}, expected {'integers' if name in _INTEGERS else 'a floating-point type'}."
        )


def _check_keys(q: Form, k: Form, heads: int, kv_heads: Sequence[int]) -> None:
    if q[0][3] != k[0][3] or q[1] != k[1]:
        raise ValueError(
            f"q {q[0]} of {q[1]} and k {k[0]} of {k[1]} differ in last axis or dtype: a score is their inner product."
        )
    if len(kv_heads) != heads:
        raise ValueError(f"{heads} heads but {len(kv_heads)} key heads named for them.")
    absent = sorted({place for place in kv_heads if not 0 <= place < k[0][1]})
    if absent:
        raise ValueError(f"key heads {in_words(absent)} are not among the {k[0][1]} that were kept.")
