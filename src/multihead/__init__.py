"""multihead: multi-head attention you can see through."""

from multihead import errors, masks, torch_compat
from multihead.core import Measurements, Statistics
from multihead.functional import attention, inspect
from multihead.layer import MultiHeadAttention
from multihead.lens import Seen, observe
from multihead.recording import Layer, Link, Recording, load
from multihead.version import __version__

__all__ = [
    "Layer",
    "Link",
    "Measurements",
    "MultiHeadAttention",
    "Recording",
    "Seen",
    "Statistics",
    "__version__",
    "attention",
    "errors",
    "inspect",
    "load",
    "masks",
    "observe",
    "torch_compat",
]
