"""A few queries against many keys, as in decoding: two matrix products that read keys and values once.

With one query there is nothing to fuse: the time is that of reading the cache. Folding the query heads of a group into
rows lets one product read each key for all of them, where SDPA on a CPU reads it once a head (measured in
``benchmarks/decoding.py``).
"""

from torch import Tensor

from multihead.core import AttentionCall
from multihead.kernels.dense import by_formula
from multihead.kernels.tiles import grouped_matmul

NAME = "steps"

QUERIES = 4
"""Most queries of a step."""

KEYS = 1 << 18
"""Numbers in the keys below which calling four operations costs more than reading twice."""

_FEW = f"it is for at most {QUERIES} queries against many keys"


def refuses(call: AttentionCall) -> str | None:
    """Why this kernel should not compute a call."""
    if call.q.shape[2] > QUERIES or call.k.numel() < KEYS:
        return _FEW
    if call.q.device.type != "cpu" or call.q.dtype.itemsize < 4:
        return "it is for float32 and float64 on a CPU"
    if call.learns or call.dropout:
        return "it is for inference"
    return None


def attend(call: AttentionCall) -> Tensor:
    """The output of a call, (B, H, Lq, Dv).

    Memory: O(B · H · Lk), for the few queries there are.
    """
    return grouped_matmul(by_formula(call), call.v)
