"""How functions are compiled that only compiled code calls: without what would let Python call them."""

from collections.abc import Callable

from numba import njit

_ONLY_INNER = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}

inner = njit(**_ONLY_INNER)
"""Operations run as they are written."""

inlined = njit(**_ONLY_INNER, forceinline=True)
"""Functions that stand where they are called: what they are given is much, and they are called for every row."""


def relaxed(flags: set[str]) -> Callable:
    """Operations may be changed as LLVM's flags of floating-point arithmetic say, such as ``contract``."""
    return njit(fastmath=flags, **_ONLY_INNER)
