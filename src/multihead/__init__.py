"""multihead: multi-head attention you can see through."""

from multihead import errors, masks, torch_compat
from multihead.core import Measurements, Statistics
from multihead.functional import attention, inspect
from multihead.layer import MultiHeadAttention
from multihead.version import __version__

__all__ = [
    "Measurements",
    "MultiHeadAttention",
    "Statistics",
    "__version__",
    "attention",
    "errors",
    "inspect",
    "masks",
    "torch_compat",
]
