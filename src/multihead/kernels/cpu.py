"""Output and statistics on a CPU in one pass, by compiled code over torch's own threads.

``native/compiled`` is what each thread does; ``native/request.py`` turns a call into addresses and sizes, and
``native/answers.py`` what was found into :class:`~multihead.core.Measurements`. The code is compiled when it is first
used, and kept on disk where that is possible.
"""

import torch
from torch import Tensor

from multihead.core import AttentionCall, Measurements, Statistics
from multihead.kernels import chunked
from multihead.kernels.native.jobs import UNITS, strands
from multihead.kernels.native.load import compiled_code
from multihead.kernels.native.platform import platform
from multihead.kernels.native.request import TILE, Request, jobs_of, keeps_exponentials, scratch_bytes
from multihead.masks import Sizes

NAME = "cpu"


def refuses(call: AttentionCall) -> str | None:
    """Why this kernel cannot compute a call."""
    if call.q.device.type != "cpu" or call.q.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return "it is for float32, bfloat16 and float16 on a CPU"
    if call.learns:
        return "it has no backward"
    if call.dropout:
        return "it has no dropout"
    if not (call.q.numel() and call.k.numel() and call.v.numel()):
        return "some axis is empty"
    return _missing()


def _missing() -> str | None:
    """Why this kernel cannot run here at all."""
    for found in (platform(), compiled_code()):
        if isinstance(found, str):
            return found
    return None


def attend(call: AttentionCall) -> Tensor:
    """The output of a call, (B, H, Lq, Dv).

    Memory: the output, and a tile of scores for each thread.
    """
    output, _ = measure(call, Statistics.only(), output=True)
    assert output is not None  # noqa: S101  it was asked for
    return output.to(call.q.dtype)


@torch.no_grad()
def measure(
    call: AttentionCall, statistics: Statistics, *, queries: Tensor | None = None, output: bool = False
) -> tuple[Tensor | None, Measurements]:
    """As :func:`multihead.kernels.measure`; NaN and inf among the scores or values are left to ``chunked``.

    Memory: the answers, and for each thread up to 2048 packed keys and a tile of scores, or the scores of 128 queries
    and all keys where statistics of keys are asked for. Sums have the same bits with any number of threads.
    """
    statistics.check(call.sizes, queries)
    request = Request(call, statistics, queries, output=output)
    if not request.run():
        return chunked.measure(call, statistics, queries=queries, output=output)
    return request.output, request.measurements()


def working_bytes(sizes: Sizes, dim: int, value_dim: int, statistics: Statistics) -> int:
    """Bytes that measuring takes for a while beside its operands and answers, at most; 0 where nothing runs here."""
    if _missing():
        return 0
    heads, keys = sizes.batch * sizes.heads, sizes.keys
    kept = keeps_exponentials(statistics)
    # lse, peak, entropy and sink are made whether they were asked for or not
    found = scratch_bytes(keys, dim, value_dim, kept=kept) + 16 * heads * sizes.queries
    jobs = jobs_of(sizes, statistics, sizes.queries, kept=kept)
    if statistics.received:
        found += 8 * heads * keys * (strands(len(jobs), heads, keys) + 3)
    found += 8 * (UNITS + heads) * len(statistics.edges(sizes))
    if statistics.own:
        found += 4 * max(TILE, heads * keys * jobs.longest)
    if statistics.blocks is not None:
        a_cell = 3 * 8 + 4 * statistics.block_peaks
        found += a_cell * heads * len(jobs.pieces()) * -(-keys // statistics.blocks[1])
    return found


@torch.no_grad()
def attend_with_weights(call: AttentionCall, *, mean: bool) -> tuple[Tensor, Tensor] | None:
    """The output, (B, H, Lq, Dv), and the weights of all pairs from the same pass.

    Args:
        call: the attention.
        mean: whether the weights are averaged over heads, (B, Lq, Lk), rather than (B, H, Lq, Lk).

    Returns:
        Both; None where NaN or inf was met.
    """
    request = Request(call, Statistics.only(), output=True, weights="mean" if mean else "each")
    if not request.run():
        return None
    weights = request.mean if mean else request.each
    assert request.output is not None and weights is not None  # noqa: S101, PT018  they were asked for
    return request.output.to(call.q.dtype), weights
