"""multihead: multi-head attention you can see through."""

from multihead import masks
from multihead.core import Measurements, Statistics
from multihead.functional import attention, inspect
from multihead.version import __version__

__all__ = [
    "Measurements",
    "Statistics",
    "__version__",
    "attention",
    "inspect",
    "masks",
]
