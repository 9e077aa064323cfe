"""Whole numbers, and lists of them, as people give them: Python's, numpy's or a tensor's."""

import operator
from collections.abc import Iterable, Mapping

__all__ = ["whole", "whole_numbers"]


def whole(name: str, value: object) -> int:
    """``value`` as a whole number; True and 8.0 are none.

    >>> import torch
    >>> whole("top", torch.tensor(3))
    3

    Raises:
        TypeError: it is none.
    """
    number = _index(value)
    if number is None:
        raise TypeError(f"{name}={value!r} is no whole number.")
    return number


def whole_numbers(name: str, values: object) -> tuple[int, ...]:
    """``values`` as whole numbers: of a list, a range, an array, ..., but not of a number by itself.

    >>> whole_numbers("rows", range(3))
    (0, 1, 2)

    Raises:
        TypeError: it is no list, or something in it is no whole number; the message says what to write.
    """
    if isinstance(values, slice):
        raise TypeError(f"{name}={values!r} is no list of numbers: say for example {name}=range({values.stop or 10}).")
    if isinstance(values, str) or _index(values) is not None:
        raise TypeError(f"{name}={values!r} is no list of numbers: say {name}=[{values}].")
    if isinstance(values, Mapping) or not isinstance(values, Iterable) or getattr(values, "ndim", 1) == 0:
        raise TypeError(f"{name}={values!r} is no list of numbers.")
    found = []
    for value in values:
        number = _index(value)
        if number is None:
            raise TypeError(f"{name} contains {value!r}, which is no whole number.")
        found.append(number)
    return tuple(found)


def _index(value: object) -> int | None:
    """A whole number as Python's; None for anything else."""
    if isinstance(value, int):
        return None if isinstance(value, bool) else value
    # a tensor of a truth value has an index too
    truth = str(getattr(value, "dtype", "")) == "torch.bool"
    if truth or not hasattr(value, "__index__") or getattr(value, "ndim", 0):
        return None
    try:
        return operator.index(value)  # pyrefly: ignore[bad-argument-type]
    except TypeError:
        # a tensor or an array of a fraction
        return None
