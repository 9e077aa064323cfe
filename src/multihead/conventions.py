"""The letters, the words and the decisions that every other file follows.

Axes of tensors, in order: batch B, head H, query Lq, key Lk, dim D (of a query and a key) and Dv (of a value). Keys and
values may have fewer heads, Hkv; query head ``h`` then reads key/value head ``h // (H // Hkv)``.

Decided once, each with a test of its name in ``tests/test_conventions.py``:

* a boolean mask says True where a query *may* see a key;
* a bias is added to the scores after scale and softcap;
* causal is bottom-right: with Lq < Lk the last query sees all keys, as a cache needs it;
* a row that sees no key has output 0, weights 0, gradients 0, entropy 0 and lse -inf, never NaN;
* NaN and inf in keys and values that a query may not see do not reach it;
* a window of w keys is the query's own and the w - 1 before it;
* weights are per head, before dropout, in float32 (float64 for float64 inputs);
* the default scale is 1/√D (Vaswani et al. 2017, equation 1).
"""

import difflib
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def default_scale(head_dim: int) -> float:
    """1/√D, the factor of Vaswani et al. 2017, equation 1; 1 for an empty head."""
    return 1.0 / math.sqrt(head_dim) if head_dim else 1.0


def shape_of(tensor: "torch.Tensor") -> str:
    """A tensor's shape as people write it: ``(2, 8, 10, 64)``."""
    return f"({', '.join(str(size) for size in tensor.shape)})"


def kind_of(value: object) -> str:
    """What a value is, as a message names it: ``a list``, ``an int``, ``None``."""
    if value is None:
        return "None"
    name = type(value).__name__
    return f"an {name}" if name[0] in "aeiouAEIOU" else f"a {name}"


def checked_count(name: str, value: object, least: int = 1) -> None:
    """Raise unless ``value`` is a whole number of at least ``least``.

    Raises:
        TypeError: it is no whole number; True and 8.0 are none.
        ValueError: it is too small.
    """
    if not _is_number(value, int):
        raise TypeError(f"{name}={value!r} is {kind_of(value)}, expected a whole number of at least {least}.")
    if value < least:  # pyrefly: ignore[unsupported-operation]
        raise ValueError(f"{name}={value} is too small, expected a whole number of at least {least}.")


def checked_number(name: str, value: object) -> None:
    """Raise ``TypeError`` unless ``value`` is a plain number; a tensor is none, since it may change."""
    if not _is_number(value, int, float):
        raise TypeError(f"{name} is {kind_of(value)}, expected a number.")


def _is_number(value: object, *kinds: type) -> bool:
    """Whether a value is a number of these kinds of Python's, or one that stands for it in a trace of torch's."""
    if isinstance(value, kinds):
        return not isinstance(value, bool)
    # imported here, so that who only wants words need not wait for torch
    import torch

    return isinstance(value, torch.SymInt) or (float in kinds and isinstance(value, torch.SymFloat))


def mismatch(name: str, came: object, expected: object, advice: str) -> ValueError:
    """The error for a value that does not fit: what came, what was expected, what to do.

    >>> mismatch("num_heads", 12, "a divisor of embed_dim=64", "try 8 or 16.")
    ValueError('num_heads is 12, expected a divisor of embed_dim=64: try 8 or 16.')
    """
    return ValueError(f"{name} is {came}, expected {expected}: {advice}")


def divisors(number: int) -> list[int]:
    """Every divisor of a positive number, ascending."""
    small = [candidate for candidate in range(1, math.isqrt(number) + 1) if number % candidate == 0]
    return sorted({*small, *(number // divisor for divisor in small)})


def in_words(items: Iterable[object], conjunction: str = "and") -> str:
    """``1, 2 and 3``."""
    words = [str(item) for item in items]
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} {conjunction} {words[-1]}"


def nearest(word: str, words: Iterable[str], count: int = 5) -> list[str]:
    """Up to ``count`` of ``words`` that look like ``word``, the most alike first."""
    by_folded: dict[str, str] = {}
    for candidate in words:
        by_folded.setdefault(candidate.casefold(), candidate)
    return [by_folded[match] for match in difflib.get_close_matches(word.casefold(), by_folded, n=count, cutoff=0.5)]


def checked_indices(name: str, indices: Sequence[int], size: int) -> tuple[int, ...]:
    """``indices`` as a tuple, each within ``range(size)`` and none twice.

    Raises:
        ValueError: one is out of range or named twice; the message says the range.
    """
    chosen = tuple(int(index) for index in indices)
    wrong = [index for index in chosen if not 0 <= index < size]
    if wrong:
        where = f"0 to {size - 1}" if size else "none: there are no entries"
        raise ValueError(f"{name} {in_words(wrong)} out of range: valid are {where}.")
    if len(set(chosen)) != len(chosen):
        raise ValueError(f"{name} {list(chosen)} names one twice.")
    return chosen
