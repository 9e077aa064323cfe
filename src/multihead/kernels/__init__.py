"""What computes attention. A kernel answers a call or refuses it with the reason; ``choose`` decides between them."""

from multihead.kernels.choose import (
    KERNELS,
    attend,
    attend_with_statistics,
    attend_with_weights,
    choose,
    explain,
    explain_measuring,
    measure,
)
from multihead.kernels.dense import mean_weights, weights

__all__ = [
    "KERNELS",
    "attend",
    "attend_with_statistics",
    "attend_with_weights",
    "choose",
    "explain",
    "explain_measuring",
    "mean_weights",
    "measure",
    "weights",
]
