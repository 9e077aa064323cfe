"""multihead: multi-head attention you can see through."""

import importlib
from typing import TYPE_CHECKING, Any

from multihead.version import __version__

if TYPE_CHECKING:
    from multihead import biases, errors, masks, models, positions, torch_compat
    from multihead.core import ColumnStatistic, MassOn, Measurements, RowStatistic, Statistics, WeightTile
    from multihead.functional import attention, inspect
    from multihead.layer import (
        FixedCache,
        GrowingCache,
        MultiHeadAttention,
        MultiHeadLatentAttention,
        SlidingCache,
    )
    from multihead.lens import AttentionSizes, Estimate, Profile, Seen, estimate, observe, profile
    from multihead.recording import Layer, Link, Recording, load

__all__ = [
    "AttentionSizes",
    "ColumnStatistic",
    "Estimate",
    "FixedCache",
    "GrowingCache",
    "Layer",
    "Link",
    "MassOn",
    "Measurements",
    "MultiHeadAttention",
    "MultiHeadLatentAttention",
    "Profile",
    "Recording",
    "RowStatistic",
    "Seen",
    "SlidingCache",
    "Statistics",
    "WeightTile",
    "__version__",
    "attention",
    "biases",
    "errors",
    "estimate",
    "inspect",
    "load",
    "masks",
    "models",
    "observe",
    "positions",
    "profile",
    "torch_compat",
]

_ROOMS = {
    "core": ("ColumnStatistic", "MassOn", "Measurements", "RowStatistic", "Statistics", "WeightTile"),
    "functional": ("attention", "inspect"),
    "layer": ("FixedCache", "GrowingCache", "MultiHeadAttention", "MultiHeadLatentAttention", "SlidingCache"),
    "lens": ("AttentionSizes", "Estimate", "Profile", "Seen", "estimate", "observe", "profile"),
    "recording": ("Layer", "Link", "Recording", "load"),
}
_HOMES = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    """Open a room when something in it is asked for: ``multihead --help`` should not wait for torch."""
    if name in _HOMES:
        value = getattr(importlib.import_module(f"multihead.{_HOMES[name]}"), name)
    elif name in __all__:
        value = importlib.import_module(f"multihead.{name}")
    else:
        raise AttributeError(f"module 'multihead' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
