"""Weights that someone already has, as layers: what models return when asked to, and what other viewers take.

They are kept as they are: nothing recomputes them, and what no weight tells (scores, log-sum-exp, masks) is not there.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from multihead.conventions import in_words, kind_of, shape_of
from multihead.core import Measurements
from multihead.counting import whole_numbers
from multihead.masks import Sizes
from multihead.precision import accumulation_dtype, statistics_dtype
from multihead.recording.layer import Layer
from multihead.recording.words import Tokens, token_lists

LARGEST_WEIGHT = 1.0 + 1e-3
"""What rounding and averaging make of a weight of 1, at most."""

_WHOLE = torch.finfo(torch.bfloat16).eps / 2
"""How far from 1 a row of weights may add up that was rounded to bfloat16."""

_HOW = "a transformers model returns them with attn_implementation='eager' and output_attentions=True"

Weights = Sequence[Tensor | np.ndarray | None]
"""For each layer its weights, (B, H, Lq, Lk) or (H, Lq, Lk); None where there are none."""


def layers_of(
    weights: Weights,
    tokens: Tokens,
    key_tokens: Tokens | None,
    heads: Sequence[int] | None,
    numbers: Sequence[int] | None,
) -> tuple[tuple[Layer, ...], dict[str, list[list[str]]]]:
    """The layers and texts of :meth:`multihead.recording.Recording.from_weights`."""
    entries = _entries(weights)
    numbers = range(len(entries)) if numbers is None else whole_numbers("layers", numbers)
    if len(numbers) != len(entries):
        raise ValueError(
            f"layers names {len(numbers)} numbers, but weights has {len(entries)} entries: one number for each, please."
        )
    if numbers and min(numbers) < 0:
        raise ValueError(f"layers holds {min(numbers)}: layers count from 0.")
    heads = None if heads is None else whole_numbers("heads", heads)
    texts = _texts(tokens, key_tokens)
    asking, answering = next(iter(texts)), list(texts)[-1]
    asked = _Asked(len(texts[asking]), len(texts[asking][0]), len(texts[answering][0]), asking != answering)
    layers = []
    for place, (number, entry) in enumerate(zip(numbers, entries, strict=True)):
        if entry is not None:
            name = f"weights[{place}]"
            held = _checked(name, entry, asked)
            layers.append(_layer(number, name, held, heads, asking, answering))
    return tuple(layers), texts


@dataclass(frozen=True)
class _Asked:
    """The sizes that the tokens ask of every layer."""

    batch: int
    queries: int
    keys: int
    crosses: bool


def _entries(weights: object) -> list[object]:
    """One entry for each layer, at least one of them no None."""
    if weights is None:
        raise TypeError(f"weights is None, so nobody has any: {_HOW}; multihead.observe(model) needs neither.")
    if isinstance(weights, Tensor | np.ndarray):
        raise TypeError(
            f"weights is one tensor of shape {_shape(weights)}, expected a list with a tensor for each layer: "
            "[weights] for the weights of one layer, list(weights) where the first axis is that of layers."
        )
    if isinstance(weights, str | dict) or not isinstance(weights, Iterable):
        raise TypeError(f"weights is {kind_of(weights)}, expected a list with a tensor for each layer.")
    entries = list(weights)
    if all(entry is None for entry in entries):
        what = "is empty" if not entries else "holds nothing but None"
        raise ValueError(f"weights {what}: {_HOW}; multihead.observe(model) needs neither.")
    return entries


def _texts(tokens: Tokens, key_tokens: Tokens | None) -> dict[str, list[list[str]]]:
    """The text of the queries first, that of the keys last."""
    queries, keys = token_lists("tokens", tokens), token_lists("key_tokens", key_tokens)
    if not queries:
        raise TypeError("tokens is None: give the text's tokens, as tokenizer.convert_ids_to_tokens returns.")
    for argument, sequences in (("tokens", queries), ("key_tokens", keys or queries)):
        lengths = sorted({len(sequence) for sequence in sequences})
        if len(lengths) > 1:
            raise ValueError(
                f"{argument} has sequences of {in_words(lengths)} tokens: one token for each position, padding "
                "included, so that all are equally long."
            )
        if len(sequences) != len(queries):
            raise ValueError(
                f"key_tokens has {len(sequences)} sequences, but tokens has {len(queries)}: the same batch, please."
            )
    return {"text": queries} if keys is None else {"target": queries, "source": keys}


def _checked(name: str, entry: object, asked: _Asked) -> Tensor:
    """One layer's weights as (B, H, Lq, Lk) in the dtype of statistics.

    Raises:
        TypeError: they are no array of floating-point numbers.
        ValueError: their shape is not that of the tokens, or their numbers are no weights.
    """
    if not isinstance(entry, Tensor | np.ndarray):
        nested = f": of what a generate() returns, give one step, such as attentions[{name.split('[')[1]}"
        raise TypeError(
            f"{name} is {kind_of(entry)}, expected a tensor or array of (batch, heads, queries, keys)"
            f"{nested if isinstance(entry, list | tuple) else ''}."
        )
    floating = entry.dtype.kind == "f" if isinstance(entry, np.ndarray) else entry.is_floating_point()
    if not floating:
        raise TypeError(f"{name} has dtype {entry.dtype}, expected a floating-point type: weights go from 0 to 1.")
    if isinstance(entry, Tensor) and (entry.layout != torch.strided or entry.is_meta):
        raise TypeError(f"{name} is no dense tensor with numbers in it: give {name}.to_dense().")
    _check_shape(name, tuple(entry.shape), asked)
    if isinstance(entry, np.ndarray):
        # a copy: torch neither reads other byte orders nor likes arrays that may not be written
        held = torch.from_numpy(np.array(entry, dtype=np.float64 if entry.dtype.itemsize > 4 else np.float32))
    else:
        held = entry.detach().to(statistics_dtype(entry.dtype))
    held = held if held.ndim == 4 else held[None]
    _check_numbers(name, held)
    return held


def _check_shape(name: str, shape: tuple[int, ...], asked: _Asked) -> None:
    if len(shape) == 2:
        raise ValueError(f"{name} is one map of shape {shape}, without an axis of heads: give {name}[None].")
    if len(shape) not in (3, 4):
        raise ValueError(f"{name} has shape {shape}, expected (batch, heads, queries, keys) or (heads, queries, keys).")
    wanted = (asked.queries, asked.keys)
    if shape[-2:] != wanted:
        came = f"{name} has {shape[-2]} queries and {shape[-1]} keys (shape {shape})"
        expected = f"{asked.queries} tokens" + (f" and {asked.keys} key_tokens" if asked.crosses else "")
        raise ValueError(f"{came}, but there are {expected}: {_advice(name, shape[-3:], asked)}.")
    batch = shape[0] if len(shape) == 4 else 1
    if batch != asked.batch:
        given = "one sequence" if asked.batch == 1 else f"{asked.batch} sequences"
        raise ValueError(
            f"{name} has a batch of {batch} (shape {shape}), but tokens are of {given}: give one list of tokens for "
            "each sequence of the batch."
        )


def _advice(name: str, shape: tuple[int, ...], asked: _Asked) -> str:
    """What to do about the last three axes of weights that are not (heads, queries, keys)."""
    first, second, third = shape
    wanted = (asked.queries, asked.keys)
    if (first, second) == wanted:
        return (
            f"its heads come last; put them first with {name}.movedim(-1, -3), of an array np.moveaxis({name}, -1, -3)"
        )
    if (first, third) == wanted:
        return f"its heads stand in the middle; swap them with {name}.swapaxes(-2, -3)"
    if (third, second) == wanted:
        return f"its keys come before its queries; swap them with {name}.swapaxes(-1, -2)"
    if second != third and not asked.crosses:
        return "for attention from one text to another, give the tokens of the other as key_tokens"
    return "one token for each position, special tokens and padding included"


def _check_numbers(name: str, held: Tensor) -> None:
    """Whether all numbers are weights, and rows the queries'."""
    if not held.numel():
        return
    low, high = (float(end) for end in torch.aminmax(held))
    advice = "weights are what softmax gives, so of scores give scores.softmax(-1)"
    if low != low:  # noqa: PLR0124
        raise ValueError(f"{name} holds NaN: look at the model first.")
    if low < 0:
        raise ValueError(f"{name} holds {low:.4g}, expected numbers from 0 to 1: {advice}.")
    if high > LARGEST_WEIGHT:
        raise ValueError(
            f"{name} holds {high:.4g}, expected numbers from 0 to 1: {advice}; after dropout weights may be larger, so "
            "call model.eval() first."
        )
    if not _are_whole(_sums(held, -1), also=0.0) and _are_whole(_sums(held, -2)):
        raise ValueError(
            f"{name} adds up to 1 over the queries of each key, but not over the keys of each query, so its axes stand "
            f"in another order than (batch, heads, queries, keys): try {name}.swapaxes(-1, -2), or "
            f"{name}.movedim(-1, -3) where heads come last."
        )


def _sums(held: Tensor, axis: int) -> Tensor:
    return held.sum(axis, dtype=accumulation_dtype(held.device)).to(held.dtype)


def _are_whole(sums: Tensor, also: float = 1.0) -> bool:
    """Whether all sums are 1, or the other number, but for rounding."""
    return bool(((sums - 1).abs().minimum((sums - also).abs()) <= _WHOLE).all())


def _layer(
    number: int, name: str, held: Tensor, heads: tuple[int, ...] | None, query_text: str, key_text: str
) -> Layer:
    batch, count, queries, keys = held.shape
    if heads is not None and len(heads) != count:
        raise ValueError(
            f"heads names {len(heads)} numbers, but {name} has {count} heads (shape {shape_of(held)}): one number for "
            "each, please."
        )
    named = tuple(range(count)) if heads is None else heads
    entropy = None
    if _are_whole(_sums(held, -1), also=0.0):
        entropy = _sums(torch.special.entr(held), -1).clamp_min_(0.0)
    return Layer(
        index=number,
        name=name,
        host="given",
        sizes=Sizes(batch, max(named, default=-1) + 1, queries, keys),
        heads=named,
        statistics=Measurements(entropy=entropy, received=_sums(held, -2)),
        weights=held,
        query_text=query_text,
        key_text=key_text,
    )


def _shape(array: Tensor | np.ndarray) -> str:
    return str(tuple(array.shape))
