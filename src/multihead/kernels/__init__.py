"""What computes attention. A kernel answers a call or refuses it with the reason; ``choose`` decides between them."""

from multihead.kernels.choose import KERNELS, attend, choose, explain
from multihead.kernels.chunked import measure
from multihead.kernels.dense import mean_weights, weights

__all__ = ["KERNELS", "attend", "choose", "explain", "mean_weights", "measure", "weights"]
